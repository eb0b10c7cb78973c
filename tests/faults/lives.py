"""Runs commands of ours in forked children in trouble: killed at a moment or at the n-th passage of a point in our source,
on a disk that takes no more than so many bytes of a file, or short of memory at a point.

A program of its own, so that what forks has run nothing: a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_core import cli, commands, demo, files, workspace  # noqa: F401 - loaded once, before the first fork
from ddpm_core.dataset import harvest, packing
from ddpm_core.dataset.store import Store
from ddpm_core.training.loop import TrainingLoop
from ddpm_core.training.trainer import Trainer

# (owner, attribute): where a child may die, just before or just after
POINTS: dict[str, tuple[Any, str]] = {
    "rename": (os, "replace"),
    "flush": (os, "fsync"),
    "step": (Trainer, "_train_step"),
    "state": (Trainer, "state_tensors"),
    "preview": (TrainingLoop, "sample_preview"),
    "copy": (harvest, "write_copy"),
    "pack": (packing, "fit"),
    "checkpoint": (sys.modules["ddpm_core.training.checkpoints"], "save_file"),
    "move": (workspace, "_move"),
    "remove": (workspace, "_remove_empty"),
}
INSIDE = "transaction"  # between a statement and its commit


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def starve() -> None:
    raise MemoryError("out of memory, as injected")


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
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
            if "file_limit" in order:
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
            files._OURSELVES = f"{os.getpid()}-{os.urandom(4).hex()}"  # made once in a process, and this one is new
            if "point" in order:
                memory = order.get("memory", 0)
                arm(order["point"], order["passage"], order["after"], starve if memory else die, memory or 1)
            status = cli.main(order["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(sink)
    if "seconds" in order:
        timer = threading.Timer(order["seconds"], os.kill, (child, signal.SIGKILL))
        timer.start()
    with open(source, encoding="utf-8", errors="replace") as output:
        said = output.read()
    if "seconds" in order:
        timer.cancel()
        timer.join()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return {"killed": True, "said": said}
    return {"killed": False, "code": os.WEXITSTATUS(status), "said": said}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), flush=True)
