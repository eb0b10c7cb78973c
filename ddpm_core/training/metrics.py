"""A run's metrics: JSON lines, written by its training, read by whoever looks on."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import replace_with
from ..parsing import Growing, open_regular, parse_json


class Metrics:
    """The run's JSON lines. Lines after the step that a run resumes from are dropped, so that steps only grow."""

    def __init__(self, path: Path, from_step: int) -> None:
        self.path = path
        lines = read_metrics(path)
        if any(line.get("step", 0) > from_step for line in lines):
            kept = [json.dumps(line) for line in lines if line.get("step", 0) <= from_step]
            text = "".join(line + "\n" for line in kept)
            replace_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write(self, kind: str, **values: Any) -> None:
        """Append one line of a kind."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"The metrics could not be written to {self.path.parent} ({error.strerror}); make room and resume, "
                "what was saved before is intact."
            ) from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut by a crash is left out."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return _parsed(text)


def _parsed(text: str) -> list[dict[str, Any]]:
    lines = []
    for raw in text.splitlines():
        try:
            lines.append(parse_json(raw))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict) and _is_step(line.get("step", 0))]


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class MetricsFollower:
    """The lines of a metrics file for who asks again and again: only what has been added is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Growing(path)
        self._lines: list[dict[str, Any]] = []
        self._guard = threading.Lock()

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far; reads only what is new."""
        with self._guard:
            try:
                added, is_another = self._file.added()
            except OSError:
                return []
            if is_another:
                self._lines = []
            self._lines += _parsed(added.decode("utf-8", "replace"))
            return list(self._lines)
