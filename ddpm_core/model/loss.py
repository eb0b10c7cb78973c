"""Training losses: a distance and a weight by timestep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # whoever only offers the names need not wait for it
    from .diffusion import Diffusion


LOSSES = ("mse", "l1", "huber")
WEIGHTINGS = ("uniform", "min-snr")


def loss_per_image(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Mean distance of each image, (N, C, H, W) twice to (N,) float32; huber has its knee at 1."""
    output, target = output.float(), target.float()
    if kind == "mse":
        values = F.mse_loss(output, target, reduction="none")
    elif kind == "l1":
        values = F.l1_loss(output, target, reduction="none")
    else:
        values = F.huber_loss(output, target, reduction="none", delta=1.0)
    return values.flatten(1).mean(1)


def timestep_weights(kind: str, diffusion: Diffusion, gamma: float = 5.0) -> Tensor:
    """Weight of each timestep, (T,) float32.

    min-snr (Hang et al. 2023, eq. 8 and appendix): min(SNR, gamma) on the x0 loss, which is min(SNR, gamma)/SNR on
    epsilon's and min(SNR, gamma)/(SNR + 1) on v's; 1 where the SNR is 0, or that timestep would never be learnt.
    """
    snr = diffusion.snr
    if kind == "uniform":
        return torch.ones_like(snr)
    clipped = snr.clamp(max=gamma)
    weights = diffusion.prediction.weight(snr, clipped)
    return torch.where(snr == 0, torch.ones_like(weights), weights)
