"""The U-Net of DDPM (Ho et al. 2020), parameter for parameter that of diffusers' ``UNet2DModel``; or the same U of the annotated model's parts.

Parameter names are diffusers', so that exporting is writing a file. Correspondence: ``DownBlock2D`` or
``AttnDownBlock2D`` by level, ``downsample_padding=1``, ``flip_sin_to_cos=True``, ``freq_shift=0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Around, Downsample, DropoutSource, ResBlock, TimestepMLP, Upsample, timestep_embedding
from .config import UNetConfig
from .convnext import ConvNextBlock, attend_linearly
from .layers import Conv2d, GroupNorm, Init, Linear, add_bias, attend, linear
from .network import Network
from .products import linear as product


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of (N, C, H, W), with GroupNorm before and the input added after."""

    def __init__(self, init: Init, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = channels // config.attention_head_dim
        self.group_norm = GroupNorm(init, config.norm_num_groups, channels, config.norm_eps)
        self.to_q = Linear(init, channels, channels)
        self.to_k = Linear(init, channels, channels)
        self.to_v = Linear(init, channels, channels)
        self.to_out = nn.ModuleList([Linear(init, channels, channels, scale=0.0)])
        self.ways = init.ways
        self.place = 0  # among the network's attention layers

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """(N, C, H, W) to the same shape."""
        x = self._attend(x)
        for reading in around.readings:
            x = reading(self.place, x)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        fused = self.ways.fused
        normed, x, _ = self.group_norm.fused(x, silu=False) if fused else (self.group_norm(x), x, None)
        tokens = normed.permute(0, 2, 3, 1).reshape(n, height * width, c)
        layers = (self.to_q, self.to_k, self.to_v)
        if self.ways.joined:
            weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)
            bias = torch.cat([layer.bias for layer in layers]).to(x.dtype)
            parts = linear(tokens, weight, bias, fused=fused).chunk(3, dim=-1)
        else:
            parts = tuple(layer(tokens) for layer in layers)
        q, k, v = parts
        mixed = attend(q, k, v, self.heads)
        if fused:
            last: Any = self.to_out[0]
            out = product(mixed, last.weight.to(x.dtype)).view(n, height, width, c).permute(0, 3, 1, 2)
            return add_bias(out, last.bias.to(x.dtype), x)
        out = self.to_out[0](mixed).view(n, height, width, c).permute(0, 3, 1, 2)
        return x + out  # type: ignore[no-any-return]


