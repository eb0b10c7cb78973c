"""Folders of trainings that ended, or were refused, before they had begun: they hold a lock and take a name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import UserError
from .files import FolderLock, below

RUN_PARTS = ("checkpoints", "previews")  # the folders within a run's
KEPT_FILES = (
    "told.safetensors",
    "base.safetensors",
    "prior.safetensors",
)  # written before its record, and nothing without it


def is_leftover(run: Path) -> bool:
    """Whether a run's folder holds nothing but its lock, and what is nothing without a record."""
    try:
        return all(
            path.name in (".lock", *KEPT_FILES) or (path.name in RUN_PARTS and not below(path))
            for path in run.iterdir()
        )
    except OSError:
        return False


def clear_held(run: Path, lock: FolderLock) -> None:
    """Remove such a folder; ``lock`` is held."""
    if is_leftover(run):
        for part in RUN_PARTS:
            with contextlib.suppress(OSError):
                (run / part).rmdir()
        for name in KEPT_FILES:
            with contextlib.suppress(OSError):
                (run / name).unlink(missing_ok=True)
        lock.remove()


def clear(run: Path) -> None:
    """Remove such a folder, unless somebody has just begun there."""
    if not is_leftover(run):
        return
    lock = FolderLock(run, "")
    with contextlib.suppress(UserError), lock.held():
        clear_held(run, lock)
    if os.name == "nt" and is_leftover(run):  # where what is open, also by somebody else, cannot be removed
        with contextlib.suppress(OSError):
            for name in (".lock", *KEPT_FILES):
                (run / name).unlink(missing_ok=True)
            run.rmdir()
