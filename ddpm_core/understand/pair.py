"""Page 2: what a training shows its network, and what the network answers."""

from __future__ import annotations

from typing import Any

import torch

from ..model.diffusion import uint8_to_model
from ..model.prediction import PREDICTIONS
from .desk import Desk
from .noise import about
from .query import Query, as_map, as_noise, as_state, rms, shown

_LEVELS = 12  # timesteps of the curve
_EACH = 4  # images at each
_MOST_ERROR = 0.5  # yellow in the map; images go from -1 to 1


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """Timestep, noised image and noise; the network's answer as epsilon, v and x0 beside the truth."""
    model = desk.model(query.text("model"))
    images = desk.images(model, query.text("dataset"))
    number = query.whole("image", 0, 2**31, 0)
    x0 = uint8_to_model(images.one(number))
    t = query.whole("t", 0, model.timesteps - 1, model.timesteps // 2)
    noise = query.noise(tuple(x0.shape))
    times = torch.tensor([t])
    a, s = model.at(times)
    x = a * x0 + s * noise
    guess, epsilon = model.predict(x, times)
    truth = {name: kind.target(x0, noise, a, s) for name, kind in PREDICTIONS.items()}
    said = {name: kind.target(guess, epsilon, a, s) for name, kind in PREDICTIONS.items()}
    return {
        **about(images, number),
        "t": t,
        "timesteps": model.timesteps,
        "alpha": float(a),
        "sigma": float(s),
        "prediction": model.config.diffusion.prediction,
        "x0": shown(x0),
        "noise": shown(as_noise(noise)),
        "x": shown(as_state(x, a, s)),
        "truth": {name: shown(value if name == "x0" else as_noise(value)) for name, value in truth.items()},
        "said": {name: shown(value if name == "x0" else as_noise(value)) for name, value in said.items()},
        "error": {name: rms(said[name] - truth[name]) ** 2 for name in PREDICTIONS},
        "map": shown(as_map(guess.clamp(-1, 1) - x0, _MOST_ERROR)),
    }


def levels(desk: Desk, query: Query) -> dict[str, Any]:
    """The error by timestep on a few images: of epsilon, v and x0; on held-out images where there are any."""
    model = desk.model(query.text("model"))
    images = desk.images(model, query.text("dataset"))
    rows = images.order()[:_EACH]
    x0 = uint8_to_model(images.images[rows])
    times = torch.linspace(0, model.timesteps - 1, _LEVELS).round().long()
    each = times.repeat_interleave(len(x0))
    clean = x0.repeat(_LEVELS, 1, 1, 1)
    noise = query.noise(tuple(clean.shape))
    a, s = model.at(each)
    guess, epsilon = model.predict(a * clean + s * noise, each)
    found = {}
    for name, kind in PREDICTIONS.items():
        error = (kind.target(guess, epsilon, a, s) - kind.target(clean, noise, a, s)).pow(2).flatten(1).mean(1)
        found[name] = [float(value) for value in error.view(_LEVELS, -1).mean(1)]
    return {"times": times.tolist(), "error": found, "held_out": images.is_held(0)}
