"""Training beside other programs: images a second alone, beside two busy loops, and beside another torch program.

Each kind is measured as it is, and with ``OMP_WAIT_POLICY=PASSIVE``, with which libgomp's threads sleep instead of spinning; the other
torch program always runs as it is. The bar: at least half the quiet speed beside either, at default settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from ddpm_core.training.settings import PRESETS, RunConfig
from ddpm_core.training.trainer import Trainer

from . import common

BAR = 0.5
LOOP = "while True: pass"


def train(seconds: float, *, forever: bool = False) -> float:
    """Images a second of ``tiny-32`` in this process, after a warm-up; ``forever``: until somebody ends it."""
    preset = PRESETS["tiny-32"]
    images = torch.randint(0, 256, (512, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    trainer = Trainer(RunConfig(preset.model, dataclasses.replace(preset.train)), images, "cpu")
    trainer.run_steps(3)
    print("ready", flush=True)
    began, steps = time.perf_counter(), 0
    while forever or time.perf_counter() - began < seconds:
        steps += trainer.run_slice(1_000_000, 0.25).steps
    return steps * trainer.settings.batch_size / (time.perf_counter() - began)


def child(policy: str, *arguments: str) -> subprocess.Popen[str]:
    settings = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy:
        settings["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-m", "benchmarks.busy", *arguments]
    return subprocess.Popen(command, env=settings, text=True, stdout=subprocess.PIPE)


@contextlib.contextmanager
def beside(kind: str) -> Iterator[None]:
    """The other programs, running until the body ends."""
    others: list[subprocess.Popen[str]] = []
    try:
        if kind == "loops":
            others = [subprocess.Popen([sys.executable, "-c", LOOP], text=True) for _ in range(2)]
        elif kind == "torch":
            others = [child("", "--child", "forever")]
            assert others[0].stdout is not None
            others[0].stdout.readline()  # ready
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=8.0, help="of one measurement")
    options.add_argument("--child", help=argparse.SUPPRESS)
    a = options.parse_args(argv)
    if a.child:
        print(train(0.0, forever=True) if a.child == "forever" else train(float(a.child)), flush=True)
        return 0

    def measured(kind: str, policy: str) -> Callable[[], float]:
        def measure() -> float:
            with beside(kind):
                out, _ = child(policy, "--child", str(a.seconds)).communicate()
            return float(out.split()[-1])

        return measure

    kinds = {
        f"{kind}, {policy or 'unset'}": measured(kind, policy)
        for kind in ("alone", "loops", "torch")
        for policy in ("PASSIVE", "")
    }
    found = common.alternate(kinds, a.rounds, common.say)
    shares = {
        name: round(common.paired_ratio(values, found[f"alone, {name.split(', ')[1]}"]), 3)
        for name, values in found.items()
        if not name.startswith("alone")
    }
    quiet = common.paired_ratio(found["alone, PASSIVE"], found["alone, unset"])
    result = {
        "what": "training tiny-32 beside other programs, share of the images a second alone",
        "ratio": min(shares["loops, unset"], shares["torch, unset"]),
        "bar": BAR,
        "passed": min(shares["loops, unset"], shares["torch, unset"]) >= BAR,
        "shares": shares,
        "quiet_speed_passive_over_unset": round(quiet, 3),
        "images_per_second": {name: common.summary(values) for name, values in found.items()},
        **common.machine(torch.device("cpu")),
    }
    return common.answer(a, result)


if __name__ == "__main__":
    sys.exit(run())
