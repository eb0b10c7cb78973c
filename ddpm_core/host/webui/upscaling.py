"""The host's own upscalers."""

from __future__ import annotations

from modules import images, shared
from PIL import Image

_PLAINEST = ("Lanczos", "Nearest")
_CROP_AND_RESIZE = 1  # as in the host's img2img: where the proportions differ the edges are cut


def upscalers() -> list[str]:
    """Names of what the host can enlarge with, the plainest first."""
    names = [upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"]
    return [*(n for n in _PLAINEST if n in names), *(n for n in names if n not in _PLAINEST)]


def enlarge(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    """Called with the queue's lock held: an upscaler may be a network."""
    found: Image.Image = images.resize_image(_CROP_AND_RESIZE, image, *size, upscaler_name=upscaler)
    return found
