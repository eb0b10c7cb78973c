"""Triton kernels for training channels-last U-Nets on a GPU.

PyTorch's CUDA group norm only supports contiguous tensors, while convolutions are fastest on channels last, so each norm
copies its input and output. These kernels work on channels last and fuse what would otherwise be passes of their own over the
same memory: a shift per image and channel before the norm (a convolution's bias plus the timestep embedding), SiLU and dropout
after it, the concatenation with a skip connection, and in the backward pass the gradient that bypasses the block. The
gradients of the shift and of the norm's parameters follow from per-channel sums without another pass.

With h = (x + shift - mean) * rstd over a group of D channels and ``rows`` pixels, z = gamma h + beta, y = z sigmoid(z) mask and
g = dL/dz:  dx = rstd (gamma g - G1 - h G2),  G1 = sum(gamma g) / (rows D),  G2 = sum(gamma g h) / (rows D)  (Wu & He 2018;
derived as for batch norm, Ioffe & Szegedy 2015, section 3).

Sizes of blocks are those measured best on an H200 (benchmarks/RESULTS.md). Importing this module imports Triton; ask
:func:`ddpm_core.model.ways.best` first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import aside

# elements per tile: 32 for each of 128 threads
TILE = 4096
# a program reads a whole group once and holds it, up to so many elements ...
MOST_HELD = 4096
# ... if so many channels lie side by side: 32 bytes of bf16, a memory sector
_LEAST_WIDE = 16
# tiles per program
TILES = 4
# programs of a sum over rows
SUM_PROGRAMS = 128


@triton.jit
def _keep(index, seed, RATE: tl.constexpr):
    """Dropout mask at an index: a hash of the index and two seeds (lowbias32, Wellons 2018)."""
    h = index.to(tl.uint32) * 0x9E3779B1 + tl.load(seed).to(tl.uint32)
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    h += tl.load(seed + 1).to(tl.uint32)
    h *= 0x846CA68B
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    return (h >> 8).to(tl.float32) * 5.9604644775390625e-08 >= RATE


@triton.jit
def _spread(values, GROUPS: tl.constexpr, WIDE: tl.constexpr):
    """Broadcast group values (GROUPS,) to channels (GROUPS * WIDE,)."""
    return tl.reshape(tl.broadcast_to(values[:, None], (GROUPS, WIDE)), (GROUPS * WIDE,))


@triton.jit
def _gathered(values, GROUPS: tl.constexpr, WIDE: tl.constexpr):
    """Sum channels (GROUPS * WIDE,) within each group, (GROUPS,)."""
    return tl.sum(tl.reshape(values, (GROUPS, WIDE)), 1)


@triton.jit
def _slope(z, SILU: tl.constexpr):
    """Derivative of SiLU."""
    if SILU:
        s = tl.sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    else:
        return tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def _load(places, whole, EVEN: tl.constexpr):
    """Load as float32; ``EVEN``: nothing to mask."""
    if EVEN:
        return tl.load(places).to(tl.float32)
    else:
        return tl.load(places, mask=whole, other=0.0).to(tl.float32)


@triton.jit
def _store(places, values, whole, EVEN: tl.constexpr):
    if EVEN:
        tl.store(places, values.to(places.dtype.element_ty))
    else:
        tl.store(places, values.to(places.dtype.element_ty), mask=whole)


@triton.jit
def _read(x, other, row, c, split, rest, whole, PAIR: tl.constexpr):
    """Load channels ``c`` (1, C) of ``row``s (R, 1), from one tensor or from two as if concatenated."""
    if PAIR:
        a = tl.load(x + row * split + c, mask=whole & (c < split), other=0.0).to(tl.float32)
        b = tl.load(other + row * rest + (c - split), mask=whole & (c >= split), other=0.0).to(tl.float32)
        return tl.where(c < split, a, b)
    else:
        return tl.load(x + row * split + c, mask=whole, other=0.0).to(tl.float32)


@triton.jit
def _write(x, other, values, row, c, split, rest, whole, PAIR: tl.constexpr):
    if PAIR:
        tl.store(x + row * split + c, values.to(x.dtype.element_ty), mask=whole & (c < split))
        tl.store(other + row * rest + (c - split), values.to(other.dtype.element_ty), mask=whole & (c >= split))
    else:
        tl.store(x + row * split + c, values.to(x.dtype.element_ty), mask=whole)


@triton.jit
def _which(x, other, column, split, rest, PAIR: tl.constexpr):
    """Which of two tensors holds a program's channels: the tensor, its number of channels, and the first of them.

    The block width must divide ``split``; :class:`Plan` sees to it.
    """
    source = x
    width = split
    first = 0
    if PAIR:  # noqa: SIM102 - the one is known when compiling, the other is not
        if column >= split:
            source = other
            width = rest
            first = split
    return source, width, first


# -- small images: one program reads whole groups ------------------------------------------------------------------------------


@triton.jit
def _places(block, channels, D: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr):
    """Channels (GROUPS * WIDE,) of a block of groups, and their mask."""
    k = tl.arange(0, GROUPS * WIDE)
    if D == WIDE:
        c = block * (GROUPS * WIDE) + k
        there = c < channels
    else:
        c = (block * GROUPS + k // WIDE) * D + k % WIDE
        there = (k % WIDE < D) & (c < channels)
    return c, there


@triton.jit
def _held_forward(
    x, x2, gamma, beta, shift, seed, y, rstd, offset, middle, rows, channels, split, stride, eps, scale,
    D: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, PAIR: tl.constexpr,
    SHIFT: tl.constexpr, SILU: tl.constexpr, RATE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    c, there = _places(tl.program_id(1), channels, D, GROUPS, WIDE)
    r = tl.arange(0, ROWS)
    whole = (r < rows)[:, None] & there[None, :]
    row = (n * rows + r)[:, None]
    v = _read(x, x2, row, c[None, :], split, channels - split, whole, PAIR)
    e = tl.zeros((GROUPS * WIDE,), tl.float32)
    if SHIFT:
        e = tl.load(shift + n * stride + c, mask=there, other=0.0).to(tl.float32)
        v = tl.where(whole, v + e[None, :], 0.0)
    sums = tl.sum(v, 0)
    mean = _spread(_gathered(sums, GROUPS, WIDE) / (D * rows), GROUPS, WIDE)
    v = tl.where(whole, v - mean[None, :], 0.0)
    rg = 1.0 / tl.sqrt(_gathered(tl.sum(v * v, 0), GROUPS, WIDE) / (D * rows) + eps)
    rc = _spread(rg, GROUPS, WIDE)
    ga = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    be = tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    z = v * (rc * ga)[None, :] + be[None, :]
    if SILU:
        z = z * tl.sigmoid(z)
    o = row * channels + c[None, :]
    if RATE > 0.0:
        z = tl.where(_keep(o, seed, RATE), z * scale, 0.0)
    tl.store(y + o, z.to(y.dtype.element_ty), mask=whole)
    place = n * channels + c
    tl.store(rstd + place, rc, mask=there)
    tl.store(offset + place, (e - mean) * rc, mask=there)
    tl.store(middle + place, (sums / rows - mean) * rc, mask=there)


@triton.jit
def _held_backward(
    x, x2, gamma, beta, seed, rstd, offset, middle, dy, around, around2, dx, dx2, sums, dshift,
    rows, channels, split, scale,
    D: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, PAIR: tl.constexpr,
    SHIFT: tl.constexpr, SILU: tl.constexpr, RATE: tl.constexpr, AROUND: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    c, there = _places(tl.program_id(1), channels, D, GROUPS, WIDE)
    r = tl.arange(0, ROWS)
    whole = (r < rows)[:, None] & there[None, :]
    row = (n * rows + r)[:, None]
    o = row * channels + c[None, :]
    place = n * channels + c
    rc = tl.load(rstd + place, mask=there, other=0.0)
    h0 = tl.load(offset + place, mask=there, other=0.0)
    ga = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    be = tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    h = _read(x, x2, row, c[None, :], split, channels - split, whole, PAIR) * rc[None, :] + h0[None, :]
    g = tl.load(dy + o, mask=whole, other=0.0).to(tl.float32)
    if RATE > 0.0:
        g = tl.where(_keep(o, seed, RATE), g * scale, 0.0)
    if SILU:
        g = g * _slope(h * ga[None, :] + be[None, :], SILU)
    s1 = tl.sum(g, 0)
    s2 = tl.sum(tl.where(whole, g * h, 0.0), 0)
    g1 = _spread(_gathered(s1 * ga, GROUPS, WIDE) / (D * rows), GROUPS, WIDE)
    g2 = _spread(_gathered(s2 * ga, GROUPS, WIDE) / (D * rows), GROUPS, WIDE)
    d = g * (rc * ga)[None, :] - (rc * g1)[None, :] - h * (rc * g2)[None, :]
    if AROUND:
        d += _read(around, around2, row, c[None, :], split, channels - split, whole, PAIR)
    _write(dx, dx2, d, row, c[None, :], split, channels - split, whole, PAIR)
    tl.store(sums + n * 2 * channels + c, s1, mask=there)
    tl.store(sums + n * 2 * channels + channels + c, s2, mask=there)
    if SHIFT:
        m = tl.load(middle + place, mask=there, other=0.0)
        tl.store(dshift + place, (rc * (ga * s1 - rows * g1 - rows * m * g2)).to(dshift.dtype.element_ty), mask=there)


# -- large images: moments of parts, then of groups, then normalise ------------------------------


@triton.jit
def _moments(
    x, x2, means, squares, rows, channels, split, parts,
    LOOPS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each channel over LOOPS * HIGH pixels, (N, parts, channels) each."""
    n = tl.program_id(0)
    s = tl.program_id(1)
    c = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    there = c < channels
    first = s * (LOOPS * HIGH)
    source, width, begin = _which(x, x2, tl.program_id(2) * WIDE, split, channels - split, PAIR)
    own = (c - begin)[None, :]
    # about one pixel's value: sums of squares about zero would lose a variance small against the mean
    start = (n * rows + first + tl.arange(0, 1))[:, None]
    pivot = _load(source + start * width + own, there[None, :], EVEN)
    total = tl.zeros((HIGH, WIDE), tl.float32)
    square = tl.zeros((HIGH, WIDE), tl.float32)
    for i in tl.static_range(LOOPS):
        r = first + i * HIGH + tl.arange(0, HIGH)
        whole = (r < rows)[:, None] & there[None, :]
        v = _load(source + (n * rows + r)[:, None] * width + own, whole, EVEN) - pivot
        if not EVEN:
            v = tl.where(whole, v, 0.0)
        total += v
        square += v * v
    count = tl.minimum(LOOPS * HIGH, rows - first).to(tl.float32)
    t = tl.sum(total, 0)
    place = (n * parts + s) * channels + c
    tl.store(means + place, tl.sum(pivot, 0) + t / count, mask=there)
    tl.store(squares + place, tl.sum(square, 0) - t * t / count, mask=there)


