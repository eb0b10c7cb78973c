"""Layers that own their parameters.

A host such as the WebUI patches ``torch.nn.Linear``, ``Conv2d`` and ``GroupNorm`` for all, creates them on the
meta device while it loads a checkpoint, and replaces ``Module.to``. These layers call only ``torch.nn.functional``,
create their parameters on the device they are told, initialise them from a generator they are given, and are never
moved, so they are right whatever the host does at that moment.

Parameters are float32; the arithmetic runs in the dtype of the input, so that passing bfloat16 is mixed precision
with float32 master weights and without autocast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import convolution
from .ways import Ways, plain


class Init:
    """Where and from which random numbers parameters are made (``device='meta'`` makes shapes only).

    ``draw``: unless so they hold whatever the memory holds, to be loaded at once; drawing takes as long as a small picture.
    """

    def __init__(
        self,
        device: torch.device | str,
        generator: torch.Generator | None = None,
        *,
        draw: bool = True,
        ways: Ways | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.generator = generator
        self.draw = draw
        self.ways = plain(device) if ways is None else ways

    def uniform(self, shape: tuple[int, ...], bound: float) -> nn.Parameter:
        """Uniform in [-bound, bound], drawn on the CPU so that every device starts from the same weights."""
        if self.device.type == "meta":
            return nn.Parameter(torch.empty(shape, device="meta", dtype=torch.float32))
        values = torch.empty(shape, device="cpu", dtype=torch.float32)
        if not self.draw:
            pass
        elif bound > 0:
            values.uniform_(-bound, bound, generator=self.generator)
        else:
            values.zero_()
        if len(shape) == 4:  # convolution weights in the layout of their input
            values = values.contiguous(memory_format=self.ways.memory_format)
        return nn.Parameter(values.to(self.device))

    def constant(self, shape: tuple[int, ...], value: float) -> nn.Parameter:
        """A parameter with one value everywhere."""
        return nn.Parameter(torch.full(shape, value, device=self.device, dtype=torch.float32))


class Linear(nn.Module):
    """``y = x W^T + b``, (..., in) to (..., out). ``scale`` 0 starts at zero, 1 at PyTorch's default range."""

    def __init__(self, init: Init, in_features: int, out_features: int, scale: float = 1.0) -> None:
        super().__init__()
        bound = scale / math.sqrt(in_features)
        self.weight = init.uniform((out_features, in_features), bound)
        self.bias = init.uniform((out_features,), bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Conv2d(nn.Module):
    """Square convolution, (N, in, H, W) to (N, out, H/stride, W/stride), padding ``kernel // 2``."""

    def __init__(
        self, init: Init, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__()
        bound = scale / math.sqrt(in_channels * kernel * kernel)
        self.weight = init.uniform((out_channels, in_channels, kernel, kernel), bound)
        self.bias = init.uniform((out_channels,), bound)
        self.stride = stride
        self.padding = kernel // 2
        self.fused = init.ways.fused

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        if self.fused and len(self.bias) >= 16:
            return add_bias(self.without_bias(x), self.bias.to(x.dtype))
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), stride=self.stride, padding=self.padding)

    def without_bias(self, x: Tensor) -> Tensor:
        """As :meth:`forward`, without the bias."""
        return convolution(x, self.weight.to(x.dtype), self.stride, self.padding)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018); statistics are float32 inside the kernel, input and output keep their dtype."""

    def __init__(self, init: Init, groups: int, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = init.constant((channels,), 1.0)
        self.bias = init.constant((channels,), 0.0)
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape and dtype."""
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def fused(
        self,
        x: Tensor,
        *,
        beside: Tensor | None = None,
        shift: Tensor | None = None,
        silu: bool = True,
        rate: float = 0.0,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``kernels.norm``: the norm of x + shift, SiLU and dropout in one; then x and ``beside`` for use around the block."""
        from . import kernels

        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        options = {"beside": beside, "shift": shift, "silu": silu, "rate": rate, "seed": seed}
        return kernels.norm(x, weight, bias, self.groups, self.eps, **options)  # type: ignore[arg-type]


def add_bias(h: Tensor, bias: Tensor, other: Tensor | None = None, also: Tensor | None = None) -> Tensor:
    """``kernels.add_bias``: h + bias + other + also in one pass."""
    from . import kernels

    return kernels.add_bias(h, bias, other, also)


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, fused: bool) -> Tensor:
    """``F.linear``, or ``kernels.linear``."""
    if not fused:
        return F.linear(x, weight, bias)
    from . import kernels

    return kernels.linear(x, weight, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention: q (N, L, C) to k and v (N, T, C), to (N, L, C). ``mask``: which are read, broadcast to (N, heads, L, T)."""
    n, length, c = q.shape
    q, k, v = (part.view(n, -1, heads, c // heads).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(n, length, c)


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout from our own generator; without a generator (sampling, evaluation) the identity."""
    if rate == 0.0 or generator is None:
        return x
    keep = torch.empty_like(x).bernoulli_(1.0 - rate, generator=generator)
    return x * keep.div_(1.0 - rate)
