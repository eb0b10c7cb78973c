"""Samplers as data: what the command line, the tab and the API offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import samplers


@dataclass(frozen=True)
class Sampler:
    """A sampler as offered to a person: its function, how many steps suit it, and whether it is a multistep solver."""

    name: str
    label: str
    function: Callable[..., Tensor]
    default_steps: int
    solver: bool = False
    uses_eta: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    full_only: bool = False


SAMPLERS: dict[str, Sampler] = {
    s.name: s
    for s in (
        Sampler("dpmpp_2m", "DPM++ 2M", samplers.dpmpp_2m, 20, solver=True),
        Sampler("ddim", "DDIM", samplers.ddim, 50, uses_eta=True),
        Sampler("unipc", "UniPC", samplers.unipc, 12, solver=True),
        Sampler("ddpm", "DDPM", samplers.ddpm, 1000),
        Sampler(
            "ddpm_large",
            "DDPM large variance",
            samplers.ddpm,
            1000,
            options=(("variance", "fixed_large"),),
            full_only=True,
        ),
    )
}
DEFAULT_SAMPLER = "dpmpp_2m"
