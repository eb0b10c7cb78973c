"""Reading what someone may have damaged or forged: JSON, records made of it, safetensors files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from .errors import UserError, is_out_of_memory
from .text import legible

T = TypeVar("T")
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that someone may have forged; ValueError for whatever is wrong with it.

    What comes back can be written as JSON again: a number that is not finite is null, a lone surrogate a question mark.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        values = json.loads(text, parse_float=_finite, parse_constant=lambda name: None)
        if "\\u" in text or text != legible(text):
            values = json.loads(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return values


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def read_record(kind: type[T], values: Any) -> T:
    """A dataclass from parsed JSON, its plain fields (text, whole number, number, truth) checked; ValueError where it is not that."""
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value, kinds = values.get(field.name, field.default), _PLAIN.get(str(field.type))
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and field.type != "bool")):
            raise ValueError(f"{field.name} is missing or of the wrong kind")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file of ours; UserError naming ``what`` when it is missing or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The {what} {path} is missing or damaged ({error}).") from None


@contextlib.contextmanager
def tensors_of(path: Path, problem: str, remedy: str = ".") -> Iterator[Any]:
    """Open a safetensors file that someone may have damaged or forged: a ``safe_open``.

    What the body raises over it, too, becomes a UserError, ``problem (what is wrong)remedy``, unless the memory has run out.
    """
    from safetensors import SafetensorError, safe_open  # a host that starts needs it not

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        # the last four: dtypes that this torch or the library does not know, tensors that are missing, sizes that overflow
        if is_out_of_memory(error):
            raise
        raise UserError(f"{problem} ({error}){remedy}") from None
