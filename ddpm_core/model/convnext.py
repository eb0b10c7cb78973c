"""The parts of the Annotated Diffusion Model (Rogge & Rasul 2022): ConvNeXt blocks and linear attention, beside those of DDPM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Around, BlockConfig, dropped
from .layers import Conv2d, GroupNorm, Init, Linear

_KERNEL = 7
_WIDER = 2  # the channels between the two convolutions, over those that come out


class DepthwiseConv2d(nn.Module):
    """A 7x7 convolution of each channel by itself, (N, C, H, W) to the same shape."""

    def __init__(self, init: Init, channels: int) -> None:
        super().__init__()
        bound = 1.0 / _KERNEL
        self.weight = init.uniform((channels, 1, _KERNEL, _KERNEL), bound)
        self.bias = init.uniform((channels,), bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, padding=_KERNEL // 2, groups=x.shape[1])


class ConvNextBlock(nn.Module):
    """After Liu et al. 2022, as the annotated model has it: depthwise 7x7, plus the timestep, GroupNorm(1), 3x3 to twice the channels, GELU,
    GroupNorm(1), dropout, 3x3 back, plus the (projected) input."""

    def __init__(self, init: Init, config: BlockConfig, in_channels: int, out_channels: int, temb_width: int) -> None:
        super().__init__()
        wide = _WIDER * out_channels
        self.depthwise = DepthwiseConv2d(init, in_channels)
        self.time_emb_proj = Linear(init, temb_width, in_channels)
        self.norm1 = GroupNorm(init, 1, in_channels, config.norm_eps)
        self.conv1 = Conv2d(init, in_channels, wide)
        self.norm2 = GroupNorm(init, 1, wide, config.norm_eps)
        # zero, as in a residual block: every block starts as the identity
        self.conv2 = Conv2d(init, wide, out_channels, scale=0.0)
        self.conv_shortcut = Conv2d(init, in_channels, out_channels, kernel=1) if in_channels != out_channels else None
        self.dropout = config.dropout

    def forward(self, x: Tensor, around: Around, beside: Tensor | None = None) -> Tensor:
        """``beside``: further input channels, as if concatenated to x."""
        x = x if beside is None else torch.cat([x, beside], dim=1)
        h = self.depthwise(x) + self.time_emb_proj(around.temb)[:, :, None, None]
        h = F.gelu(self.conv1(self.norm1(h)))
        h = self.conv2(dropped(self.norm2(h), self.dropout, around))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))  # type: ignore[no-any-return]


def attend_linearly(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Efficient attention (Shen et al. 2021, eq. 4) of tokens (N, L, C), in time linear in L: keys are weighed over the tokens, queries over
    their own numbers, and only a (C / heads)^2 table lies between."""
    n, length, channels = q.shape
    q, k, v = (part.view(n, length, heads, channels // heads).transpose(1, 2) for part in (q, k, v))
    q, k = q.float().softmax(-1).to(v.dtype) * (channels // heads) ** -0.5, k.float().softmax(-2).to(v.dtype)
    found: Tensor = q @ (k.transpose(-1, -2) @ v)
    return found.transpose(1, 2).reshape(n, length, channels)
