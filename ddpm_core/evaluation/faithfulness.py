"""Whether an upscaler draws detail without inventing: how far what it made agrees with the small image it was given and with real ones.

Images are (N, 3, H, W) in [-1, 1]; small ones are averages over squares of ``factor`` pixels of the large.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..model.upscaling import shrink


def consistency_db(large: Tensor, small: Tensor, factor: int) -> float:
    """Peak signal-to-noise ratio in dB of the shrunken result to the small image it came from (peak to peak 2)."""
    error = float((shrink(large, factor) - small).double().square().mean())
    return float(10 * np.log10(4.0 / max(error, 1e-12)))


def spectrum_ratio(large: Tensor, real: Tensor, factor: int) -> float:
    """Power of the grey image beyond what a small image can hold (above its Nyquist frequency in x or y), over that of the real images."""

    def power(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        spectrum = torch.fft.fft2(images.double().mean(1)).abs().square()
        rows, columns = torch.fft.fftfreq(height, device="cpu").abs(), torch.fft.fftfreq(width, device="cpu").abs()
        beyond = torch.maximum(rows[:, None], columns[None, :]) > 0.5 / factor
        found: Tensor = spectrum[:, beyond].mean()
        return found

    return float(power(large) / power(real).clamp_min(1e-12))


def colour_drift(large: Tensor, real: Tensor) -> float:
    """Largest difference of a channel's mean over all images, in steps of 255."""
    return float((large.double().mean((0, 2, 3)) - real.double().mean((0, 2, 3))).abs().max() * 127.5)


def diversity(several: Tensor, factor: int) -> tuple[float, float]:
    """Of (S, N, 3, H, W), N images enlarged with S seeds: the deviation over seeds of a pixel, and of the shrunken image's, in steps of 255. The
    second is what must not vary: it is given."""
    pixels = several.double().std(0).mean()
    coarse = torch.stack([shrink(one, factor) for one in several]).double().std(0).mean()
    return float(pixels * 127.5), float(coarse * 127.5)


def lanczos(small: Tensor, factor: int) -> Tensor:
    """What enlarging without knowing anything gives."""
    size = (small.shape[3] * factor, small.shape[2] * factor)
    planes = [
        np.array(Image.fromarray(np.asarray(plane)).resize(size, Image.Resampling.LANCZOS))
        for plane in small.float().flatten(0, 1)
    ]
    return torch.from_numpy(np.stack(planes)).view(*small.shape[:2], size[1], size[0]).clamp(-1.0, 1.0)
