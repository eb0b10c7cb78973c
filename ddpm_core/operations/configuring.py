"""What a new training will be, from a person's request: settings, number of steps, whether its name is free."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..dataset.packing import HOLDOUT_FROM
from ..dataset.store import Store
from ..dataset.words import FEWEST, texts_of, words_of
from ..errors import UserError
from ..model.config import ImageConfig, TextConfig
from ..names import check_no_twin
from ..requests import TrainRequest
from ..runs import FILE
from ..training.settings import RunConfig, default_preset, get_preset
from ..workspace import Workspace
from .context import Context
from .encoding import open_encoder
from .tuning import OWN_SETTINGS, tuned

FEW_IMAGES = 300
MANY_IMAGES, MANY_PROMPTS = 5000, 1000  # from which cross-attention is the reading of *text*


def configure(workspace: Workspace, request: TrainRequest, device: torch.device) -> tuple[RunConfig, int]:
    """The configuration of a new run and its number of steps, from preset, options and single settings."""
    if request.base:
        config, steps = tuned(workspace, request)
        # the twins are AdamW's, and mirrored images would be no longer marked
        own = {f.name for f in dataclasses.fields(config.train)} - {"optimizer", "muon_ratio", "flip_probability"}
        rest = {key: text for key, text in request.settings.items() if key not in OWN_SETTINGS}
        if fixed := sorted(set(rest) - own):
            raise UserError(f"An adapter's training has no setting {fixed[0]}; leave it out.")
        return _with_single(config, dataclasses.replace(request, settings=rest)), steps
    if alone := [name for name in ("concept", "prior") if getattr(request, name) is not None]:
        raise UserError(f"Only an adapter has a {alone[0]}; say of which model it shall be (--base).")
    preset = get_preset(request.preset) if request.preset else default_preset(device.type)
    config = RunConfig(preset.model, preset.train)
    if request.init_from:
        config = RunConfig(workspace.model_config(request.init_from), preset.train)
        own = {f.name for part in (config.model.unet, config.model.diffusion) for f in dataclasses.fields(part)}
        fixed = sorted(own & set(request.settings) - {"dropout"})
        if fixed:
            raise UserError(f"A run that starts from {request.init_from} keeps its network; leave out {fixed[0]}.")
    if request.size is not None:
        if request.init_from and (request.size, request.size) != config.model.image_size:
            raise UserError(
                f"The model {request.init_from} works at {config.model.image_size[1]} pixels; leave out the size."
            )
        unet = dataclasses.replace(config.model.unet, image_size=(request.size, request.size))
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, unet=unet))
    config = _with_single(config, request)
    if (config.model.unet.in_channels, config.model.unet.out_channels) not in ((3, 3), (1, 1)):
        raise UserError("Images are RGB or grey: in_channels and out_channels must both be 3, or both 1.")
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else preset.steps)
    return config, steps


def _with_single(config: RunConfig, request: TrainRequest) -> RunConfig:
    """The configuration with what a request says of single settings."""
    given: dict[str, Any] = {
        "batch_size": request.batch_size,
        "learning_rate": request.learning_rate,
        "precision": request.precision,
        "seed": request.seed,
        "crop": request.crop,
    }
    train = dataclasses.replace(config.train, **{key: value for key, value in given.items() if value is not None})
    config = dataclasses.replace(config, train=train)
    return config.with_settings(request.settings)


def with_condition(
    config: RunConfig, request: TrainRequest, workspace: Workspace, store: Store, context: Context
) -> RunConfig:
    """The configuration with what the model shall be told of a dataset's prompts, if anything."""
    preset = get_preset(request.preset) if request.preset else None
    if config.tuning is not None:
        return config
    if config.model.kind == "upscaler":
        if request.condition not in (None, "auto", "none"):
            raise UserError("An upscaler is told the small image and no words; leave out the condition.")
        return config
    wanted = request.condition or "auto"
    if config.model.kind == "contrast" and wanted not in ("auto", "tags"):
        raise UserError("An image-text encoder learns the words of the prompts; leave out the condition.")
    if wanted == "auto" and preset is not None:
        wanted = preset.condition
    if request.init_from and config.model.takes_prompts:
        own = (
            ("image",)
            if config.model.image
            else ("tags",)
            if config.model.tags
            else ("text", config.model.text.reading if config.model.text else "")
        )
        if request.condition not in (None, "auto", *own):
            raise UserError(
                f"The model {request.init_from} takes prompts by {own[-1]} and goes on with that; leave out the condition "
                f"{request.condition}."
            )
        return config
    if wanted == "none":
        return config
    if wanted == "image":
        return dataclasses.replace(
            config, model=dataclasses.replace(config.model, image=_image(workspace, request.dataset or "", context))
        )
    if wanted not in ("auto", "tags"):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, text=_text(wanted, store, context)))
    found = words_of(store).words
    if wanted == "auto" and len(found) < FEWEST:
        return config
    if not found:
        raise UserError(
            "The prompts of this dataset share no words that a model could learn; choose the condition none, or harvest images "
            "with prompts."
        )
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, tags=tuple(word.entry for word in found))
    )


def _image(workspace: Workspace, dataset: str, context: Context) -> ImageConfig:
    """The image-text encoder that learned from the dataset."""
    name = workspace.encoder_of(dataset)
    if name is None:
        raise UserError(
            "To tell a model what its images are like, train an image-text encoder on this dataset first (preset contrast, some minutes)."
        )
    encoder = open_encoder(workspace, name, context)
    return ImageConfig(name, encoder.digest, encoder.sight.width)


def _text(wanted: str, store: Store, context: Context) -> TextConfig:
    """How texts are read. With few images and prompts each prompt's tokens would be the key to its images, so *text* is pooled there."""
    texts = [text for text in texts_of(store).values() if text]
    if len(set(texts)) < 2:
        raise UserError(
            "The images of this dataset have no prompts, or all the same one: there is nothing to tell them apart by; choose the "
            "condition none."
        )
    with context.gpu_slice():
        encoder = context.text_encoder()
    many = len(texts) >= MANY_IMAGES and len(set(texts)) >= MANY_PROMPTS
    reading = wanted if wanted != "text" else "cross-attention" if many else "pooled"
    return TextConfig(reading, encoder.name, encoder.fingerprint, encoder.width, encoder.tokens)


def check_free(workspace: Workspace, name: str) -> None:
    """UserError where a new model cannot have this name."""
    if (workspace.models_folder / f"{name}.safetensors").exists() or (workspace.run_folder(name) / FILE).exists():
        raise UserError(
            f"There is already a model {name!r}; resume it (Resume training in the tab, --resume on the command line), "
            "or choose another name."
        )
    check_no_twin(name, [*workspace.model_names(), *workspace.run_names()], "model")


def expectations(count: int) -> list[str]:
    """What a person should know about a training set of this size, before starting."""
    found = []
    if count < HOLDOUT_FROM:
        found.append(
            f"Only {count} images: none is held out (that needs {HOLDOUT_FROM}), so the losses cannot tell learning from copying."
        )
    if count < FEW_IMAGES:
        found.append(f"{count} images are few: the model may memorise them. A thousand or more give new images.")
    return found
