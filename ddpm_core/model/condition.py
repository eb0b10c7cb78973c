"""What a network is told beside an image and its timestep: each condition makes of its values a shift of the timestep's embedding, and
perhaps something for the attention layers to read (``text.Reading``).

A condition is a module, named in :func:`conditions_of` or in ``AUGMENTATIONS``; the network, the training, the checkpoints and the
model file take it from there. One that is not told adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import text
from .config import ModelConfig, UNetConfig
from .layers import Init, Linear
from .told import Condition

# the others are told each word with a probability between this and 1, drawn anew for the image; with 15 % and 0.3 words were learnt a
# third more slowly (benchmarks/RESULTS.md)
FEWEST_KEPT = 0.6
LIKENESS_UNTOLD, LIKENESS_NOISE = 0.15, (0.1, 0.2)


class FlipMark(Condition):
    """Whether an image is mirrored (non-leaking augmentation, Karras et al. 2022, appendix F.2): values (N,) bool.

    Known to a training only; sampling asks for what is not mirrored, to which it adds nothing.
    """

    def __init__(self, init: Init, width: int) -> None:
        super().__init__()
        self.flip_mark = init.constant((width,), 0.0)

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(N,) bool to (N, width)."""
        return values[:, None].to(dtype) * self.flip_mark.to(dtype)


class Tags(Condition):
    """Words: values (N, K) float, the weight of each word or 0. The sum of their embeddings, and two layers over it beside it.

    The sum is divided by the square root of the words' number, so that its size does not grow with it. It is told as it is, too:
    with the two layers alone, which start at zero, words were learnt half as fast (benchmarks/RESULTS.md).
    """

    def __init__(self, init: Init, width: int, count: int, hidden: int | None = None) -> None:
        """``hidden``: between the two layers; by default ``width``."""
        super().__init__()
        self.embedding = init.uniform((count, width), math.sqrt(3.0))  # of variance 1
        self.linear_1 = Linear(init, width, hidden or width)
        self.linear_2 = Linear(init, hidden or width, width, scale=0.0)

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, K) to (N, width); zero for an image without words."""
        values = values.float()
        number = (values != 0).sum(1, keepdim=True)
        told = (values / number.clamp_min(1).sqrt()).to(dtype) @ self.embedding.to(dtype)
        found = told + self.linear_2(F.silu(self.linear_1(told)))
        return found * (number > 0).to(dtype)  # type: ignore[no-any-return]

    def loud(self) -> Sequence[nn.Parameter]:
        """Its embeddings."""
        return (self.embedding,)

    @staticmethod
    def dropped(values: Tensor, generator: torch.Generator) -> Tensor:
        """What a training tells of an image's words, (N, K) to the same: none at all of ``text.UNTOLD``, else each with a probability
        drawn anew for the image. Words left out at random cannot become the key to one picture (Somepalli et al. 2023)."""
        count = len(values)
        told = torch.rand((count, 1), generator=generator, device="cpu") >= text.UNTOLD
        keep = FEWEST_KEPT + (1.0 - FEWEST_KEPT) * torch.rand((count, 1), generator=generator, device="cpu")
        return values * (told & (torch.rand(values.shape, generator=generator, device="cpu") < keep))


class Likeness(Condition):
    """What an image is like: values (N, D), its vector in an image-text encoder's space times sqrt(D), so that a component's variance is about 1.
    One layer, and two over it beside it, as for words."""

    def __init__(self, init: Init, width: int, dimensions: int) -> None:
        super().__init__()
        self.direct = Linear(init, dimensions, width, scale=math.sqrt(3.0))  # of variance 1
        self.linear_1 = Linear(init, width, width)
        self.linear_2 = Linear(init, width, width, scale=0.0)

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, D) to (N, width); zero for an image of which nothing is told."""
        told = self.direct(values.to(dtype))
        found = told + self.linear_2(F.silu(self.linear_1(told)))
        return found * (values != 0).any(1, keepdim=True).to(dtype)  # type: ignore[no-any-return]

    def loud(self) -> Sequence[nn.Parameter]:
        """Its first layer."""
        return (self.direct.weight, self.direct.bias)

    @staticmethod
    def dropped(values: Tensor, generator: torch.Generator) -> Tensor:
        """What a training tells of a batch's images, (N, D) to the same: nothing of ``LIKENESS_UNTOLD``, else the vector with noise of a tenth to a
        fifth of its length, drawn anew: a vector is almost an image's name, and must not become the key to it."""
        count = len(values)
        told = torch.rand((count, 1), generator=generator, device="cpu") >= LIKENESS_UNTOLD
        low, high = LIKENESS_NOISE
        level = low + (high - low) * torch.rand((count, 1), generator=generator, device="cpu")
        noise = level * torch.randn(values.shape, generator=generator, device="cpu")
        return (values + noise) * (told & (values != 0).any(1, keepdim=True))


Make = Callable[[Init, int], Condition]

# what a training tells of its own doing; no part of a model
AUGMENTATIONS: Mapping[str, Make] = {"flip": FlipMark}


def conditions_of(config: ModelConfig) -> dict[str, Make]:
    """The conditions that are part of a model, by name."""
    found: dict[str, Make] = {}
    if config.tags:
        found["tags"] = lambda init, width: Tags(init, width, len(config.tags))
    encoder, unet, image = config.text, config.unet, config.image
    if image is not None:
        found["image"] = lambda init, width: Likeness(init, width, image.width)
    if encoder is not None and encoder.reading == "pooled":
        found["text"] = lambda init, width: text.Pooled(init, width, encoder)
    elif encoder is not None and isinstance(unet, UNetConfig):  # the attention layers of others read nothing
        found["text"] = lambda init, width: text.Tokens(init, width, encoder, unet)
    return found


def examples(config: ModelConfig, count: int) -> dict[str, Tensor]:
    """Values of all that a model's network is told for ``count`` images, of the right shapes."""
    found: dict[str, Tensor] = {}
    if config.kind == "upscaler":
        found |= {
            "low": torch.zeros((count, *config.denoised), device="cpu"),
            "level": torch.zeros(count, device="cpu"),
        }
    if config.tags:
        found["tags"] = torch.ones((count, len(config.tags)), device="cpu")
    if config.image is not None:
        found["image"] = torch.ones((count, config.image.width), device="cpu")
    if config.text is not None:
        found["text"] = torch.ones((count, *config.text.shape), device="cpu")
    return found
