"""Checks that are certain: a picture that fails one is rejected by itself. What is only unusual is in suspects.py."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .reading import Rejected

# reason codes and what the tab calls them
REASONS = {
    "undecodable": "Not a readable image",
    "too_small": "Too small",
    "extreme_aspect": "Too long and narrow",
    "bomb": "Too large to decode",
    "blank": "Blank",
    "noise": "Noise",
    "duplicate": "Exact duplicate",
    "user": "Rejected by you",
}

_BLANK_DEVIATION = 3.0  # of 255; the flattest of real pictures are far above
_FINE, _COARSE = 32, 16


def check_content(image: Image.Image) -> None:
    """Raise Rejected for a picture without content: one colour, or noise."""
    pixels = np.asarray(image, dtype=np.float32)
    deviation = float(pixels.std((0, 1)).max())
    if deviation < _BLANK_DEVIATION:
        colour = "black" if pixels.mean() < 8 else "white" if pixels.mean() > 247 else "one colour"
        raise Rejected(
            "blank", f"The picture is all {colour}." if colour != "one colour" else "The picture is of one colour."
        )
    # Pictures of anything are smooth from afar: shrunk to 32 and to 16 pixels, neighbours are alike (0.4 and more).
    # Noise, fine or in blocks of several pixels, stays noise at any distance (about 0).
    fine, coarse = (neighbour_correlation(image, side) for side in (_FINE, _COARSE))
    if fine < 0.1 and coarse < 0.15:
        raise Rejected(
            "noise",
            f"The picture is noise: neighbouring areas have nothing in common (correlation {max(fine, 0.0):.2f}).",
        )


def neighbour_correlation(image: Image.Image, side: int) -> float:
    """Mean correlation of horizontal and vertical neighbours, -1..1, after area-shrinking to side x side."""
    small = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float64)
    total = 0.0
    for left, right in ((small[:, 1:], small[:, :-1]), (small[1:], small[:-1])):
        left = left - left.mean((0, 1))
        right = right - right.mean((0, 1))
        total += float((left * right).sum() / max(np.sqrt((left**2).sum() * (right**2).sum()), 1e-9))
    return total / 2
