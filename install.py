"""Run by the WebUI at every start: installs nothing, moves no pinned package; says in one line what is missing or too old."""

import sys
from importlib import metadata

NEEDED = {"torch": (2, 1), "gradio": (3, 41), "safetensors": (0, 3), "Pillow": (9, 5), "numpy": (1, 23)}


def version(name):
    try:
        parts = metadata.version(name).split("+")[0].split(".")[:2]
        return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
    except metadata.PackageNotFoundError:
        return None


def problems():
    if sys.version_info < (3, 10):  # noqa: UP036 - a host may run anything
        yield f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old, 3.10 is needed"
    for name, lowest in NEEDED.items():
        found = version(name)
        if found is None:
            yield f"{name} is missing"
        elif found < lowest:
            yield f"{name} {'.'.join(map(str, found))} is too old, {'.'.join(map(str, lowest))} is needed"


found = list(problems())
if found:
    print(f"sd-webui-ddpm cannot run here: {'; '.join(found)}. Update the WebUI.")
