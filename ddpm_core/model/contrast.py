"""Images and words in one space (CLIP, Radford et al. 2021), small, and a prior from words to images in it (DALL-E 2, Ramesh et al. 2022).

Two towers make a vector of unit length of an image and of words; their product says how well they fit. The prior is a diffusion model of
the images' vectors, told the words: of one text there are many images, and it draws one of their vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import DropoutSource, TimestepMLP, timestep_embedding
from .condition import Tags
from .config import ContrastConfig
from .layers import Conv2d, GroupNorm, Init, Linear
from .network import Network

PATCH = 2
_TEMPERATURE, _MOST_SCALE = 0.07, 100.0  # CLIP's first and least temperature: the scale is 1 / temperature
_PRIOR_EMBEDDING = 64  # of a timestep


class ImageBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016), (N, in, H, W) to (N, out, H / stride, W / stride)."""

    def __init__(self, init: Init, config: ContrastConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.conv1 = Conv2d(init, in_channels, out_channels, stride=stride)
        self.norm1 = GroupNorm(init, groups, out_channels, eps)
        self.conv2 = Conv2d(init, out_channels, out_channels)
        self.norm2 = GroupNorm(init, groups, out_channels, eps)
        self.conv_shortcut = Conv2d(init, in_channels, out_channels, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        h = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        return F.silu(h + self.conv_shortcut(x))


class ImageTower(nn.Module):
    """Images (N, C, H, W) in [-1, 1] to vectors (N, D) of unit length. What is where counts: the last map is averaged on a grid only."""

    def __init__(self, init: Init, config: ContrastConfig) -> None:
        super().__init__()
        widths, self._grid = config.block_out_channels, config.grid
        self.conv_in = Conv2d(init, PATCH * PATCH * config.in_channels, widths[0])
        self.norm_in = GroupNorm(init, config.norm_num_groups, widths[0], config.norm_eps)
        before = (widths[0], *widths)
        self.blocks = nn.ModuleList(
            ImageBlock(init, config, before[level], width, 2 if level else 1) for level, width in enumerate(widths)
        )
        self.projection = Linear(init, widths[-1] * self._grid**2, config.embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D) float32."""
        h = F.silu(self.norm_in(self.conv_in(F.pixel_unshuffle(images, PATCH))))
        for block in self.blocks:
            h = block(h)
        found = self.projection(F.adaptive_avg_pool2d(h, self._grid).flatten(1))
        return F.normalize(found.float(), dim=1)


class WordTower(Tags):
    """Words (N, K), the weight of each or 0, to vectors (N, D) of unit length; zeros for an image without words."""

    def __init__(self, init: Init, config: ContrastConfig, count: int) -> None:
        super().__init__(init, config.embedding_dim, count, hidden=4 * config.embedding_dim)

    def loud(self) -> Sequence[nn.Parameter]:
        """None: it is added to nothing."""
        return ()

    def embed(self, words: Tensor) -> Tensor:
        """(N, K) to (N, D) float32."""
        return F.normalize(self(words, self.embedding.dtype).float(), dim=1)


class PriorBlock(nn.Module):
    """Two layers over a normalised vector and the embedding of timestep and words, added to the vector."""

    def __init__(self, init: Init, width: int, temb_width: int) -> None:
        super().__init__()
        self.norm_weight = init.constant((width,), 1.0)
        self.norm_bias = init.constant((width,), 0.0)
        self.time_emb_proj = Linear(init, temb_width, width)
        self.linear_1 = Linear(init, width, 2 * width)
        self.linear_2 = Linear(init, 2 * width, width, scale=0.0)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(N, width) to the same."""
        weight, bias = self.norm_weight.to(x.dtype), self.norm_bias.to(x.dtype)
        h = F.layer_norm(x, x.shape[-1:], weight, bias) + self.time_emb_proj(temb)
        return x + self.linear_2(F.silu(self.linear_1(h)))  # type: ignore[no-any-return]


class Contrast(Network):
    """``net(x, t, told={"tags": ...})`` is the prior: x (N, D, 1, 1), noised vectors of images times sqrt(D), so that a component has variance 1;
    returns them without noise. The towers are :meth:`embed_images` and :meth:`embed_words`. Otherwise as ``UNet``.
    """

    config: ContrastConfig

    @property
    def can_be_told(self) -> tuple[str, ...]:
        """What the prior is told."""
        return ("tags",)

    def make(self, init: Init) -> int:
        """As ``Network``."""
        config = self.config
        self.images = ImageTower(init, config)
        self.log_scale = init.constant((1,), math.log(1.0 / _TEMPERATURE))
        width = config.prior_channels
        self.time_embedding = TimestepMLP(init, _PRIOR_EMBEDDING, width)
        self.prior_in = Linear(init, config.embedding_dim, width)
        self.prior = nn.ModuleList(PriorBlock(init, width, width) for _ in range(config.prior_layers))
        self.prior_out = Linear(init, width, config.embedding_dim, scale=0.0)
        return width

    @property
    def scale(self) -> Tensor:
        """(1,): by which products of vectors become logits."""
        return self.log_scale.float().clamp(max=math.log(_MOST_SCALE)).exp()

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] to (N, D) float32 of unit length."""
        return self.images(images)  # type: ignore[no-any-return]

    def embed_words(self, words: Tensor) -> Tensor:
        """(N, K), weights of words, to (N, D) float32 of unit length; a negative weight counts against a word."""
        return self.conditions["words"].embed(words)  # type: ignore[no-any-return, operator]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        dropout_source: DropoutSource = None,
        told: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The prior: (N, D, 1, 1) to the same; ``told``: words, (N, K) as "tags"."""
        embedded = timestep_embedding(timesteps, _PRIOR_EMBEDDING).to(x.dtype)
        temb = F.silu(self.listen(self.time_embedding(embedded), told)[0])
        h = self.prior_in(x.flatten(1))
        for block in self.prior:
            h = block(h, temb)
        return self.prior_out(h).reshape(x.shape)  # type: ignore[no-any-return]

    def rehearsed(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """As ``Network``: both towers and the prior."""
        config = self.config
        some = torch.zeros((len(x), config.in_channels, *config.image_size), dtype=x.dtype, device=x.device)
        fit = self.embed_images(some) @ self.embed_words(told["tags"]).T
        prior: Tensor = self(x, timesteps, told=told)
        return fit.square().mean() * self.scale[0] + prior.float().square().mean()


def fit_of_words(images: Tensor, words: Tensor) -> Tensor:
    """How well images fit words: vectors (N, D) and (M, D) of unit length to (N, M) in [-1, 1]."""
    return images @ words.T
