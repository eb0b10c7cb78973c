"""The forward process and the three things a network can predict.

With a = alphas_cumprod[t]:  x_t = sqrt(a) x0 + sqrt(1-a) eps  (Ho et al. 2020, eq. 4)  and
v = sqrt(a) eps - sqrt(1-a) x0  (Salimans & Ho 2022, appendix D).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import DiffusionConfig
from .schedule import make_alphas_cumprod


class Diffusion:
    """Tables of one diffusion process on one device. Images are (N, C, H, W) in [-1, 1], timesteps (N,) in 0..T-1."""

    def __init__(self, config: DiffusionConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.alphas_cumprod = make_alphas_cumprod(config).to(device)
        self.sqrt_alpha = self.alphas_cumprod.sqrt()
        self.sqrt_one_minus_alpha = (1.0 - self.alphas_cumprod).sqrt()
        self.snr = self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    def _coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self.sqrt_alpha[timesteps][:, None, None, None], self.sqrt_one_minus_alpha[timesteps][
            :, None, None, None
        ]

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t, a draw from q(x_t | x0)."""
        alpha, sigma = self._coefficients(timesteps)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should answer at x_t: ``noise``, v or ``x0``."""
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "x0":
            return x0
        alpha, sigma = self._coefficients(timesteps)
        return alpha * noise - sigma * x0

    def to_x0_and_epsilon(self, output: Tensor, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The network's answer at (x, t) as a predicted image and the noise that goes with it."""
        alpha, sigma = self._coefficients(timesteps)
        return to_x0_and_epsilon(self.config.prediction, output, x, alpha, sigma)


def to_x0_and_epsilon(
    prediction: str, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Convert a prediction to (x0, epsilon). ``alpha`` = sqrt(abar_t), ``sigma`` = sqrt(1 - abar_t), broadcastable."""
    if prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x - alpha * output) / sigma
    return alpha * x - sigma * output, alpha * output + sigma * x


def from_x0_and_epsilon(prediction: str, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The inverse of :func:`to_x0_and_epsilon`: what a network of this prediction type would have answered."""
    if prediction == "epsilon":
        return epsilon
    if prediction == "x0":
        return x0
    return alpha * epsilon - sigma * x0


def uint8_to_model(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def model_to_uint8(images: Tensor) -> Tensor:
    """Float (N, C, H, W) in [-1, 1] (clipped) to uint8, rounding to nearest."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
