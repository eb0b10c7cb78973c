"""The long operations that the tab, the API and the command line all call: train, sample, evaluate, export."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import __version__
from .dataset import infotext
from .dataset.harvest import check_folder, scan
from .dataset.packing import CROPS, HOLDOUT_FROM, Packed, fit, load, pack, packed_path
from .dataset.reading import Rejected, Skipped, decode, read_bytes
from .errors import UserError
from .evaluation.features import RandomFeatures
from .evaluation.kid import kid
from .evaluation.neighbours import nearest, picture, to_image
from .files import FolderLock, replace_with, write_json
from .model import file as model_file
from .model.config import ModelConfig
from .model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from .names import check_name
from .sampling.generate import SampleSettings, generate
from .training import precision
from .training.checkpoints import CheckpointFolder
from .training.loop import Limits, Metrics, Outlets, TrainingLoop
from .training.settings import RunConfig, default_preset, get_preset
from .training.trainer import Trainer
from .workspace import Workspace

RUN_FORMAT = 1
FEW_IMAGES = 300

Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]
GpuSlice = Callable[[], AbstractContextManager[object]]


@dataclass
class Context:
    """What an operation needs from whoever runs it: device, turn at the GPU, a stop event, and ears."""

    device: torch.device
    gpu_slice: GpuSlice = nullcontext
    stop: threading.Event = field(default_factory=threading.Event)
    report: Report = lambda values: None
    say: Say = lambda text: None

    def progress(self, done: int, total: int, text: str) -> None:
        self.report({"done": done, "total": total, "text": text})


# -- training -------------------------------------------------------------------------------------------------------------


@dataclass
class TrainRequest:
    """What a person asks for; None leaves it to the preset (or, when resuming, to the run)."""

    model: str
    dataset: str | None = None
    preset: str | None = None
    size: int | None = None
    crop: str | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    precision: str | None = None
    seed: int | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    init_from: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


def configure(workspace: Workspace, request: TrainRequest, device: torch.device) -> tuple[RunConfig, int]:
    """The configuration of a new run and its number of steps, from preset, options and single settings."""
    preset = get_preset(request.preset) if request.preset else default_preset(device.type)
    config = RunConfig(preset.model, preset.train)
    if request.init_from:
        config = RunConfig(workspace.model_config(request.init_from), preset.train)
    if request.size is not None:
        if request.init_from and (request.size, request.size) != config.model.unet.image_size:
            raise UserError(f"The model {request.init_from} works at {config.model.unet.image_size[1]} pixels; leave --size away.")
        unet = dataclasses.replace(config.model.unet, image_size=(request.size, request.size))
        config = RunConfig(ModelConfig(unet, config.model.diffusion, config.model.tags), config.train)
    given = {"batch_size": request.batch_size, "learning_rate": request.learning_rate, "precision": request.precision,
             "seed": request.seed, "crop": request.crop}
    train = dataclasses.replace(config.train, **{key: value for key, value in given.items() if value is not None})
    config = RunConfig(config.model, train)
    config = config.with_settings(request.settings)
    if config.model.unet.in_channels != 3 or config.model.unet.out_channels != 3:
        raise UserError("Datasets hold RGB pictures: in_channels and out_channels must be 3.")
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else preset.steps)
    return config, steps


def check_limits(request: TrainRequest) -> None:
    if request.steps is not None and not 1 <= request.steps <= 10**9:
        raise UserError(f"The number of steps must be at least 1; got {request.steps}.")
    if request.minutes is not None and not 0 < request.minutes <= 10**6:
        raise UserError(f"The number of minutes must be more than 0; got {request.minutes:g}.")
    if request.checkpoint_every is not None and request.checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1; got {request.checkpoint_every}.")


def expectations(count: int) -> list[str]:
    """What a person should know about a training set of this size, before starting."""
    found = []
    if count < HOLDOUT_FROM:
        found.append(f"Only {count} images: none is held out (that needs {HOLDOUT_FROM}), so nothing will tell learning from copying.")
    if count < FEW_IMAGES:
        found.append(f"With {count} images the model will soon copy them; some hundreds to thousands give new pictures.")
    return found


def train(workspace: Workspace, request: TrainRequest, context: Context) -> dict[str, Any]:
    """Train a new model or go on with one; returns the summary that ``train --json`` prints."""
    name = check_name(request.model, "model")
    check_limits(request)
    folder = workspace.run_folder(name)
    model_path = workspace.models_folder / f"{name}.safetensors"
    checkpoints = CheckpointFolder(folder / "checkpoints")
    exists = model_path.exists() or (folder / "run.json").exists()
    if exists and not request.resume:
        raise UserError(f"There is already a model {name!r}; continue it with --resume, or choose another name.")
    if request.resume and not (folder / "run.json").exists():
        raise UserError(f"There is no run {name!r} to resume" + (
            ", only its model file; start a new one from it with --init-from." if model_path.exists() else "; leave --resume away to start it."))
    lock = FolderLock(folder, f"The model {name!r} is being trained by another process; stop that one or choose another name.")
    with lock.held():
        if request.resume:
            config, info, packed = _reopen(workspace, folder, request, context)
        else:
            config, info, packed = _begin(workspace, folder, request, context)
        return _run(workspace, name, config, info, packed, checkpoints, request, context)


def _begin(workspace: Workspace, folder: Path, request: TrainRequest, context: Context) -> tuple[RunConfig, dict[str, Any], Packed]:
    if request.dataset is None:
        raise UserError("Say which dataset to train on (--dataset NAME).")
    config, steps = configure(workspace, request, context.device)
    store = workspace.store(request.dataset)
    packed = pack(store, config.model.unet.image_size, config.train.crop, context.progress)
    config = RunConfig(config.model, dataclasses.replace(
        config.train, precision=precision.choose(config.train.precision, context.device)))
    info = {"format": RUN_FORMAT, "config": config.to_json(), "dataset": request.dataset, "fingerprint": store.fingerprint(),
            "images": len(packed.ids), "steps": steps, "began": time.time(), "state": "running", "version": __version__,
            "init_from": Path(request.init_from).stem if request.init_from else None}
    write_json(folder / "run.json", info)
    return config, info, packed


def _reopen(workspace: Workspace, folder: Path, request: TrainRequest, context: Context) -> tuple[RunConfig, dict[str, Any], Packed]:
    info = workspace.run_info(request.model)
    if info.get("format", 0) > RUN_FORMAT:
        raise UserError(f"The run {request.model!r} was made by a newer version; update this extension to resume it.")
    config = RunConfig.from_json(info.get("config"))
    fixed = {"preset": request.preset, "size": request.size, "batch_size": request.batch_size, "crop": request.crop,
             "seed": request.seed, "init_from": request.init_from, "settings": request.settings or None, "precision": request.precision}
    given = [name for name, value in fixed.items() if value is not None]
    if given:
        context.say(f"Resuming goes on with the run's own settings; {', '.join(given)} is ignored.")
    if request.learning_rate is not None:
        config = RunConfig(config.model, dataclasses.replace(config.train, learning_rate=request.learning_rate))
    if request.dataset is not None and request.dataset != info["dataset"]:
        raise UserError(f"The run {request.model!r} was trained on {info['dataset']!r}; to train on {request.dataset!r} start a new one "
                        f"with --init-from {request.model}.")
    store = workspace.store(info["dataset"])
    size, crop = config.model.unet.image_size, config.train.crop
    path = packed_path(store, info["fingerprint"], size, crop)
    if path.exists():
        packed = load(path)
        if store.fingerprint() != info["fingerprint"]:
            context.say("The dataset has changed since this run began; it goes on with the pictures it began with.")
    elif store.fingerprint() == info["fingerprint"]:
        packed = pack(store, size, crop, context.progress)
    else:
        raise UserError(f"The dataset {info['dataset']!r} has changed and the pictures this run began with are gone; "
                        f"start a new run with --init-from {request.model}.")
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else info["steps"])
    info = {**{k: v for k, v in info.items() if k != "step"}, "steps": steps, "state": "running", "config": config.to_json()}
    write_json(folder / "run.json", info)
    return config, info, packed


def _run(workspace: Workspace, name: str, config: RunConfig, info: dict[str, Any], packed: Packed, checkpoints: CheckpointFolder,
         request: TrainRequest, context: Context) -> dict[str, Any]:
    folder = workspace.run_folder(name)
    for text in expectations(len(packed.ids)):
        context.say(text)
    with context.gpu_slice():
        trainer = Trainer(config, packed.train, context.device, context.say)
    spent = 0.0
    newest = checkpoints.load_newest()
    if newest is not None:
        with context.gpu_slice():
            trainer.load_state(newest.tensors, newest.numbers)
        spent = float(newest.numbers.get("seconds", 0.0))
        if trainer.step >= info["steps"] and request.minutes is None:
            context.say(f"{name} already has {trainer.step} steps; give a larger number with --steps to train it further.")
    elif request.init_from:
        trainer.start_from(model_file.load(workspace.model_path(request.init_from)).weights)
    shown: dict[str, Tensor] = {}

    def preview(step: int, images: Tensor) -> None:
        shown["last"] = images
        strip = make_grid(images, columns=len(images))
        replace_with(folder / "previews" / f"step-{step:09d}.png", lambda temporary: strip.save(temporary, format="PNG"))

    def saved() -> None:
        _write_model(workspace, name, trainer, info, loop, shown.get("last"))

    outlets = Outlets(context.gpu_slice, context.stop, context.report, context.say, preview, saved)
    limits = Limits(info["steps"], request.minutes, request.checkpoint_every)
    loop = TrainingLoop(trainer, checkpoints, Metrics(folder / "metrics.jsonl", trainer.step), packed.held, limits, outlets, spent)
    state = "failed"
    try:
        summary = loop.run()
        state = "stopped" if summary["stopped"] else "finished"
    finally:
        trainer.free()
        write_json(folder / "run.json", {**info, "state": state})
    model_path = workspace.models_folder / f"{name}.safetensors"
    return {**summary, "model": str(model_path), "name": name, "precision": trainer.precision, "images": len(packed.train_ids),
            "held_out": len(packed.held)}


def _write_model(workspace: Workspace, name: str, trainer: Trainer, info: dict[str, Any], loop: TrainingLoop, shown: Tensor | None) -> None:
    weights = {key: value.detach().cpu() for key, value in trainer.ema.named_parameters()}
    notes = {
        "steps": trainer.step, "images_seen": trainer.step * trainer.settings.batch_size, "images": info["images"],
        "crop": trainer.settings.crop, "dataset": info["dataset"], "fingerprint": info["fingerprint"],
        "heldout_loss": loop.heldout_loss, "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), "version": __version__,
    }
    path = workspace.models_folder / f"{name}.safetensors"
    replace_with(path, lambda temporary: model_file.save(temporary, trainer.config.model, weights, title=name, info=notes))
    if shown is not None:
        card = make_grid(shown[:4], columns=2).resize((512, 512), Image.Resampling.NEAREST)
        replace_with(path.with_name(f"{name}.preview.png"), lambda temporary: card.save(temporary, format="PNG"))


# -- sampling -------------------------------------------------------------------------------------------------------------


@dataclass
class Sampled:
    """Pictures of one sampling: uint8 (N, 3, H, W), their seeds and generation texts, network calls an image."""

    images: Tensor
    seeds: list[int]
    texts: list[str]
    evaluations: int
    seconds: float


def _load_weights(workspace: Workspace, model: str, weights: str) -> tuple[ModelConfig, dict[str, Tensor], str]:
    path = workspace.model_path(model)
    loaded = model_file.load(path)
    if weights == "ema":
        return loaded.config, loaded.weights, path.stem
    if weights != "raw":
        raise UserError(f"There are no weights {weights!r}; choose ema or raw.")
    newest = CheckpointFolder(workspace.run_folder(path.stem) / "checkpoints").load_newest()
    if newest is None:
        raise UserError(f"The raw weights of {path.stem} lie in its run, which is not in this workspace; use --weights ema.")
    return loaded.config, {k[4:]: v for k, v in newest.tensors.items() if k.startswith("net.")}, path.stem


def sample(workspace: Workspace, model: str, count: int, settings: SampleSettings, context: Context, *, batch_size: int = 64,
           weights: str = "ema", emerging: Callable[[int, int, Tensor], None] | None = None) -> Sampled:
    """Sample ``count`` pictures. ``emerging(done, total, x0)`` gets the predicted images after each network call."""
    if not 1 <= batch_size <= 4096:
        raise UserError(f"The batch size must be between 1 and 4096; got {batch_size}.")
    began = time.monotonic()
    config, tensors, title = _load_weights(workspace, model, weights)
    device = context.device
    with context.gpu_slice():
        net = model_file.build_network(config, tensors, device)
        diffusion = Diffusion(config.diffusion, device)
    dtype = precision.DTYPES[precision.choose("auto", device)] if device.type == "cuda" else torch.float32

    def network(x: Tensor, t: Tensor) -> Tensor:
        with context.gpu_slice():
            return net(x, t)  # type: ignore[no-any-return]

    def progress(done: int, total: int, x0: Tensor) -> None:
        context.progress(done, total, "Sampling")
        if emerging is not None:
            emerging(done, total, x0)

    images, calls = generate(network, diffusion, (config.unet.out_channels, *config.unet.image_size), count, settings,
                             batch_size=batch_size, dtype=dtype, stop=context.stop, progress=progress)
    seeds = [settings.seed + i for i in range(len(images))]
    texts = [sample_text(title, config, settings, seed, calls, weights) for seed in seeds]
    return Sampled(model_to_uint8(images), seeds, texts, calls, time.monotonic() - began)


def sample_text(title: str, config: ModelConfig, settings: SampleSettings, seed: int, calls: int, weights: str) -> str:
    """The generation text of a sample, in the WebUI's format."""
    height, width = config.unet.image_size
    values = {"Steps": str(calls), "Sampler": settings.definition.label, "Seed": str(seed), "Size": f"{width}x{height}",
              infotext.OWN_KEY: title, "DDPM sampler": settings.sampler, "DDPM weights": weights, "Version": f"sd-webui-ddpm {__version__}"}
    if settings.definition.uses_eta:
        values["DDPM eta"] = f"{settings.eta:g}"
    return infotext.build(infotext.Infotext("", "", values))


