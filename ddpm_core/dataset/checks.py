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
_SIDE = 32
_NOISE_LIKENESS = 0.25


def check_content(image: Image.Image) -> None:
    """Raise Rejected for a picture without content: one colour, or noise."""
    mean, deviation = statistics(image)
    if deviation < _BLANK_DEVIATION:
        colour = "black" if mean < 8 else "white" if mean > 247 else "one colour"
        raise Rejected(
            "blank", f"The picture is all {colour}." if colour != "one colour" else "The picture is of one colour."
        )
    # Shrunk to 32 pixels, a picture of anything has areas that resemble others: neighbours, or the next stripe of a
    # pattern. Noise, fine or in blocks of several pixels, resembles itself nowhere.
    likeness = self_likeness(image)
    if likeness < _NOISE_LIKENESS:
        raise Rejected("noise", f"The picture is noise: no area of it resembles another (likeness {likeness:.2f}).")


def statistics(image: Image.Image) -> tuple[float, float]:
    """Mean of all values and the largest standard deviation of a channel, 0..255, of an RGB picture; by its histogram."""
    counts = np.asarray(image.histogram(), dtype=np.float64).reshape(3, 256)
    values = np.arange(256.0)
    total = counts[0].sum()
    means = counts @ values / total
    variances = counts @ values**2 / total - means**2
    return float(means.mean()), float(np.sqrt(variances.max().clip(0.0)))


def self_likeness(image: Image.Image) -> float:
    """The largest autocorrelation, 0..1, over all shifts but none, of the picture area-shrunk to 32x32 (Wiener-Khinchin).

    White noise has about 0.1 (the largest of a thousand values around 0), pictures 0.4 and more.
    """
    small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    half = np.fft.rfft2(small - small.mean((0, 1)), axes=(0, 1))
    correlation = np.fft.irfft2((half.real**2 + half.imag**2).sum(2), s=(_SIDE, _SIDE))
    correlation /= max(correlation[0, 0], 1e-12)
    correlation[0, 0] = 0.0
    return float(np.abs(correlation).max())
