"""Page 6: what words do at each step, and what guidance makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..model.values import Values, dense
from ..operations import asking
from ..requests import Prompt
from ..sampling.denoiser import Denoiser
from ..sampling.generate import ImageNoise, SampleSettings
from .desk import Desk, Opened
from .path import seed_of
from .query import Query, as_map, as_noise, rms, shown

_SCALES = tuple(float(scale) for scale in range(11))
_STEPS = 12
_MOST_CHANGE = 0.5


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """The same noise under CFG scales from 0 (the words are ignored) to 10, and what the words add at each step at scale 1."""
    model = desk.model(query.text("model"))
    if not model.config.takes_prompts:
        raise UserError(
            f"{model.name} was trained without prompts: there are no words to look at. Choose a model with words."
        )
    prompt = query.text("prompt").strip() or _some(model)
    question = asking.read(model.config, [Prompt(prompt)], 1.0, model.context)
    if question.asked is None:
        raise UserError(f"{model.name} knows none of these words; take some of those that it knows.")
    told = {name: dense(values) for name, values in question.asked.told.items()}
    guided = Guided(model, told, torch.tensor(_SCALES))
    images, guesses = guided.sample(seed_of(query))
    changes = guided.changes  # of the row with scale 1, at each step
    return {
        "prompt": prompt,
        "words": question.words,
        "unknown": [word for word, _ in question.unknown],
        "scales": list(_SCALES),
        "images": shown(images),
        "times": guided.times,
        "sizes": [rms(change) for change in changes],
        "changes": shown(as_map(torch.stack(changes), _MOST_CHANGE)),
        "added": shown(as_noise(torch.stack(changes) * 2)),
        "guesses": shown(guesses),
        "size": list(model.shape[1:]),
    }


def _some(model: Opened) -> str:
    if not model.config.tags:
        raise UserError("Write a prompt: this model reads whole texts.")
    return model.config.tags[0].split(" | ")[0]


class Guided:
    """A sampling of one noise under several CFG scales at once, that notes what the words change in the predicted image."""

    def __init__(self, model: Opened, told: Mapping[str, Values], scales: Tensor) -> None:
        """``told``: values of conditions, (1, ...); ``scales``: (N,), with a 1 among them."""
        self._model = model
        self._told = {name: dense(values).to(model.net.device) for name, values in told.items()}
        self._scales = scales.to(model.net.device)[:, None, None, None]
        self._plain = int((scales == 1.0).nonzero()[0])
        self.changes: list[Tensor] = []  # (C, H, W) at each step
        self._guesses: list[Tensor] = []
        self.times = SampleSettings(steps=_STEPS).times(model.timesteps)

    def network(self, x: Tensor, times: Tensor) -> Tensor:
        """u + w (c - u), each row with its own w."""
        both, at = torch.cat([x, x]), torch.cat([times, times])
        told = {
            name: torch.cat(
                [values.expand(len(x), *values.shape[1:]), torch.zeros_like(values).expand(len(x), *values.shape[1:])]
            )
            for name, values in self._told.items()
        }
        with_words, without = self._model.network(both, at, told).chunk(2)
        row, process = slice(self._plain, self._plain + 1), self._model.diffusion
        a = process.to_x0_and_epsilon(with_words[row], x[row], times[row])[0]
        b = process.to_x0_and_epsilon(without[row], x[row], times[row])[0]
        self.changes.append((a.clamp(-1, 1) - b.clamp(-1, 1))[0].cpu())
        self._guesses.append(a[0].cpu())
        return without + self._scales * (with_words - without)

    def sample(self, seed: int) -> tuple[Tensor, Tensor]:
        """The images (N, C, H, W), and the predicted image at each step with scale 1, (S, C, H, W)."""
        settings = SampleSettings(steps=_STEPS)
        device = self._model.net.device
        noise = ImageNoise([seed], self._model.shape, device).first().expand(len(self._scales), -1, -1, -1)
        with torch.no_grad():
            denoiser = Denoiser(self.network, self._model.diffusion)
            images = settings.definition.function(denoiser, noise, self.times, noise=lambda _: noise)
        return images.cpu(), torch.stack(self._guesses)
