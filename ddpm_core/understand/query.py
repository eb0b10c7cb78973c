"""What a page asks, as its address says it; and what is sent to it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model.diffusion import model_to_uint8
from ..operations.pictures import make_grid, png

_MOST_TEXT = 2000
_NOISE_REACH = 2.5  # standard deviations from mid grey to black or white


class Query:
    """Values by name, all text, from anyone: what cannot be is refused in a sentence."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, key: str, default: str = "") -> str:
        """A text of at most 2,000 characters."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or len(value) > _MOST_TEXT:
            raise UserError(f"The request's {key} is no text, or too long.")
        return value

    def whole(self, key: str, low: int, high: int, default: int) -> int:
        """A whole number, brought into its bounds."""
        value = self._values.get(key, default)
        try:
            return min(max(int(str(value)), low), high)
        except ValueError:
            raise UserError(f"The request's {key} is no whole number.") from None

    def one_of(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of some words."""
        value = self.text(key, default) or default
        if value not in choices:
            raise UserError(f"The request's {key} must be one of: {', '.join(choices)}.")
        return value

    def noise(self, shape: tuple[int, ...], key: str = "seed") -> Tensor:
        """Standard normal noise of a shape, by the seed that is asked for."""
        generator = torch.Generator(device="cpu").manual_seed(self.whole(key, 0, 2**32 - 1, 0))
        return torch.randn(shape, generator=generator, device="cpu")


def shown(images: Tensor, columns: int | None = None) -> str:
    """Images (N, C, H, W), uint8 or in [-1, 1] (clipped), side by side as a PNG's data URL; ``columns`` of them in a row."""
    pixels = images if images.dtype == torch.uint8 else model_to_uint8(images)
    picture = make_grid(pixels, columns=columns or len(pixels))
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def as_noise(images: Tensor) -> Tensor:
    """Values around 0 with a spread of about 1, to be shown: 0 is mid grey."""
    return images / _NOISE_REACH


def as_state(states: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """States alpha x0 + sigma noise, to be shown: an image alone as it is, noise alone as :func:`as_noise`, both mixed alike."""
    return states / (alpha + _NOISE_REACH * sigma)


def as_map(errors: Tensor, most: float) -> Tensor:
    """Errors (N, C, H, W) as (N, 3, H, W) in [-1, 1]: their size over the channels from black (0) by red to yellow (``most`` and more)."""
    share = (errors.float().pow(2).mean(1, keepdim=True).sqrt() / max(most, 1e-9)).clamp(0, 1)
    return torch.cat([(2 * share).clamp(max=1), (2 * share - 1).clamp(min=0), torch.zeros_like(share)], dim=1) * 2 - 1


def rms(values: Tensor) -> float:
    """Root of the mean square."""
    return float(values.float().pow(2).mean().sqrt())
