"""Runs commands of ours in forked children in trouble: killed at a moment or at the n-th passage of a point in our source,
on a disk that takes no more than so many bytes of a file, short of memory at a point, or without permissions from there.

A program of its own, so that what forks has run nothing: a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddpm_core import cli, commands, demo, files, trash  # noqa: F401 - loaded once, before the first fork
from ddpm_core.dataset import harvest, packing
from ddpm_core.dataset.store import Store
from ddpm_core.training import loop
from ddpm_core.training.trainer import Trainer

# (owner, attribute): where a child may die, just before or just after
POINTS: dict[str, tuple[Any, str]] = {
    "rename": (os, "replace"),
    "flush": (os, "fsync"),
    "step": (Trainer, "train_step"),
    "state": (Trainer, "state_tensors"),
    "preview": (loop, "preview"),
    "copy": (harvest, "write_copy"),
    "pack": (packing, "fit"),
    "checkpoint": (sys.modules["ddpm_core.training.checkpoints"], "save_file"),
    "move": (trash, "move"),
    "remove": (trash, "_remove_empty"),
}
INSIDE = "transaction"  # between a statement and its commit


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def starve() -> None:
    raise MemoryError("out of memory, as injected")


def obey_permissions() -> None:
    """Give up the right of root to write what it may not (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER)."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread; others inherit from it
    sets = (ctypes.c_uint32 * 6)()
    dropped = 1 << 1 | 1 << 2 | 1 << 3
    if library.capget(header, sets) == 0:
        for place in (0, 1, 2):
            sets[place] &= ~dropped
        library.capset(header, sets)


def permit(path: Path, mode: int) -> None:
    """Set the permissions of a folder and of everything below it; files are never made executable."""
    opening = mode == 0o755
    with contextlib.suppress(OSError):
        if opening or not path.is_dir():
            path.chmod(mode if path.is_dir() else mode & 0o666)
        if path.is_dir():
            for child in list(path.iterdir()):
                permit(child, mode)
            path.chmod(mode)


def arm(point: str, passage: int, after: bool, trouble: Callable[[], None], times: int) -> None:
    """Be in trouble at that passage of the point, and at so many from there."""
    left = passage

    def passed(now: bool) -> None:
        nonlocal left
        if now != after:
            return
        left -= 1
        if -times <= left < 0:
            trouble()

    if point == INSIDE:
        plain = Store.transaction

        @contextlib.contextmanager
        def transaction(self: Store) -> Iterator[Any]:
            with plain(self) as db:
                yield db
                passed(after)

        Store.transaction = transaction  # type: ignore[method-assign]
        return
    owner, name = POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)

    def armed(*values: Any, **named: Any) -> Any:
        passed(False)
        try:
            return original(*values, **named)
        finally:
            passed(True)

    setattr(owner, name, armed)


def live(order: dict[str, Any]) -> dict[str, Any]:
    source, sink = os.pipe()
    happened, mark = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
            if "file_limit" in order:
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
            files.OURSELVES = f"{os.getpid()}-{os.urandom(4).hex()}"  # made once in a process, and this one is new
            if "point" in order:
                memory = order.get("memory", 0)
                trouble = starve if memory else die
                if "denied" in order:
                    obey_permissions()
                    trouble = functools.partial(permit, Path(order["arguments"][1]), order["denied"])

                def marked() -> None:
                    os.write(mark, b"!")
                    trouble()

                arm(order["point"], order["passage"], order["after"], marked, memory or 1)
            status = cli.main(order["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(sink)
    os.close(mark)
    if "seconds" in order:
        timer = threading.Timer(order["seconds"], os.kill, (child, signal.SIGKILL))
        timer.start()
    with open(source, encoding="utf-8", errors="replace") as output:
        said = output.read()
    if "seconds" in order:
        timer.cancel()
        timer.join()
    status = os.waitpid(child, 0)[1]
    troubled = bool(os.read(happened, 1))
    os.close(happened)
    permit(Path(order["arguments"][1]), 0o755)
    if os.WIFSIGNALED(status):
        return {"killed": True, "said": said, "troubled": troubled}
    return {"killed": False, "code": os.WEXITSTATUS(status), "said": said, "troubled": troubled}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), flush=True)
