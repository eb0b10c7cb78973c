"""Prompts by a text encoder: its answer as a whole (pooled), or token by token by cross-attention, as in Stable Diffusion.

Values are what the encoder makes of each image's prompt, in its own numbers, (N, tokens, width) or pooled (N, width); zeros for an image
that is told nothing. The network learns its own way in, so one encoder serves models of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TextConfig, UNetConfig
from .layers import GroupNorm, Init, Linear, attend
from .told import Condition

# share of the images of a training that are told no words, so that one model serves with and without (Ho & Salimans 2022)
UNTOLD = 0.1
COMPONENTS = 64  # of a pooled answer's principal components
_WIDEST = 3.0  # a prompt unlike all that were learnt may be far out along a component; it is told as no more than so many deviations
# Gaussian noise on what a training tells, of the values' spread within a batch: no prompt is a key to its image (Somepalli et al. 2023)
NOISE = 0.2
_LEAST_VARIANCE = 1e-3  # of a component, of the largest's: less would be rounding in bfloat16, made large


class TextEncoder(Protocol):
    """What makes numbers of texts: a host's, frozen. ``fingerprint`` of its weights and all else that changes its answers."""

    name: str
    fingerprint: str
    width: int
    tokens: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Plain texts to (N, tokens, width) float32 on the CPU; a token of zeros is none. Called by whoever may compute."""


class Pooled(Condition):
    """A pooled answer: values (N, D). Whitened at first (:meth:`fit`), then one layer and two more beside it, as for words.

    Answers to different prompts differ little beside what they share, so they are told by their principal components, each of
    variance 1 over the prompts of the training.
    """

    def __init__(self, init: Init, width: int, encoder: TextConfig) -> None:
        super().__init__()
        self.whitening = Linear(init, encoder.width, COMPONENTS)
        self.direct = Linear(init, COMPONENTS, width, scale=math.sqrt(3.0))  # of variance 1
        self.linear_1 = Linear(init, width, width)
        self.linear_2 = Linear(init, width, width, scale=0.0)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Begin with the whitening of ``values``, one row (D,) for each distinct prompt, on the CPU; without any as it is."""
        values = values[(values != 0).any(1)]
        if not len(values):
            return
        weight, bias = whitening(values, COMPONENTS)
        self.whitening.weight.copy_(weight)
        self.whitening.bias.copy_(bias)

    def loud(self) -> Sequence[nn.Parameter]:
        """Its first layer."""
        return (self.direct.weight, self.direct.bias)

    @staticmethod
    def dropped(values: Tensor, generator: torch.Generator) -> Tensor:
        """:func:`dropped`."""
        return dropped(values, UNTOLD, generator)

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, D) to (N, width); zero for an image that is told nothing."""
        white = self.whitening(values.float())
        told = self.direct((_WIDEST * torch.tanh(white / _WIDEST)).to(dtype))
        found = told + self.linear_2(F.silu(self.linear_1(told)))
        return found * (values != 0).any(1, keepdim=True).to(dtype)  # type: ignore[no-any-return]


def whitening(values: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Weight (components, D) and bias (components,), float32, that make of rows (U, D) their principal components with mean 0 and
    variance 1; components that the rows do not have are zero."""
    x = values.double()
    mean = x.mean(0)
    _, spread, directions = torch.linalg.svd(x - mean, full_matrices=False)
    variance = spread.square() / max(len(x), 1)
    kept = min(components, int((variance > _LEAST_VARIANCE * variance.max()).sum())) if bool(variance.max() > 0) else 0
    directions = directions[:kept]
    # a direction's sign is arbitrary: the largest entry decides, so that every machine begins alike
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    weight = torch.zeros((components, x.shape[1]), dtype=torch.float64, device=x.device)
    weight[:kept] = directions / variance[:kept].sqrt()[:, None]
    return weight.float(), (-weight @ mean).float()


