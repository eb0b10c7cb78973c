"""What an upscaler is shown and what it answers, as arithmetic on images (N, C, H, W) in [-1, 1].

The small image is the large one averaged over squares of ``factor`` pixels. It is enlarged by bicubic interpolation, and the network denoises
what is missing: (large - enlarged) * gain. The enlarged image is given to it with noise of a known level (conditioning augmentation, Ho et
al. 2022), so that it does not believe every pixel of an image that another network made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import UpscalerConfig

# of the enlarged image in training: noise levels 0 to this; half of the images are also blurred by that many of their small pixels
MOST_NOISE = 0.3
BLURS = (0.4, 0.8)
_MARGIN = (
    3  # small pixels around a crop by which its enlarged image knows what lies outside, as it does within a whole one
)


def shrink(large: Tensor, factor: int) -> Tensor:
    """(N, C, H, W) to (N, C, H / factor, W / factor) by averaging."""
    return F.avg_pool2d(large, factor)


def enlarge(small: Tensor, factor: int) -> Tensor:
    """(N, C, h, w) to (N, C, h * factor, w * factor), bicubic (Keys, a = -0.75), the border repeated."""
    return F.interpolate(small, scale_factor=float(factor), mode="bicubic", align_corners=False)


def noised(enlarged: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Variance-preserving: sqrt(1 - level^2) enlarged + level noise; ``level`` (N,) in 0 to 1."""
    share = level[:, None, None, None]
    return (1.0 - share**2).sqrt() * enlarged + share * noise


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch: ``tops``, ``lefts`` (N,) int64 of the crops in small pixels; ``levels`` (N,) of noise; ``blurs`` (N,)
    Gaussian sigmas in small pixels, 0 for none; ``noise`` (N, C, crop, crop)."""

    tops: Tensor
    lefts: Tensor
    levels: Tensor
    blurs: Tensor
    noise: Tensor


def draw(
    config: UpscalerConfig, size: tuple[int, int], count: int, numbers: torch.Generator, noise: torch.Generator
) -> Draws:
    """For ``count`` images of a size (H, W); ``numbers``: a CPU generator, ``noise``: one on the device of the images."""
    side = config.crop_size // config.factor

    def places(length: int) -> Tensor:
        return torch.randint(length // config.factor - side + 1, (count,), generator=numbers, device="cpu")

    tops, lefts = places(size[0]), places(size[1])
    levels, share, which = torch.rand((3, count), generator=numbers, device="cpu")
    blurs = (BLURS[0] + (BLURS[1] - BLURS[0]) * share) * (which < 0.5)
    shape = (count, config.out_channels, config.crop_size, config.crop_size)
    return Draws(tops, lefts, MOST_NOISE * levels, blurs, torch.randn(shape, generator=noise, device=noise.device))


def example(config: UpscalerConfig, large: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
    """Crops of large images (N, C, H, W): what is to be denoised, (N, C, crop, crop), and what the network is told of it."""
    factor, crop = config.factor, config.crop_size
    side = crop // factor
    small = F.pad(shrink(large, factor), (_MARGIN,) * 4, mode="replicate")
    places = list(zip(draws.tops.tolist(), draws.lefts.tolist()))
    around = side + 2 * _MARGIN
    small = torch.stack([one[:, y : y + around, x : x + around] for one, (y, x) in zip(small, places)])
    corners = [(factor * y, factor * x) for y, x in places]
    whole = torch.stack([one[:, y : y + crop, x : x + crop] for one, (y, x) in zip(large, corners)])
    small = blurred(small, draws.blurs.to(small.device))
    inside = slice(_MARGIN * factor, _MARGIN * factor + crop)
    enlarged = enlarge(small, factor)[:, :, inside, inside]
    levels = draws.levels.to(large.device)
    low = noised(enlarged, levels, draws.noise)
    return (whole - enlarged) * config.gain, {"low": low, "level": levels}


def blurred(images: Tensor, sigmas: Tensor) -> Tensor:
    """Each image by a Gaussian of its own sigma (N,) in pixels, at most 1; 0 leaves it as it is."""
    n, c, height, width = images.shape
    offsets = torch.arange(-2, 3, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigmas.clamp_min(1e-3)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(c, 0)
    flat = F.pad(images, (2, 2, 2, 2), mode="replicate").reshape(1, n * c, height + 4, width + 4)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * c)
    return F.conv2d(flat, kernel[:, None, :, None], groups=n * c).view(n, c, height, width)


def consistent(large: Tensor, small: Tensor, factor: int) -> Tensor:
    """``large`` changed as little and as smoothly as it takes to shrink to ``small`` (back-projection, Irani & Peleg 1991)."""
    for _ in range(3):
        large = large + enlarge(small - shrink(large, factor), factor)
    rest = small - shrink(large, factor)  # hardly anything: exactly, by squares
    return large + rest.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
