"""A generation by our model alone: the script in the Script dropdown."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from modules import images, processing, shared

from ....errors import UserError
from ....results import Result
from ....service import Service
from ..facts import option
from .sampling import Choice, random_seed, sample, tell

_log = logging.getLogger("ddpm_core")


def generate(service: Service, p: Any, values: Any) -> Any:
    """What the host shows for it: batch count times batch size pictures, with their grid if the host makes grids."""
    failure: UserError | None = None
    made: list[Result] = []
    seed, first = random_seed(), 0
    try:
        seed = int(processing.get_fixed_seed(p.seed))
        choice = replace(Choice.read(values), count=p.n_iter * p.batch_size)
        shared.state.job_count = 1
        made, failure = sample(service, choice, p, seed, (p.width, p.height), p.batch_size)
    except UserError as error:
        failure = error
    except Exception as error:
        _log.exception("our model alone could not generate")
        failure = UserError(f"that failed ({type(error).__name__}); the console has more.")
    pictures, texts, seeds = ([getattr(r, name) for r in made] for name in ("image", "text", "seed"))
    p.all_seeds, p.all_prompts = seeds or [seed], [""] * max(1, len(seeds))  # what patterns of names ask
    try:
        first = _add_grid(p, pictures, texts, seeds)
    except OSError as error:
        failure = UserError(f"The grid could not be saved ({error.strerror or 'disk error'}); make room.")
    processed = processing.Processed(
        p,
        pictures,
        seed=seeds[0] if seeds else seed,
        info=texts[0] if texts else "",
        all_prompts=[""] * max(1, len(seeds)),
        all_negative_prompts=[""] * max(1, len(seeds)),
        all_seeds=seeds or [seed],
        all_subseeds=[0] * max(1, len(seeds)),
        index_of_first_image=first,
        infotexts=texts or [""],
    )
    if failure is not None:
        tell(processed, str(failure))
    return processed


def _add_grid(p: Any, pictures: list[Any], texts: list[str], seeds: list[int]) -> int:
    """Put a grid first, by the host's settings; returns how many pictures stand before the first one."""
    shown, saved = bool(option("return_grid", True)), bool(option("grid_save", True))
    alone = len(pictures) < 2 and bool(option("grid_only_if_multiple", True))
    if not pictures or alone or p.do_not_save_grid or not (shown or saved):
        return 0
    grid = images.image_grid(pictures, p.batch_size)
    if option("enable_pnginfo", True):
        grid.info["parameters"] = texts[0]
    if saved:
        kind = option("grid_format", "png")
        short = not option("grid_extended_filename", False)
        images.save_image(
            grid, p.outpath_grids, "grid", seeds[0], "", kind, info=texts[0], p=p, grid=True, short_filename=short
        )
    if not shown:
        return 0
    pictures.insert(0, grid)
    texts.insert(0, texts[0])
    return 1