def make_grid(images: Tensor, columns: int | None = None, gap: int = 0) -> Image.Image:
    """uint8 (N, 3, H, W) as one picture, ``columns`` wide (default: about square)."""
    count, _, height, width = images.shape
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (128, 128, 128))
    for i in range(count):
        canvas.paste(to_image(images[i]), (i % columns * (width + gap), i // columns * (height + gap)))
    return canvas


# -- evaluation -----------------------------------------------------------------------------------------------------------


def evaluate(workspace: Workspace, dataset: str, context: Context, *, model: str | None = None, images: Path | None = None,
             count: int = 512, settings: SampleSettings | None = None, picture_path: Path | None = None) -> dict[str, Any]:
    """KID against the dataset with its interval and the real-vs-real floor, and the memorised fraction.

    The pictures are sampled from ``model``, or read from the folder ``images``.
    """
    if (model is None) == (images is None):
        raise UserError("Give either --model or --images.")
    if count < 16:
        raise UserError(f"An evaluation needs at least 16 images; got {count}.")
    began = time.monotonic()
    settings = settings or SampleSettings()
    if model is not None:
        config = workspace.model_config(model)
        size, name = config.unet.image_size, workspace.model_path(model).stem
        crop = model_file.read_config(workspace.model_path(model))[1].get("crop", "center")
    else:
        size, crop, name = (64, 64), "center", Path(str(images)).name
    packed = pack(workspace.store(dataset), size, crop if crop in CROPS else "center", context.progress)
    if len(packed.ids) < 8:
        raise UserError(f"The dataset {dataset!r} has only {len(packed.ids)} kept images; an evaluation needs at least 8.")
    if model is not None:
        samples = sample(workspace, model, count, settings, context).images
    else:
        samples = read_folder(Path(str(images)), size, count)
    if len(samples) < 16:
        raise UserError(f"There are only {len(samples)} pictures to evaluate; at least 16 are needed.")
    context.progress(0, 1, "Comparing")
    features = RandomFeatures(channels=3, device="cpu")
    real = features(uint8_to_model(packed.images))
    found = kid(features(uint8_to_model(samples)), real)
    floor = real_floor(real)
    near = nearest(uint8_to_model(samples), uint8_to_model(packed.train))
    out = picture_path or workspace.root / "evaluations" / f"{name}-{dataset}.png"
    neighbours = picture(samples, packed.train, near)
    replace_with(out, lambda temporary: neighbours.save(temporary, format="PNG"))
    return {"kid": round(found.value, 5), "kid_low": round(found.low, 5), "kid_high": round(found.high, 5), "floor": round(floor, 5),
            "memorised": round(float(near.memorised.float().mean()), 5), "neighbours": str(out), "count": len(samples),
            "reference": len(packed.ids), "features": "random convolutions (not Inception: not comparable with FID or KID elsewhere)",
            "seconds": round(time.monotonic() - began, 3)}


def real_floor(features: Tensor, rounds: int = 4) -> float:
    """KID between random halves of the real set, a mean of several: what a perfect model would score."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    values = []
    for _ in range(rounds):
        order = torch.randperm(len(features), generator=generator, device="cpu")
        half = len(order) // 2
        values.append(kid(features[order[:half]], features[order[half:]], subsets=2).value)
    return sum(values) / len(values)


def read_folder(folder: Path, size: tuple[int, int], most: int) -> Tensor:
    """Up to ``most`` pictures of a folder as uint8 (N, 3, H, W), centre-cropped to size."""
    found = []
    for path, skipped in scan(check_folder(folder), set()):
        if skipped or len(found) >= most:
            continue
        try:
            small = fit(decode(read_bytes(path), max(size)).image, size, "center")
        except (Rejected, Skipped):
            continue
        found.append(torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy()))
    if not found:
        raise UserError(f"There is no readable picture in {folder}.")
    return torch.stack(found)
