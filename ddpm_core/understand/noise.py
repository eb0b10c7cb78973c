"""Page 1: an image under more and more noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..model.config import SCHEDULES, DiffusionConfig
from ..model.diffusion import Diffusion, uint8_to_model
from ..model.schedule import make_alphas_cumprod
from .desk import Desk
from .lesson import about
from .query import Query, as_noise, as_state, rms, shown

_POINTS = 101  # of a curve


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """One image noised to a timestep at once (Ho et al. 2020, eq. 4) and step by step (eq. 2), and the schedules' curves."""
    model = desk.model(query.text("model"))
    images = desk.images(model, query.text("dataset"))
    own = model.config.diffusion
    schedule = query.one_of("schedule", SCHEDULES, own.schedule)
    config = dataclasses.replace(own, schedule=schedule)
    process = Diffusion(config)
    t = query.whole("t", 0, config.timesteps - 1, config.timesteps // 2)
    number = query.whole("image", 0, 2**31, 0)
    x0 = uint8_to_model(images.one(number))
    noise = query.noise(tuple(x0.shape))
    at_once = process.add_noise(x0, noise, torch.tensor([t]))
    stepwise = step_by_step(x0, config, t, query.whole("seed", 0, 2**32 - 1, 0))
    alpha, sigma = float(process.sqrt_alpha[t]), float(process.sqrt_one_minus_alpha[t])
    return {
        **about(images, number),
        "t": t,
        "timesteps": config.timesteps,
        "schedule": schedule,
        "own_schedule": own.schedule,
        "x0": shown(x0),
        "noise": shown(as_noise(noise)),
        "at_once": shown(as_state(at_once, alpha, sigma)),
        "stepwise": shown(as_state(stepwise, alpha, sigma)),
        "alpha_bar": float(process.alphas_cumprod[t]),
        "alpha": alpha,
        "sigma": sigma,
        "snr": None if sigma == 0 else float(process.snr[t]),
        "spread": {"at_once": rms(at_once - alpha * x0), "stepwise": rms(stepwise - alpha * x0)},
        "curves": curves(own),
    }


def step_by_step(x0: Tensor, config: DiffusionConfig, t: int, seed: int) -> Tensor:
    """x_t by t + 1 small steps x_s = sqrt(1 - beta_s) x_(s-1) + sqrt(beta_s) noise (eq. 2), each with fresh noise."""
    table = make_alphas_cumprod(config)
    generator = torch.Generator(device="cpu").manual_seed(seed + 1)
    x, before = x0, 1.0
    for a in table[: t + 1].tolist():
        kept = a / before  # 1 - beta
        x = kept**0.5 * x + (1 - kept) ** 0.5 * torch.randn(x.shape, generator=generator, device="cpu")
        before = a
    return x


def curves(own: DiffusionConfig) -> dict[str, list[float]]:
    """abar of each schedule at 101 points from the first timestep to the last."""
    rows = torch.linspace(0, own.timesteps - 1, _POINTS).round().long()
    tables = {name: make_alphas_cumprod(dataclasses.replace(own, schedule=name)) for name in SCHEDULES}
    return {name: [round(value, 5) for value in table[rows].tolist()] for name, table in tables.items()}
