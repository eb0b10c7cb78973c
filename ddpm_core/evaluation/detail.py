"""Detail: whether small pieces of samples look like pieces of real images, at their own size.

KID (``features.py``) brings every image to 32 pixels, where a blur and the truth are alike. Here features are taken from squares of
32 pixels as they are, without their coarse part: on portraits of 128 pixels the truth scores below a light blur, that below an enlargement
by Lanczos, that below a strong blur, and noise above all (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import RandomFeatures

CROP = 32
PER_IMAGE = 12
_COARSE = 4  # what an average over so many pixels keeps is left to KID


@dataclass(frozen=True)
class Pieces:
    """Features (N * 12, d) of pieces, and the image that each is of, (N * 12,) int64."""

    features: Tensor
    groups: Tensor


def crops_of(images: Tensor, seed: int = 0) -> Tensor:
    """(N, C, H, W) to (N * 12, C, 32, 32), at random places; the sides are at least 32."""
    n, _, height, width = images.shape
    random = torch.Generator(device="cpu").manual_seed(seed)
    tops = torch.randint(height - CROP + 1, (n, PER_IMAGE), generator=random, device="cpu").tolist()
    lefts = torch.randint(width - CROP + 1, (n, PER_IMAGE), generator=random, device="cpu").tolist()
    return torch.stack(
        [image[:, y : y + CROP, x : x + CROP] for image, ys, xs in zip(images, tops, lefts) for y, x in zip(ys, xs)]
    )


def fine(images: Tensor) -> Tensor:
    """Images (N, C, H, W) without what is left of them in squares of 4 pixels."""
    coarse = F.avg_pool2d(images, _COARSE)
    return images - F.interpolate(coarse, scale_factor=float(_COARSE), mode="bilinear", align_corners=False)


def detail_features(images: Tensor, seed: int = 0) -> Pieces:
    """Of images (N, 3, H, W) in [-1, 1]."""
    crops = crops_of(images, seed)
    groups = torch.arange(len(images), device="cpu").repeat_interleave(PER_IMAGE)
    return Pieces(RandomFeatures(images.shape[1], CROP)(fine(crops)), groups)
