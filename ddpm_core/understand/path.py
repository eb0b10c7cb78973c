"""Page 3: how noise becomes an image, step by step."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch

from ..errors import UserError
from ..model.diffusion import model_to_uint8
from ..operations.pictures import enlarged, make_grid
from ..sampling import SAMPLERS
from ..sampling.generate import SampleSettings, generate
from ..sampling.trace import Trace, trace
from .desk import Desk, Opened
from .query import Query, as_noise, as_state, rms, shown

_MOST_STEPS = 50
_ANIMATED = 9  # images
_COUNTS = (1, 2, 4, 8, 16, 32)


def settings_of(query: Query, model: Opened) -> SampleSettings:
    """Sampler and number of steps, as asked for."""
    names = tuple(name for name, one in SAMPLERS.items() if not one.full_only)
    sampler = query.one_of("sampler", names, "ddim")
    return SampleSettings(sampler, min(query.whole("steps", 1, _MOST_STEPS, 20), model.timesteps))


def seed_of(query: Query) -> int:
    """The seed of the noise, as asked for."""
    return query.whole("seed", 0, 2**32 - 1, 0)


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """Every step of one sampling: states, guesses and what each step took away, as one image of three rows; and its numbers."""
    model = desk.model(query.text("model"))
    settings = settings_of(query, model)
    found = trace(model.network, model.diffusion, model.shape, settings, [seed_of(query)])
    states, guesses = found.states[:, 0], found.guesses[:, 0]
    taken = states[:-1] - states[1:]
    taken = taken / max(rms(taken), 1e-9)  # a step takes little: so strong that it is seen
    # the last state has no guess of its own: it is the last guess
    a = torch.tensor(found.alpha_bars)[:, None, None, None]
    seen = as_state(states, a.sqrt(), (1 - a).sqrt())
    rows = torch.cat([seen, guesses, states[-1:], as_noise(taken), 0 * states[-1:]])
    return {
        "sampler": settings.sampler,
        "label": settings.definition.label,
        "steps": len(found.times),
        "timesteps": model.timesteps,
        "picture": shown(rows, columns=len(states)),
        "size": list(model.shape[1:]),
        "numbers": numbers(found),
    }


def numbers(found: Trace) -> list[dict[str, float]]:
    """Of each step its timestep, alpha and sigma, the shares of state and guess in the next state, and how much it changed."""
    return [
        {
            "t": t,
            "alpha": found.alpha_bars[i] ** 0.5,
            "sigma": (1 - found.alpha_bars[i]) ** 0.5,
            "of_state": of_state,
            "of_guess": of_guess,
            "taken": rms(found.states[i] - found.states[i + 1]),
            "guess_moved": rms(found.guesses[i] - found.guesses[i - 1]) if i else 0.0,
        }
        for i, (t, (of_state, of_guess)) in enumerate(zip(found.times, found.steps()))
    ]


def animation(desk: Desk, query: Query) -> dict[str, Any]:
    """The states of nine samplings, with the guesses below, as an animated WebP's data URL."""
    model = desk.model(query.text("model"))
    settings = settings_of(query, model)
    seeds = [seed_of(query) + i for i in range(_ANIMATED)]
    found = trace(model.network, model.diffusion, model.shape, settings, seeds)
    a = torch.tensor(found.alpha_bars)[:, None, None, None, None]
    states = as_state(found.states, a.sqrt(), (1 - a).sqrt())
    guesses = torch.cat([found.guesses, found.states[-1:]])
    frames = [
        enlarged(make_grid(model_to_uint8(torch.cat(both)), columns=_ANIMATED, gap=1), 96 * _ANIMATED)
        for both in zip(states, guesses)
    ]
    out = io.BytesIO()
    durations = [120] * (len(frames) - 1) + [2500]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70)
    return {"animation": "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()}


def compare(desk: Desk, query: Query) -> dict[str, Any]:
    """The same noise by each sampler (``what`` samplers), or by one in more and more steps (steps)."""
    model = desk.model(query.text("model"))
    what = query.one_of("what", ("samplers", "steps"), "samplers")
    chosen = settings_of(query, model)
    steps = chosen.steps or 1
    if what == "samplers":
        kinds = [(one.label, SampleSettings(name, steps)) for name, one in SAMPLERS.items() if not one.full_only]
    else:
        kinds = [(str(n), SampleSettings(chosen.sampler, n)) for n in _COUNTS if n <= model.timesteps]
    found = []
    for label, settings in kinds:
        seeded = SampleSettings(settings.sampler, settings.steps, seed=seed_of(query))
        images, calls = generate(model.network, model.diffusion, model.shape, 1, seeded)
        if not len(images):
            raise UserError("The sampling was stopped.")
        found.append({"label": label, "calls": calls, "image": shown(images)})
    return {"what": what, "images": found}
