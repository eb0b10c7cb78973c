"""Progress for a person at a terminal, or for a log."""

from __future__ import annotations

import sys
import time
from typing import Any


class Screen:
    """Progress for a person: a bar that redraws itself on a terminal, a plain line every few seconds elsewhere. All on stderr."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._last = 0.0
        self._dirty = False

    def say(self, text: str) -> None:
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def report(self, values: dict[str, Any]) -> None:
        now = time.monotonic()
        done, total = values.get("done", 0), values.get("total", 0)
        if now - self._last < (0.1 if self.live else 5.0) and done != total:
            return
        self._last = now
        parts = [values.get("text") or "Training"]
        if total and total < 10**9:
            share = done / total
            filled = int(24 * share)
            parts.append(f"[{'#' * filled}{'.' * (24 - filled)}] {done}/{total}" if self.live else f"{done}/{total}")
        elif done:
            parts.append(f"{done}")
        for key, form in (
            ("loss", "loss {:.4f}"),
            ("heldout_loss", "held-out {:.4f}"),
            ("images_per_second", "{:.1f} images/s"),
        ):
            if values.get(key) is not None:
                parts.append(form.format(values[key]))
        if values.get("seconds_left") is not None:
            parts.append(f"{duration(values['seconds_left'])} left")
        line = "  ".join(parts)
        if self.live:
            print(f"\r\x1b[K{line[:200]}", end="", file=sys.stderr, flush=True)
            self._dirty = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._dirty:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._dirty = False

    def close(self) -> None:
        self._clear()


def duration(seconds: float) -> str:
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
