"""Classifier-free guidance (Ho & Salimans 2022): towards what is asked, away from what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..model.values import Values, dense
from .denoiser import Network

DEFAULT_SCALE, MOST_SCALE = 2.0, 30.0
# The share of the timesteps inside which guidance acts. At the cleanest it adds nothing (Kynkäänniemi et al. 2024); at the noisiest, where
# they leave it off, too, colours and layout are decided, which is what words are about here (benchmarks/RESULTS.md).
BAND = (0.1, 1.0)


class ToldNetwork(Protocol):
    """A network that can be told something beside its images, as ``UNet``."""

    def __call__(self, x: Tensor, timesteps: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
        """(N, C, H, W) and (N,) to (N, C, H, W)."""


@dataclass(frozen=True)
class Asked:
    """What images are asked for: values of conditions by name, each (n, ...); ``negative`` what they shall not be, alike, or nothing.

    ``scale`` w: the answer is u + w (c - u), of the answers c to what is asked and u to ``negative``, which makes two network calls in
    one inside ``band``; outside of it, and with w = 1, the answer is c.
    """

    told: Mapping[str, Values]
    negative: Mapping[str, Values] | None = None
    scale: float = DEFAULT_SCALE
    band: tuple[float, float] = BAND

    def network(self, network: ToldNetwork, rows: slice, timesteps: int, device: torch.device) -> Network:
        """The network for the images ``rows``; ``timesteps`` of the diffusion process in all."""
        told = {name: dense(values[rows]).to(device) for name, values in self.told.items()}
        against = {name: torch.zeros_like(values) for name, values in told.items()}
        against |= {name: dense(values[rows]).to(device) for name, values in (self.negative or {}).items()}
        low, high = (round(edge * timesteps) for edge in self.band)

        def guided(x: Tensor, times: Tensor) -> Tensor:
            if self.scale == 1.0 or not low <= int(times[0]) < high:
                return network(x, times, told=told)
            both = {name: torch.cat([values, against[name]]) for name, values in told.items()}
            answer = network(torch.cat([x, x]), torch.cat([times, times]), told=both)
            positive, negative = answer.float().chunk(2)
            return negative + self.scale * (positive - negative)

        return guided
