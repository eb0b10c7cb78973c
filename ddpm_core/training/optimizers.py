"""Makes the optimizer and the loss scaler of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .muon import Muon
from .settings import TrainSettings
from .state import Trainables


def make_optimizer(
    trainables: Trainables, settings: TrainSettings, rate: Tensor | None, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """AdamW, or Muon for the hidden matrices. ``rate``: a tensor that holds the learning rate, for a captured step; ``dtype`` of
    Muon's products."""
    hidden = [one.parameter for one in trainables if one.hidden]
    rest = _adamw([one.parameter for one in trainables if not one.hidden], settings, rate)
    return Muon(hidden, rest, settings.muon_ratio, dtype=dtype) if hidden else rest


def _adamw(parameters: list[nn.Parameter], settings: TrainSettings, rate: Tensor | None) -> torch.optim.AdamW:
    options = {
        "lr": settings.learning_rate if rate is None else rate,
        "betas": (settings.beta1, settings.beta2),
        "weight_decay": settings.weight_decay,
        "capturable": rate is not None,
    }
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)  # type: ignore[arg-type]
    except RuntimeError:  # torch before 2.4 has it for CUDA only
        return torch.optim.AdamW(parameters, foreach=True, **options)  # type: ignore[arg-type]


def make_scaler(device: torch.device) -> Any:
    """A ``torch.amp.GradScaler``, which torch before 2.3 has for CUDA only and under another name."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler()
