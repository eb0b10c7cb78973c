"""Kernel Inception Distance's estimator (Binkowski et al. 2018) on our own features, with an interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A distance and the 95 % interval of its bootstrap."""

    value: float
    low: float
    high: float


def common_scale(reference: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (d,) and one scale for all features, from the reference set's features (N, d).

    One number, not one per feature: standardised each on its own, features that hardly vary in the real set would
    outweigh all others and rank noise above good samples.
    """
    centre = reference.mean(0)
    scale = (reference - centre).square().mean().sqrt().clamp_min(1e-8)
    return centre, scale


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def kid(
    samples: Tensor,
    reference: Tensor,
    *,
    subsets: int = 200,
    seed: int = 0,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Estimate:
    """Unbiased MMD^2 with the kernel (x.y/d + 1)^3 between feature sets (N, d) and (M, d), N, M >= 4.

    The estimate uses all of both sets; the interval is a bootstrap over images of either set, made from halves
    drawn without repetition (a repeated image would break the estimator's unbiasedness), its spread rescaled to
    the full size by the square root of two. ``groups`` (N,) and (M,) int64: which features come from one image, 0 and up, and are drawn
    together.
    """
    if min(len(samples), len(reference)) < 4:
        raise ValueError("KID needs at least 4 images on either side")
    centre, scale = common_scale(reference.double())
    x = (samples.double() - centre) / scale
    y = (reference.double() - centre) / scale
    kxx, kyy, kxy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    kxx.fill_diagonal_(0.0)
    kyy.fill_diagonal_(0.0)

    def mmd(left: Tensor, right: Tensor) -> float:
        n, m = len(left), len(right)
        return float(
            kxx[left][:, left].sum() / (n * (n - 1))
            + kyy[right][:, right].sum() / (m * (m - 1))
            - 2 * kxy[left][:, right].mean()
        )

    value = mmd(torch.arange(len(x)), torch.arange(len(y)))
    generator = torch.Generator(device="cpu").manual_seed(seed)
    of_x, of_y = (torch.arange(len(x)), torch.arange(len(y))) if groups is None else groups

    def half(of: Tensor) -> Tensor:
        count = int(of.max()) + 1
        chosen = torch.randperm(count, generator=generator)[: count // 2]
        return torch.isin(of, chosen).nonzero()[:, 0] if groups is not None else chosen

    draws = torch.tensor(
        [mmd(half(of_x), half(of_y)) for _ in range(subsets)],
        dtype=torch.float64,
    )
    # half-samples of a set vary about as much around its estimate as the estimate does around the truth
    deviation = float(draws.std())
    return Estimate(value, value - 1.96 * deviation, value + 1.96 * deviation)
