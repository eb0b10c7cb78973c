"""A generation by our model alone: the script in the Script dropdown."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from modules import images, processing, shared

from ....errors import UserError
from ....service import Service
from ..facts import option
from .sampling import Choice, random_seed, sample

_log = logging.getLogger("ddpm_core")


def generate(service: Service, p: Any, values: Any) -> Any:
    """What the host shows for it: batch count times batch size pictures, with their grid if the host makes grids."""
    given = [*values, *[None] * 7]
    said, made = "", []
    seed = int(p.seed) if p.seed is not None and int(p.seed) >= 0 else random_seed()
    try:
        choice = replace(Choice.read(*given[:7]), count=p.n_iter * p.batch_size)
        shared.state.job_count = 1
        save = not p.do_not_save_samples
        made = sample(
            service, choice, seed, (p.width, p.height), str(p.outpath_samples or ""), save, batch_size=p.batch_size
        )
    except UserError as error:
        said = str(error)
    except Exception as error:
        _log.exception("our model alone could not generate")
        said = f"that failed ({type(error).__name__}: {error}); the console has more."
    pictures, texts, seeds = ([getattr(r, name) for r in made] for name in ("image", "text", "seed"))
    first = _add_grid(p, pictures, texts, seeds)
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
    if said:
        processed.comments += f"DDPM: {said}\n"
        processed.extra_generation_params = {**processed.extra_generation_params, "DDPM error": said}
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
        images.save_image(grid, p.outpath_grids, "grid", seeds[0], "", kind, info=texts[0], p=None, grid=True)
    if not shown:
        return 0
    pictures.insert(0, grid)
    texts.insert(0, texts[0])
    return 1
