"""Samplers, each a pure function over a denoiser.

Common signature: ``sampler(denoiser, x, times, noise=..., callback=..., ...) -> images``; x is (N, C, H, W) standard
normal noise at ``times[0]``; ``times`` are decreasing integer timesteps; ``noise(i)`` gives the fresh standard normal
(N, C, H, W) that step i adds; ``callback(i, x, x0)`` is called after step i with the state and the predicted image,
and ends the sampling by returning True. Each makes one network call a step. Images come out in [-1, 1] (clipped by
the denoiser).

Notation: a = abar_t, a' = abar of the next (smaller) timestep, alpha = sqrt(a), sigma = sqrt(1 - a),
lambda = log(alpha / sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from .denoiser import Denoiser

Noise = Callable[[int], Tensor]
Callback = Callable[[int, Tensor, Tensor], "bool | None"]


def _pairs(times: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(times, [*times[1:], -1]))


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    *,
    noise: Noise,
    callback: Callback | None = None,
    variance: str = "fixed_small",
) -> Tensor:
    """Ancestral sampling, Ho et al. 2020, algorithm 2 and eq. 7.

    ``variance``: fixed_small is the posterior's beta~, fixed_large is beta; the latter only for the full number of steps.
    """
    for i, (t, after) in enumerate(_pairs(times)):
        x0, _ = denoiser(x, t)
        a, a_next = denoiser.alpha_bar(t), denoiser.alpha_bar(after)
        alpha_step = a / a_next
        beta_step = 1 - alpha_step
        x = (a_next.sqrt() * beta_step / (1 - a)) * x0 + (alpha_step.sqrt() * (1 - a_next) / (1 - a)) * x
        if after >= 0:
            spread = beta_step if variance == "fixed_large" else (1 - a_next) / (1 - a) * beta_step
            x = x + spread.clamp_min(1e-20).sqrt() * noise(i)
        if callback is not None and callback(i, x, x0):
            break
    return x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[int],
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Song et al. 2021 (DDIM), eq. 12 and 16; ``eta`` 0 is deterministic, 1 adds as much noise as DDPM."""
    for i, (t, after) in enumerate(_pairs(times)):
        x0, epsilon = denoiser(x, t)
        a, a_next = denoiser.alpha_bar(t), denoiser.alpha_bar(after)
        spread = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        x = a_next.sqrt() * x0 + (1 - a_next - spread**2).clamp_min(0.0).sqrt() * epsilon
        if eta > 0 and after >= 0:
            x = x + spread * noise(i)
        if callback is not None and callback(i, x, x0):
            break
    return x


ZERO_ALPHA_BAR = 2.0**-24


def _half_log_snr(alpha_bar: Tensor) -> tuple[float, float, float]:
    """(alpha, sigma, lambda); a zero-SNR end is lifted to abar = 2^-24 so that lambda stays finite, as diffusers does."""
    a = float(alpha_bar) or ZERO_ALPHA_BAR
    sigma = math.sqrt(1 - a)
    return math.sqrt(a), sigma, math.inf if sigma == 0 else math.log(math.sqrt(a) / sigma)


def dpmpp_2m(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2 (midpoint); first order in the first and the last step."""
    previous: tuple[float, Tensor] | None = None
    for i, (t, after) in enumerate(_pairs(times)):
        x0, _ = denoiser(x, t, ZERO_ALPHA_BAR)
        _, sigma, lam = _half_log_snr(denoiser.alpha_bar(t))
        alpha_next, sigma_next, lam_next = _half_log_snr(denoiser.alpha_bar(after))
        h = lam_next - lam
        estimate = x0
        if previous is not None and math.isfinite(h):
            r = (lam - previous[0]) / h
            estimate = x0 + (x0 - previous[1]) / (2 * r)
        x = (sigma_next / sigma) * x - alpha_next * math.expm1(-h) * estimate
        previous = (lam, x0)
        if callback is not None and callback(i, x, x0):
            break
    return x


def unipc(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """UniPC, Zhao et al. 2023, algorithms 5 and 6: order 2, B(h) = exp(h) - 1 ("bh2"), data prediction.

    Each step first corrects the state it arrived at with the new prediction there, then predicts the next.
    """
    history: list[tuple[float, Tensor]] = []  # (lambda, x0) of the last two steps, newest last
    arrived: Tensor | None = None  # the corrected state that the newest history entry belongs to
    order = 0
    for i, (t, after) in enumerate(_pairs(times)):
        x0, _ = denoiser(x, t, ZERO_ALPHA_BAR)
        alpha, sigma, lam = _half_log_snr(denoiser.alpha_bar(t))
        if arrived is not None:
            lam_from, x0_from = history[-1]
            sigma_from = _sigma_of(lam_from)
            h = lam - lam_from
            phi = math.expm1(-h)
            d_new = x0 - x0_from
            correction = 0.5 * d_new
            if order == 2:
                r = (history[-2][0] - lam_from) / h
                d_old = (history[-2][1] - x0_from) / r
                weight_old, weight_new = _corrector_weights(-h, r)
                correction = weight_old * d_old + weight_new * d_new
            x = (sigma / sigma_from) * arrived - alpha * phi * x0_from - alpha * phi * correction
        arrived = x
        history = [*history[-1:], (lam, x0)]
        alpha_next, sigma_next, lam_next = _half_log_snr(denoiser.alpha_bar(after))
        h = lam_next - lam
        phi = math.expm1(-h)
        order = min(2, len(history), len(times) - i)
        x = (sigma_next / sigma) * x - alpha_next * phi * x0
        if order == 2 and math.isfinite(h):
            r = (history[0][0] - lam) / h
            x = x - alpha_next * phi * 0.5 * (history[0][1] - x0) / r
        if callback is not None and callback(i, x, x0):
            break
    return x


def _sigma_of(lam: float) -> float:
    """sigma from lambda = log(alpha / sigma) with alpha^2 + sigma^2 = 1."""
    return math.sqrt(1 / (1 + math.exp(2 * lam)))


def _corrector_weights(hh: float, r: float) -> tuple[float, float]:
    """Solve UniC's 2x2 system R rho = b (Zhao et al. 2023, eq. 9) with B(h) = expm1(hh), hh = -h for data prediction."""
    b_h = math.expm1(hh)
    phi_1 = b_h / hh - 1
    phi_2 = phi_1 / hh - 0.5
    b1, b2 = phi_1 / b_h, 2 * phi_2 / b_h
    new = (b2 - r * b1) / (1 - r)
    return b1 - new, new
