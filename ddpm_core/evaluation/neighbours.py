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


def nearest(
    samples: Tensor, training: Tensor, rows: Tensor | None = None, *, candidates: int = 8, chunk: int = 2048
) -> Neighbours:
    """Nearest neighbours of samples (N, C, H, W) in [-1, 1] among training pictures (M, C, H, W), uint8 or in [-1, 1], M >= 2;
    ``rows``: int64 indices of those to look at, all by default.

    Distances are root mean squares over pixels; a training picture and its mirror image are one. Nearly equal training
    pictures are one too, or a copied duplicate would hide behind its twin. Memory is bounded by ``chunk`` pictures.
    """
    x = samples.flatten(1).float()
    root = x.shape[1] ** 0.5
    best: list[tuple[Tensor, Tensor, Tensor]] = []  # distance, index, mirrored: the candidates of each chunk
    rows = torch.arange(len(training), device="cpu") if rows is None else rows
    for some in torch.split(rows, chunk):
        part = _floats(training[some])
        plain = torch.cdist(x, part.flatten(1)) / root
        mirror = torch.cdist(x, part.flip(3).flatten(1)) / root
        ordered, index = torch.minimum(plain, mirror).topk(min(candidates, len(part)), largest=False)
        best.append((ordered, some.to(index.device)[index], mirror.gather(1, index) < plain.gather(1, index)))
    distance, index, mirrored = (torch.cat(parts, 1) for parts in zip(*best))
    order = distance.argsort(1)[:, :candidates]
    distance, index, mirrored = (values.gather(1, order) for values in (distance, index, mirrored))
    first = index[:, 0]
    d2 = distance[:, -1].clone()
    for rank in range(distance.shape[1] - 1, 0, -1):
        a, b = _floats(training[first]), _floats(training[index[:, rank]])
        direct, turned = (a - b).square().flatten(1).mean(1), (a - b.flip(3)).square().flatten(1).mean(1)
        d2 = torch.where(torch.minimum(direct, turned).sqrt() > _TWIN, distance[:, rank], d2)
    return Neighbours(first, mirrored[:, 0], distance[:, 0], d2)


def _floats(images: Tensor) -> Tensor:
    return images.float().div(127.5).sub(1.0) if images.dtype == torch.uint8 else images.float()


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