@triton.jit
def _grouped(
    means, squares, shift, rstd, offset, middle, rows, channels, stride, parts, each, eps,
    D: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Combine the parts' moments to each group's (Chan et al. 1983); rstd, offset, middle (N, C)."""
    n = tl.program_id(0)
    k = tl.arange(0, GROUPS * WIDE)
    c = (k // WIDE) * D + k % WIDE
    there = (k % WIDE < D) & (c < channels)
    s = tl.arange(0, PARTS)
    whole = (s < parts)[:, None] & there[None, :]
    count = tl.minimum(each, rows - s * each).to(tl.float32)[:, None]
    o = (n * parts + s)[:, None] * channels + c[None, :]
    m = tl.load(means + o, mask=whole, other=0.0)
    q = tl.load(squares + o, mask=whole, other=0.0)
    mc = tl.sum(tl.where(whole, m * count, 0.0), 0) / rows
    apart = tl.where(whole, m - mc[None, :], 0.0)
    qc = tl.sum(tl.where(whole, q + count * apart * apart, 0.0), 0)
    e = tl.zeros((GROUPS * WIDE,), tl.float32)
    if SHIFT:
        e = tl.load(shift + n * stride + c, mask=there, other=0.0).to(tl.float32)
    v = tl.where(there, mc + e, 0.0)
    mean = _spread(_gathered(v, GROUPS, WIDE) / D, GROUPS, WIDE)
    d = tl.where(there, v - mean, 0.0)
    r = 1.0 / tl.sqrt(_gathered(qc + rows * d * d, GROUPS, WIDE) / (D * rows) + eps)
    r = _spread(r, GROUPS, WIDE)
    place = n * channels + c
    tl.store(rstd + place, r, mask=there)
    tl.store(offset + place, (e - mean) * r, mask=there)
    tl.store(middle + place, d * r, mask=there)


@triton.jit
def _applied(
    x, x2, gamma, beta, seed, rstd, offset, y, rows, channels, split, scale,
    LOOPS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, PAIR: tl.constexpr,
    SILU: tl.constexpr, RATE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    c = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    there = c < channels
    place = n * channels + c
    ga = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    a = tl.load(rstd + place, mask=there, other=0.0) * ga
    b = tl.load(offset + place, mask=there, other=0.0) * ga + tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    source, width, begin = _which(x, x2, tl.program_id(2) * WIDE, split, channels - split, PAIR)
    own = (c - begin)[None, :]
    for i in tl.static_range(LOOPS):
        r = (tl.program_id(1) * LOOPS + i) * HIGH + tl.arange(0, HIGH)
        whole = (r < rows)[:, None] & there[None, :]
        row = (n * rows + r)[:, None]
        z = _load(source + row * width + own, whole, EVEN)
        z = z * a[None, :] + b[None, :]
        if SILU:
            z = z * tl.sigmoid(z)
        if RATE > 0.0:
            z = tl.where(_keep(row * channels + c[None, :], seed, RATE), z * scale, 0.0)
        _store(y + row * channels + c[None, :], z, whole, EVEN)


@triton.jit
def _reduced(
    x, x2, gamma, beta, seed, rstd, offset, dy, parts_of, rows, channels, split, parts, scale,
    LOOPS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, PAIR: tl.constexpr,
    SILU: tl.constexpr, RATE: tl.constexpr,
):  # fmt: skip
    """Per-channel sums of g and g h over a part of the pixels, (N, parts, 2, channels)."""
    n = tl.program_id(0)
    s = tl.program_id(1)
    c = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    there = c < channels
    place = n * channels + c
    ga = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    be = tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    rc = tl.load(rstd + place, mask=there, other=0.0)
    h0 = tl.load(offset + place, mask=there, other=0.0)
    s1 = tl.zeros((HIGH, WIDE), tl.float32)
    s2 = tl.zeros((HIGH, WIDE), tl.float32)
    source, width, begin = _which(x, x2, tl.program_id(2) * WIDE, split, channels - split, PAIR)
    own = (c - begin)[None, :]
    for i in tl.static_range(LOOPS):
        r = (s * LOOPS + i) * HIGH + tl.arange(0, HIGH)
        whole = (r < rows)[:, None] & there[None, :]
        row = (n * rows + r)[:, None]
        h = _load(source + row * width + own, whole, EVEN) * rc[None, :] + h0[None, :]
        g = _load(dy + row * channels + c[None, :], whole, EVEN)
        if RATE > 0.0:
            g = tl.where(_keep(row * channels + c[None, :], seed, RATE), g * scale, 0.0)
        if SILU:
            g = g * _slope(h * ga[None, :] + be[None, :], SILU)
        s1 += g
        s2 += g * h
    o = (n * parts + s) * 2 * channels + c
    tl.store(parts_of + o, tl.sum(s1, 0), mask=there)
    tl.store(parts_of + o + channels, tl.sum(s2, 0), mask=there)


@triton.jit
def _regrouped(
    parts_of, gamma, rstd, middle, sums, first, second, dshift, rows, channels, parts,
    D: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Add up the parts: sums (N, 2, C), rstd G1 and rstd G2 (N, C)."""
    n = tl.program_id(0)
    k = tl.arange(0, GROUPS * WIDE)
    c = (k // WIDE) * D + k % WIDE
    there = (k % WIDE < D) & (c < channels)
    s = tl.arange(0, PARTS)
    whole = (s < parts)[:, None] & there[None, :]
    o = (n * parts + s)[:, None] * 2 * channels + c[None, :]
    s1 = tl.sum(tl.load(parts_of + o, mask=whole, other=0.0), 0)
    s2 = tl.sum(tl.load(parts_of + o + channels, mask=whole, other=0.0), 0)
    ga = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    place = n * channels + c
    r = tl.load(rstd + place, mask=there, other=0.0)
    g1 = _spread(_gathered(s1 * ga, GROUPS, WIDE) / (D * rows), GROUPS, WIDE)
    g2 = _spread(_gathered(s2 * ga, GROUPS, WIDE) / (D * rows), GROUPS, WIDE)
    tl.store(first + place, r * g1, mask=there)
    tl.store(second + place, r * g2, mask=there)
    tl.store(sums + n * 2 * channels + c, s1, mask=there)
    tl.store(sums + n * 2 * channels + channels + c, s2, mask=there)
    if SHIFT:
        m = tl.load(middle + place, mask=there, other=0.0)
        tl.store(dshift + place, (r * (ga * s1 - rows * g1 - rows * m * g2)).to(dshift.dtype.element_ty), mask=there)


@triton.jit
def _reapplied(
    x, x2, gamma, beta, seed, rstd, offset, first, second, dy, around, around2, dx, dx2, rows, channels, split, scale,
    LOOPS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, PAIR: tl.constexpr,
    SILU: tl.constexpr, RATE: tl.constexpr, AROUND: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    c = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    there = c < channels
    place = n * channels + c
    ga = tl.load(gamma + c, mask=there, other=0.0).to(tl.float32)
    be = tl.load(beta + c, mask=there, other=0.0).to(tl.float32)
    rc = tl.load(rstd + place, mask=there, other=0.0)
    h0 = tl.load(offset + place, mask=there, other=0.0)
    c1 = tl.load(first + place, mask=there, other=0.0)
    c2 = tl.load(second + place, mask=there, other=0.0)
    source, width, begin = _which(x, x2, tl.program_id(2) * WIDE, split, channels - split, PAIR)
    around_source, width, begin = _which(around, around2, tl.program_id(2) * WIDE, split, channels - split, PAIR)
    target, width, begin = _which(dx, dx2, tl.program_id(2) * WIDE, split, channels - split, PAIR)
    own = (c - begin)[None, :]
    for i in tl.static_range(LOOPS):
        r = (tl.program_id(1) * LOOPS + i) * HIGH + tl.arange(0, HIGH)
        whole = (r < rows)[:, None] & there[None, :]
        row = (n * rows + r)[:, None]
        h = _load(source + row * width + own, whole, EVEN) * rc[None, :] + h0[None, :]
        g = _load(dy + row * channels + c[None, :], whole, EVEN)
        if RATE > 0.0:
            g = tl.where(_keep(row * channels + c[None, :], seed, RATE), g * scale, 0.0)
        if SILU:
            g = g * _slope(h * ga[None, :] + be[None, :], SILU)
        d = g * (rc * ga)[None, :] - c1[None, :] - h * c2[None, :]
        if AROUND:
            d += _load(around_source + row * width + own, whole, EVEN)
        _store(target + row * width + own, d, whole, EVEN)


# -- column sums and biases -------------------------------------------------------------------------


@triton.jit
def _summed(x, parts_of, rows, channels, LOOPS: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Per-channel sums over LOOPS * HIGH rows, (parts, channels)."""
    s = tl.program_id(0)
    c = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    there = c < channels
    total = tl.zeros((HIGH, WIDE), tl.float32)
    for i in tl.static_range(LOOPS):
        r = (s * LOOPS + i) * HIGH + tl.arange(0, HIGH)
        whole = (r < rows)[:, None] & there[None, :]
        total += tl.load(x + r[:, None] * channels + c[None, :], mask=whole, other=0.0).to(tl.float32)
    tl.store(parts_of + s * channels + c, tl.sum(total, 0), mask=there)


@triton.jit
def _biased(h, bias, other, y, rows, channels, HIGH: tl.constexpr, WIDE: tl.constexpr, OTHER: tl.constexpr):
    r = tl.program_id(0) * HIGH + tl.arange(0, HIGH)
    c = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    there = c < channels
    whole = (r < rows)[:, None] & there[None, :]
    o = r[:, None] * channels + c[None, :]
    v = tl.load(h + o, mask=whole, other=0.0).to(tl.float32)
    v += tl.load(bias + c, mask=there, other=0.0).to(tl.float32)[None, :]
    if OTHER:
        v += tl.load(other + o, mask=whole, other=0.0).to(tl.float32)
    tl.store(y + o, v.to(y.dtype.element_ty), mask=whole)


# -- launching ------------------------------------------------------------------------------------------------


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _width(channels: int) -> int:
    """Channels per program: preferably a power of two that divides them."""
    divisor = channels & -channels
    return min(divisor, 256) if divisor >= 16 else min(_power(channels), 256)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Plan:
    """Block sizes of a norm over ``rows`` pixels; ``split``: channels of the first of two tensors."""

    def __init__(self, rows: int, channels: int, groups: int, split: int | None = None) -> None:
        self.d = channels // groups
        self.wide = _power(self.d)
        self.high = _power(rows)
        self.held = self.high * max(self.wide, _LEAST_WIDE) <= MOST_HELD
        if self.held:
            self.groups = 1
            while self.groups * 2 <= groups and self.high * self.wide * self.groups * 2 <= MOST_HELD:
                self.groups *= 2
            self.blocks = -(-groups // self.groups)
            self.warps = 8 if self.high * self.wide * self.groups > TILE else 4
            return
        self.groups = _power(groups)
        self.columns = _width(channels if split is None else math.gcd(split, channels - split))
        if split is not None and split % self.columns:
            self.columns = split & -split
        self.tall = max(1, TILE // self.columns)
        self.loops = TILES
        while self.loops > 1 and self.tall * self.loops > rows:
            self.loops //= 2
        self.parts = -(-rows // (self.tall * self.loops))
        while self.parts > 32:
            self.loops *= 2
            self.parts = -(-rows // (self.tall * self.loops))
        self.each = self.tall * self.loops
        self.columns_of = -(-channels // self.columns)
        even = rows % self.each == 0 and channels % self.columns == 0
        self.tile = {"LOOPS": self.loops, "HIGH": self.tall, "WIDE": self.columns, "EVEN": even}

    def grid(self, images: int) -> tuple[int, int, int]:
        """Programs for so many images."""
        return images, self.parts, self.columns_of


def _sum_of(parts_of: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum (P, C) float32 over P, (C,) in a dtype, deterministically."""
    count, channels = parts_of.shape
    out = torch.empty(channels, device=parts_of.device, dtype=dtype)
    high = min(_power(count), 64)
    _summed[(1, -(-channels // 64))](parts_of, out, count, channels, LOOPS=-(-count // high), HIGH=high, WIDE=64)
    return out


def _columns_of(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum (R, C) over R, (C,) in a dtype, deterministically."""
    values = values.contiguous()
    rows, channels = values.shape
    wide = _width(channels)
    high = max(1, TILE // wide)
    loops = min(_power(-(-rows // (high * SUM_PROGRAMS))), 32)
    parts_of = torch.empty((-(-rows // (high * loops)), channels), device=values.device, dtype=torch.float32)
    _summed[(len(parts_of), -(-channels // wide))](values, parts_of, rows, channels, LOOPS=loops, HIGH=high, WIDE=wide)
    return _sum_of(parts_of, dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x2: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        shift: Tensor | None,
        seed: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
        rate: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        held = _channels_last(x)
        held2 = held if x2 is None else _channels_last(x2)
        n, split, height, width = held.shape
        channels = split if x2 is None else split + held2.shape[1]
        rows = height * width
        plan = Plan(rows, channels, groups, None if x2 is None else split)
        like: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
        y = torch.empty((n, channels, height, width), device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
        rstd, offset, middle = torch.empty((3, n, channels), **like).unbind(0)
        if shift is not None and shift.stride(1) != 1:
            shift = shift.contiguous()
        some, numbers = held if shift is None else shift, held if seed is None else seed
        stride = 0 if shift is None else shift.stride(0)
        scale = 1.0 / (1.0 - rate)
        pair = x2 is not None
        if plan.held:
            _held_forward[(n, plan.blocks)](
                held, held2, gamma, beta, some, numbers, y, rstd, offset, middle,
                rows, channels, split, stride, eps, scale,
                D=plan.d, GROUPS=plan.groups, WIDE=plan.wide, ROWS=plan.high, PAIR=pair,
                SHIFT=shift is not None, SILU=silu, RATE=rate, num_warps=plan.warps,
            )  # fmt: skip
        else:
            means, squares = torch.empty((2, n, plan.parts, channels), **like).unbind(0)
            _moments[plan.grid(n)](
                held, held2, means, squares, rows, channels, split, plan.parts, **plan.tile, PAIR=pair
            )
            _grouped[(n,)](
                means, squares, some, rstd, offset, middle, rows, channels, stride, plan.parts, plan.each, eps,
                D=plan.d, GROUPS=plan.groups, WIDE=plan.wide, PARTS=_power(plan.parts), SHIFT=shift is not None,
            )  # fmt: skip
            _applied[plan.grid(n)](
                held, held2, gamma, beta, numbers, rstd, offset, y, rows, channels, split, scale,
                **plan.tile, PAIR=pair, SILU=silu, RATE=rate,
            )  # fmt: skip
        ctx.save_for_backward(held, held2 if pair else None, gamma, beta, seed, rstd, offset, middle)
        ctx.options = (groups, silu, rate, None if shift is None else shift.dtype)
        ctx.aside = aside.current()
        ctx.set_materialize_grads(False)
        return y, x, x2

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, around: Tensor | None, around2: Tensor | None) -> Any:  # type: ignore[override]
        x, x2, gamma, beta, seed, rstd, offset, middle = ctx.saved_tensors
        groups, silu, rate, shift_dtype = ctx.options
        nothing = (None,) * 5
        if dy is None:
            return (around, around2, None, None, None, *nothing)
        n, split, height, width = x.shape
        pair = x2 is not None
        channels = split + x2.shape[1] if pair else split
        rows = height * width
        plan = Plan(rows, channels, groups, split if pair else None)
        dy = _channels_last(dy)
        goes_around = around is not None or around2 is not None
        if goes_around:
            around = torch.zeros_like(x) if around is None else _channels_last(around)
            if pair:
                around2 = torch.zeros_like(x2) if around2 is None else _channels_last(around2)
        dx = torch.empty_like(x)
        dx2 = torch.empty_like(x2) if pair else None
        sums = torch.empty((n, 2 * channels), device=x.device, dtype=torch.float32)
        shifted = shift_dtype is not None
        dshift = torch.empty((n, channels), device=x.device, dtype=shift_dtype) if shifted else None
        some = sums if dshift is None else dshift
        second_x, second_dx = (x2, dx2) if pair else (x, dx)
        numbers = x if seed is None else seed
        beside = x if around is None else around
        beside2 = beside if around2 is None else around2
        scale = 1.0 / (1.0 - rate)
        if plan.held:
            _held_backward[(n, plan.blocks)](
                x, second_x, gamma, beta, numbers, rstd, offset, middle, dy, beside, beside2, dx, second_dx, sums, some,
                rows, channels, split, scale,
                D=plan.d, GROUPS=plan.groups, WIDE=plan.wide, ROWS=plan.high, PAIR=pair,
                SHIFT=shifted, SILU=silu, RATE=rate, AROUND=goes_around, num_warps=plan.warps,
            )  # fmt: skip
        else:
            parts_of = torch.empty((n, plan.parts, 2, channels), device=x.device, dtype=torch.float32)
            first, second = torch.empty((2, n, channels), device=x.device, dtype=torch.float32).unbind(0)
            _reduced[plan.grid(n)](
                x, second_x, gamma, beta, numbers, rstd, offset, dy, parts_of, rows, channels, split, plan.parts, scale,
                **plan.tile, PAIR=pair, SILU=silu, RATE=rate,
            )  # fmt: skip
            _regrouped[(n,)](
                parts_of, gamma, rstd, middle, sums, first, second, some, rows, channels, plan.parts,
                D=plan.d, GROUPS=plan.groups, WIDE=plan.wide, PARTS=_power(plan.parts), SHIFT=shifted,
            )  # fmt: skip
            _reapplied[plan.grid(n)](
                x, second_x, gamma, beta, numbers, rstd, offset, first, second, dy, beside, beside2, dx, second_dx,
                rows, channels, split, scale,
                **plan.tile, PAIR=pair, SILU=silu, RATE=rate, AROUND=goes_around,
            )  # fmt: skip
        with aside.run(ctx.aside, sums):
            dbeta, dgamma = _sum_of(sums, gamma.dtype).view(2, channels).unbind(0)
        return (dx, dx2, dgamma, dbeta, dshift, *nothing)


class _Bias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, bias: Tensor, other: Tensor | None, also: Tensor | None) -> Tensor:
        h = _channels_last(h)
        other = None if other is None else _channels_last(other)
        n, channels, height, width = h.shape
        rows = n * height * width
        wide = _width(channels)
        high = max(1, TILE // wide)
        y = torch.empty_like(h)
        whole = bias if also is None else bias + also
        _biased[(-(-rows // high), -(-channels // wide))](
            h, whole, h if other is None else other, y, rows, channels, HIGH=high, WIDE=wide, OTHER=other is not None
        )
        ctx.options = (bias.dtype, other is not None, also is not None)
        ctx.aside = aside.current()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        dtype, with_other, with_also = ctx.options
        dy = _channels_last(dy)
        rows = dy.permute(0, 2, 3, 1).reshape(-1, dy.shape[1])
        with aside.run(ctx.aside, rows):
            total = _columns_of(rows, dtype)
            # one tensor for two parameters would be copied by autograd
            again = total.clone() if with_also else None
        return dy, total, dy if with_other else None, again


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.aside = aside.current()
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dy = dy.reshape(-1, weight.shape[0]).contiguous()
        with aside.run(ctx.aside, dy, x):
            dw, db = dy.t() @ x.reshape(dy.shape[0], -1), _columns_of(dy, weight.dtype)
        return (dy @ weight).view(x.shape), dw, db


def norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    eps: float,
    *,
    beside: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    rate: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Group norm of x + shift, then SiLU and dropout. Returns the result, x and ``beside``.

    x (N, C, H, W) in float32, bfloat16 or float16, preferably channels last; ``beside`` (N, C2, H, W): further channels, as if
    concatenated; gamma, beta (C + C2,); shift (N, C + C2); ``seed``: two int32 for the dropout mask at ``rate``. Statistics are
    float32. Use the returned x and ``beside`` around the block: their gradients then join in this kernel instead of in an
    addition of their own.
    """
    assert x.numel() < 2**31, "offsets are 32 bits wide"
    rate = rate if seed is not None else 0.0
    return _Norm.apply(x, beside, gamma, beta, shift, seed, groups, eps, silu, rate)  # type: ignore[no-any-return,no-untyped-call]


def add_bias(h: Tensor, bias: Tensor, other: Tensor | None = None, also: Tensor | None = None) -> Tensor:
    """h + bias (+ other + also) in one pass: (N, C, H, W), (C,), (N, C, H, W), (C,). The biases' gradient is one pass, too."""
    return _Bias.apply(h, bias, other, also)  # type: ignore[no-any-return,no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear``: x (..., in), weight (out, in), bias (out,), with our own sum for the gradient of the bias."""
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]


def agree(device: torch.device) -> bool:
    """Whether the norm agrees with PyTorch's on this device: small and large images, forward and backward."""
    draw = torch.Generator(device="cpu").manual_seed(0)
    for channels, side in ((32, 8), (16, 64)):
        values = torch.randn((3, 2, channels, side, side), generator=draw, device="cpu").to(device)
        x, dy, around = (v.contiguous(memory_format=torch.channels_last) for v in values.unbind(0))
        gamma, beta = torch.randn((2, channels), generator=draw, device="cpu").to(device).unbind(0)
        inputs = [value.requires_grad_() for value in (x, gamma, beta)]
        with torch.enable_grad():
            y, same, _ = norm(x, gamma, beta, 8, 1e-5)
            z = F.silu(F.group_norm(x, 8, gamma, beta, 1e-5))
            ours = [y, *torch.autograd.grad([y, same], inputs, [dy, around])]
            theirs = [z, *torch.autograd.grad([z, x * 1], inputs, [dy, around])]
        if not all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max())) for a, b in zip(ours, theirs)
        ):
            return False
    return True
