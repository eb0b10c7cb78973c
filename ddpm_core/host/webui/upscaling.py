"""The host's own upscalers; and Pillow's filters, where the host has them not among its own (Forge Neo)."""

from __future__ import annotations

from modules import images, shared
from PIL import Image

from ...operations.pictures import FILTERS, enlarge_plainly
from ...requests import OWN_UPSCALER

_CROP_AND_RESIZE = 1  # as in the host's img2img: where the proportions differ the edges are cut


def upscalers() -> list[str]:
    """Names of what the host can enlarge with, the plainest first."""
    return [*FILTERS, *(name for name in _theirs() if name not in FILTERS)]


def _theirs() -> list[str]:
    return [
        upscaler.name
        for upscaler in shared.sd_upscalers
        if upscaler.name != "None"
        and not upscaler.name.startswith(OWN_UPSCALER)  # ours are listed with the workspace's
    ]


def enlarge(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image | None:
    """Called with the queue's lock held: an upscaler may be a network. None where Interrupt or Skip cut it short.

    The host's upscalers heed its flags, which may be left from something that ended long ago: then they would do
    nothing, and say nothing.
    """
    if upscaler in FILTERS and upscaler not in _theirs():
        return enlarge_plainly(image, size, upscaler)
    state = shared.state
    before = state.interrupted, state.skipped
    state.interrupted = state.skipped = False
    try:
        found: Image.Image = images.resize_image(_CROP_AND_RESIZE, image, *size, upscaler_name=upscaler)
        return None if state.interrupted or state.skipped else found
    finally:
        state.interrupted, state.skipped = before[0] or state.interrupted, before[1] or state.skipped
