"""The record of a training run, ``run.json``: what it began with, what it shall reach, how it ended."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_json
from .names import is_name
from .parsing import read_json

FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """One run. ``state``: running, finished, stopped or failed. ``config`` is ``RunConfig.to_json``'s; ``fingerprint`` that of the
    dataset's ``images`` images; ``minutes`` count from the beginning, over all resumptions; ``began`` in seconds since 1970;
    ``init_from``: the model whose weights it started from; ``past_copying``: whether a person wants it to go on where it begins to copy,
    ``copies``: whether it does.
    ``rest``: what else the file holds, kept as it is.
    """

    config: dict[str, Any]
    dataset: str
    fingerprint: str
    images: int
    steps: int
    state: str = "running"
    minutes: float | None = None
    init_from: str | None = None
    began: float | None = None
    version: str | None = None
    format: int = 1
    past_copying: bool = False
    copies: bool = False
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Any) -> Run:
        """ValueError where a value is missing or of another kind: the file may be damaged or forged."""
        if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
            raise ValueError("it has no settings")
        own = [one.name for one in dataclasses.fields(cls) if one.name != "rest"]
        found = {key: values[key] for key in own if key in values}
        texts = [found.get(key) for key in ("dataset", "fingerprint", "state")]
        numbers = [found.get(key) for key in ("format", "images", "steps")]
        if not all(isinstance(text, str) for text in texts) or not is_name(found["dataset"]):
            raise ValueError("it names no dataset")
        if not re.fullmatch(r"[0-9a-f]{64}", found["fingerprint"]):  # files are named by it
            raise ValueError("its fingerprint is none")
        if not all(isinstance(number, int) and abs(number) < 2**53 for number in numbers):
            raise ValueError("its numbers are none")
        minutes, source = found.get("minutes"), found.get("init_from")
        if not isinstance(minutes, (int, float, type(None))) or not abs(minutes or 0) < 2**53:
            raise ValueError("its minutes are none")
        if not isinstance(source, (str, type(None))):
            raise ValueError("its source is none")
        if not all(isinstance(found.get(key, False), bool) for key in ("past_copying", "copies")):
            raise ValueError("its switches are none")
        return cls(**found, rest={key: value for key, value in values.items() if key not in own})

    def to_json(self) -> dict[str, Any]:
        """JSON that :meth:`from_json` reads."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "rest"}
        return {**self.rest, **values}

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The record in a run's folder; UserError where there is none or it is damaged."""
        values = read_json(folder / FILE, "run description")
        try:
            return cls.from_json(values)
        except ValueError:
            raise UserError(
                f"The run description {folder / FILE} is damaged; delete the model, or restore that file."
            ) from None

    def write(self, folder: Path) -> None:
        """Write the record into a run's folder, whole or not at all."""
        write_json(folder / FILE, self.to_json())