class LinearAttention(Attention):
    """As :class:`Attention`, in time linear in the pixels (Shen et al. 2021), with a norm at the end as in the annotated model."""

    def __init__(self, init: Init, config: UNetConfig, channels: int) -> None:
        super().__init__(init, config, channels)
        self.to_out = nn.ModuleList([Linear(init, channels, channels)])
        self.norm_out = GroupNorm(init, 1, channels, config.norm_eps)
        # not the weights before it: a norm of nothing is none
        self.norm_out.weight = init.constant((channels,), 0.0)

    def _attend(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        mixed = attend_linearly(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.heads)
        out = self.to_out[0](mixed).view(n, height, width, c).permute(0, 3, 1, 2)
        return x + self.norm_out(out)  # type: ignore[no-any-return]


def block_of(
    init: Init, config: UNetConfig, in_channels: int, out_channels: int, temb_width: int
) -> ResBlock | ConvNextBlock:
    """A block of the kind that a configuration asks for."""
    kind = ConvNextBlock if config.block == "convnext" else ResBlock
    return kind(init, config, in_channels, out_channels, temb_width)


def attention_of(init: Init, config: UNetConfig, channels: int) -> Attention:
    """Attention of a level, of the kind that a configuration asks for."""
    return (LinearAttention if config.attention == "linear" else Attention)(init, config, channels)


class DownBlock(nn.Module):
    """One level on the way down: residual blocks, attention if the level has it, then a downsampling."""

    def __init__(self, init: Init, config: UNetConfig, level: int, temb_width: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        out = widths[level]
        first = widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            block_of(init, config, first if i == 0 else out, out, temb_width) for i in range(config.layers_per_block)
        )
        if config.attention_levels[level]:
            self.attentions = nn.ModuleList(attention_of(init, config, out) for _ in range(config.layers_per_block))
        if level < len(widths) - 1:
            self.downsamplers = nn.ModuleList([Downsample(init, out)])

    def forward(self, x: Tensor, around: Around, skips: list[Tensor]) -> Tensor:
        """(N, C, H, W) to the next level's input; appends each result to ``skips``."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, around)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, around)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class UpBlock(nn.Module):
    """One level on the way up: residual blocks that take back ``skips``, attention, then an upsampling."""

    def __init__(self, init: Init, config: UNetConfig, level: int, temb_width: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        out = widths[level]
        below = widths[min(level + 1, len(widths) - 1)]
        count = config.layers_per_block + 1
        # the skips come back in reverse: this level's own, and last the one that entered it from above
        skip = [out] * (count - 1) + [widths[max(level - 1, 0)]]
        self.resnets = nn.ModuleList(
            block_of(init, config, (below if i == 0 else out) + skip[i], out, temb_width) for i in range(count)
        )
        if config.attention_levels[level]:
            self.attentions = nn.ModuleList(attention_of(init, config, out) for _ in range(count))
        if level > 0:
            self.upsamplers = nn.ModuleList([Upsample(init, out)])

    def forward(self, x: Tensor, around: Around, skips: list[Tensor]) -> Tensor:
        """(N, C, H, W) to the level above; takes its skips off the end of ``skips``."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, around, skips.pop())
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, around)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest level."""

    def __init__(self, init: Init, config: UNetConfig, temb_width: int) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.attentions = nn.ModuleList([Attention(init, config, width)])
        self.resnets = nn.ModuleList(block_of(init, config, width, width, temb_width) for _ in range(2))

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """(N, C, H, W) to the same shape."""
        x = self.resnets[0](x, around)
        return self.resnets[1](self.attentions[0](x, around), around)  # type: ignore[no-any-return]


class UNet(Network):
    """DDPM's network: x (N, in_channels, H, W) to epsilon, v or x0 as the diffusion configuration says.

    H and W may differ from ``config.image_size`` as long as the strides divide them.
    """

    config: UNetConfig

    def make(self, init: Init) -> int:
        """As ``Network``."""
        config = self.config
        widths = config.block_out_channels
        temb_width = 4 * widths[0]
        levels = range(len(widths))
        self.conv_in = Conv2d(init, config.in_channels, widths[0])
        self.time_embedding = TimestepMLP(init, widths[0], temb_width)
        self.down_blocks = nn.ModuleList(DownBlock(init, config, level, temb_width) for level in levels)
        self.mid_block = MidBlock(init, config, temb_width)
        self.up_blocks = nn.ModuleList(UpBlock(init, config, level, temb_width) for level in reversed(levels))
        self.conv_norm_out = GroupNorm(init, config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = Conv2d(init, widths[0], config.out_channels, scale=0.0)
        for place, attention in enumerate(module for module in self.modules() if isinstance(module, Attention)):
            attention.place = place
        return temb_width

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        dropout_source: DropoutSource = None,
        told: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """``told``: values of conditions by name, each (N, ...); those that are missing add nothing."""
        x = x.contiguous(memory_format=self.ways.memory_format)
        embedded = timestep_embedding(timesteps, self.config.block_out_channels[0]).to(x.dtype)
        # every block begins with SiLU of the same embedding: once is enough
        temb, readings = self.listen(self.time_embedding(embedded), told)
        temb = F.silu(temb)
        around = Around(temb, dropout_source, self.shifts(temb), readings)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, around, skips)
        x = self.mid_block(x, around)
        for block in self.up_blocks:
            x = block(x, around, skips)
        if self.ways.fused:
            return self.conv_out(self.conv_norm_out.fused(x)[0])  # type: ignore[no-any-return]
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # type: ignore[no-any-return]
