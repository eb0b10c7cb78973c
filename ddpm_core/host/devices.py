"""Choosing a device by name, for the hosts that have no opinion of their own."""

from __future__ import annotations

import torch

from ..errors import UserError


def best_device() -> torch.device:
    """CUDA or ROCm, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def parse_device(name: str | None) -> torch.device:
    """The device of that name (``cpu``, ``cuda``, ``cuda:1``, ``mps``); None or ``auto`` is the best there is."""
    if name in (None, "", "auto"):
        return best_device()
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise UserError(f"There is no device {name!r}; use cpu, cuda, cuda:1 or mps.") from None
    available = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if str(device) not in available:
        raise UserError(f"The device {name} is not in this machine; it has: {', '.join(available)}.")
    return device
