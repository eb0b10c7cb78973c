"""One image of the dataset under noise, as several pages ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.diffusion import uint8_to_model
from .desk import Images, Opened
from .query import Query, as_state, shown


@dataclass
class Lesson:
    """``x0``, ``noise`` and ``x``, the image noised to ``times`` (1,), each (1, C, H, W) on the CPU; ``alpha``, ``sigma`` (1, 1, 1, 1);
    ``about``: what every page is told of them."""

    x0: Tensor
    noise: Tensor
    x: Tensor
    times: Tensor
    alpha: Tensor
    sigma: Tensor
    about: dict[str, Any]


def lesson(model: Opened, images: Images, query: Query) -> Lesson:
    """The image, timestep and noise that are asked for."""
    number = query.whole("image", 0, 2**31, 0)
    x0 = uint8_to_model(images.one(number))
    times = torch.tensor([query.whole("t", 0, model.timesteps - 1, model.timesteps // 2)])
    noise = query.noise(tuple(x0.shape))
    alpha, sigma = model.at(times)
    x = alpha * x0 + sigma * noise
    told = {
        **about(images, number),
        "t": int(times),
        "timesteps": model.timesteps,
        "x0": shown(x0),
        "x": shown(as_state(x, alpha, sigma)),
    }
    return Lesson(x0, noise, x, times, alpha, sigma, told)


def about(images: Images, number: int) -> dict[str, Any]:
    """Which images these are, and which of them this one is."""
    return {
        "dataset": images.dataset,
        "count": len(images.images),
        "stand_in": images.stand_in,
        "own": images.own,
        "held_out": images.is_held(number),
        "held": len(images.held),
    }


def by_level(model: Opened, x0: Tensor, levels: int, noise: Tensor) -> tuple[list[int], Lesson]:
    """Images (N, C, H, W) under ``noise`` (levels N, C, H, W) at evenly spaced timesteps: these, and all rows, the lowest level first."""
    times = torch.linspace(0, model.timesteps - 1, levels).round().long()
    each, clean = times.repeat_interleave(len(x0)), x0.repeat(levels, 1, 1, 1)
    alpha, sigma = model.at(each)
    return times.tolist(), Lesson(clean, noise, alpha * clean + sigma * noise, each, alpha, sigma, {})
