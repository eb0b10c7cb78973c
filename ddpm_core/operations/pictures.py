"""Pictures of many."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ..evaluation.neighbours import to_image


def make_grid(images: Tensor, columns: int | None = None, gap: int = 0) -> Image.Image:
    """uint8 (N, 3, H, W) as one picture, ``columns`` wide (default: about square)."""
    count, _, height, width = images.shape
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (128, 128, 128))
    for i in range(count):
        canvas.paste(to_image(images[i]), (i % columns * (width + gap), i // columns * (height + gap)))
    return canvas
