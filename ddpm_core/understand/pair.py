"""Page 2: what a training shows its network, and what the network answers."""

from __future__ import annotations

from typing import Any

from ..model.diffusion import uint8_to_model
from ..model.prediction import PREDICTIONS
from .desk import Desk
from .lesson import by_level, lesson
from .query import Query, as_map, as_noise, rms, shown

_LEVELS = 12  # timesteps of the curve
_EACH = 4  # images at each
_MOST_ERROR = 0.5  # yellow in the map; images go from -1 to 1


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """Timestep, noised image and noise; the network's answer as epsilon, v and x0 beside the truth."""
    model = desk.model(query.text("model"))
    images = desk.images(model, query.text("dataset"))
    one = lesson(model, images, query)
    a, s, noise, x0 = one.alpha, one.sigma, one.noise, one.x0
    guess, epsilon = model.predict(one.x, one.times)
    truth = {name: kind.target(x0, noise, a, s) for name, kind in PREDICTIONS.items()}
    said = {name: kind.target(guess, epsilon, a, s) for name, kind in PREDICTIONS.items()}
    return {
        **one.about,
        "alpha": float(a),
        "sigma": float(s),
        "prediction": model.config.diffusion.prediction,
        "noise": shown(as_noise(noise)),
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
    noise = query.noise((_LEVELS * len(x0), *x0.shape[1:]))
    times, all_of_them = by_level(model, x0, _LEVELS, noise)
    clean, a, s = all_of_them.x0, all_of_them.alpha, all_of_them.sigma
    guess, epsilon = model.predict(all_of_them.x, all_of_them.times)
    found = {}
    for name, kind in PREDICTIONS.items():
        error = (kind.target(guess, epsilon, a, s) - kind.target(clean, noise, a, s)).pow(2).flatten(1).mean(1)
        found[name] = [float(value) for value in error.view(_LEVELS, -1).mean(1)]
    return {"times": times, "error": found, "held_out": images.is_held(0)}
