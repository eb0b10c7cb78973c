"""Checkpoints of one run: safetensors, written whole or not at all; the newest few and the best are kept."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import replace_with, sweep
from ..parsing import parse_json, tensors_of

FORMAT = 1
_NAME = re.compile(r"^step-(\d{9})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, numbers (step, lr_scale, pieces, ...) and the held-out loss at that moment, if any."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    path: Path


class CheckpointFolder:
    """The checkpoints of one run in a folder of their own."""

    def __init__(self, folder: Path, keep: Callable[[], int] = lambda: 2) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.match(path.name))

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> Path:
        """Write one checkpoint and drop superseded ones. Refuses tensors that are not finite (ValueError)."""
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"{name} is not finite")
        metadata = {"format": str(FORMAT), "numbers": json.dumps(numbers)}
        target = self.folder / f"step-{numbers['step']:09d}.safetensors"
        replace_with(target, lambda temporary: save_file(tensors, temporary, metadata=metadata))
        self._prune(target)
        return target

    def _prune(self, newest: Path) -> None:
        # one of a later step could not be read when the training went on from before it: it takes no place of a good one
        paths = [path for path in self.paths() if path.name <= newest.name]
        best = self.best()
        for path in paths[: -max(1, self.keep())]:
            if path != best:
                _remove(path)
        sweep(self.folder)

    def best(self) -> Path | None:
        """The checkpoint with the lowest held-out loss, if any has one."""
        scored = []
        for path in self.paths():
            try:
                loss = self._numbers(path).get("heldout_loss")
            except UserError:
                continue
            if isinstance(loss, (int, float)):  # null where it was not finite
                scored.append((loss, path))
        return min(scored)[1] if scored else None

    def refuse_later(self) -> None:
        """UserError if one is of a later format: going on from one before it would write over what that one learned."""
        for path in self.paths():
            try:
                later = int(_metadata(path)["format"]) > FORMAT
            except (OSError, SafetensorError, KeyError, ValueError):
                continue  # damaged: passed over when loading
            if later:
                raise UserError(
                    f"The checkpoint {path} was written by a newer version; update this extension to resume it."
                )

    def newest_numbers(self) -> dict[str, Any]:
        """The numbers of the newest checkpoint whose head can be read; empty where there is none."""
        for path in reversed(self.paths()):
            with contextlib.suppress(UserError):
                return self._numbers(path)
        return {}

    def reached(self) -> int:
        """The step of the newest checkpoint whose head can be read; 0 where there is none."""
        step = self.newest_numbers().get("step")
        return step if isinstance(step, int) else 0

    @staticmethod
    def _numbers(path: Path) -> dict[str, Any]:
        try:
            numbers = parse_json(_metadata(path)["numbers"])
            return numbers if isinstance(numbers, dict) else {}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"The checkpoint {path} is damaged ({error}).") from None

    def load(self, path: Path) -> Checkpoint:
        """Read one checkpoint; UserError where it is damaged."""
        numbers = self._numbers(path)
        with tensors_of(path, f"The checkpoint {path} is damaged") as file:
            # clones: a view would keep the file mapped, and Windows refuses to replace a mapped file
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        return Checkpoint(tensors, numbers, path)

    def load_newest(self) -> Checkpoint | None:
        """The newest readable checkpoint; a damaged one is passed over for the one before it, one of a later format not."""
        self.refuse_later()
        problem: UserError | None = None
        for path in reversed(self.paths()):
            try:
                return self.load(path)
            except UserError as error:
                problem = error
        if problem is not None:
            raise problem
        return None


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():  # a pipe would be waited for
        raise OSError(errno.ENOENT, "it is no file")
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows refuses while somebody reads it; the next save tries again
        path.unlink()
