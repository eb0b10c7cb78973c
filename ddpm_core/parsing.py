"""Reading what someone may have damaged or forged: files that are none, JSON, records made of it, safetensors files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from .errors import UserError, is_out_of_memory
from .text import legible

T = TypeVar("T")
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}


class NotAFile(OSError):
    """A pipe, a device or a folder in the place of a file."""


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_MOST_BYTES = 16 * 2**20  # of a record of ours; a list of a run's settings has some kilobytes


def open_regular(path: Path, follow: bool = False) -> IO[bytes]:
    """Open a file for reading; NotAFile for a pipe, a device or a folder, and never waits for one.

    A link, too, is refused, as within a workspace, unless ``follow``.
    """
    return os.fdopen(_opened(path, follow)[0], "rb")


def _opened(path: Path | str, follow: bool) -> tuple[int, int]:
    """As :func:`open_regular`: the handle, and how many bytes the file has."""
    if not follow and not _NO_LINK and Path(path).is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    # without O_NONBLOCK opening a pipe waits for a writer
    handle = os.open(path, os.O_RDONLY | _NO_WAITING | (0 if follow else _NO_LINK))
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise NotAFile(errno.EINVAL, "it is no file", str(path))
    return handle, found.st_size


class Growing:
    """A file of lines that others append to, read piece by piece. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._head = b""
        self._file: tuple[int, int] = (0, 0)  # device and inode
        self._read = 0

    def added(self) -> tuple[bytes, bool]:
        """The whole lines added since the last call, and whether it is another file than then, read from its beginning.

        OSError where there is none.
        """
        with open_regular(self._path) as file:
            status = os.fstat(file.fileno())
            # an inode may be used again: what the file begins with must be the same, too
            same = (status.st_dev, status.st_ino) == self._file and status.st_size >= self._read
            is_another = not same or file.read(len(self._head)) != self._head
            if is_another:
                self._read, self._head = 0, b""
                self._file = (status.st_dev, status.st_ino)
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line that is just being written comes next time
        self._head = self._head or whole[:300]
        self._read += len(whole)
        return whole, is_another


def read_regular(path: Path | str, most: int = _MOST_BYTES) -> bytes:
    """The content of a file of a workspace; OSError for what :func:`open_regular` refuses, and for more than ``most`` bytes."""
    handle, size = _opened(path, follow=False)
    try:
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes", str(path))
        data = os.read(handle, size)
        while len(data) < size and (more := os.read(handle, size - len(data))):  # a share may give less at a time
            data += more
        return data
    finally:
        os.close(handle)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that someone may have forged; ValueError for whatever is wrong with it.

    What comes back can be written as JSON again: a number that is not finite is null, a lone surrogate a question mark.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        values = _DECODER.decode(text)
        if "\\u" in text or text != legible(text):
            values = json.loads(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return values


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=lambda name: None)


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
        return parse_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise UserError(f"The {what} {path} is missing or damaged ({error}).") from None


@contextlib.contextmanager
def tensors_of(path: Path, problem: str, remedy: str = ".") -> Iterator[Any]:
    """Open a safetensors file that someone may have damaged or forged: a ``safe_open``.

    What the body raises over it, too, becomes a UserError, ``problem (what is wrong)remedy``, unless the memory has run out.
    """
    from safetensors import SafetensorError, safe_open  # a host that starts needs it not

    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "it is no file")
        if not os.access(path, os.R_OK):  # which is no damage, and is mended otherwise
            raise UserError(f"{path} may not be read by this user; change its permissions (on Linux: chmod a+r).")
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        # the last four: dtypes that this torch or the library does not know, tensors that are missing, sizes that overflow
        if is_out_of_memory(error):
            raise
        raise UserError(f"{problem} ({error}){remedy}") from None
