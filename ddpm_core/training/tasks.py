"""What a kind of network learns from a batch of images: a task makes of them what is denoised and what the network is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..model import upscaling
from ..model.config import ModelConfig, UpscalerConfig
from .random import CROPS, LOW, generator, mix

Prepared = tuple[Tensor, Mapping[str, Tensor]]


class Task(Protocol):
    """One of a kind of network's. ``whole_images``: whether it learns to make whole ones, which could be copies."""

    whole_images: bool

    def prepare(self, images: Tensor, count: int, part: slice, *numbers: int) -> Prepared:
        """``images`` (n, C, H, W) in [-1, 1]: the ``part`` of a batch of ``count``; random numbers are a function of ``numbers``. Returns
        x0 (n, C, h, w) and values of what the network is told beside its conditions."""
        ...

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """Of x0 made of images (n, C, H, W): (C, h, w)."""
        ...


class Denoising:
    """The images themselves."""

    whole_images = True

    def prepare(self, images: Tensor, count: int, part: slice, *numbers: int) -> Prepared:
        """As :class:`Task`."""
        return images, {}

    def shape(self, images: Tensor) -> tuple[int, ...]:
        """As :class:`Task`."""
        return tuple(images.shape[1:])


class Upscaling:
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


def task_of(config: ModelConfig) -> Task:
    """That of a model's network."""
    return Upscaling(config.unet) if isinstance(config.unet, UpscalerConfig) else Denoising()
