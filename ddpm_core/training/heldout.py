"""Loss by timestep band with fixed noise: what tells learning from copying long before the samples do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..model.diffusion import Diffusion, uint8_to_model
from ..model.loss import loss_per_image
from ..model.network import Network
from ..model.values import Values, dense
from .objective import pair_losses
from .random import generator
from .tasks import Denoising, Task

# fractions of the timesteps: fine detail is decided at low noise, layout at high noise
BANDS = (0.0, 0.05, 0.2, 0.5, 1.0)
MOST_IMAGES = 128


def band_names(total: int) -> list[str]:
    """Names of the bands of ``total`` timesteps, such as 0-49."""
    edges = [round(b * total) for b in BANDS]
    return [f"{low}-{high - 1}" for low, high in zip(edges, edges[1:])]


PAIRS = "pairs"


def pair_loss(
    net: Network,
    images: Tensor,
    words: Values,
    *,
    dtype: torch.dtype,
    gpu_slice: Callable[[], AbstractContextManager[object]],
) -> dict[str, float]:
    """InfoNCE of uint8 images (N, C, H, W) with all their words, compared with each other, as the only band."""
    images = images[:MOST_IMAGES]
    with gpu_slice(), torch.no_grad():
        some = uint8_to_model(images.to(net.device)).to(dtype)
        tags = dense(words)[: len(images)].to(net.device)
        contrast: Any = net
        return {PAIRS: float(pair_losses(net, contrast.embed_images(some), tags, tags).mean())}


def loss_by_band(
    net: Network,
    diffusion: Diffusion,
    images: Tensor,
    *,
    kind: str,
    dtype: torch.dtype,
    gpu_slice: Callable[[], AbstractContextManager[object]],
    batch_size: int = 64,
    told: Mapping[str, Values] | None = None,
    task: Task | None = None,
) -> dict[str, float]:
    """Mean unweighted loss of uint8 images (N, C, H, W) in each band; the same noise and timesteps at every call.

    ``told``: values of the network's conditions for each image; ``task``: what the network learns, by default to denoise images.
    """
    device = diffusion.alphas_cumprod.device
    images, task = images[:MOST_IMAGES], task or Denoising()
    total = diffusion.config.timesteps
    edges = [round(b * total) for b in BANDS]
    result: dict[str, float] = {}
    for band, name in enumerate(band_names(total)):
        draw = generator("cpu", 99, band)
        low, high = edges[band], edges[band + 1]
        times = low + (torch.rand(len(images), generator=draw, device="cpu") * (high - low)).long()
        noise = torch.randn((len(images), *task.shape(images)), generator=draw, device="cpu")
        losses = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            with gpu_slice(), torch.no_grad():
                some = uint8_to_model(images[part].to(device))
                x0, own = task.prepare(some, len(some), slice(None), 99, band, start)
                t, eps = times[part].to(device), noise[part].to(device)
                values = {name: dense(value[part]).to(device) for name, value in (told or {}).items()}
                output = net(diffusion.add_noise(x0, eps, t).to(dtype), t, told={**own, **values})
                losses.append(loss_per_image(kind, output, diffusion.target(x0, eps, t)).cpu())
        result[name] = float(torch.cat(losses).mean())
    return result
