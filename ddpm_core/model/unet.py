"""The U-Net of DDPM (Ho et al. 2020), parameter for parameter that of diffusers' ``UNet2DModel``.

Parameter names are diffusers', so that exporting is writing a file. Correspondence: ``DownBlock2D`` or
``AttnDownBlock2D`` by level, ``downsample_padding=1``, ``flip_sin_to_cos=True``, ``freq_shift=0``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import aside
from .condition import Make
from .config import UNetConfig
from .layers import Conv2d, GroupNorm, Init, Linear, add_bias, attend, dropout, linear
from .products import enlarging, folded, pointwise
from .products import linear as product
from .text import Reading
from .ways import Ways

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


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv, plus the timestep, GroupNorm-SiLU-dropout-conv, plus the (projected) input."""

    def __init__(self, init: Init, config: UNetConfig, in_channels: int, out_channels: int, temb_width: int) -> None:
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
        generator = around.dropout if isinstance(around.dropout, torch.Generator) else None
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(around.temb)[:, :, None, None]
        h = self.conv2(dropout(F.silu(self.norm2(h)), self.dropout, generator))
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


class DownBlock(nn.Module):
    """One level on the way down: residual blocks, attention if the level has it, then a downsampling."""

    def __init__(self, init: Init, config: UNetConfig, level: int, temb_width: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        out = widths[level]
        first = widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            ResBlock(init, config, first if i == 0 else out, out, temb_width) for i in range(config.layers_per_block)
        )
        if config.attention_levels[level]:
            self.attentions = nn.ModuleList(Attention(init, config, out) for _ in range(config.layers_per_block))
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
            ResBlock(init, config, (below if i == 0 else out) + skip[i], out, temb_width) for i in range(count)
        )
        if config.attention_levels[level]:
            self.attentions = nn.ModuleList(Attention(init, config, out) for _ in range(count))
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
        self.resnets = nn.ModuleList(ResBlock(init, config, width, width, temb_width) for _ in range(2))

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """(N, C, H, W) to the same shape."""
        x = self.resnets[0](x, around)
        return self.resnets[1](self.attentions[0](x, around), around)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Noise-prediction network: ``net(x, t)`` for x (N, in_channels, H, W) in the compute dtype and t (N,) in 0..T-1.

    Returns (N, out_channels, H, W) in the dtype of ``x``: epsilon, v or x0 as the diffusion configuration says.
    H and W may differ from ``config.image_size`` as long as the strides divide them. Dropout is applied if and only
    if ``dropout_source`` is given: a generator on the device of ``x``, or seeds (``blocks``, 4) int32 there for fused kernels.
    There is no train/eval mode.
    """

    def __init__(
        self,
        config: UNetConfig,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        *,
        draw: bool = True,
        ways: Ways | None = None,
        conditions: Mapping[str, Make] | None = None,
    ) -> None:
        """``generator``: a CPU generator for the initial weights (default: a new one with seed 0), unless ``draw`` is False:
        then they are not drawn at all, for weights that are loaded next. ``ways``: which kernels, PyTorch's by default.
        ``conditions``: what it can be told, by name (``condition.py``)."""
        super().__init__()
        if generator is None:
            generator = torch.Generator(device="cpu").manual_seed(0)
        init = Init(device, generator, draw=draw, ways=ways)
        self.config, self.ways = config, init.ways
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
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        for place, block in enumerate(blocks):
            block.place = place
        self.blocks = len(blocks)
        for place, attention in enumerate(module for module in self.modules() if isinstance(module, Attention)):
            attention.place = place
        # last, so that the weights before them are drawn alike with and without
        if conditions:
            self.conditions = nn.ModuleDict({name: make(init, temb_width) for name, make in conditions.items()})

    @property
    def can_be_told(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(self.conditions) if hasattr(self, "conditions") else ()

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
        temb = self.time_embedding(embedded)
        readings: list[Reading] = []
        for name, values in (told or {}).items():
            found = self.conditions[name](values, x.dtype)
            shift = found
            if isinstance(found, tuple):
                shift, reading = found
                readings.append(reading)
            temb = temb + shift
        temb = F.silu(temb)
        around = Around(temb, dropout_source, self._shifts(temb) if self.ways.fused else (), readings)
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

    def _shifts(self, temb: Tensor) -> Sequence[Tensor]:
        """For each block, its projection of the embedding plus its first convolution's bias, (N, channels), by one product."""
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        weight = torch.cat([block.time_emb_proj.weight for block in blocks]).to(temb.dtype)
        bias = torch.cat([block.time_emb_proj.bias for block in blocks])
        bias = (bias + torch.cat([block.conv1.bias for block in blocks])).to(temb.dtype)
        sizes = [len(block.conv1.bias) for block in blocks]
        return torch.split(linear(temb, weight, bias, fused=True), sizes, dim=1)

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy weights by name into the existing parameters; a missing, foreign or misshapen tensor raises KeyError or ValueError."""
        parameters = dict(self.named_parameters())
        if set(parameters) != set(tensors):
            odd = sorted(set(parameters) ^ set(tensors))[0]
            raise KeyError(odd)
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name}: {tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])
