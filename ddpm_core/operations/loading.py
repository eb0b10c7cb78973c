"""Opening a model of the workspace to make images with: its weights, or those of a checkpoint of its run, and what adapters add to them."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError
from ..model import adapter_file
from ..model import file as model_file
from ..model.config import ModelConfig
from ..model.lora import MOST_WEIGHT, Adapter, merge
from ..options import WEIGHTS
from ..requests import Prompt
from ..training.checkpoints import CheckpointFolder
from ..workspace import Workspace
from .context import Context

MOST_ADAPTERS = 16
_WRITTEN = re.compile(r"<ddpm:([^<>:\n]+)(?::([^<>:\n]*))?>")
_MEANT = re.compile(r"<ddpm:[^<>\n]*>")
Adapters = tuple[tuple[str, float], ...]


def load_weights(
    workspace: Workspace, model: str, weights: str, step: int | None
) -> tuple[ModelConfig, dict[str, Tensor], str]:
    """Configuration, weights (ema or raw) and name of a model, from the checkpoint of ``step`` where one is named."""
    path = workspace.model_path(model)
    loaded = model_file.load(path)
    if weights not in WEIGHTS:
        raise UserError(f"There are no weights {weights!r}; choose ema or raw.")
    if weights == "ema" and step is None:
        return loaded.config, loaded.weights, path.stem
    if path.parent != workspace.models_folder:
        raise UserError(
            "Raw weights and older checkpoints lie in a run of this workspace; name its model instead of a file, or use the "
            "weights ema."
        )
    folder = CheckpointFolder(workspace.run_folder(path.stem) / "checkpoints")
    if step is None:
        chosen = folder.load_newest()
    else:
        steps = workspace.checkpoint_steps(path.stem)
        if step not in steps:
            there = f"there are those of step {', '.join(map(str, steps))}" if steps else "its run keeps none here"
            raise UserError(f"{path.stem} has no checkpoint of step {step}; {there}.")
        chosen = folder.load(folder.folder / f"step-{step:09d}.safetensors")
    if chosen is None:
        raise UserError(
            f"The raw weights of {path.stem} lie in its run, which is not in this workspace; use the weights ema."
        )
    prefix = "net." if weights == "raw" else "ema."
    return loaded.config, {k[4:]: v for k, v in chosen.tensors.items() if k.startswith(prefix)}, path.stem


def learned_from(workspace: Workspace, known: Mapping[str, object]) -> tuple[str, bool] | None:
    """The dataset with the very images that a model learned from (True), whatever it is called, or else that of the name; None where neither
    is here. ``known``: of the model's file."""
    names = workspace.dataset_names()
    for name in names:
        with contextlib.suppress(UserError):  # one that cannot be opened is not it
            if workspace.store(name).fingerprint() == known.get("fingerprint"):
                return name, True
    own = known.get("dataset")
    return (own, False) if isinstance(own, str) and own in names else None


def named(text: str) -> tuple[str, float]:
    """An adapter as a command line names it: ``NAME`` or ``NAME:WEIGHT``."""
    name, _, weight = text.partition(":")
    found = adapters_in(f"<ddpm:{name}:{weight or 1}>")
    if not found:
        raise UserError(f"An adapter is named NAME or NAME:WEIGHT; got {text[:100]!r}.")
    return found[0]


def adapters_in(text: str) -> Adapters:
    """Names and weights of the adapters that a prompt calls, ``<ddpm:NAME:WEIGHT>``; the same twice counts once, as it stands last. UserError for a
    weight that is none."""
    found: dict[str, float] = {}
    for meant in _MEANT.findall(text):
        if _WRITTEN.fullmatch(meant) is None:
            raise UserError(f"An adapter is called by <ddpm:NAME:WEIGHT>; got {meant[:100]}.")
    for name, weight in _WRITTEN.findall(text):
        try:
            number = float(weight) if weight.strip() else 1.0
        except ValueError:
            number = math.nan
        if not abs(number) <= MOST_WEIGHT:
            raise UserError(
                f"The weight of the adapter {name.strip()} must be a number between {-MOST_WEIGHT:g} and {MOST_WEIGHT:g}; got {weight.strip()[:20]!r}."
            )
        found[name.strip()] = number
    if len(found) > MOST_ADAPTERS:
        raise UserError(f"At most {MOST_ADAPTERS} adapters can be used at once; the prompt has {len(found)}.")
    return tuple(found.items())


def reweighted(text: str, weight: float) -> str:
    """A prompt whose adapters all have this weight."""
    return _WRITTEN.sub(lambda found: f"<ddpm:{found.group(1)}:{weight:g}>", text)


def written(text: str) -> str:
    """Of a prompt only what calls adapters."""
    return " ".join(found.group() for found in _WRITTEN.finditer(text))


def unwritten(text: str) -> str:
    """A prompt without what calls adapters."""
    return _MEANT.sub(" ", text).strip()


def called(prompt: Prompt, context: Context) -> Adapters:
    """The adapters that a prompt calls."""
    if _MEANT.search(prompt.negative):
        context.say("An adapter in the negative prompt does nothing; give it a negative weight in the prompt.")
    return adapters_in(prompt.text)


def of_kind(workspace: Workspace, adapters: Adapters, upscalers: bool) -> Adapters:
    """Those of upscalers, or the others; UserError where one is not there."""
    kinds = {name: adapter_file.read_head(workspace.adapter_path(name)) for name, _ in adapters}
    return tuple(
        (name, weight)
        for name, weight in adapters
        if ((head := kinds[name]) is not None and head.model.kind == "upscaler") == upscalers
    )


def with_adapters(
    workspace: Workspace,
    title: str,
    config: ModelConfig,
    weights: dict[str, Tensor],
    adapters: Adapters,
    context: Context,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A model with adapters of the workspace merged in; UserError where one is not there or belongs to another model."""
    if not adapters:
        return config, weights
    digest = adapter_file.digest_of(weights)
    found: list[tuple[Adapter, float]] = []
    concepts: dict[str, str] = {}
    for name, weight in adapters:
        adapter = adapter_file.load(workspace.adapter_path(name))
        if adapter.digest != digest:
            own = (
                f"another model, {adapter.base}" if adapter.base != title else f"{title} as it was when it was trained"
            )
            raise UserError(
                f"The adapter {name} belongs to {own}, and cannot change this one; leave it out, or choose its model."
            )
        concept = adapter.config.concept
        if concept and concept in concepts:
            context.say(f"{concepts[concept]} and {name} both teach the word {concept!r}: it means both.")
        concepts.setdefault(concept, name)
        found.append((adapter, weight))
    return merge(config, weights, found)
