"""Pictures of many, and pictures brought to another size."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..evaluation.neighbours import to_image

MOST_PIXELS = 4096  # a side of what samples are brought to
MOST_FACTOR = 16
NATIVE = "None (native size)"  # what a list of upscalers offers first
FILTERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}

# picture, (width, height), name of an upscaler -> the picture in that size; None where a person cut it short
Enlarge = Callable[[Image.Image, "tuple[int, int]", str], "Image.Image | None"]


@dataclass(frozen=True)
class Enlarging:
    """How samples are brought to another size: by an upscaler, to ``factor`` times their own or to ``size`` (w, h)."""

    upscaler: str
    factor: float = 1.0
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= MOST_FACTOR:
            raise UserError(f"Images can be upscaled 1 to {MOST_FACTOR} times; got {self.factor:g}.")

    def target(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) of a sample of that native size."""
        found = self.size or (round(width * self.factor), round(height * self.factor))
        if not all(1 <= side <= MOST_PIXELS for side in found):
            raise UserError(f"Images can be at most {MOST_PIXELS} pixels on a side; choose a smaller factor.")
        return found


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


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """Enlarge a small picture by a whole factor to about ``side`` pixels, pixels staying visible."""
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()
