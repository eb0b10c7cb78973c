"""What a kind of network learns from a batch of images: a task makes of them what is denoised and what the network is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import upscaling
from ..model.config import ContrastConfig, ModelConfig, UpscalerConfig
from ..model.diffusion import Diffusion
from .objective import Denoise, FitTogether, Objective, Preserve
from .random import CROPS, LOW, generator, mix
from .settings import TrainSettings

_FEWEST_KEPT = 0.3  # of an image's words in a text: a person asks for one or two
_ERASED = (0.125, 0.375)  # sides of an erased rectangle, of the image's
_SPREAD = 0.5  # standard deviation of its colour
_UNASKED = 0.15  # share of the images without words for the prior (Ramesh et al. 2022: 0.1)

Prepared = tuple[Tensor, Mapping[str, Tensor]]


class Task(Protocol):
    """One of a kind of network's. ``whole_images``: whether it learns to make whole ones, which could be copies. ``whole_batches``: whether it
    compares the images of a batch with each other, so that none can be done in parts. ``told``: names of what :meth:`prepare` tells the
    objective alone; ``thins``: whether it leaves out words by itself."""

    whole_images: bool
    whole_batches: bool
    thins: bool
    told: tuple[str, ...]

    def prepare(self, images: Tensor, count: int, part: slice, *numbers: int) -> Prepared:
        """``images`` (n, C, H, W) in [-1, 1]: the ``part`` of a batch of ``count``; random numbers are a function of ``numbers``. Returns
        x0 (n, C, h, w) and values of what the network is told beside its conditions."""
        ...

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """Of the noise for images (n, C, H, W): (c, h, w)."""
        ...

    def objective(
        self, diffusion: Diffusion, settings: TrainSettings, dtype: torch.dtype, preserving: Preserve | None
    ) -> Objective:
        """What a step minimises."""
        ...


class Denoising:
    """The images themselves."""

    whole_images, whole_batches, thins = True, False, False
    told: tuple[str, ...] = ()

    def prepare(self, images: Tensor, count: int, part: slice, *numbers: int) -> Prepared:
        """As :class:`Task`."""
        return images, {}

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """As :class:`Task`."""
        return tuple(images.shape[1:])

    def objective(
        self, diffusion: Diffusion, settings: TrainSettings, dtype: torch.dtype, preserving: Preserve | None
    ) -> Objective:
        """As :class:`Task`."""
        return Denoise(diffusion, settings, dtype, preserving)


class Upscaling(Denoising):
    """What is missing in crops that were shrunk and enlarged (``model/upscaling.py``)."""

    whole_images = False

    def __init__(self, config: UpscalerConfig) -> None:
        self._config = config

    def prepare(self, images: Tensor, count: int, part: slice, *numbers: int) -> Prepared:
        """As :class:`Task`."""
        height, width = images.shape[2:]
        noise = torch.Generator(device=images.device).manual_seed(mix(*numbers, LOW))
        every = upscaling.draw(self._config, (height, width), count, generator("cpu", *numbers, CROPS), noise)
        mine = upscaling.Draws(
            every.tops[part], every.lefts[part], every.levels[part], every.blurs[part], every.noise[part]
        )
        return upscaling.example(self._config, images, mine)

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """As :class:`Task`."""
        return (images.shape[1], self._config.crop_size, self._config.crop_size)


class Contrasting:
    """Which images and words fit together: images moved a little, words of which some are left out."""

    whole_images, whole_batches, thins = False, True, True
    told: tuple[str, ...] = ("kept", "asked")

    def __init__(self, config: ContrastConfig, words: int) -> None:
        self._config, self._words = config, words

    def prepare(self, images: Tensor, count: int, part: slice, *numbers: int) -> Prepared:
        """As :class:`Task`; x0 are the images, (n, C, H, W). "kept" (n, K): which words a text keeps, at least those of a draw between
        ``FEWEST_KEPT`` and all; "asked" (n,): 1 where the prior is told them, and 0 where it learns to do without."""
        random = generator("cpu", *numbers, CROPS)
        most = self._config.shift
        tops, lefts = torch.randint(0, 2 * most + 1, (2, count), generator=random, device="cpu")
        share = _FEWEST_KEPT + (1.0 - _FEWEST_KEPT) * torch.rand((count, 1), generator=random, device="cpu")
        kept = torch.rand((count, self._words), generator=random, device="cpu") < share
        asked = torch.rand(count, generator=random, device="cpu") >= _UNASKED
        own = {"kept": kept[part].float().to(images.device), "asked": asked[part].float().to(images.device)}
        boxes = torch.rand((5, count), generator=random, device="cpu")
        boxes[4] = (boxes[4] < self._config.erased).float()
        colours = _SPREAD * torch.randn((count, images.shape[1]), generator=random, device="cpu")
        images = moved(images, tops[part], lefts[part], most)
        return erased(images, boxes[:, part], colours[part].to(images.device)), own

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """As :class:`Task`: of the prior's noise."""
        return (self._config.embedding_dim, 1, 1)

    def objective(
        self, diffusion: Diffusion, settings: TrainSettings, dtype: torch.dtype, preserving: Preserve | None
    ) -> Objective:
        """As :class:`Task`."""
        return FitTogether(diffusion, dtype)


def moved(images: Tensor, tops: Tensor, lefts: Tensor, most: int) -> Tensor:
    """Images (n, C, H, W) moved by ``tops - most`` and ``lefts - most`` pixels, each (n,) in 0 to 2 ``most``; their border is repeated."""
    if not most:
        return images
    height, width = images.shape[2:]
    around = F.pad(images, (most,) * 4, mode="replicate")
    places = zip(tops.tolist(), lefts.tolist())
    return torch.stack([one[:, y : y + height, x : x + width] for one, (y, x) in zip(around, places)])


def erased(images: Tensor, boxes: Tensor, colours: Tensor) -> Tensor:
    """Images (n, C, H, W) with a rectangle of one colour (n, C) in some (random erasing, Zhong et al. 2020), so that no part of them is all that
    tells their words. ``boxes`` (5, n) in 0 to 1: place and size down and across, each side ``_ERASED`` of the image's, and 1 where there is one."""
    height, width = images.shape[2:]
    least, most = _ERASED

    def spans(place: Tensor, size: Tensor, length: int) -> Tensor:
        extent = (least + (most - least) * size) * length
        start = place * (length - extent)
        at = torch.arange(length, device="cpu")[None] + 0.5
        return (at > start[:, None]) & (at < (start + extent)[:, None])

    down, across = spans(boxes[0], boxes[1], height), spans(boxes[2], boxes[3], width)
    inside = (down[:, :, None] & across[:, None, :] & (boxes[4] > 0)[:, None, None]).to(images.device)
    return torch.where(inside[:, None], colours[:, :, None, None].to(images.dtype), images)


def task_of(config: ModelConfig) -> Task:
    """That of a model's network."""
    if isinstance(config.unet, ContrastConfig):
        return Contrasting(config.unet, len(config.tags))
    return Upscaling(config.unet) if isinstance(config.unet, UpscalerConfig) else Denoising()
