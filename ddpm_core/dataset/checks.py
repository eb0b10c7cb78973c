"""Checks that are certain: a picture that fails one is rejected by itself. What is only unusual is in suspects.py."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .reading import Rejected

USUAL_SMALLEST = 32  # pixels; a dataset of smaller pictures is settled as a whole (store.settle_sizes)
_BLANK_RANGE = 3  # of 255, lightest to darkest: no picture of anything, however pale, has so little
_SIDE = 32
_NOISE_LIKENESS = 0.25
_NOISE_CALM = 0.1
_NOISE_COLOUR = 0.6
_NOISE_STRENGTH = 8.0  # of 255; full noise of 2048 pixels still has that when it is shrunk to 256


def check_size(width: int, height: int) -> None:
    """Raise Rejected for a picture smaller than those that anybody usually trains on; it can be kept all the same."""
    if min(width, height) < USUAL_SMALLEST:
        raise Rejected(
            "too_small", f"{width}x{height} is smaller than {USUAL_SMALLEST} pixels; keep it to train at its size."
        )


def check_content(image: Image.Image) -> None:
    """Raise Rejected for a picture without content, which nobody can have meant: one colour, or coloured noise.

    Whatever somebody could have drawn or photographed passes, were it snow, stars, gravel or fog: it is only ranked.
    """
    extrema = [channel if isinstance(channel, tuple) else (0, 0) for channel in image.getextrema()]
    if all(high - low <= _BLANK_RANGE for low, high in extrema):
        darkest, lightest = min(low for low, _ in extrema), max(high for _, high in extrema)
        colour = "black" if lightest < 8 else "white" if darkest > 247 else ""
        raise Rejected("blank", f"The image is all {colour}." if colour else "The image is of one colour.")
    # Shrunk to 32 pixels, a picture of anything has areas that resemble others: neighbours, or the next stripe of a
    # pattern. Noise resembles itself nowhere. But so do confetti and starry skies; these have calm areas between. And
    # textures without (gravel, film grain) are not of every colour at random.
    likeness = self_likeness(image)
    if likeness < _NOISE_LIKENESS and calm_share(image) < _NOISE_CALM:
        strength, colourful = contrast_and_colour(image)
        if strength > _NOISE_STRENGTH and colourful > _NOISE_COLOUR:
            raise Rejected("noise", f"The image is noise: no area of it resembles another (likeness {likeness:.2f}).")


def calm_share(image: Image.Image) -> float:
    """The share of pixels, 0..1, that differ from their right neighbour by less than a fourth of the deviation."""
    pixels = np.asarray(image, dtype=np.float32)
    most = float(np.max(pixels.std(axis=(0, 1)))) / 4
    return float((np.abs(np.diff(pixels, axis=1)).max(2) < most).mean())


def contrast_and_colour(image: Image.Image) -> tuple[float, float]:
    """The largest standard deviation of a channel, 0..255, and the largest of two channels' difference, as a part of it.

    The second is 0 for grey, 1.4 for channels that know nothing of each other, and half of that once chroma was halved.
    """
    pixels = np.asarray(image, dtype=np.float32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    strength = float(np.max(pixels.std(axis=(0, 1))))
    return strength, max(float((red - green).std()), float((blue - green).std())) / max(strength, 1e-6)


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
