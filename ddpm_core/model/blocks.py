"""What the networks are made of: the timestep's embedding, residual blocks, changes of size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import aside
from .layers import Conv2d, GroupNorm, Init, Linear, add_bias, dropout
from .products import enlarging, folded, pointwise
from .text import Reading

# a generator, or for fused kernels the seeds of each block, (blocks, 4) int32
DropoutSource = torch.Generator | Tensor | None


@dataclass(frozen=True)
class Around:
    """What every block gets besides its image: the timestep embedding after SiLU, (N, width), and the source of dropout.

    ``shifts``: the embedding already projected for each block, (N, channels), if that is done for all at once. ``readings``: texts for
    the attention layers.
    """

    temb: Tensor
    dropout: DropoutSource
    shifts: Sequence[Tensor] = ()
    readings: Sequence[Reading] = ()


def dropped(h: Tensor, rate: float, around: Around) -> Tensor:
    """``h`` with dropout, if there is a generator for it."""
    return dropout(h, rate, around.dropout if isinstance(around.dropout, torch.Generator) else None)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, (N,) to (N, width) float32: cosines, then sines, of frequencies 10000^(-i / (width/2))."""
    half = width // 2
    exponent = torch.arange(half, device=timesteps.device, dtype=torch.float32) * (-math.log(10000.0) / half)
    angle = timesteps.float()[:, None] * exponent.exp()[None, :]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepMLP(nn.Module):
    """Two linear layers with SiLU between them, (N, width) to (N, out)."""

    def __init__(self, init: Init, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = Linear(init, width, out)
        self.linear_2 = Linear(init, out, out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to (N, out)."""
        return self.linear_2(F.silu(self.linear_1(x)))  # type: ignore[no-any-return]


class BlockConfig(Protocol):
    """What a residual block reads of its network's configuration."""

    @property
    def norm_num_groups(self) -> int:
        """Groups of its norms."""

    @property
    def norm_eps(self) -> float:
        """What its norms add to the variance."""

    @property
    def dropout(self) -> float:
        """0 to 1."""


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv, plus the timestep, GroupNorm-SiLU-dropout-conv, plus the (projected) input."""

    def __init__(self, init: Init, config: BlockConfig, in_channels: int, out_channels: int, temb_width: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(init, config.norm_num_groups, in_channels, config.norm_eps)
        self.conv1 = Conv2d(init, in_channels, out_channels)
        self.time_emb_proj = Linear(init, temb_width, out_channels)
        self.norm2 = GroupNorm(init, config.norm_num_groups, out_channels, config.norm_eps)
        # zero, so that every block starts as the identity (Ho et al.'s released code; Nichol & Dhariwal 2021)
        self.conv2 = Conv2d(init, out_channels, out_channels, scale=0.0)
        self.conv_shortcut = Conv2d(init, in_channels, out_channels, kernel=1) if in_channels != out_channels else None
        self.dropout = config.dropout
        self.fused = init.ways.fused
        self.place = 0  # among the network's blocks

    def forward(self, x: Tensor, around: Around, beside: Tensor | None = None) -> Tensor:
        """``beside``: further input channels, as if concatenated to x."""
        if self.fused:
            return self._fused(x, around, beside)
        x = x if beside is None else torch.cat([x, beside], dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(around.temb)[:, :, None, None]
        h = self.conv2(dropped(F.silu(self.norm2(h)), self.dropout, around))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))  # type: ignore[no-any-return]

    def _fused(self, x: Tensor, around: Around, beside: Tensor | None) -> Tensor:
        """The same by fused kernels: biases are added in neighbouring kernels, and nothing is concatenated."""
        h, x, beside = self.norm1.fused(x, beside=beside)
        short = x
        if self.conv_shortcut is not None:
            with aside.branch():
                short = pointwise(x, self.conv_shortcut.weight.flatten(1).to(x.dtype), beside)
        h = self.conv1.without_bias(h)
        seed = around.dropout[self.place] if isinstance(around.dropout, Tensor) else None
        h, _, _ = self.norm2.fused(h, shift=around.shifts[self.place], rate=self.dropout, seed=seed)
        h = self.conv2.without_bias(h)
        bias = self.conv2.bias.to(h.dtype)
        if self.conv_shortcut is None:
            return add_bias(h, bias, short)
        aside.merge()
        return add_bias(h, bias, short, self.conv_shortcut.bias.to(h.dtype))


class Downsample(nn.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, init: Init, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(init, channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / 2, W / 2)."""
        return self.conv(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest 2x upsampling and a 3x3 convolution."""

    def __init__(self, init: Init, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(init, channels, channels)
        self.ways = init.ways

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2H, 2W)."""
        if self.ways.folded:
            weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
            if self.ways.fused:
                return add_bias(enlarging(x, weight), bias)
            return F.conv_transpose2d(x, folded(weight), bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
