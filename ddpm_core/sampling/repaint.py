"""Inpainting that goes parts of the way several times: RePaint (Lugmayr et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .denoiser import Denoiser
from .samplers import Callback, Noise

JUMP = 5  # steps gone back at once


def way(count: int, jump: int, resamples: int) -> list[int]:
    """Numbers of the steps, in the order in which they are gone: a step forward by its number, a step back as -1 - its number.

    As ``RePaintScheduler.set_timesteps`` of diffusers: every ``jump`` steps as many are gone back and forth again, until each of these parts
    was gone ``resamples`` times.
    """
    left = dict.fromkeys(range(0, count - jump, jump), resamples - 1)
    found: list[int] = []
    at = count
    while at >= 1:
        at -= 1
        found.append(count - 1 - at)
        if left.get(at, 0) > 0:
            left[at] -= 1
            for _ in range(jump):
                found.append(-1 - (count - 1 - at))
                at += 1
    return found


def repaint(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    *,
    images: Tensor,
    mask: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.0,
    resamples: int = 2,
    jump: int = JUMP,
) -> Tensor:
    """Algorithm 1, with DDIM's step (``eta`` 0 to 1) for the part that is drawn (``mask`` 1); as in diffusers, whose mask means the reverse.

    Signature of ``samplers``; ``noise`` is asked once for each step, forward or back.
    """
    levels = [*times, -1]
    for number, step in enumerate(way(len(times), jump, resamples)):
        if step < 0:
            a, a_back = denoiser.alpha_bar(levels[-step]), denoiser.alpha_bar(levels[-1 - step])
            x = (a_back / a).sqrt() * x + (1 - a_back / a).sqrt() * noise(number)
            continue
        x0, epsilon = denoiser(x, levels[step])
        a, a_next = denoiser.alpha_bar(levels[step]), denoiser.alpha_bar(levels[step + 1])
        spread = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        fresh = noise(number)
        drawn = a_next.sqrt() * x0 + (1 - a_next - spread**2).clamp_min(0.0).sqrt() * epsilon + spread * fresh
        x = mask * drawn + (1 - mask) * (a_next.sqrt() * images + (1 - a_next).sqrt() * fresh)
        if callback is not None and callback(number, x, mask * x0 + (1 - mask) * images):
            break
    return x
