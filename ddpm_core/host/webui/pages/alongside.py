"""Our model's pictures beside those of a generation: after them in the gallery, in the folder, in the API's answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modules import shared

from ....errors import UserError
from ....service import Result, Service
from .sampling import Choice, random_seed, sample

_log = logging.getLogger("ddpm_core")
AXES = "ddpm_axes"  # an attribute of generations: what an axis of an X/Y/Z plot sets
# scripts that generate once for each of their pictures and keep texts beside them; others put parts together
_SCRIPTS = ("x/y/z plot", "prompts from file or textbox")


def count_in(p: Any) -> None:
    """The host's bar is to know from the first batch on that there is one job more."""
    if shared.state.job_count > 0 and _left_out(p) is None:
        shared.state.job_count += 1


def add(service: Service, p: Any, processed: Any, values: Sequence[Any]) -> None:
    """Sample as ``values`` (of the controls, less trailing ones) and ``p`` say; add to what has been processed."""
    state = shared.state
    if state.interrupted or state.stopping_generation or getattr(p, "txt2img_upscale", False):
        return
    try:
        reason = _left_out(p)
        if reason is not None:
            raise UserError(reason)
        given = [*values[1:], *[None] * 7]
        axes = getattr(p, AXES, {})
        choice = replace(Choice.read(*given[:7]), **axes)
        seed = int(p.all_seeds[0]) if p.all_seeds else random_seed()
        there = processed.images[processed.index_of_first_image :]
        size = there[0].size if there else (p.width, p.height)  # with Hires. fix it is larger than what was asked for
        save = not p.do_not_save_samples
        made = sample(service, choice, seed, size, str(p.outpath_samples or ""), save, choice.count)
    except UserError as error:
        _tell(processed, str(error))
    except Exception as error:
        _log.exception("no pictures beside a generation")
        _tell(processed, f"that failed ({type(error).__name__}: {error}); the console has more.")
    else:
        _append(p, processed, made, first=bool(axes))


def _left_out(p: Any) -> str | None:
    """Why a generation gets none of ours: its script would take them for its own."""
    index = p.script_args[0] if p.script_args else 0
    if not index or p.scripts is None:
        return None
    title = p.scripts.selectable_scripts[index - 1].title()
    if title.lower() in _SCRIPTS:
        return None
    return f"left out, because the script {title} puts pictures together itself."


def _append(p: Any, processed: Any, made: list[Result], first: bool) -> None:
    if not made:
        return
    _align(processed)
    images, texts = [result.image for result in made], [result.text for result in made]
    count = len(made)
    seeds = [result.seed for result in made]
    if first:  # the plot keeps the first picture of each cell
        processed.images[:0], processed.infotexts[:0] = images, texts
        processed.info, processed.seed, processed.prompt = texts[0], seeds[0], ""
        return
    processed.images += images
    processed.infotexts += texts
    # new lists: those that are there belong to the generation as well
    processed.all_prompts = [*processed.all_prompts, *[""] * count]
    processed.all_negative_prompts = [*processed.all_negative_prompts, *[""] * count]
    processed.all_seeds = [*processed.all_seeds, *seeds]
    processed.all_subseeds = [*processed.all_subseeds, *[0] * count]


def _align(processed: Any) -> None:
    """A text for each picture: the host puts the masks that it returns behind their pictures, without one."""
    first = processed.index_of_first_image
    images, texts = processed.images[first:], processed.infotexts[first:]
    if texts and len(images) > len(texts) and len(images) % len(texts) == 0:
        each = len(images) // len(texts)
        texts = [text for text in texts for _ in range(each)]
    elif len(images) > len(texts):
        texts = [*texts, *[texts[-1] if texts else processed.info] * (len(images) - len(texts))]
    processed.infotexts = [*processed.infotexts[:first], *texts[: len(images)]]


def _tell(processed: Any, said: str) -> None:
    """Below the gallery; and for the API, whose answer has no comments, among the parameters."""
    processed.comments += f"DDPM: {said}\n"
    processed.extra_generation_params = {**processed.extra_generation_params, "DDPM error": said}
