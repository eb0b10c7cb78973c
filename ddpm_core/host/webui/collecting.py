"""Collect as I generate: what the host tells us of each picture. In the host's own thread, so only a few comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import processing, shared

from ...collector import Collector
from ...dataset.infotext import OWN_KEY, parse
from .facts import OURS, option


def image_saved(collector: Collector, params: Any) -> None:
    """After each file the host has written: samples of a generation are offered, everything else is not.

    Grids, masks and intermediate copies are recognised by their names, in the worker; init images, extras and the
    Save button come without a generation.
    """
    if not collector.rule.enabled or not isinstance(params.p, processing.StableDiffusionProcessing):
        return
    if shared.state.interrupted or shared.state.skipped:  # incomplete pictures, where the host saves those
        return
    text = str((params.pnginfo or {}).get("parameters") or "")
    if getattr(params.p, OURS, False) or f"{OWN_KEY}:" in text or not _is_among_samples(params):
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
    stride = 1 + masks_per_picture(p, processed)
    for number, text in enumerate(texts):
        index = first + number * stride
        if index >= len(processed.images) or number >= len(processed.all_prompts):
            break
        if f"{OWN_KEY}:" not in text and collector.wants(_prompt(text, p)):
            collector.offer_picture(processed.images[index], text)


def masks_per_picture(p: Any, processed: Any) -> int:
    """How many masks the host has put behind each picture that it returns; they have no texts."""
    if getattr(p, "mask_for_overlay", None) is None or len(processed.images) <= len(processed.infotexts):
        return 0
    return int(bool(option("return_mask", False))) + int(bool(option("return_mask_composite", False)))


def _is_among_samples(params: Any) -> bool:
    """Grids go elsewhere, and so do the previews of the host's own trainings."""
    samples = str(getattr(params.p, "outpath_samples", None) or "")
    return bool(samples) and Path(params.filename).absolute().is_relative_to(Path(samples).absolute())


def _prompt(text: str, p: Any) -> str:
    return parse(text).prompt if text else str(getattr(p, "prompt", ""))
