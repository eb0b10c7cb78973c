"""Which timesteps a sampler visits (Lin et al. 2023, table 2), the same lists as diffusers' schedulers."""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from ..options import SPACINGS


def timesteps(spacing: str, steps: int, total: int, *, solver: bool = False) -> list[int]:
    """``steps`` timesteps in 0..total-1, decreasing.

    trailing ends the first step at pure noise and is right for few steps; leading is DDPM's and DDIM's original;
    ``solver``: multistep solvers (DPM-Solver++, UniPC) space leading and linspace over one point more and drop the last,
    because they end at the clean image themselves.
    """
    if not 1 <= steps <= total:
        raise UserError(
            f"The number of sampling steps must be between 1 and {total}, the model's own number; got {steps}."
        )
    if spacing == "trailing":
        points = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
    elif spacing == "leading":
        # one point more does not fit when every timestep is visited
        intervals = steps + 1 if solver and steps < total else steps
        points = (np.arange(0, intervals) * (total // intervals)).round()[::-1]
        points = points[:steps]
    elif spacing == "linspace":
        count = steps + 1 if solver else steps
        points = np.linspace(0, total - 1, count).round()[::-1][:steps]
    else:
        raise UserError(f"There is no timestep spacing {spacing!r}; choose one of: {', '.join(SPACINGS)}.")
    chosen = [int(p) for p in points]
    # rounding can repeat a timestep when nearly all are visited; a repeated step would divide by zero
    return [t for i, t in enumerate(chosen) if i == 0 or t < chosen[i - 1]]
