"""Triton kernels that update flat tensors of weights, each in one pass (``flat.py``). Importing this module imports Triton."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _adamw(
    weights, gradients, first, second, average, clip, rate, taken, step, count, beta1, beta2, log1, log2, decay, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    t = tl.load(step)
    lr = tl.load(rate)
    g = tl.load(gradients + i, mask=there, other=0.0).to(tl.float32) * tl.load(clip)
    w = tl.load(weights + i, mask=there, other=0.0)
    m = tl.load(first + i, mask=there, other=0.0)
    v = tl.load(second + i, mask=there, other=0.0)
    a = tl.load(average + i, mask=there, other=0.0)
    m += (g - m) * (1.0 - beta1)
    v = v * beta2 + g * g * (1.0 - beta2)
    corrected = tl.sqrt(v) / tl.sqrt(1.0 - tl.exp(t * log2)) + eps
    w = w * (1.0 - lr * decay) - lr / (1.0 - tl.exp(t * log1)) * m / corrected
    a += (w - a) * tl.load(taken)
    tl.store(weights + i, w, mask=there)
    tl.store(first + i, m, mask=there)
    tl.store(second + i, v, mask=there)
    tl.store(average + i, a, mask=there)


@triton.jit
def _momentum(gradients, momenta, steps, clip, count, momentum, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    g = tl.load(gradients + i, mask=there, other=0.0).to(tl.float32) * tl.load(clip)
    m = tl.load(momenta + i, mask=there, other=0.0)
    m += (g - m) * (1.0 - momentum)
    tl.store(momenta + i, m, mask=there)
    tl.store(steps + i, (g + (m - g) * momentum).to(steps.dtype.element_ty), mask=there)


@triton.jit
def _moved(weights, steps, average, rate, taken, count, decay, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    lr = tl.load(rate)
    w = tl.load(weights + i, mask=there, other=0.0)
    a = tl.load(average + i, mask=there, other=0.0)
    w = w * (1.0 - lr * decay) - lr * tl.load(steps + i, mask=there, other=0.0).to(tl.float32)
    a += (w - a) * tl.load(taken)
    tl.store(weights + i, w, mask=there)
    tl.store(average + i, a, mask=there)


_BLOCK = 2048


def adamw(
    weights: Tensor, gradients: Tensor, first: Tensor, second: Tensor, average: Tensor,
    *, clip: Tensor, rate: Tensor, taken: Tensor, step: Tensor, beta1: float, beta2: float, decay: float, eps: float,
) -> None:  # fmt: skip
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) and the average of the weights in one pass, in place.

    All tensors are flat and of one length, float32 but for the gradients. 0-d tensors: ``clip`` scales the gradients, learning
    ``rate``, ``taken`` is the weight of the new values in the average, ``step`` counts this update, from 1.
    """
    count = weights.numel()
    if count:
        _adamw[(-(-count // _BLOCK),)](
            weights, gradients, first, second, average, clip, rate, taken, step, count,
            beta1, beta2, math.log(max(beta1, 1e-30)), math.log(max(beta2, 1e-30)), decay, eps, BLOCK=_BLOCK,
        )  # fmt: skip


def take_momentum(gradients: Tensor, momenta: Tensor, steps: Tensor, clip: Tensor, momentum: float) -> None:
    """Update ``momenta`` with clipped gradients and write the Nesterov ``steps`` in their dtype. All flat, of one length."""
    count = momenta.numel()
    _momentum[(-(-count // _BLOCK),)](gradients, momenta, steps, clip, count, momentum, BLOCK=_BLOCK)


def move(weights: Tensor, steps: Tensor, average: Tensor, *, rate: Tensor, taken: Tensor, decay: float) -> None:
    """weights <- (1 - rate decay) weights - rate steps, then average <- lerp(average, weights, taken). All flat, of one length."""
    count = weights.numel()
    _moved[(-(-count // _BLOCK),)](weights, steps, average, rate, taken, count, decay, BLOCK=_BLOCK)
