"""What a training tells its network of each image: made when it begins, and kept with the run, whatever becomes of the prompts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..dataset.packing import Packed
from ..dataset.store import Store
from ..dataset.tags import Told, Vocabulary
from ..dataset.words import choices_of
from ..dataset.words import told_of as words_told_of
from ..errors import UserError
from ..files import replace_with
from ..parsing import tensors_of
from ..runs import Run
from ..training.settings import RunConfig
from ..workspace import Workspace
from .context import Context

FILE = "told.safetensors"  # in a run's folder


def told_of(store: Store, config: RunConfig, packed: Packed) -> dict[str, Tensor]:
    """Values of the model's conditions for each packed image, by name: "tags" (N, K) float32; empty for a model without words."""
    if not config.model.tags:
        return {}
    known = Vocabulary(config.model.tags)
    found = words_told_of(store)
    choices = choices_of(store)
    merged = {name: group for group in choices.merged for name in group}
    left_out = set(choices.left_out)
    rows = []
    for item in packed.ids:
        words: Told = {}
        for word, weight in found.get(item, {}).items():
            for name in merged.get(word, (word,)):  # whichever of them the model knows
                words[name] = max(words.get(name, 0.0), weight)
        rows.append(known.values({word: weight for word, weight in words.items() if word not in left_out}))
    return {"tags": torch.tensor(rows, dtype=torch.float32).reshape(len(packed.ids), len(config.model.tags))}


def remember_told(folder: Path, packed: Packed, told: dict[str, Tensor]) -> None:
    """Write what is told into a run's folder."""
    if told:
        values = {"ids": torch.tensor(packed.ids, dtype=torch.int64), **told}
        folder.mkdir(parents=True, exist_ok=True)
        replace_with(folder / FILE, lambda temporary: save_file(values, temporary))


def told_in_run(
    workspace: Workspace, run: Run, config: RunConfig, packed: Packed, folder: Path, context: Context
) -> dict[str, Tensor]:
    """What a run began with; where its file is gone, from the prompts as they are now."""
    if not config.model.tags:
        return {}
    if not (folder / FILE).exists():
        context.say("What this run was told of its images is gone; it is read from the prompts again.")
        told = told_of(workspace.store(run.dataset), config, packed)
        if folder.exists():
            remember_told(folder, packed, told)
        return told
    path = folder / FILE
    with tensors_of(path, f"The words of the run, {path}, are damaged", "; delete that file, it is made anew.") as file:
        ids, tags = file.get_tensor("ids"), file.get_tensor("tags")
        if ids.shape != (len(packed.ids),) or ids.tolist() != packed.ids:
            raise ValueError("they are of other images")
        if tags.shape != (len(packed.ids), len(config.model.tags)) or tags.dtype != torch.float32:
            raise ValueError("they are of another model")
        if not bool(torch.isfinite(tags).all()):
            raise ValueError("they are no numbers")
        return {"tags": tags}
    raise UserError(f"The words of the run, {path}, cannot be read.")
