"""Did it learn or copy: the nearest training pictures of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEMORISED_RATIO = 1 / 3
_TWIN = 10.0 / 127.5  # training pictures nearer than this (RMS, range -1..1) count as one


@dataclass(frozen=True)
class Neighbours:
    """For each sample the index of the nearest training picture (N,), its distance d1 and that to the second, d2."""

    index: Tensor
    mirrored: Tensor
    d1: Tensor
    d2: Tensor

    @property
    def memorised(self) -> Tensor:
        """(N,) bool: d1/d2 < 1/3 (Yoon et al. 2023; Bonnaire et al. 2025)."""
        return self.d1 < MEMORISED_RATIO * self.d2


def nearest(samples: Tensor, training: Tensor, *, candidates: int = 8) -> Neighbours:
    """Nearest neighbours of samples (N, C, H, W) among training pictures (M, C, H, W), both in [-1, 1], M >= 2.

    Distances are root mean squares over pixels; a training picture and its mirror image are one. Nearly equal training
    pictures are one too, or a copied duplicate would hide behind its twin.
    """
    x = samples.flatten(1).float()
    d = x.shape[1]
    plain = torch.cdist(x, training.flatten(1).float()) / d**0.5
    mirror = torch.cdist(x, training.flip(3).flatten(1).float()) / d**0.5
    distance = torch.minimum(plain, mirror)
    ordered, index = distance.topk(min(candidates, distance.shape[1]), largest=False)
    first = index[:, 0]
    d2 = ordered[:, -1].clone()
    for rank in range(ordered.shape[1] - 1, 0, -1):
        a, b = training[first], training[index[:, rank]]
        apart = torch.minimum((a - b).square().flatten(1).mean(1), (a - b.flip(3)).square().flatten(1).mean(1)).sqrt()
        d2 = torch.where(apart > _TWIN, ordered[:, rank], d2)
    rows = torch.arange(len(x))
    return Neighbours(first, mirror[rows, first] < plain[rows, first], ordered[:, 0], d2)


def picture(samples: Tensor, training: Tensor, found: Neighbours, *, count: int = 16, scale: int = 96) -> Image.Image:
    """Samples in the upper row, each above its nearest training picture; the most copied first.

    ``samples`` and ``training`` are uint8 (N, 3, H, W). Memorised pairs have a red bar between them, others a green one.
    """
    order = (found.d1 / found.d2.clamp_min(1e-9)).argsort()[:count].tolist()
    height, width = samples.shape[-2:]
    w, h = scale, max(1, round(scale * height / width))
    bar = 6
    columns = min(8, len(order))
    rows = -(-len(order) // columns)
    canvas = Image.new("RGB", (columns * (w + 4), rows * (2 * h + bar + 8)), (128, 128, 128))
    for place, i in enumerate(order):
        left, top = place % columns * (w + 4), place // columns * (2 * h + bar + 8)
        near = training[int(found.index[i])]
        if found.mirrored[i]:
            near = near.flip(2)
        canvas.paste(to_image(samples[i]).resize((w, h), Image.Resampling.NEAREST), (left, top))
        canvas.paste(to_image(near).resize((w, h), Image.Resampling.NEAREST), (left, top + h + bar))
        canvas.paste((220, 60, 60) if found.memorised[i] else (80, 170, 90), (left, top + h, left + w, top + h + bar))
    return canvas


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) with 1 or 3 channels to a picture."""
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
