"""Progress for a person at a terminal, or for a log."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO


class Unbreakable:
    """A text stream whose reader may go away: what cannot be written is dropped, and nothing else ends because of it.

    Progress goes into pipes that are closed, and onto disks that fill up, in the middle of a training.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        """Write and flush; returns the length, written or not."""
        if not self._gone:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: it is closed
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Everything is flushed as it is written."""

    def isatty(self) -> bool:
        """Whether a person reads it."""
        try:
            return not self._gone and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def own_streams() -> None:
    """Make standard error unbreakable, and open what the caller closed: else the next file takes the number 1 or 2."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process is
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if not isinstance(sys.stderr, Unbreakable):
        sys.stderr = Unbreakable(sys.stderr)


def printable(text: str) -> str:
    """Text of a prompt or a file name without control characters, which a terminal would obey; lines stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


class Screen:
    """Progress for a person: a bar that redraws itself on a terminal, a plain line every few seconds elsewhere. All on stderr."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._last = 0.0
        self._dirty = False

    def say(self, text: str) -> None:
        """Print a line."""
        self._clear()
        print(printable(text), file=sys.stderr, flush=True)

    def report(self, values: dict[str, Any]) -> None:
        """Show progress: ``done``, ``total``, ``text`` and what a training reports."""
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
        line = printable("  ".join(parts))
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
        """End the line of the bar."""
        self._clear()


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
