"""What a network can predict at x_t = alpha x0 + sigma eps, where alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t).

Each class says what is the training's target, how an answer becomes an image and noise, and what the squared error weighs. All tensors
broadcast against (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a configuration knows the names, and must not wait for torch
    from torch import Tensor


class Prediction(Protocol):
    """One of :data:`PREDICTIONS`; ``in_diffusers``: its name there."""

    in_diffusers: str

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer; also what it would have answered for a given image and noise."""
        ...

    def to_x0_and_epsilon(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """An answer at ``x`` as a predicted image and the noise that goes with it."""
        ...

    def weight(self, snr: Tensor, clipped: Tensor) -> Tensor:
        """``clipped`` is the weight on the squared error of x0; the same on that of this prediction (Hang et al. 2023, appendix)."""
        ...


class Epsilon:
    """The noise (Ho et al. 2020, eq. 14)."""

    in_diffusers = "epsilon"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return epsilon

    def to_x0_and_epsilon(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Twice (N, C, H, W)."""
        return (x - sigma * output) / alpha, output

    def weight(self, snr: Tensor, clipped: Tensor) -> Tensor:
        """(T,)."""
        return clipped / snr


class Velocity:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)."""

    in_diffusers = "v_prediction"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return alpha * epsilon - sigma * x0

    def to_x0_and_epsilon(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Twice (N, C, H, W)."""
        return alpha * x - sigma * output, alpha * output + sigma * x

    def weight(self, snr: Tensor, clipped: Tensor) -> Tensor:
        """(T,)."""
        return clipped / (snr + 1.0)


class Image:
    """x0 itself."""

    in_diffusers = "sample"

    def target(self, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return x0

    def to_x0_and_epsilon(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Twice (N, C, H, W)."""
        return output, (x - alpha * output) / sigma

    def weight(self, snr: Tensor, clipped: Tensor) -> Tensor:
        """(T,)."""
        return clipped


PREDICTIONS: Mapping[str, Prediction] = {"epsilon": Epsilon(), "v": Velocity(), "x0": Image()}
