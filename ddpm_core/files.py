"""Writing files so that a crash at any moment leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from .errors import UserError, is_out_of_memory
from .text import legible

# of this process, which in a container may have the number of the one before
_OURSELVES = f"{os.getpid()}-{os.urandom(4).hex()}"
_TEMPORARY = re.compile(r"^\..+\.([0-9a-f]{8})-((\d+)-[0-9a-f]{8})-\d+\.tmp$")
_SURELY_OLD_SECONDS = 24 * 3600.0
T = TypeVar("T")


def temporary_beside(target: Path) -> Path:
    """The name under which this thread writes ``target`` before it is renamed."""
    return target.with_name(f".{target.name}.{machine()}-{_OURSELVES}-{threading.get_ident()}.tmp")


@functools.cache
def machine() -> str:
    """Names this machine, or this container: numbers of processes mean something only within it."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Remove what processes that were cut off were writing here; what a living one is writing stays."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        match = _TEMPORARY.match(entry.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            if match[2] == _OURSELVES:
                continue
            gone = match[1] == machine() and not is_alive(int(match[3]))
            if not gone and time.time() - entry.stat().st_mtime <= _SURELY_OLD_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):  # one that was being copied to another disk
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink()


def is_alive(process: int) -> bool:
    """Whether another process of that number runs on this machine; on Windows, where asking is not simple, yes."""
    if process == os.getpid():
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def replace_with(target: Path, write: Any) -> None:
    """Call ``write(temporary_path)``, flush it to the disk, then rename it to ``target``.

    UserError when the disk refuses; whatever else ``write`` raises comes out as it is. Either way the temporary is gone.
    """
    temporary = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not _of_the_disk(error):
            raise
        raise UserError(
            f"{target.name} could not be written to {target.parent} ({_plain(error)}); make room or check the "
            "permissions. What was saved before is intact."
        ) from error


def _of_the_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return True
    from safetensors import SafetensorError  # a host that starts needs it not

    return isinstance(error, SafetensorError)


def _plain(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(text.splitlines()), repr(error))


def _sync_folder(folder: Path) -> None:
    if os.name != "nt":  # Windows cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(target: Path, values: Any) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=1)
    # a lone surrogate, which no file can hold, becomes a question mark
    replace_with(target, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))


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


_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}


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


class FolderLock:
    """An exclusive lock on a folder, held by an open file: the system releases it when the process ends, however."""

    def __init__(self, folder: Path, busy: str) -> None:
        self.path = folder / ".lock"
        self.busy = busy
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """UserError with the ``busy`` sentence when another holds it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written ({error.strerror}); check the permissions."
            ) from None
        try:
            if os.name == "nt":
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(self.busy) from None
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()
