"""Pasting one of our generation texts: it sets our controls and the seed.

The host's steps, sampler, size and negative prompt stay; what it unticks for any text without them (Hires. fix,
Refiner, Extra seed) it unticks for ours.
"""

from __future__ import annotations

from typing import Any

_OURS = "DDPM"


def infotext_pasted(text: str, params: dict[str, Any]) -> None:
    """Before the host fills its fields. The steps and the sampler of our samples are not the host's."""
    if "DDPM model" not in params:
        return
    kept = {"Prompt", "Seed"}  # no prompt: what was pasted into its field goes away
    if "DDPM upscaler" in params:
        kept |= {"Size-1", "Size-2"}  # what our picture was brought to
    for key in [key for key in params if key not in kept and not key.startswith(_OURS)]:
        del params[key]
