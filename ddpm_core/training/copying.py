"""When a training begins to copy its images: the losses say it before the samples do.

Between the noise that hides all but the layout and the noise that hides only detail a network can denoise an image it was trained on better than one
it was not only by knowing it. How much better it is where samples begin to be copies is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .heldout import BANDS

BAND = 2  # of heldout.BANDS: from a fifth to half of the timesteps
ONSET = 0.35  # held-out over seen loss there, less 1; at 0.44 one in a hundred samples asked for an image's own words was a copy
_LOOKS = 2  # in a row: a single one may err
FEWEST = 10  # held-out images, of which there must be a mean
SENTENCE = "It begins to learn its training images by heart: from here on samples would become copies of them."
COPYING = "copying"  # why a training ended


class CopyWatch:
    """Asked after each look; :attr:`begun` once copying is about to begin."""

    sentence, ending = SENTENCE, COPYING

    def __init__(self, begun: bool = False) -> None:
        self.begun = begun
        self._above = 0

    def look(self, seen: Mapping[str, float], held: Mapping[str, float], images: int) -> bool:
        """Losses by band (``heldout.loss_by_band``) of seen images and of so many held-out ones; True at the look at which it begins."""
        found = gap(seen, held)
        above = images >= FEWEST and found is not None and ONSET < found < math.inf  # in fp16 a loss may overflow
        self._above = self._above + 1 if above else 0
        if self.begun or self._above < _LOOKS:
            return False
        self.begun = True
        return True


def gap(seen: Mapping[str, float], held: Mapping[str, float]) -> float | None:
    """By how much the held-out loss is above the seen one, relatively; None where there is no such band."""
    if len(seen) != len(BANDS) - 1 or len(held) != len(seen):
        return None
    one, other = list(seen.values())[BAND], list(held.values())[BAND]
    return other / one - 1 if one > 0 else None
