"""What a training shows of itself: images from fixed noise by the averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model.config import ContrastConfig, UpscalerConfig
from ..model.diffusion import model_to_uint8, uint8_to_model
from ..model.upscaling import shrink
from ..model.values import Values, dense
from ..sampling.generate import SampleSettings, generate
from ..sampling.guidance import Asked, ToldNetwork
from ..sampling.upscale import UpscaleSettings, upscale
from .trainer import Trainer

COUNT = 8
STEPS = 12
_UPSCALED = 3  # images of an upscaler's preview, each three times
_ALIKE, _MOST_SEARCHED = 4, 256  # images beside each of an encoder's preview, of so many


@dataclass(frozen=True)
class Held:
    """Images that are not trained on, uint8 (N, C, H, W), and what there is to tell of each."""

    images: Tensor
    told: Mapping[str, Values] = field(default_factory=dict)


def preview(trainer: Trainer, held: Held, gpu_slice: Callable[[], AbstractContextManager[object]]) -> Tensor:
    """uint8 (N, C, H, W). A model with words is asked for those of images that are held out, if any are; of an upscaler the small image,
    its answer and the real one, side by side; of an image-text encoder images, each beside those most like it."""

    def network(x: Tensor, timesteps: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
        with gpu_slice():
            return trainer.ema(x, timesteps, told=told)  # type: ignore[no-any-return]

    config = trainer.config.model
    if isinstance(config.unet, ContrastConfig):
        with gpu_slice(), torch.no_grad():
            return _alike(trainer, held.images if len(held.images) > _ALIKE else trainer.batches.some(_MOST_SEARCHED))
    steps = min(STEPS, config.diffusion.timesteps)
    if isinstance(config.unet, UpscalerConfig):
        large = held.images[:_UPSCALED] if len(held.images) else trainer.batches.some(_UPSCALED)
        real = uint8_to_model(large)
        small, factor = shrink(real, config.unet.factor), config.unet.factor
        found = upscale(
            network,
            trainer.diffusion,
            config.unet,
            small,
            range(len(real)),
            UpscaleSettings(steps),
            dtype=trainer.dtype,
        )
        assert found is not None  # nothing stops it
        squares = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return model_to_uint8(torch.cat([squares, found.cpu(), real], dim=3))
    if trainer.tuning is not None:
        return _with_and_without(trainer, network, steps)
    some = trainer.batches.some_told(COUNT)
    if len(held.images) >= COUNT:
        some = {name: dense(values[:COUNT]) for name, values in held.told.items()}
    enough = {name: values for name, values in some.items() if len(values) >= COUNT}
    return model_to_uint8(_sampled(trainer, network, COUNT, steps, enough))


def _alike(trainer: Trainer, images: Tensor) -> Tensor:
    """Of an image-text encoder: an image, and beside it those that are most like it in its space."""
    net: Any = trainer.ema
    images = images[:_MOST_SEARCHED]
    vectors = net.embed_images(uint8_to_model(images.to(trainer.device)).to(trainer.dtype))
    rows = vectors[:_UPSCALED] @ vectors.T
    found = rows.topk(min(_ALIKE + 1, len(images)), dim=1).indices.cpu()
    return torch.stack([torch.cat(list(images[row]), dim=2) for row in found])


def _with_and_without(trainer: Trainer, network: ToldNetwork, steps: int) -> Tensor:
    """Of an adapter: images asked for the words of the new ones, and from the same noise without the concept (or, where there is none, nothing)."""
    assert trainer.tuning is not None
    half, config = COUNT // 2, trainer.config.model
    told = {name: dense(values) for name, values in trainer.batches.some_told(half).items()}
    told = {
        name: values.repeat(-(-half // len(values)), *(1 for _ in values.shape[1:]))[:half]
        for name, values in told.items()
    }
    without = {name: torch.zeros_like(values) for name, values in told.items()}
    if concept := trainer.tuning.settings.adapter.concept:
        without = {name: values.clone() for name, values in told.items()}
        without["tags"][:, config.tags.index(concept)] = 0.0
    return model_to_uint8(torch.cat([_sampled(trainer, network, half, steps, asked) for asked in (told, without)]))


def _sampled(trainer: Trainer, network: ToldNetwork, count: int, steps: int, asked: Mapping[str, Tensor]) -> Tensor:
    """So many images from the noise of all previews."""
    images, _ = generate(
        network,
        trainer.diffusion,
        trainer.config.model.denoised,
        count,
        SampleSettings(steps=steps, seed=1000),
        dtype=trainer.dtype,
        asked=Asked(asked) if asked else None,
    )
    return images
