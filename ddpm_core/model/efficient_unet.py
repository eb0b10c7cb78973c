"""Imagen's Efficient U-Net (Saharia et al. 2022, appendix B), small: it draws the detail of an enlarged image.

All blocks run at half the size or below: the image comes in as squares of 2x2 pixels (space to depth) and comes back by a sub-pixel convolution
(Shi et al. 2016); two thin convolutions at full size then look at it beside what was given. On the way down a level shrinks before its blocks, on the way up it convolves before it enlarges; skips are scaled
by 1 / sqrt(2). No attention, no position: it is fully convolutional, works at any size that its strides divide, and is trained on crops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Around, DropoutSource, ResBlock, TimestepMLP, timestep_embedding
from .config import UpscalerConfig
from .layers import Conv2d, GroupNorm, Init, Linear
from .network import Network

PATCH = 2
_LEVEL_WIDTH = 64  # of the embedding of the noise level


class NoiseLevel(nn.Module):
    """How noisy the enlarged image is that the network is given: (N,) in 0 to 1, to a shift of the timestep's embedding (N, width)."""

    def __init__(self, init: Init, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(init, _LEVEL_WIDTH, width)
        self.linear_2 = Linear(init, width, width, scale=0.0)

    def forward(self, level: Tensor, dtype: torch.dtype) -> Tensor:
        """(N,) to (N, width)."""
        embedded = timestep_embedding(1000.0 * level, _LEVEL_WIDTH).to(dtype)
        return self.linear_2(F.silu(self.linear_1(embedded)))  # type: ignore[no-any-return]


class ShrinkingBlock(nn.Module):
    """One level on the way down: a convolution with stride 2 (but for the first level), then residual blocks."""

    def __init__(self, init: Init, config: UpscalerConfig, level: int, width: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        out = widths[level]
        self.shrink = Conv2d(init, widths[level - 1], out, stride=2) if level else None
        self.resnets = nn.ModuleList(
            ResBlock(init, config, out, out, width) for _ in range(config.blocks_per_level[level])
        )

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """(N, C, H, W) to (N, out, H / 2, W / 2); H and W stay at the first level."""
        x = x if self.shrink is None else self.shrink(x)
        for block in self.resnets:
            x = block(x, around)
        return x


class EnlargingBlock(nn.Module):
    """One level on the way up: residual blocks over what comes from below and the skip, a convolution, then twice the size (but
    for the first level)."""

    def __init__(self, init: Init, config: UpscalerConfig, level: int, width: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        out = widths[level]
        self.resnets = nn.ModuleList(
            ResBlock(init, config, 2 * out if i == 0 else out, out, width)
            for i in range(config.blocks_per_level[level])
        )
        self.conv = Conv2d(init, out, widths[level - 1]) if level else None

    def forward(self, x: Tensor, around: Around, skip: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C of the level above, 2H, 2W)."""
        beside: Tensor | None = skip * math.sqrt(0.5)
        for block in self.resnets:
            x, beside = block(x, around, beside), None
        return x if self.conv is None else F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


class EfficientUNet(Network):
    """``net(x, t, told={"low": ..., "level": ...})``: x (N, C, H, W), a noised residual; ``low`` (N, C, H, W) the enlarged image that it is a
    residual of, with noise; ``level`` (N,) how much. Returns (N, C, H, W) as the diffusion configuration says.

    H and W are multiples of ``config.stride``. Otherwise as ``UNet``.
    """

    config: UpscalerConfig

    def make(self, init: Init) -> int:
        """As ``Network``."""
        config = self.config
        widths = config.block_out_channels
        width = 4 * widths[0]
        inputs = PATCH * PATCH * (config.in_channels + config.out_channels)
        self.conv_in = Conv2d(init, inputs, widths[0])
        self.time_embedding = TimestepMLP(init, widths[0], width)
        self.level_embedding = NoiseLevel(init, width)
        levels = range(len(widths))
        self.down_blocks = nn.ModuleList(ShrinkingBlock(init, config, level, width) for level in levels)
        self.up_blocks = nn.ModuleList(EnlargingBlock(init, config, level, width) for level in reversed(levels))
        self.norm_up = GroupNorm(init, config.norm_num_groups, widths[0], config.norm_eps)
        detail = config.detail_channels
        self.conv_up = Conv2d(init, widths[0], PATCH * PATCH * detail)
        self.conv_detail = Conv2d(init, config.in_channels + config.out_channels + detail, detail)
        self.conv_norm_out = GroupNorm(init, config.norm_num_groups, detail, config.norm_eps)
        self.conv_out = Conv2d(init, detail, config.out_channels, scale=0.0)
        return width

    @property
    def can_be_told(self) -> tuple[str, ...]:
        """Names of what it is told, in order; the first two always."""
        return ("low", "level", *super().can_be_told)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        dropout_source: DropoutSource = None,
        told: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """``told``: "low" and "level", and values of conditions by name, each (N, ...)."""
        values = dict(told or {})
        low, level = values.pop("low"), values.pop("level")
        embedded = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(x.dtype)
        temb = self.time_embedding(embedded) + self.level_embedding(level, x.dtype)
        temb = F.silu(self.listen(temb, values)[0])
        around = Around(temb, dropout_source, self.shifts(temb))
        given = torch.cat([x, low.to(x.dtype)], dim=1)
        h = self.conv_in(F.pixel_unshuffle(given, PATCH).contiguous(memory_format=self.ways.memory_format))
        skips = []
        for block in self.down_blocks:
            h = block(h, around)
            skips.append(h)
        for block in self.up_blocks:
            h = block(h, around, skips.pop())
        h = F.pixel_shuffle(self.conv_up(self._activated(self.norm_up, h)), PATCH)
        h = torch.cat([given, h], dim=1).contiguous(memory_format=self.ways.memory_format)
        return self.conv_out(self._activated(self.conv_norm_out, self.conv_detail(h)))  # type: ignore[no-any-return]

    def _activated(self, norm: GroupNorm, x: Tensor) -> Tensor:
        return norm.fused(x)[0] if self.ways.fused else F.silu(norm(x))
