"""Chooses how a training step is computed: variants that differ in speed and rounding only."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..model import ways
from ..model.ways import Ways


@dataclass(frozen=True)
class How:
    """``network``: kernels of the network; ``captured``: replay the step as a CUDA graph (``captured.py``); ``flat``: keep all
    weights in one tensor and update them with our own kernels (``flat.py``); ``aside``: gradients of parameters on a second
    stream (``model/aside.py``), and Muon's products on several."""

    network: Ways
    captured: bool = False
    flat: bool = False
    aside: bool = False


def plain(device: torch.device) -> How:
    """PyTorch's own kernels, launched one by one."""
    return How(ways.plain(device))


def fastest(device: torch.device, precision: str) -> How:
    """The fastest variant that works on a device that nobody else uses.

    Our kernels take long to launch from Python, so they pay only in a captured step.
    """
    network = ways.best(device)
    if not network.fused or precision == "fp16":  # GradScaler reads from the device
        return plain(device)
    return How(network, captured=True, flat=True, aside=True)
