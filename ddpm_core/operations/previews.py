"""The previews of a run: a strip of pictures for each look, in a folder that stays small."""

from __future__ import annotations

import contextlib
from pathlib import Path

from torch import Tensor

from ..files import replace_with
from .pictures import make_grid

_MOST_PREVIEWS = 240


def save_preview(folder: Path, step: int, images: Tensor) -> None:
    """Write the strip of a step, from uint8 (N, 3, H, W); of very many previews some go."""
    strip = make_grid(images, columns=len(images))
    replace_with(folder / f"step-{step:09d}.png", lambda temporary: strip.save(temporary, format="PNG"))
    thin_out(folder)


def drop_later(folder: Path, step: int) -> None:
    """Previews of steps that were lost when the run was cut off: they are no longer of this model."""
    for path in folder.glob("step-*.png"):
        if path.stem[5:].isdecimal() and int(path.stem[5:]) > step:
            with contextlib.suppress(OSError):
                path.unlink()


def thin_out(folder: Path) -> None:
    """Of very many previews those go that lie closest together, so that a long run keeps its whole course in few files."""
    previews = sorted(path for path in folder.glob("step-*.png") if path.stem[5:].isdecimal())
    if len(previews) <= _MOST_PREVIEWS:
        return
    steps = [int(path.stem.split("-")[1]) for path in previews]
    # every second one, so that no two neighbours go at once
    closest = sorted(range(1, len(steps) - 1, 2), key=lambda i: steps[i + 1] - steps[i - 1])
    for i in closest[: _MOST_PREVIEWS // 4]:
        with contextlib.suppress(OSError):
            previews[i].unlink()
