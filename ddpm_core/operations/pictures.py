"""Pictures of many, and pictures brought to another size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..evaluation.neighbours import to_image

FILTERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}

# picture, (width, height), name of an upscaler -> the picture in that size; None where a person cut it short
Enlarge = Callable[[Image.Image, "tuple[int, int]", str], "Image.Image | None"]


def enlarge_plainly(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    """Bring a picture to a size with one of Pillow's filters; where the proportions differ the edges are cut."""
    if upscaler not in FILTERS:
        raise UserError(f"There is no upscaler {upscaler!r}; choose one of: {', '.join(FILTERS)}.")
    return ImageOps.fit(image, size, FILTERS[upscaler])


def make_grid(images: Tensor, columns: int | None = None, gap: int = 0) -> Image.Image:
    """uint8 (N, 3, H, W) as one picture, ``columns`` wide (default: about square)."""
    count, _, height, width = images.shape
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (128, 128, 128))
    for i in range(count):
        canvas.paste(to_image(images[i]), (i % columns * (width + gap), i // columns * (height + gap)))
    return canvas


def pixels_of(image: Image.Image) -> Tensor:
    """An image as uint8 (3, H, W)."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())


def grid_of(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures of one size as one; of several (an upscaling was cut short) each in the first one's."""
    size = pictures[0].size
    same = [one if one.size == size else one.resize(size, Image.Resampling.NEAREST) for one in pictures]
    pixels = torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in same])).permute(0, 3, 1, 2)
    return make_grid(pixels, columns)


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """Enlarge a small picture by a whole factor to about ``side`` pixels, pixels staying visible."""
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    """An image as a lightly compressed PNG."""
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()
