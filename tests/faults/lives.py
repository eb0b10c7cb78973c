"""Runs commands of ours in forked children and kills them: at a moment, or at the n-th passage of a point in our source.

A program of its own, so that what forks has run nothing: a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_core import cli, commands, demo, files  # noqa: F401 - loaded once, before the first fork
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
    "move": (shutil, "move"),
    "remove": (shutil, "rmtree"),
}
INSIDE = "transaction"  # between a statement and its commit


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, passage: int, after: bool) -> None:
    """Die at that passage of the point."""
    left = passage

    def passed(now: bool) -> None:
        nonlocal left
        if now != after:
            return
        left -= 1
        if left < 0:
            die()

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
    child = os.fork()
    if not child:
        status = 1
        try:
            sink = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            files._OURSELVES = f"{os.getpid()}-{os.urandom(4).hex()}"  # made once in a process, and this one is new
            if "point" in order:
                arm(order["point"], order["passage"], order["after"])
            status = cli.main(order["arguments"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if "seconds" in order:
        deadline = time.monotonic() + order["seconds"]
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return ended(status)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return ended(os.waitpid(child, 0)[1])


def ended(status: int) -> dict[str, Any]:
    if os.WIFSIGNALED(status):
        return {"killed": True, "signal": os.WTERMSIG(status)}
    return {"killed": False, "code": os.WEXITSTATUS(status)}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), flush=True)
