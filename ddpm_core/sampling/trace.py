"""Every step of a sampling, kept to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.diffusion import Diffusion
from .denoiser import Denoiser, Network
from .generate import ImageNoise, SampleSettings


@dataclass
class Trace:
    """Of n images: ``times`` of the S steps; ``states`` (S + 1, n, C, H, W), the noise first; ``guesses`` (S, n, C, H, W): the image
    predicted at each step; all in [-1, 1] or, for noise, beyond it, on the CPU. ``alpha_bars`` (S + 1): those of the states."""

    times: list[int]
    states: Tensor
    guesses: Tensor
    alpha_bars: list[float]

    def steps(self) -> list[tuple[float, float]]:
        """Of each step (c_x, c_0): next state = c_x state + c_0 guess (DDIM, Song et al. 2021, eq. 12 with eta 0)."""
        found = []
        for a, after in zip(self.alpha_bars, self.alpha_bars[1:]):
            kept = (1 - after) ** 0.5 / (1 - a) ** 0.5
            found.append((kept, after**0.5 - kept * a**0.5))
        return found


def trace(
    network: Network,
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    settings: SampleSettings,
    seeds: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Trace:
    """Sample an image from each seed, as ``generate``, and keep what lies between."""
    device = diffusion.alphas_cumprod.device
    times = settings.times(diffusion.config.timesteps)
    noise = ImageNoise(seeds, shape, device)
    denoiser = Denoiser(network, diffusion, clip=settings.clip, dtype=dtype)
    definition = settings.definition
    options = {**dict(definition.options), **({"eta": settings.eta} if definition.uses_eta else {})}
    state = noise.first()
    states, guesses = [state.cpu()], []

    def after_step(step: int, x: Tensor, x0: Tensor) -> None:
        states.append(x.float().cpu())
        guesses.append(x0.float().cpu())

    with torch.no_grad():
        definition.function(denoiser, state, times, noise=noise, callback=after_step, **options)
    alpha_bars = [float(denoiser.alpha_bar(t)) for t in [*times, -1]]
    return Trace(times, torch.stack(states), torch.stack(guesses), alpha_bars)
