"""Page 5: learned or memorised? The network beside the perfect memoriser of its images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..evaluation.neighbours import nearest
from ..model.diffusion import model_to_uint8, uint8_to_model
from ..sampling.denoiser import Denoiser
from ..sampling.generate import SampleSettings, generate
from ..sampling.memoriser import Memoriser, effective
from ..sampling.samplers import ddim
from ..sampling.trace import trace
from .desk import Desk, Images, Opened
from .lesson import by_level, lesson
from .path import seed_of
from .query import Query, as_map, rms, shown

_LEVELS = 14
_EACH = 4  # images at each level
_MOST_ERROR = 0.5
_TOP = 8
_CARDS = 9
_PATHS, _PATH_STEPS = 4, 12  # samplings that are judged
# Where the memoriser has settled on one image (mixing fewer than so many), a network that copies says the same, and one that has learned
# something else: its distance to the memoriser over that between training images and their nearest others. Bundled model 1.8, a network
# overfitted on 8 images 0.3 to 0.4 (tests/test_understand.py).
_SETTLED, _COPIES, _LEARNED = 2.0, 0.5, 0.9
_MOST_NEIGHBOURS = 200


def _opened(desk: Desk, query: Query) -> tuple[Opened, Images, Memoriser]:
    model = desk.model(query.text("model"))
    images = desk.images(model, query.text("dataset"))
    if images.stand_in:
        raise UserError(
            f"The dataset that {model.name} learned from is not here: choose a dataset to compare it with, or harvest one."
        )
    return model, images, desk.memoriser(model, images)


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """One noised image as the network and as the memoriser see it."""
    model, images, memoriser = _opened(desk, query)
    one = lesson(model, images, query)
    x0 = one.x0
    guess = model.predict(one.x, one.times)[0]
    weights = memoriser.weights(one.x, one.times)
    known = memoriser.mean(weights).view(x0.shape)
    first = int(weights[0].argmax())
    return {
        **one.about,
        "memorised": len(memoriser.images),
        "learned_from": len(images.train),
        "network": shown(guess),
        "memoriser": shown(known),
        "difference": shown(as_map(guess.clamp(-1, 1) - known, _MOST_ERROR)),
        "nearest": shown(memoriser.images[first : first + 1]),
        "weight": float(weights[0, first]),
        "effective": float(effective(weights)[0]),
        "apart": rms(guess - known) ** 2,
        "network_error": rms(guess - x0) ** 2,
        "memoriser_error": rms(known - x0) ** 2,
    }


def unseen(images: Images, most: int) -> tuple[Tensor, bool]:
    """Images that nobody was trained on, in [-1, 1]: held-out ones, or where none are held out mirrored ones; and whether they are that."""
    if len(images.held):
        return uint8_to_model(images.images[images.held[:most]]), False
    return uint8_to_model(images.images[images.train[:most]]).flip(-1), True


def levels(desk: Desk, query: Query) -> dict[str, Any]:
    """By timestep, on images that neither knows, the network beside the memoriser; and what that says of the network."""
    model, images, memoriser = _opened(desk, query)
    return {**compared(model, images, memoriser, seed_of(query)), "own": images.own}


def compared(model: Opened, images: Images, memoriser: Memoriser, seed: int) -> dict[str, Any]:
    """Mean squared errors of both by timestep, how far apart they are, and how many images the memoriser mixes."""
    x0, mirrored = unseen(images, _EACH)
    noise = torch.randn(
        (_LEVELS * len(x0), *x0.shape[1:]), generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu"
    )
    times, all_of_them = by_level(model, x0, _LEVELS, noise)
    clean, x = all_of_them.x0, all_of_them.x
    guess = model.predict(x, all_of_them.times)[0]
    weights = memoriser.weights(x, all_of_them.times)
    known = memoriser.mean(weights).view(x.shape)

    def mean_square(values: Tensor) -> list[float]:
        return [float(v) for v in values.pow(2).flatten(1).mean(1).view(_LEVELS, -1).mean(1)]

    apart, theirs, ours = map(mean_square, (guess - known, known - clean, guess - clean))
    mixed = [float(v) for v in effective(weights).view(_LEVELS, -1).mean(1)]
    settled = [i for i, count in enumerate(mixed) if count < _SETTLED]
    settled = settled[len(settled) // 2 :]  # at less noise the image is in plain sight
    better = sum(ours[i] for i in settled) < sum(theirs[i] for i in settled)
    agreement = along(model, memoriser, seed)
    return {
        "times": times,
        "apart": apart,
        "network_error": ours,
        "memoriser_error": theirs,
        "effective": mixed,
        "agreement": agreement,
        "verdict": judged(agreement, better),
        "mirrored": mirrored,
    }


def along(model: Opened, memoriser: Memoriser, seed: int) -> float | None:
    """How far network and memoriser are apart along samplings, where the memoriser has settled on one image, over the distance between
    training images and their nearest others (medians); None where it never settles, or knows one image only."""
    seeds = list(range(seed, seed + _PATHS))
    found = trace(model.network, model.diffusion, model.shape, SampleSettings("ddim", _PATH_STEPS), seeds)
    states, guesses = found.states[:-1].flatten(0, 1), found.guesses.flatten(0, 1)
    weights = memoriser.weights(states, torch.tensor(found.times).repeat_interleave(_PATHS))
    settled = effective(weights) < _SETTLED
    between = spacing(memoriser.images)
    if not bool(settled.any()) or not between:
        return None
    known = memoriser.mean(weights[settled])
    return float((guesses[settled].flatten(1) - known).pow(2).mean(1).sqrt().mean()) / between


def spacing(images: Tensor) -> float:
    """The median distance (root mean square, range -1..1) between an image and the nearest other one; 0 for a single image."""
    rows = uint8_to_model(images).flatten(1)
    some = rows[:_MOST_NEIGHBOURS]
    far = torch.cdist(some, rows) / rows.shape[1] ** 0.5
    far[torch.arange(len(some)), torch.arange(len(some))] = float("inf")
    nearest_other = far.amin(1)
    return float(nearest_other.median()) if len(rows) > 1 else 0.0


def judged(agreement: float | None, better: bool) -> str:
    """The word for a network by :func:`along`, and by whether it is better than the memoriser on images that neither knows."""
    if agreement is None:
        return "open"
    if agreement < _COPIES:
        return "copies"
    if not better:
        return "untrained"
    return "learned" if agreement > _LEARNED else "partly"


def origin(desk: Desk, query: Query) -> dict[str, Any]:
    """A sampling with the training image nearest to its guess at each step, and the images that it leans on: those that the memoriser
    weighs most along its way."""
    model, _, memoriser = _opened(desk, query)
    found = trace(model.network, model.diffusion, model.shape, SampleSettings("ddim", 16), [seed_of(query)])
    states, guesses = found.states[:-1, 0], found.guesses[:, 0]
    times = torch.tensor(found.times)
    weights = memoriser.weights(states, times)
    all_of_it = weights.mean(0)
    top = all_of_it.topk(min(_TOP, len(all_of_it)))
    near = nearest(guesses, memoriser.images)
    return {
        "picture": shown(torch.cat([model_to_uint8(guesses), memoriser.images[near.index]]), columns=len(guesses)),
        "times": found.times,
        "effective": [float(v) for v in effective(weights)],
        "leans_on": [shown(memoriser.images[row : row + 1]) for row in top.indices.tolist()],
        "shares": [float(v) for v in top.values],
        "sample": shown(guesses[-1:]),
        "copied": bool(near.memorised[-1]),
    }


def quiz(desk: Desk, query: Query) -> dict[str, Any]:
    """Nine images, each beside the training image nearest to it: real ones that nobody was trained on, samples, and copies, which the
    memoriser samples."""
    model, images, memoriser = _opened(desk, query)
    seed = seed_of(query)
    draw = torch.Generator(device="cpu").manual_seed(seed)
    kinds = [("real", "sample", "copy")[int(i)] for i in torch.randint(3, (_CARDS,), generator=draw, device="cpu")]
    pool, _ = unseen(images, len(images.images))
    order = torch.randperm(len(pool), generator=draw, device="cpu")
    reals = iter(pool[order[i % len(order)]] for i in range(_CARDS))
    count = max(1, kinds.count("sample"))
    samples = iter(
        generate(model.network, model.diffusion, model.shape, count, SampleSettings(steps=12, seed=seed), batch_size=8)[
            0
        ]
    )
    copies = iter(copied(memoriser, model.shape, max(1, kinds.count("copy")), seed))
    cards = torch.stack([next({"real": reals, "sample": samples, "copy": copies}[kind]) for kind in kinds])
    near = nearest(cards, memoriser.images).index
    return {
        "cards": [shown(card[None]) for card in cards],
        "nearest": [shown(memoriser.images[row : row + 1]) for row in near.tolist()],
        "kinds": kinds,
    }


def copied(memoriser: Memoriser, shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Samples of the memoriser, (count, C, H, W) in [-1, 1]: images that it knows."""
    process = memoriser.diffusion
    noise = torch.randn((count, *shape), generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu")
    times = SampleSettings("ddim", 24).times(process.config.timesteps)
    with torch.no_grad():
        return ddim(Denoiser(memoriser, process), noise, times, noise=lambda _: noise)
