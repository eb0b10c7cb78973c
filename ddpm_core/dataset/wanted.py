"""Which pictures of a folder a person wants: by date, and by what their generation text says."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from ..errors import UserError
from .infotext import Infotext


def words_of(text: str) -> tuple[str, ...]:
    """The words, separated by commas, that a prompt must all contain; case does not matter."""
    return tuple(word.strip().casefold() for word in text.split(",") if word.strip())


@dataclass(frozen=True)
class Wanted:
    """A filter; an empty field lets everything through.

    ``since`` and ``until``: seconds since the epoch, of the file's time, ``until`` excluded. ``words``: all in the
    prompt. ``model``: part of the checkpoint's name or hash. ``size``: (width, height) of the file.
    """

    since: float | None = None
    until: float | None = None
    words: tuple[str, ...] = ()
    model: str = ""
    size: tuple[int, int] | None = None

    @classmethod
    def parse(cls, since: str = "", until: str = "", prompt: str = "", model: str = "", size: str = "") -> Wanted:
        """From what a person types: dates as YYYY-MM-DD (``until`` included), words, a model's name, WIDTHxHEIGHT."""
        first, last = _day(since), _day(until)
        if first is not None and last is not None and last < first:
            raise UserError(f"The last day {until.strip()} lies before the first day {since.strip()}.")
        match = re.fullmatch(r"(\d{1,5})\s*[xX×*]\s*(\d{1,5})", size.strip()) if size.strip() else None
        if size.strip() and match is None:
            raise UserError(f"A size is written like 512x768; got {size.strip()!r}.")
        return cls(
            None if first is None else _seconds(first, since),
            None if last is None else _seconds(last, until, days=1),
            words_of(prompt),
            model.strip().casefold(),
            (int(match[1]), int(match[2])) if match else None,
        )

    def date_fits(self, seconds: float) -> bool:
        """Whether a file's time in seconds since 1970 lies within the dates."""
        return (self.since is None or seconds >= self.since) and (self.until is None or seconds < self.until)

    def fits(self, info: Infotext, width: int, height: int) -> bool:
        """Whether a picture with that generation text and size is wanted."""
        if self.size is not None and (width, height) != self.size:
            return False
        prompt = info.prompt.casefold()
        if not all(word in prompt for word in self.words):
            return False
        names = f"{info.settings.get('Model', '')} {info.settings.get('Model hash', '')}".casefold()
        return not self.model or self.model in names


def _seconds(day: datetime.datetime, text: str, days: int = 0) -> float:
    try:
        return (day + datetime.timedelta(days=days)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UserError(f"No file can have the date {text.strip()}; give a day between 1970 and 9999.") from None


def _day(text: str) -> datetime.datetime | None:
    if not text.strip():
        return None
    try:
        return datetime.datetime.strptime(text.strip(), "%Y-%m-%d")
    except ValueError:
        raise UserError(f"A date is written like 2026-01-31; got {text.strip()!r}.") from None
