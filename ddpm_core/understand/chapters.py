"""Page 8: what each well-known model adds, drawn by the person's own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..errors import UserError
from ..operations.context import Context
from ..operations.pictures import png
from ..operations.sampling import sample
from ..requests import OWN_UPSCALER, Enlarging, Prompt
from ..sampling.generate import SampleSettings
from .desk import Desk, Opened
from .path import seed_of
from .query import Query

_MOST_WORDS = 5
_WEIGHTS = (0.0, 0.5, 1.0)


def words(desk: Desk, query: Query) -> dict[str, Any]:
    """Stable Diffusion: the same noise without words, and with some of those that the model knows."""
    model = desk.model(query.text("model"))
    if not model.config.tags:
        raise UserError(
            f"{model.name} knows no words of its own; choose a model that was trained with the condition tags."
        )
    some = [tag.split(" | ")[0] for tag in model.config.tags[:_MOST_WORDS]]
    found = _sampled(desk, model, seed_of(query), [Prompt(), *map(Prompt, some)])
    return {"images": _labelled(["", *some], found)}


def cascade(desk: Desk, query: Query) -> dict[str, Any]:
    """Imagen: a small image, and what an upscaler of the workspace makes of it."""
    model = desk.model(query.text("model"))
    name = desk.workspace.upscaler_of(model.name)
    if name is None:
        raise UserError(
            f"There is no upscaler that goes with {model.name}: train one on the same dataset (preset upscale-4x-small)."
        )
    factor = getattr(desk.workspace.model_config(name).unet, "factor", 4)
    small = _sampled(desk, model, seed_of(query), [Prompt()])
    large = _sampled(desk, model, seed_of(query), [Prompt()], Enlarging(OWN_UPSCALER + name, float(factor)))
    sizes = [f"{image.width}x{image.height}" for image in (*small, *large)]
    return {"images": _labelled(sizes, [*small, *large])}


def adapter(desk: Desk, query: Query) -> dict[str, Any]:
    """DreamBooth and LoRA: the same noise under an adapter's weights 0, 0.5 and 1, asked for its word."""
    model = desk.model(query.text("model"))
    names = desk.workspace.adapters_of(model.name)
    if not names:
        raise UserError(f"There is no adapter of {model.name}: train one with Fine-tune a model in the Train tab.")
    concept = desk.workspace.show_model(names[0]).get("concept") or ""
    prompts = [Prompt(f"{concept} <ddpm:{names[0]}:{weight:g}>" if weight else "") for weight in _WEIGHTS]
    return {"images": _labelled([f"{weight:g}" for weight in _WEIGHTS], _sampled(desk, model, seed_of(query), prompts))}


def _sampled(
    desk: Desk, model: Opened, seed: int, prompts: Sequence[Prompt], enlarging: Enlarging | None = None
) -> list[Image.Image]:
    """An image for each prompt, all from the same noise."""
    plain = Context(model.context.device, model.context.gpu_slice, text_encoder=model.context.text_encoder)
    found = []
    for prompt in prompts:
        settings = SampleSettings(seed=seed)
        found += sample(desk.workspace, model.name, 1, settings, plain, prompts=[prompt], enlarging=enlarging).pictures
    return found


def _labelled(labels: Sequence[str], images: Sequence[Image.Image]) -> list[dict[str, str]]:
    return [
        {"label": label, "image": "data:image/png;base64," + base64.b64encode(png(image)).decode()}
        for label, image in zip(labels, images)
    ]
