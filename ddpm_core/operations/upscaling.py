"""Enlarging images by an upscaler of the workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError, is_out_of_memory
from ..evaluation.neighbours import to_image
from ..model import file as model_file
from ..model.build import network_of
from ..model.config import UpscalerConfig
from ..model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from ..requests import MOST_PIXELS, OWN_UPSCALER
from ..sampling.upscale import TILE, UpscaleSettings, upscale
from ..training import precision
from ..workspace import Workspace
from .context import Context
from .loading import Adapters, with_adapters

_LEAST_TILE = 64


class Upscaler:
    """One, loaded on a context's device. ``factor``: how many times it enlarges at once."""

    def __init__(self, workspace: Workspace, name: str, context: Context, adapters: Adapters = ()) -> None:
        loaded = model_file.load(workspace.model_path(name))
        if not isinstance(loaded.config.unet, UpscalerConfig):
            raise UserError(
                f"{name} makes images and enlarges none; choose an upscaler, or train one (preset upscale-4x)."
            )
        _, weights = with_adapters(workspace, name, loaded.config, loaded.weights, adapters, context)
        self._config, self._context = loaded.config.unet, context
        self.factor = self._config.factor
        device = context.device
        with context.gpu_slice():
            self._network = network_of(loaded.config, weights, device)
            self._diffusion = Diffusion(loaded.config.diffusion, device)
        self._dtype = precision.of_sampling(device)

    def __call__(self, images: Tensor, seeds: Sequence[int], settings: UpscaleSettings) -> Tensor | None:
        """uint8 (N, 3, h, w) to uint8 (N, 3, h * factor, w * factor); None where it was stopped. Where memory runs out, smaller tiles."""
        context = self._context

        def network(x: Tensor, timesteps: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
            with context.gpu_slice():
                return self._network(x, timesteps, told=told)  # type: ignore[no-any-return]

        small, tile = uint8_to_model(images), TILE
        while True:
            try:
                found = upscale(
                    network,
                    self._diffusion,
                    self._config,
                    small,
                    seeds,
                    settings,
                    dtype=self._dtype,
                    tile=tile,
                    stop=context.stop,
                    progress=lambda done, total, _: context.progress(done, total, "Upscaling"),
                )
                return None if found is None else model_to_uint8(found).cpu()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or tile <= _LEAST_TILE:
                    raise
            tile //= 2
            if context.device.type == "cuda":
                torch.cuda.empty_cache()

    def enlarge(
        self, image: Image.Image, size: tuple[int, int], seed: int, settings: UpscaleSettings
    ) -> Image.Image | None:
        """An image brought to a size (width, height): enlarged as often as that takes, then resized to it; None where it was stopped. Where the
        proportions differ the edges are cut, before anything is enlarged."""
        if max(size) > MOST_PIXELS:
            raise UserError(f"Images can be at most {MOST_PIXELS} pixels on a side; choose a smaller factor.")
        image = image.convert("RGB")
        scale = min(image.width / size[0], image.height / size[1])
        inside = (
            max(1, round(scale * size[0])),
            max(1, round(scale * size[1])),
        )  # the largest part of these proportions
        image = ImageOps.fit(image, inside, Image.Resampling.LANCZOS) if inside != image.size else image
        # the last step beyond what is bearable is Lanczos'
        while image.width < size[0] and max(image.size) * self.factor <= MOST_PIXELS:
            pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
            found = self(pixels, [seed], settings)
            if found is None:
                return None
            image = to_image(found[0])
        return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def own_upscaler(upscaler: str) -> str | None:
    """The name of the model, where an entry of the list of upscalers is one of ours."""
    return upscaler[len(OWN_UPSCALER) :] if upscaler.startswith(OWN_UPSCALER) else None
