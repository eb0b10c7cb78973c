"""The forward process. With a = alphas_cumprod[t]:  x_t = sqrt(a) x0 + sqrt(1-a) eps  (Ho et al. 2020, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import DiffusionConfig
from .prediction import PREDICTIONS
from .schedule import make_alphas_cumprod


class Diffusion:
    """Tables of one diffusion process on one device. Images are (N, C, H, W) in [-1, 1], timesteps (N,) in 0..T-1."""

    def __init__(self, config: DiffusionConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.prediction = PREDICTIONS[config.prediction]
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
        """What the network should answer at x_t, like ``x0``."""
        alpha, sigma = self._coefficients(timesteps)
        return self.prediction.target(x0, noise, alpha, sigma)

    def to_x0_and_epsilon(self, output: Tensor, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The network's answer at (x, t) as a predicted image and the noise that goes with it."""
        alpha, sigma = self._coefficients(timesteps)
        return self.prediction.to_x0_and_epsilon(output, x, alpha, sigma)


def uint8_to_model(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def model_to_uint8(images: Tensor) -> Tensor:
    """Float (N, C, H, W) in [-1, 1] (clipped) to uint8, rounding to nearest."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
