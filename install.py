"""Run by the WebUI at every start: installs nothing, moves no pinned package; says in one line what is missing or too old.

It reads the names of the installed packages' folders: importing them, or importlib.metadata, would cost each start more.
"""

import os
import re
import sys

NEEDED = {"torch": (2, 1), "gradio": (3, 41), "safetensors": (0, 3), "pillow": (9, 5), "numpy": (1, 23)}
_FOLDER = re.compile(r"^(torch|gradio|safetensors|pillow|numpy)-(\d+)\.(\d+).*\.(dist-info|egg-info)$", re.IGNORECASE)


def installed():
    found = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - pathlib would double the time
        except OSError:
            continue
        for name in names:
            match = _FOLDER.match(name)
            if match:
                found.setdefault(match[1].lower(), (int(match[2]), int(match[3])))
    return found


def problems():
    if sys.version_info < (3, 10):  # noqa: UP036 - a host may run anything
        yield f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old, 3.10 is needed"
    found = installed()
    for name, lowest in NEEDED.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name] < lowest:
            yield f"{name} {'.'.join(map(str, found[name]))} is too old, {'.'.join(map(str, lowest))} is needed"


def is_sdnext():
    """SD.Next keeps the names of the WebUI's modules and has other things in them."""
    return any(os.path.isfile(os.path.join(folder or ".", "modules", "ui_control.py")) for folder in sys.path)  # noqa: PTH113, PTH118


wrong = list(problems())
if is_sdnext():
    print(
        "sd-webui-ddpm does not work in SD.Next, which lacks parts of the WebUI that it builds on (InputAccordion, decoded samples, "
        "queue and command line state). Use AUTOMATIC1111, Forge, reForge or Forge Neo, or run ./standalone.sh in its folder."
    )
elif wrong:
    print(f"sd-webui-ddpm cannot run here: {'; '.join(wrong)}. Update the WebUI.")
