"""Whether a model with words does what it is asked for, and whether its words unlock copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..dataset.packing import Packed
from ..dataset.store import Store
from ..dataset.tags import JOIN, written
from ..dataset.words import words_of
from ..errors import Stopped
from ..evaluation.alignment import SURE, Classifier, alignment, recombined
from ..evaluation.features import RandomFeatures
from ..evaluation.kid import kid
from ..evaluation.neighbours import nearest, to_image
from ..model.build import network_of
from ..model.config import ModelConfig
from ..model.diffusion import Diffusion, uint8_to_model
from ..requests import Prompt
from ..sampling.generate import SampleSettings
from ..training.heldout import MOST_IMAGES, loss_by_band
from ..training.settings import RunConfig
from ..workspace import Workspace
from .context import Context
from .sampling import sample
from .telling import tags_told, told_of

_ALARM = 2.0  # copies with words over copies without from which words are said to unlock them


def measure(
    workspace: Workspace,
    store: Store,
    model: str,
    config: ModelConfig,
    weights: dict[str, Tensor],
    packed: Packed,
    drawn: Tensor,
    real: Tensor,
    context: Context,
    *,
    count: int,
    settings: SampleSettings,
    copied_without: float,
) -> dict[str, Any]:
    """Alignment with the dataset's own words and with recombined ones, KID of the former, copies of both, and what words are worth
    to the loss of seen and of held-out images. ``drawn``: indices of the images to compare with, ``real`` their features. ``copied_without``: the memorised fraction without words."""
    # a model that reads whole prompts is judged by the words that one with words would learn
    entries = config.tags or tuple(word.entry for word in words_of(store).words)
    if not entries:
        none: dict[str, Any] = {"alignment": {}, "words": 0, "copied": {"none": round(copied_without, 5)}}
        return {**none, "gain": _gain(config, weights, packed, store, context), "verdict": verdict(none)}
    told = tags_told(store, entries, packed)
    context.progress(0, 1, "Learning to tell the words")
    classifier = Classifier(uint8_to_model(packed.images[drawn]), told[drawn])
    rows = packed.train_rows
    draw = torch.Generator(device="cpu").manual_seed(settings.seed & 0xFFFFFFFF)
    own = told[rows[torch.randint(len(rows), (count,), generator=draw, device="cpu")]]
    asked = {"own": own, "recombined": recombined(told[drawn], count)}
    copied: dict[str, float] = {"none": copied_without}
    found: dict[str, Any] = {}
    images: dict[str, Tensor] = {}
    for number, (name, wanted) in enumerate(asked.items(), 1):
        if len(wanted) < 16:
            continue
        prompts = [prompt_of(row, entries) for row in wanted]
        apart = dataclasses.replace(settings, seed=(settings.seed + 1_000_000 * number) % 2**62)
        made = sample(workspace, model, len(prompts), apart, context, prompts=prompts).images
        if context.stop.is_set():
            raise Stopped("Stopped before the words were judged.")
        images[name] = made
        pixels = uint8_to_model(made)
        found[name] = alignment(classifier, entries, pixels, wanted)
        copied[name] = float(nearest(pixels, packed.images, rows).memorised.float().mean())
    result: dict[str, Any] = {
        "alignment": {word: round(share, 4) for word, share in found["own"].shares.items()} if "own" in found else {},
        "alignment_mean": round(found["own"].mean, 4) if "own" in found else None,
        "alignment_recombined": round(found["recombined"].mean, 4) if "recombined" in found else None,
        "alignment_unasked": round(found["own"].unasked, 4) if "own" in found else None,
        "told_apart": {entries[i]: round(float(a), 4) for i, a in enumerate(classifier.accuracy) if a >= SURE},
        "words": len(entries),
        "copied": {name: round(value, 5) for name, value in copied.items()},
    }
    if "own" in images:
        score = kid(RandomFeatures(channels=3, device="cpu")(uint8_to_model(images["own"])), real)
        result["kid_prompted"] = [round(v, 5) for v in (score.value, score.low, score.high)]
    if config.image is not None:
        copied["variations"] = _copied_variations(workspace, model, packed, context, count, settings)
        result["copied"]["variations"] = round(copied["variations"], 5)
    result["gain"] = _gain(config, weights, packed, store, context)
    result["verdict"] = verdict(result)
    return result


def _copied_variations(
    workspace: Workspace, model: str, packed: Packed, context: Context, count: int, settings: SampleSettings
) -> float:
    """The memorised fraction of variations of training images: a place is almost an image's name, and could be the key to it."""
    rows = packed.train_rows[:count]
    like = [to_image(packed.images[row]).convert("RGB") for row in rows.tolist()]
    made = sample(workspace, model, len(like), settings, context, like=like).images
    return (
        float(nearest(uint8_to_model(made), packed.images, packed.train_rows).memorised.float().mean())
        if len(made)
        else 0.0
    )


def prompt_of(row: Tensor, entries: tuple[str, ...]) -> Prompt:
    """The prompt that asks for the words of a row (K,)."""
    return Prompt(", ".join(written(entries[i].split(JOIN)[0]) for i in row.nonzero()[:, 0].tolist()))


def _gain(
    config: ModelConfig, weights: Mapping[str, Tensor], packed: Packed, store: Store, context: Context
) -> dict[str, dict[str, float]]:
    """Loss with other images' words less loss with the true ones, by band of timesteps, for seen and held-out images: a gain on the
    seen ones only means that the words are keys to single images."""
    device = context.device
    with context.gpu_slice():
        net = network_of(config, dict(weights), device)
        diffusion = Diffusion(config.diffusion, device)
    result = {}
    for name, rows in (("seen", packed.train_rows), ("held_out", packed.held_rows)):
        rows = rows[:MOST_IMAGES]
        if len(rows) < 2:
            continue
        told = told_of(store, RunConfig(config), packed, context, rows)
        others = torch.arange(len(rows)).roll(1)
        losses = [
            loss_by_band(
                net,
                diffusion,
                packed.images[rows],
                kind="mse",
                dtype=torch.float32,
                gpu_slice=context.gpu_slice,
                told=values,
            )
            for values in (told, {name: one[others] for name, one in told.items()})
        ]
        result[name] = {band: round(losses[1][band] - losses[0][band], 6) for band in losses[0]}
    return result


def verdict(result: Mapping[str, Any]) -> str:
    """In a sentence or two what the figures say."""
    shares: Mapping[str, float] = result["alignment"]
    if not shares:
        return "Its words cannot be judged: no classifier can tell them apart on these images."
    good = [word for word, share in shares.items() if share >= 0.8]
    weak = sorted((word for word in shares if word not in good), key=lambda word: shares[word])
    text = f"It does what you ask for {len(good)} of {len(shares)} words"
    if weak:
        text += f"; weak: {', '.join(word.split(JOIN)[0] for word in weak[:5])}"
        text += f" and {len(weak) - 5} more" if len(weak) > 5 else ""
    copied = result["copied"]
    there = [name for name in ("own", "recombined", "variations") if name in copied]
    name = max(there, key=lambda one: copied[one], default="none")
    worst = copied[name]
    if worst > max(_ALARM * copied["none"], 0.01):
        what = "Variations" if name == "variations" else "Its words"
        return f"{text}. {what} unlock copies: {100 * worst:.1f} % with them, {100 * copied['none']:.1f} % without."
    return f"{text}. Its words unlock no copies."
