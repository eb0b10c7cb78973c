"""Names of datasets and models: what a person may call things so that every file system can hold them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from .errors import UserError
from .text import legible

_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
_MOST = 80


def is_name(name: str) -> bool:
    """Whether something found on disk has a name that we would give; copies such as ``x (1)`` have not."""
    try:
        return check_name(name, "file") == name
    except UserError:
        return False


def check_name(name: str, what: str) -> str:
    """The name, normalised (NFC), or UserError. Letters of any script, digits, spaces, ``. _ -``; no path."""
    too_long = UserError(f"The {what}'s name is too long; use at most {_MOST} bytes.")
    if len(name) > 4 * _MOST:  # normalising takes time in proportion to the square of some texts
        raise too_long
    # a lone surrogate, which no file system takes, becomes what is refused below
    name = unicodedata.normalize("NFC", legible(name)).strip()
    if not name:
        raise UserError(f"The {what} needs a name.")
    if len(name.encode("utf-8")) > _MOST:
        raise too_long
    if name.lower().endswith(".safetensors"):  # which would say a file, not a name
        raise UserError(f"The {what}'s name cannot end in .safetensors; leave that out.")
    if (
        not re.fullmatch(r"[\w][\w .\-]*", name)
        or name.endswith(".")
        or name.split(".")[0].strip().lower() in _RESERVED
    ):
        raise UserError(
            f"{name!r} cannot be the name of a {what}; use letters, digits, spaces, dots, _ and -, beginning with a "
            "letter or digit."
        )
    return name


def check_no_twin(name: str, taken: Iterable[str], what: str) -> None:
    """UserError where another name differs by case alone: on some disks both would be one file."""
    for other in taken:
        if other != name and other.casefold() == name.casefold():
            raise UserError(
                f"There is already a {what} {other!r}, which some disks cannot tell from {name!r}; use that name, or a "
                "clearly different one."
            )
