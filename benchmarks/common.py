"""What the measurements share: arguments, the machine, alternating repeats, the answer."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ddpm_core.dataset.packing import Packed, pack
from ddpm_core.demo import unpack
from ddpm_core.host.devices import best_device
from ddpm_core.workspace import Workspace

WORK = Path(__file__).resolve().parent / ".work"


def parser(about: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--device", help="default: the best there is")
    found.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return found


def device_of(a: argparse.Namespace) -> torch.device:
    return torch.device(a.device) if a.device else best_device()


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure must be read with."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = next(
            (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
            platform.processor() or platform.machine(),
        )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{device.type}: {name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def alternate(kinds: dict[str, Callable[[], float]], rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Call each kind once a round, in turn, so that a machine that slows down slows all of them; lists of results."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds):
        order = list(kinds.items())
        for name, measure in order if number % 2 == 0 else reversed(order):
            found[name].append(measure())
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {v[-1]:.4g}" for n, v in found.items()))
    return found


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(first, second))


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def answer(a: argparse.Namespace, values: dict[str, Any]) -> int:
    """Print the result; the exit status: 0 where every bar is reached (or there is none), else 1."""
    if a.json:
        print(json.dumps(values))
    else:
        print(json.dumps(values, indent=2))
    return 0 if values.get("passed", True) else 1


def portraits(size: int) -> Packed:
    """The bundled portraits as the demo harvests them, packed at ``size``; kept in benchmarks/.work."""
    workspace = Workspace(WORK, WORK / "models")
    if "portraits" not in workspace.dataset_names():
        say("Harvesting the bundled portraits.")
        workspace.harvest("portraits", [unpack(WORK / "images")])
    return pack(workspace.store("portraits"), (size, size), "center")
