"""Collect as I generate: what the host tells us of each picture. In the host's own thread, so only a few comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import processing, shared

from ...collector import Collector
from ...dataset.infotext import NEGATIVE, OWN_KEY
from .facts import option
from .generation import OURS


def image_saved(collector: Collector, params: Any) -> None:
    """After each file the host has written: samples of a generation are offered, everything else is not.

    Grids, masks and intermediate copies are recognised by their names, in the worker; init images, extras and the
    Save button come without a generation.
    """
    if not collector.rule.enabled or not isinstance(params.p, processing.StableDiffusionProcessing):
        return
    text = str((params.pnginfo or {}).get("parameters") or "")
    if getattr(params.p, OURS, False) or f"{OWN_KEY}:" in text or _is_grid(params):
        return
    if collector.wants(_prompt(text, params.p)):
        collector.offer_file(Path(params.filename).absolute(), text)


def generation_ended(collector: Collector, p: Any, processed: Any) -> None:
    """After a generation: its pictures are offered from memory, where the host's settings save none."""
    if not collector.rule.enabled or option("samples_save", True) or getattr(p, OURS, False):
        return
    if p.do_not_save_samples or shared.state.interrupted or shared.state.skipped or shared.state.stopping_generation:
        return
    first = processed.index_of_first_image
    texts = processed.infotexts[first:]
    # A1111 puts the masks that it returns behind each picture, without a text
    stride = 1 + _masks(p, processed)
    for number, text in enumerate(texts):
        index = first + number * stride
        if index >= len(processed.images) or number >= len(processed.all_prompts):
            break
        if f"{OWN_KEY}:" not in text and collector.wants(_prompt(text, p)):
            collector.offer_picture(processed.images[index], text)


def _masks(p: Any, processed: Any) -> int:
    if getattr(p, "mask_for_overlay", None) is None or len(processed.images) <= len(processed.infotexts):
        return 0
    return int(bool(option("return_mask", False))) + int(bool(option("return_mask_composite", False)))


def _is_grid(params: Any) -> bool:
    grids = getattr(params.p, "outpath_grids", None)
    samples = getattr(params.p, "outpath_samples", None)
    if not grids or not samples:
        return False
    folder, grid_folder, sample_folder = (Path(x).absolute() for x in (Path(params.filename).parent, grids, samples))
    return folder.is_relative_to(grid_folder) and not folder.is_relative_to(sample_folder)


def _prompt(text: str, p: Any) -> str:
    return text.partition(f"\n{NEGATIVE}")[0] if text else str(getattr(p, "prompt", ""))
