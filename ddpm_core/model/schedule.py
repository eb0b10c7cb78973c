"""Noise schedules: float32 tables of ``betas`` and ``alphas_cumprod``, equal to diffusers' to 1e-6."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import DiffusionConfig


def make_betas(config: DiffusionConfig) -> Tensor:
    """The variances of the forward process, (T,) float32 in (0, 1].

    linear: Ho et al. 2020. quadratic: linear in sqrt(beta), Rombach et al. 2022 ("scaled_linear").
    cosine: Nichol & Dhariwal 2021, eq. 17, capped at 0.999. sigmoid: Xu et al. 2022 (GeoDiff).
    """
    steps, start, end = config.timesteps, config.beta_start, config.beta_end
    if config.schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32, device="cpu")
    elif config.schedule == "quadratic":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32, device="cpu") ** 2
    elif config.schedule == "sigmoid":
        ramp = torch.linspace(-6.0, 6.0, steps, dtype=torch.float32, device="cpu")
        betas = torch.sigmoid(ramp) * (end - start) + start
    else:

        def alpha_bar(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        values = [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)]
        betas = torch.tensor(values, dtype=torch.float32, device="cpu")
    if config.zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    return betas


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that the last is 0 and the first stays (Lin et al. 2023, algorithm 1)."""
    root = (1.0 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    alphas = torch.cat([alpha_bar[0:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1.0 - alphas


def make_alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """abar_t = prod_{s<=t} (1 - beta_s), (T,) float32, decreasing."""
    return (1.0 - make_betas(config)).cumprod(0)