class CrossAttention(nn.Module):
    """Multi-head attention of the pixels of (N, C, H, W) to the tokens of a text, added to the image; it begins by adding nothing."""

    def __init__(self, init: Init, config: UNetConfig, channels: int, width: int) -> None:
        super().__init__()
        self.heads = channels // config.attention_head_dim
        self.group_norm = GroupNorm(init, config.norm_num_groups, channels, config.norm_eps)
        self.to_q = Linear(init, channels, channels)
        self.to_k = Linear(init, width, channels)
        self.to_v = Linear(init, width, channels)
        self.to_out = Linear(init, channels, channels, scale=0.0)

    def forward(self, x: Tensor, tokens: Tensor, there: Tensor) -> Tensor:
        """``tokens`` (N, T, width), of which those are read that are ``there`` (N, T); an image without any stays as it is."""
        n, c, height, width = x.shape
        pixels = self.group_norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        told = there.any(1)
        mask = there.clone()
        mask[:, 0] |= ~told  # a softmax over nothing is no number
        mixed = attend(self.to_q(pixels), self.to_k(tokens), self.to_v(tokens), self.heads, mask[:, None, None, :])
        out = self.to_out(mixed).view(n, height, width, c)
        return x + out.permute(0, 3, 1, 2) * told[:, None, None, None].to(x.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Reading:
    """A text that the network's attention layers read, each by a cross-attention of its own."""

    layers: Sequence[nn.Module]
    tokens: Tensor
    there: Tensor

    def __call__(self, place: int, x: Tensor) -> Tensor:
        """(N, C, H, W) behind the attention layer ``place`` to the same shape."""
        return self.layers[place](x, self.tokens, self.there)  # type: ignore[no-any-return]


class Tokens(Condition):
    """An answer token by token: values (N, T, D), read by cross-attention behind each of the network's attention layers; the tokens'
    mean is told as a pooled answer, too (as Saharia et al. 2022): cross-attention alone learns slowly. A token of zeros is none."""

    def __init__(self, init: Init, width: int, encoder: TextConfig, unet: UNetConfig) -> None:
        super().__init__()
        self.norm_weight = init.constant((encoder.width,), 1.0)
        self.norm_bias = init.constant((encoder.width,), 0.0)
        self.proj = Linear(init, encoder.width, width)
        self.pooled = Pooled(init, width, encoder)
        self.attentions = nn.ModuleList(
            CrossAttention(init, unet, channels, width) for channels in unet.attention_channels
        )

    def fit(self, values: Tensor) -> None:
        """As :meth:`Pooled.fit`, for tokens (U, T, D)."""
        if len(values):  # a piece at a time: they are large
            self.pooled.fit(torch.cat([mean_token(part.float()) for part in torch.split(values, 64)]))

    def loud(self) -> Sequence[nn.Parameter]:
        """That of the pooled answer: cross-attention begins by adding nothing anyway."""
        return self.pooled.loud()

    @staticmethod
    def dropped(values: Tensor, generator: torch.Generator) -> Tensor:
        """:func:`dropped`."""
        return dropped(values, UNTOLD, generator)

    def forward(self, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Reading]:
        """(N, T, D) to (N, width), and what the attention layers read."""
        values = values.float()
        weight, bias = self.norm_weight.float(), self.norm_bias.float()
        tokens = self.proj(F.layer_norm(values, values.shape[-1:], weight, bias).to(dtype))
        return self.pooled(mean_token(values), dtype), Reading(list(self.attentions), tokens, (values != 0).any(2))


def mean_token(values: Tensor) -> Tensor:
    """The mean (N, D) of those tokens of (N, T, D) that are there; zeros without any."""
    there = (values != 0).any(2)
    return values.sum(1) / there.sum(1, keepdim=True).clamp_min(1)


def dropped(values: Tensor, untold: float, generator: torch.Generator) -> Tensor:
    """What a training tells of a batch's texts, (N, D) or (N, T, D), the same shape: nothing of a share ``untold``, else the values
    with ``NOISE``, one vector for all tokens of an image. Leaving out single tokens was worse: it hides what a prompt says."""
    told = torch.rand(len(values), generator=generator, device="cpu") >= untold
    whole = values if values.ndim == 2 else mean_token(values)
    noise = torch.randn(whole.shape, generator=generator, device="cpu") * whole.std(0, correction=0) * NOISE
    shape = (len(values), *[1] * (values.ndim - 1))
    there = (values != 0).any(-1, keepdim=True)  # who has no prompt is told none
    return (values + noise.view(*shape[:-1], -1)) * (told.view(shape) & there)
