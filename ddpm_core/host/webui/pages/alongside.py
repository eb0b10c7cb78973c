"""Our model's pictures beside those of a generation: after them in the gallery, in the folder, in the API's answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from modules import processing, shared

from ....errors import UserError
from ....results import Result
from ....service import Service
from ..collecting import masks_per_picture
from ..facts import AXES, SAVES
from .sampling import Choice, random_seed, sample, tell

_log = logging.getLogger("ddpm_core")
_PLOT = "x/y/z plot"  # keeps the first picture of each cell
_ONE_BY_ONE = "prompts from file or textbox"  # keeps all pictures, and their texts beside them


def count_in(p: Any) -> None:
    """The host's bar is to know from the first batch on that there is one job more, where there are several."""
    if shared.state.job_count > 1 and _script(p) is None and not getattr(p, "txt2img_upscale", False):
        shared.state.job_count += 1


def spare(p: Any) -> None:
    """Before a cell of a plot that has axes of ours only: the host need not make a picture that nobody would see."""
    made = getattr(processing, "DecodedSamples", None)
    if made is None or not getattr(p, AXES, {}) or not _has_axes_of_ours_only(p):
        return
    width, height = int(p.width), int(p.height)
    if getattr(p, "enable_hr", False):  # as large as the host's would have become
        scale = float(getattr(p, "hr_scale", 1.0) or 1.0)
        width = int(getattr(p, "hr_resize_x", 0) or width * scale)
        height = int(getattr(p, "hr_resize_y", 0) or height * scale)

    def blank(*args: Any, **options: Any) -> Any:
        return made([torch.zeros((3, height, width))])

    p.sample = blank  # of this copy of the generation alone
    p.n_iter = p.batch_size = 1
    setattr(p, SAVES, not p.do_not_save_samples)
    p.do_not_save_samples = True


def _has_axes_of_ours_only(p: Any) -> bool:
    if _script(p) != _PLOT:
        return False
    script = p.scripts.selectable_scripts[p.script_args[0] - 1]
    options = getattr(script, "current_axis_options", [])
    chosen = list(p.script_args[script.args_from : script.args_to])[0:9:3]  # of each axis: type, values, values chosen
    try:
        labels = [options[number or 0].label for number in chosen]
    except (IndexError, TypeError, AttributeError):
        return False
    return all(label == "Nothing" or label.startswith("[DDPM]") for label in labels)


def add(service: Service, p: Any, processed: Any, values: Sequence[Any]) -> None:
    """Sample as ``values`` (of the controls, less trailing ones) and ``p`` say; add to what has been processed."""
    state = shared.state
    if state.interrupted or state.stopping_generation or getattr(p, "txt2img_upscale", False):
        return
    if not processed.images:  # another extension's doing: the generation has not ended
        return
    axes: dict[str, Any] = getattr(p, AXES, {})
    if hasattr(p, SAVES):
        p.do_not_save_samples = not getattr(p, SAVES)
    failure: UserError | None = None
    made: list[Result] = []
    try:
        script = _script(p)
        if script == _PLOT and not axes:
            return  # a plot of something else, which would keep none of ours
        if script not in (None, _PLOT, _ONE_BY_ONE):
            raise UserError(f"left out, because the script {script} puts images together itself.")
        choice = Choice.read(values[1:])
        if axes:
            choice = replace(choice, **{"count": 1, **axes})
        seed = int(p.all_seeds[0]) if p.all_seeds else random_seed()
        size = processed.images[processed.index_of_first_image :][0].size  # larger than asked for with Hires. fix
        made, failure = sample(service, choice, p, seed, size, choice.count)
        if len({id(image) for image in getattr(p, "init_images", None) or []}) > 1:
            p.comment("DDPM: it begins with the first of the images.")
        if getattr(p, "extra_generation_params", {}).get("Soft inpainting enabled"):
            p.comment("DDPM: soft inpainting is Stable Diffusion's; the DDPM model inpainted plainly.")
    except UserError as error:
        failure = error
    except Exception as error:
        _log.exception("no pictures beside a generation")
        failure = UserError(f"that failed ({type(error).__name__}); the console has more.")
    if failure is not None:
        p.comment(f"DDPM: {failure}")  # a script may show those of the generation
        tell(processed, str(failure))
    if axes and not made:
        processed.images = []  # an empty cell: the host's own picture would stand under our label
    _append(p, processed, made, first=bool(axes))


def _script(p: Any) -> str | None:
    """Title of the script that runs this generation, in small letters."""
    index = p.script_args[0] if p.script_args else 0
    if not index or p.scripts is None:
        return None
    return str(p.scripts.selectable_scripts[index - 1].title()).lower()


def _append(p: Any, processed: Any, made: list[Result], first: bool) -> None:
    if not made:
        return
    _align(p, processed)
    images, texts, seeds = ([getattr(result, name) for result in made] for name in ("image", "text", "seed"))
    ours = {
        "images": images,
        "infotexts": texts,
        "all_prompts": [""] * len(made),
        "all_negative_prompts": [""] * len(made),
        "all_seeds": seeds,
        "all_subseeds": [0] * len(made),
    }
    for name, values in ours.items():  # new lists: those that are there belong to the generation as well
        there = getattr(processed, name)
        setattr(processed, name, [*values, *there] if first else [*there, *values])
    if first:
        processed.info, processed.seed, processed.prompt = texts[0], seeds[0], ""


def _align(p: Any, processed: Any) -> None:
    """A text for each picture: masks get that of their picture, what other extensions have appended that of the whole."""
    first = processed.index_of_first_image
    count = len(processed.images) - first
    each = 1 + masks_per_picture(p, processed)
    texts = processed.infotexts[first:]
    if each * len(texts) <= count:
        texts = [text for text in texts for _ in range(each)]
    texts = [*texts, *[processed.info] * (count - len(texts))][:count]
    processed.infotexts = [*processed.infotexts[:first], *texts]
