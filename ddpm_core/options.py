"""Options: how a person sets one field of a request. The command line's flags, the API's bodies and the tab's widgets all
follow from the fields of the requests (``requests.py``), so that a new option is one field there.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import UserError

CROPS = ("center", "top", "pad")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
WEIGHTS = ("ema", "raw")
CONDITIONS = ("auto", "none", "tags", "text", "pooled", "cross-attention", "image")
PRIORS = ("preserve", "none")  # what keeps a fine-tuning from forgetting
SPACINGS = ("trailing", "leading", "linspace")
RESIZE_MODES = ("resize", "crop", "fill")
MASKED_CONTENTS = ("original", "fill", "noise")


@dataclass(frozen=True)
class Option:
    """``label`` and ``info`` of the widget (no label: the tab sets it otherwise); ``help`` of the flag and of the API's field.

    ``low`` and ``high``: bounds, both allowed. ``choices``: the only values. ``flag``: where it is not made of the name;
    ``metavar`` of the flag. ``shown``: what the widget shows where the value is None, and means None. ``step`` of a slider,
    which a number with both bounds gets. ``group``: the widgets that it stands among, where those are not the usual ones.
    """

    label: str = ""
    info: str = ""
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    flag: str = ""
    metavar: str | None = None
    shown: Any = 0
    step: float | None = None
    group: str = ""


@dataclass(frozen=True)
class Field:
    """A field of a request with its option. ``kind``: int, float, str or bool; ``none``: whether it may be None."""

    name: str
    kind: type
    none: bool
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """The flag of the command line; of a field that is true by default the one that makes it false."""
        negated = "no-" if self.kind is bool and self.default else ""
        return self.option.flag or f"--{negated}{self.name.replace('_', '-')}"

    def check(self, value: Any) -> None:
        """UserError where a value is out of bounds or none of the choices."""
        option, what = self.option, self.name.replace("_", " ")
        if value is None:
            return
        if option.choices and value not in option.choices:
            raise UserError(f"There is no {what} {value!r}; choose one of: {', '.join(option.choices)}.")
        low, high = option.low, option.high
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise UserError(f"{what[0].upper()}{what[1:]} must be {bounds}; got {value!r}.")


def option(default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """A dataclass field with an :class:`Option`; required without a ``default``."""
    return dataclasses.field(default=default, metadata={"option": Option(**about)})


def fields_of(request: type) -> dict[str, Field]:
    """The fields of a request that have options, by name, in order."""
    hints = typing.get_type_hints(request)
    found = {}
    for one in dataclasses.fields(request):
        if "option" not in one.metadata:
            continue
        parts = [one_kind for one_kind in _alternatives(hints[one.name]) if one_kind is not type(None)]
        none = len(parts) < len(_alternatives(hints[one.name]))
        default = None if one.default is dataclasses.MISSING else one.default
        found[one.name] = Field(one.name, parts[0], none, default, one.metadata["option"])
    return found


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def check(request: Any, names: Iterable[str] | None = None) -> None:
    """:meth:`Field.check` for each field of a request (or those named)."""
    for name, field in fields_of(type(request)).items():
        if names is None or name in names:
            field.check(getattr(request, name))
