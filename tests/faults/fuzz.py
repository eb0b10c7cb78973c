"""``python tests/faults/fuzz.py NAME SECONDS``: one target of ``targets.py`` for so long.

Guided by coverage where atheris is installed, which mutates what reached new code; else by plain mutation of the seeds.
Prints the executions; what broke it is written to the current folder as ``crash-NAME…``, and the exit status is not 0.
"""

from __future__ import annotations

import base64
import os
import random
import sys
from pathlib import Path


def plainly(name: str, seconds: float) -> None:
    import targets

    seed = int.from_bytes(os.urandom(4), "big")
    count, grown = targets.fuzz(name, seconds, seed)
    print(f"{name}: {count} executions by mutation (seed {seed}), {grown:.0f} MiB more at the most")
    assert grown < targets.MOST_MEGABYTES


def guided(name: str, seconds: float) -> None:
    import atheris

    with atheris.instrument_imports(include=["ddpm_core", "PIL", "json", "targets"]):
        import targets

    corpus = targets.fresh("corpus")
    for number, data in enumerate(targets.seeds(name)):
        targets.attempt(name, data)
        (corpus / str(number)).write_bytes(data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return targets.mutate(data, chance)[:most]

    options = {
        "max_total_time": int(seconds),
        "timeout": targets.MOST_SECONDS,
        "rss_limit_mb": int(targets.megabytes()) + targets.MOST_MEGABYTES,
        "max_len": 2 * max(len(data) for data in targets.seeds(name)),
        "artifact_prefix": f"crash-{name}-",
        "print_final_stats": 1,
        "verbosity": 0,
    }

    def attempt(data: bytes) -> None:
        try:
            targets.attempt(name, data)
        except BaseException:
            # libFuzzer keeps what it found in some builds only
            Path(f"crash-{name}").write_bytes(data)
            print(f"{name} found", base64.b64encode(data[:2000]).decode(), file=sys.stderr)
            raise

    words = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([name, *words, str(corpus)], attempt, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    try:
        import atheris  # noqa: F401
    except ImportError:
        plainly(sys.argv[1], float(sys.argv[2]))
    else:
        guided(sys.argv[1], float(sys.argv[2]))
