"""New names for datasets and models, and one dataset made of several: nothing is lost, and what refers to them follows."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from .errors import UserError
from .names import check_name, check_no_twin
from .workspace import Workspace


def rename_dataset(workspace: Workspace, old: str, new: str) -> str:
    """Give a dataset another name; its runs go on with it. Returns the name as it is now. UserError where that is taken."""
    old, new = check_name(old, "dataset"), check_name(new, "dataset")
    store = workspace.store(old)
    target = workspace.dataset_folder(new)
    _check_free(new, [name for name in workspace.dataset_names() if name != old], "dataset", target, old)
    workspace.forget(old)
    _move([(store.folder, target)])
    for run in workspace.run_names():
        with contextlib.suppress(OSError, UserError):
            record = workspace.run(run)
            if record.dataset == old:
                dataclasses.replace(record, dataset=new).write(workspace.run_folder(run))
    return new


def rename_model(workspace: Workspace, old: str, new: str) -> str:
    """Give a model another name, with its preview and its run. Returns the name as it is now."""
    old, new = check_name(old, "model"), check_name(new, "model")
    names = sorted({*workspace.model_names(), *workspace.run_names()})
    if old not in names:
        known = ", ".join(workspace.model_names())
        raise UserError(f"There is no model {old!r}" + (f"; there are: {known}." if known else "."))
    _check_free(new, [name for name in names if name != old], "model", workspace.run_folder(new), old)
    with workspace.run_at_rest(old):
        parts = zip(workspace.model_parts(old), workspace.model_parts(new))
        _move([(source, target) for source, target in parts if source.exists()])
    return new


def merge_datasets(workspace: Workspace, into: str, sources: list[str]) -> dict[str, Any]:
    """Add the items of other datasets to one, which is made if need be; the others stay as they are.

    What a person has decided there holds here. What is there already, by its bytes or its pixels, is not added.
    """
    from .dataset import merging, ranking

    into = check_name(into, "dataset")
    stores = [workspace.store(check_name(name, "dataset")) for name in sources]
    if not sources or into in sources:
        raise UserError("Name one or more other datasets to merge.")
    target = workspace.store(into, create=True)
    added = sum(merging.absorb(target, store) for store in stores)
    return {"dataset": into, "added": added, "suspects": ranking.rank(target), "counts": target.counts()}


def _check_free(new: str, others: list[str], kind: str, target: Path, old: str) -> None:
    if new == old:
        raise UserError(f"The {kind} is called {old} already; type another name.")
    if new in others:
        raise UserError(f"There is a {kind} {new!r} already; choose another name.")
    check_no_twin(new, others, kind)
    if target.exists() and new.casefold() != old.casefold():
        raise UserError(f"{target.name} is the name of a folder that is there already; choose another name.")


def _move(parts: list[tuple[Path, Path]]) -> None:
    """Rename all or none."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in parts:
            source.rename(target)
            done.append((source, target))
    except OSError as error:
        for source, target in reversed(done):
            with contextlib.suppress(OSError):
                target.rename(source)
        raise UserError(
            f"{parts[0][0].name} could not be renamed ({error.strerror or error}); close what uses it and try again."
        ) from None
