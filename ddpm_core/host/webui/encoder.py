"""The text encoder of the host's Stable Diffusion: SD 1, SD 2 and SDXL, on A1111, reForge, Forge and Forge Neo."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from modules import devices, extra_networks, processing, prompt_parser, sd_models, shared
from torch import Tensor

from ...dataset.tags import written
from ...errors import UserError
from .facts import option

# of a prompt the first 75 tokens and its two ends are read, as Stable Diffusion 1 was trained
_TOKENS = 77
_KINDS = {"is_sd1": "Stable Diffusion 1", "is_sd2": "Stable Diffusion 2", "is_sdxl": "SDXL"}
_NOT_LOADED = (
    "The WebUI has no checkpoint loaded whose text encoder could read prompts; generate an image with Stable Diffusion 1, 2 or XL "
    "first, and try again."
)


class WebUITextEncoder:
    """As ``model.text.TextEncoder``, of the checkpoint that is loaded now. Called with the host's queue lock held."""

    def __init__(self, bring_back: Callable[[], None]) -> None:
        """``bring_back``: puts the host's models where they can compute."""
        self._bring_back = bring_back
        # Forge loads the checkpoint that is chosen with the next generation
        if hasattr(sd_models, "forge_model_reload"):
            try:
                sd_models.forge_model_reload()
            except Exception as error:  # there is none, or it cannot be read
                raise UserError(_NOT_LOADED) from error
        model = sd_models.model_data.sd_model  # not shared.sd_model, which would load one
        kind = next((name for attribute, name in _KINDS.items() if getattr(model, attribute, False)), None)
        if kind is None:
            raise UserError(_NOT_LOADED)
        self._model, self._skip = model, _skip()
        self._checkpoint = getattr(model, "sd_checkpoint_info", None)
        self.tokens = _TOKENS
        self.width = self.encode(["a"]).shape[-1]
        self.name = str(getattr(self._checkpoint, "name_for_extra", "") or kind)[:200]
        self.fingerprint = f"{_digest(model)}-skip{self._skip}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Plain texts to (N, 77, width) float32 on the CPU; UserError where the host has another checkpoint now."""
        model = sd_models.model_data.sd_model
        same = model is self._model and getattr(model, "sd_checkpoint_info", None) is self._checkpoint
        if not same or _skip() != self._skip:
            raise UserError("The WebUI's checkpoint or Clip skip was changed while prompts were read; start again.")
        self._bring_back()
        with _without_traces(), _without_networks(), torch.no_grad(), devices.autocast():
            if hasattr(self._model, "set_clip_skip"):
                self._model.set_clip_skip(self._skip)
            # networks of the generation before are still in the encoder; the next one brings its own
            extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
            prompts = prompt_parser.SdConditioning([written(text) for text in texts], width=512, height=512)
            found = self._model.get_learned_conditioning(prompts)
            if isinstance(found, dict):
                found = found["crossattn"]
            return torch.tensor(found[:, :_TOKENS].float().cpu().numpy())


def _skip() -> int:
    return int(option("CLIP_stop_at_last_layers", 1))


@contextlib.contextmanager
def _without_networks() -> Iterator[None]:
    """*Add network to prompt* (and hypernetwork) would be added to ours, too."""
    data = shared.opts.data
    before = {name: data[name] for name in ("sd_lora", "sd_hypernetwork") if name in data}
    data.update(dict.fromkeys(before, "None"))
    try:
        yield
    finally:
        data.update(before)


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """What the host remembers of an encoding for the next picture's generation text is as before."""
    places: list[tuple[Any, str]] = []
    hijack = sys.modules.get("modules.sd_hijack")
    engine = sys.modules.get("backend.text_processing.classic_engine")
    if hijack is not None and hasattr(hijack, "model_hijack"):
        places += [(hijack.model_hijack, name) for name in ("extra_generation_params", "comments")]
    arguments = getattr(sys.modules.get("backend.args"), "dynamic_args", None)
    places += [(place, "last_extra_generation_params") for place in (engine, arguments) if place is not None]
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    for place, name, value in before:
        setattr(place, name, value.copy())
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _digest(model: Any) -> str:
    """Names an encoder by its norms and positions, in half precision: alike on every host and device, and no network changes them."""
    forge = getattr(getattr(getattr(model, "forge_objects", None), "clip", None), "cond_stage_model", None)
    parts = [forge] if forge is not None else [getattr(model, n, None) for n in ("cond_stage_model", "conditioner")]
    found = set()
    for part in parts:
        for name, value in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if not ("norm" in name or ".ln_" in name or "position" in name):
                continue
            if value.is_meta:
                raise UserError(_NOT_LOADED)
            found.add(hashlib.sha256(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes()).digest())
    if not found:
        raise UserError(_NOT_LOADED)
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()[:32]
