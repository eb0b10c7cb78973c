"""Enlarging images by an upscaler: the residual of the plainly enlarged image is sampled, in tiles where it is large."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..model.config import UpscalerConfig
from ..model.diffusion import Diffusion
from ..model.upscaling import MOST_NOISE, consistent, enlarge, noised
from ..requests import UPSCALER_NOISE, UPSCALER_STEPS
from .denoiser import Denoiser
from .generate import ImageNoise
from .guidance import ToldNetwork
from .samplers import dpmpp_2m

TILE = 256  # pixels of the large image
OVERLAP = 64


@dataclass(frozen=True)
class UpscaleSettings:
    """``steps``: network calls; ``noise``: level of the noise that the enlarged image is given (0 for what is sharp and right, more for samples
    of another network); ``start``: share of the timesteps from which the sampling begins, on the residual of nothing."""

    steps: int = UPSCALER_STEPS
    noise: float = UPSCALER_NOISE
    start: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise UserError(f"An upscaler takes 1 to 1000 steps; got {self.steps}.")
        if not 0.0 <= self.noise <= MOST_NOISE:
            raise UserError(f"The noise augmentation must be between 0 and {MOST_NOISE:g}; got {self.noise:g}.")
        if not 0.0 < self.start <= 1.0:
            raise UserError(f"The start must be above 0 and at most 1; got {self.start:g}.")

    def times(self, total: int) -> list[int]:
        """Decreasing timesteps of a process of ``total``."""
        first = max(self.steps, round(self.start * total))
        if self.steps > total:
            raise UserError(f"The number of steps must be at most {total}, the model's own number; got {self.steps}.")
        return [round(first * (self.steps - i) / self.steps) - 1 for i in range(self.steps)]


def upscale(
    network: ToldNetwork,
    diffusion: Diffusion,
    config: UpscalerConfig,
    small: Tensor,
    seeds: Sequence[int],
    settings: UpscaleSettings,
    *,
    dtype: torch.dtype = torch.float32,
    tile: int = TILE,
    stop: threading.Event | None = None,
    progress: Callable[[int, int, Tensor], None] = lambda done, total, images: None,
) -> Tensor | None:
    """``small`` (N, 3, h, w) in [-1, 1] to (N, 3, h * factor, w * factor) in [-1, 1], which shrink to it again; None where it was stopped.

    ``seeds``: one for each image, which with the image decides its result. ``tile``: pixels of a side, above which the network is called on
    overlapping tiles of one and the same state, so that they have no seams and its memory stays bounded.
    """
    n, channels, height, width = small.shape
    if len(seeds) != n:
        raise ValueError("one seed for each image")
    device = diffusion.alphas_cumprod.device
    small = small.float().to(device)
    unit = config.stride // math.gcd(config.stride, config.factor)  # of small pixels
    right, down = -width % unit, -height % unit
    padded = F.pad(small, (0, right, 0, down), mode="replicate")
    enlarged = enlarge(padded, config.factor)
    shape = (channels, enlarged.shape[2], enlarged.shape[3])
    noise = ImageNoise(seeds, shape, device)
    first = noise()
    level = torch.full((n,), settings.noise, device=device)
    low = noised(enlarged, level, noise())
    times = settings.times(diffusion.config.timesteps)

    def tiled(x: Tensor, t: Tensor) -> Tensor:
        return in_tiles(network, x, t, low, level, tile, config.stride)

    def after_step(step: int, x: Tensor, x0: Tensor) -> bool:
        progress(step + 1, len(times), (enlarged + x0 / config.gain).clamp(-1.0, 1.0))
        return stop is not None and stop.is_set()

    denoiser = Denoiser(tiled, diffusion, clip=False, dtype=dtype)
    state = (1.0 - denoiser.alpha_bar(times[0])).sqrt().to(device) * first
    with torch.no_grad():
        residual = dpmpp_2m(denoiser, state, times, noise=noise, callback=after_step)
        if denoiser.calls < len(times):
            return None
        large = enlarged + residual.float() / config.gain
        large = large[:, :, : height * config.factor, : width * config.factor].clamp(-1.0, 1.0)
        return consistent(large, small, config.factor).clamp(-1.0, 1.0)


def in_tiles(
    network: ToldNetwork, x: Tensor, times: Tensor, low: Tensor, level: Tensor, tile: int, stride: int
) -> Tensor:
    """The network's answer to x (N, C, H, W), from overlapping tiles whose weights fall off towards their borders."""
    height, width = x.shape[2:]
    if height <= tile and width <= tile:
        return network(x, times, told={"low": low, "level": level})
    tile = max(2 * stride, tile // stride * stride)
    overlap = min(OVERLAP, tile // 2)
    total = torch.zeros(x.shape, device=x.device, dtype=torch.float32)
    weights = torch.zeros((1, 1, height, width), device=x.device)
    for top in starts(height, tile, overlap, stride):
        for left in starts(width, tile, overlap, stride):
            place = (slice(None), slice(None), slice(top, top + tile), slice(left, left + tile))
            part = x[place]
            told: Mapping[str, Tensor] = {"low": low[place], "level": level}
            weight = ramp(part.shape[2], overlap, x.device)[:, None] * ramp(part.shape[3], overlap, x.device)[None, :]
            total[place] += weight * network(part, times, told=told).float()
            weights[place] += weight
    return (total / weights).to(x.dtype)


def starts(length: int, tile: int, overlap: int, stride: int) -> list[int]:
    """Where tiles begin, multiples of ``stride``, so that they cover a length and overlap at least so much."""
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [(length - tile) * i // (count - 1) // stride * stride for i in range(count)]


def ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """Weights along a side: 1 inside, falling linearly towards either end."""
    distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)).float() + 1.0
    return (distance / (overlap + 1)).clamp(max=1.0).to(device)
