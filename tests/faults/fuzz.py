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


def apart() -> None:
    """Go on in a process of our own; the one that was started waits, and ends as that does.

    To libFuzzer the most memory that a process has held is also what the one that started it held then, by
    ``getrusage`` on Linux, and it would stop at once; a fork's count begins anew.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    if hasattr(os, "fork"):
        apart()
    try:
        import atheris  # noqa: F401
    except ImportError:
        plainly(sys.argv[1], float(sys.argv[2]))
    else:
        guided(sys.argv[1], float(sys.argv[2]))
