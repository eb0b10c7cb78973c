"""What a training tells its network of each image: made when it begins, and kept with the run, whatever becomes of the prompts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..dataset.packing import Packed
from ..dataset.store import Store
from ..dataset.tags import Told, Vocabulary
from ..dataset.vectors import vectors_of
from ..dataset.words import choices_of, texts_of
from ..dataset.words import told_of as words_told_of
from ..errors import UserError
from ..files import replace_with
from ..model.config import ImageConfig, ModelConfig
from ..model.values import Shared, Values
from ..parsing import tensors_of
from ..runs import Run
from ..training.settings import RunConfig
from ..workspace import Workspace
from .context import Context
from .texts import VARIANTS, shared, variants

FILE = "told.safetensors"  # in a run's folder


def told_of(
    store: Store, config: RunConfig, packed: Packed, context: Context, rows: Tensor | None = None
) -> dict[str, Values]:
    """Values of the model's conditions for each packed image, by name; empty for a model without prompts. ``rows``: of these images
    only, and no parts of their prompts."""
    found: dict[str, Values] = {}
    if config.model.tags:
        tags = tags_told(store, config.model.tags, packed)
        if config.tuning is not None and config.tuning.adapter.concept:
            tags[:, config.model.tags.index(config.tuning.adapter.concept)] = 1.0  # which all of the images show
        found["tags"] = tags if rows is None else tags[rows]
    if config.model.text is not None:
        texts = texts_of(store)
        ids = packed.ids if rows is None else [packed.ids[row] for row in rows.tolist()]
        each = [texts.get(item, "") for item in ids]
        count = 1 if rows is not None else VARIANTS[config.model.text.reading]
        read = functools.cache(lambda text: variants(text, count))
        found["text"] = shared([read(text) for text in each], config.model.text, context)
    if config.model.image is not None:
        found["image"] = likeness_told(store, config.model.image, packed, context, rows)
    return found


def likeness_told(
    store: Store, wanted: ImageConfig, packed: Packed, context: Context, rows: Tensor | None = None
) -> Tensor:
    """What each packed image (or those of ``rows``) is like, (N, D) float32 as ``condition.Likeness`` takes it."""
    encoder = context.image_encoder(wanted, context)
    found = vectors_of(store, encoder.sight, context.progress, context.stop)
    place = {one: number for number, one in enumerate(found.ids)}
    ids = packed.ids if rows is None else [packed.ids[row] for row in rows.tolist()]
    lost = [one for one in ids if one not in place]
    if lost:
        raise UserError(
            f"The copy of item {lost[0]} is missing or damaged; harvest its folder again, or reject the item."
        )
    rows = torch.tensor([place[one] for one in ids], dtype=torch.int64)
    return found.values[rows] * float(wanted.width**0.5)


def tags_told(store: Store, entries: Sequence[str], packed: Packed) -> Tensor:
    """The weights of these words for each packed image, (N, K) float32."""
    return words_told(store, entries, packed.ids)


def words_told(store: Store, entries: Sequence[str], ids: Sequence[int]) -> Tensor:
    """The weights of these words for each of the items ``ids``, as a person's choices have them, (N, K) float32."""
    known = Vocabulary(entries)
    found = words_told_of(store)
    choices = choices_of(store)
    merged = {name: group for group in choices.merged for name in group}
    left_out = set(choices.left_out)
    rows = []
    for item in ids:
        words: Told = {}
        for word, weight in found.get(item, {}).items():
            for name in merged.get(word, (word,)):  # whichever of them the model knows
                words[name] = max(words.get(name, 0.0), weight)
        rows.append(known.values({word: weight for word, weight in words.items() if word not in left_out}))
    return torch.tensor(rows, dtype=torch.float32).reshape(len(ids), len(entries))


def remember_told(folder: Path, packed: Packed, told: Mapping[str, Values]) -> None:
    """Write what is told into a run's folder."""
    if told:
        values = {"ids": torch.tensor(packed.ids, dtype=torch.int64), **told_tensors(told)}
        folder.mkdir(parents=True, exist_ok=True)
        replace_with(folder / FILE, lambda temporary: save_file(values, temporary))


def told_tensors(told: Mapping[str, Values]) -> dict[str, Tensor]:
    """What is told, as a file keeps it; :func:`told_from` is the inverse."""
    values: dict[str, Tensor] = {}
    for name, one in told.items():
        values |= {f"{name}.table": one.table, f"{name}.index": one.index} if isinstance(one, Shared) else {name: one}
    return {name: value.contiguous() for name, value in values.items()}


def told_from(file: Any, model: ModelConfig, count: int) -> dict[str, Values]:
    """What a file tells of ``count`` images; ValueError where it is of another model."""
    found: dict[str, Values] = {}
    if model.tags:
        found["tags"] = _checked(file.get_tensor("tags").clone(), (count, len(model.tags)), torch.float32)
    if model.image is not None:
        found["image"] = _checked(file.get_tensor("image").clone(), (count, model.image.width), torch.float32)
    if model.text is not None:
        index, table = file.get_tensor("text.index").clone(), file.get_tensor("text.table").clone()
        _checked(table, (len(table), *model.text.shape), torch.float16)
        if index.ndim != 2 or not index.numel() or len(index) != count or index.dtype != torch.int64:
            raise ValueError("they are of another model")
        if not 0 <= int(index.min()) <= int(index.max()) < len(table):
            raise ValueError("they are no texts")
        found["text"] = Shared(table, index)
    return found


def told_in_run(
    workspace: Workspace, run: Run, config: RunConfig, packed: Packed, folder: Path, context: Context
) -> dict[str, Values]:
    """What a run began with; where its file is gone, from the prompts as they are now."""
    if not config.model.takes_prompts:
        return {}
    if not (folder / FILE).exists():
        context.say("What this run was told of its images is gone; it is read from the prompts again.")
        told = told_of(workspace.store(run.dataset), config, packed, context)
        if folder.exists():
            remember_told(folder, packed, told)
        return told
    path = folder / FILE
    with tensors_of(path, f"The words of the run, {path}, are damaged", "; delete that file, it is made anew.") as file:
        ids = file.get_tensor("ids")
        if ids.shape != (len(packed.ids),) or ids.tolist() != packed.ids:
            raise ValueError("they are of other images")
        return told_from(file, config.model, len(packed.ids))
    raise UserError(f"The words of the run, {path}, cannot be read.")


def _checked(values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if values.shape != shape or values.dtype != dtype:
        raise ValueError("they are of another model")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("they are no numbers")
    return values
