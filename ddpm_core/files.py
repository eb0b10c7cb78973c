"""Writing files so that a crash at any moment leaves the old content or the new, never half."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .errors import UserError

# of this process, which in a container may have the number of the one before
OURSELVES = f"{os.getpid()}-{os.urandom(4).hex()}"
_TEMPORARY = re.compile(
    r"^\..+\.([0-9a-f]{8})-((\d+)-[0-9a-f]{8})-\d+\.tmp(-journal|-wal|-shm)?$"
)  # the last of SQLite beside one
_SURELY_OLD_SECONDS = 24 * 3600.0
_ATTEMPTS = 20  # to lock a folder whose lock others remove


def temporary_beside(target: Path) -> Path:
    """The name under which this thread writes ``target`` before it is renamed."""
    return target.with_name(f".{target.name}.{machine()}-{OURSELVES}-{threading.get_ident()}.tmp")


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
            if match[2] == OURSELVES:
                continue
            gone = match[1] == machine() and not is_alive(int(match[3]))
            if not gone and time.time() - entry.stat().st_mtime <= _SURELY_OLD_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):  # one that was being copied to another disk
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink()


def below(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where somebody has removed it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


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
        write_readable(temporary, write)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _into_place(temporary, target)
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


def write_readable(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(path)``, which may make a new file that only its owner may read, as safetensors does; it ends with the mode
    that the umask or the folder gives."""
    with open(path, "wb") as made:
        mode = stat.S_IMODE(os.fstat(made.fileno()).st_mode)
    path.unlink()
    write(path)
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def _into_place(temporary: Path, target: Path) -> None:
    # Windows replaces no file that somebody has open, as a page's status or a sampling has for a moment
    deadline = time.monotonic() + (2.0 if os.name == "nt" else 0.0)
    while True:
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


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


def next_number(folder: Path, pattern: str) -> int:
    """One more than the largest number in names of a folder that match a pattern, whose first group it is; 0 without one."""
    found = (re.fullmatch(pattern, path.name) for path in below(folder))
    return max((int(match[1]) for match in found if match), default=-1) + 1


def write_json(target: Path, values: Any) -> None:
    """Write JSON to a file, whole or not at all."""
    text = json.dumps(values, ensure_ascii=False, indent=1)
    # a lone surrogate, which no file can hold, becomes a question mark
    replace_with(target, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))


class FolderLock:
    """An exclusive lock on a folder, held by an open file: the system releases it when the process ends, however."""

    def __init__(self, folder: Path, busy: str) -> None:
        self.path = folder / ".lock"
        self.busy = busy
        self.file: IO[str] | None = None
        self._removed = False

    def acquire(self) -> None:
        """UserError with the ``busy`` sentence when another holds it."""
        for attempt in range(_ATTEMPTS):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.is_symlink():  # it could lead anywhere, and opening makes the file
                    raise OSError(errno.ELOOP, "its .lock is a link")
                file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
            except OSError as error:
                if isinstance(error, FileNotFoundError) and attempt < _ATTEMPTS - 1:
                    continue  # just removed by who held it before
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
            if self._is_in_place(file) or attempt == _ATTEMPTS - 1:
                self.file = file
                return
            file.close()

    def _is_in_place(self, file: IO[str]) -> bool:
        """Whether a locked file is still the one that others would open: it may have been removed before it was locked."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the lock, which is held, and its folder, if that holds nothing else; where the system refuses, both stay."""
        if os.name != "nt":  # where an open file cannot be removed
            with contextlib.suppress(OSError):
                self.path.unlink()
                self._removed = True
                self.path.parent.rmdir()

    def release(self) -> None:
        """Release the lock."""
        if self.file is not None:
            self.file.close()
            self.file = None
            if self._removed:  # NFS keeps what is open under another name until then, and the folder with it
                self._removed = False
                with contextlib.suppress(OSError):
                    self.path.parent.rmdir()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for the body; UserError where another process has it."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def as_pasted(text: str) -> Path:
    """The path that somebody has pasted: in quotes, as Windows' Explorer copies it, or as a ``file://`` address."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if text.lower().startswith("file:"):
        try:
            parts = urlsplit(text)
        except ValueError:  # no address either
            return Path(text)
        # file://server/share is a network folder; file:///C:/x and file:///home/x are of this machine
        server = f"//{parts.netloc}" if parts.netloc not in ("", "localhost") else ""
        text = server + url2pathname(parts.path)
    return Path(text)
