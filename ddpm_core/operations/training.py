"""Train a new model or go on with one, on what the workspace holds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import __version__, leftovers
from ..dataset.packing import HOLDOUT_FROM, Packed, load, pack, packed_path
from ..errors import Stopped, UserError
from ..files import FolderLock, replace_with, write_json
from ..model import file as model_file
from ..model.config import ModelConfig
from ..names import check_name, check_no_twin, is_name
from ..requests import TrainRequest
from ..training import how as hows
from ..training import precision
from ..training.checkpoints import Checkpoint, CheckpointFolder
from ..training.estimate import estimate
from ..training.heldout import MOST_IMAGES
from ..training.loop import Limits, Metrics, Outlets, TrainingLoop
from ..training.pictures import fits, size_of
from ..training.settings import RunConfig, default_preset, get_preset
from ..training.team import Team, follow
from ..training.trainer import Trainer
from ..workspace import Workspace
from .context import Context
from .pictures import make_grid

RUN_FORMAT = 1
_MOST_PREVIEWS = 240
FEW_IMAGES = 300


def configure(workspace: Workspace, request: TrainRequest, device: torch.device) -> tuple[RunConfig, int]:
    """The configuration of a new run and its number of steps, from preset, options and single settings."""
    preset = get_preset(request.preset) if request.preset else default_preset(device.type)
    config = RunConfig(preset.model, preset.train)
    if request.init_from:
        config = RunConfig(workspace.model_config(request.init_from), preset.train)
        own = {f.name for part in (config.model.unet, config.model.diffusion) for f in dataclasses.fields(part)}
        fixed = sorted(own & set(request.settings) - {"dropout"})
        if fixed:
            raise UserError(f"A run that starts from {request.init_from} keeps its network; leave out {fixed[0]}.")
    if request.size is not None:
        if request.init_from and (request.size, request.size) != config.model.unet.image_size:
            raise UserError(
                f"The model {request.init_from} works at {config.model.unet.image_size[1]} pixels; leave out the size."
            )
        unet = dataclasses.replace(config.model.unet, image_size=(request.size, request.size))
        config = RunConfig(ModelConfig(unet, config.model.diffusion, config.model.tags), config.train)
    given: dict[str, Any] = {
        "batch_size": request.batch_size,
        "learning_rate": request.learning_rate,
        "precision": request.precision,
        "seed": request.seed,
        "crop": request.crop,
    }
    train = dataclasses.replace(config.train, **{key: value for key, value in given.items() if value is not None})
    config = RunConfig(config.model, train)
    config = config.with_settings(request.settings)
    if config.model.unet.in_channels != 3 or config.model.unet.out_channels != 3:
        raise UserError("Datasets hold RGB images: in_channels and out_channels must be 3.")
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else preset.steps)
    return config, steps


def check_free(workspace: Workspace, name: str) -> None:
    """UserError where a new model cannot have this name."""
    if (workspace.models_folder / f"{name}.safetensors").exists() or (workspace.run_folder(name) / "run.json").exists():
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
            f"Only {count} images: none is held out (that needs {HOLDOUT_FROM}), so nothing will tell learning from copying."
        )
    if count < FEW_IMAGES:
        found.append(
            f"With {count} images the model will soon copy them; some hundreds to thousands give new pictures."
        )
    return found


def train(workspace: Workspace, request: TrainRequest, context: Context, team: Team | None = None) -> dict[str, Any]:
    """Train a new model or go on with one; returns the summary that ``train --json`` prints.

    With a ``team`` the leader does all of it and the others do their part of each step; their summary is empty.
    """
    if team is None:
        return _train(workspace, request, context, None)
    try:
        return _train(workspace, request, context, team) if team.leads else _help(workspace, context, team)
    finally:
        team.leave()


def _help(workspace: Workspace, context: Context, team: Team) -> dict[str, Any]:
    """A follower's part: the same pictures, from its own workspace, and then what the leader says."""
    told = team.tell("")
    if not told:
        return {}  # the leader has said why
    info = json.loads(told)
    config = RunConfig.from_json(info["config"])
    packed = None
    try:
        packed = _pictures_of(workspace, info, config, Context(context.device))
    except UserError as error:
        context.say(f"Process {team.rank}: {error}")
    _agree(team, info, packed)
    assert packed is not None
    trainer = Trainer(config, packed.images, context.device, context.say, packed.train_rows, team)
    try:
        return follow(team, trainer)
    finally:
        trainer.free()


def _agree(team: Team, info: dict[str, Any], packed: Packed | None) -> None:
    # the pictures themselves, not their names: another Pillow may resize otherwise
    digest = hashlib.sha256()
    if packed is not None:
        digest.update(bytes(packed.held_out))
        for part in torch.split(packed.images, 4096):
            digest.update(part.numpy().tobytes())
    team.agree(
        digest.hexdigest(),
        f"Process {{rank}} has other pictures than process 0 in its dataset {info['dataset']!r}; copy the dataset's folder "
        "of process 0 to its workspace, or let both use one workspace.",
    )


def _train(workspace: Workspace, request: TrainRequest, context: Context, team: Team | None) -> dict[str, Any]:
    name = check_name(request.model, "model")
    request.check_limits()
    folder = workspace.run_folder(name)
    model_path = workspace.models_folder / f"{name}.safetensors"
    checkpoints = CheckpointFolder(folder / "checkpoints", context.keep_checkpoints)
    if not request.resume:
        check_free(workspace, name)
    if request.resume and not (folder / "run.json").exists():
        raise UserError(
            f"There is no run {name!r} to resume"
            + (
                ", only its model file; start a new one from its weights (--init-from, or More settings in the tab)."
                if model_path.exists()
                else "; start it with Train (on the command line without --resume)."
            )
        )
    lock = FolderLock(
        folder, f"The model {name!r} is being trained by another process; stop that one or choose another name."
    )
    with lock.held(), _nothing_left_of(folder, lock):
        for part in ("run.json", "metrics.jsonl", "checkpoints", "previews"):
            if (folder / part).is_symlink():  # it could lead anywhere, and is written to
                raise UserError(f"The run {name!r} is damaged ({part} is a link); put back what it leads to.")
        config, info, packed = (_reopen if request.resume else _begin)(workspace, folder, request, context)
        try:
            if not request.resume and model_path.exists():
                raise UserError(f"There is a model {name!r} now, made meanwhile; choose another name.")
            with context.room_for(lambda: _megabytes(config, packed, context)):
                if context.stop.is_set() and not checkpoints.paths():
                    raise Stopped("Stopped before the first step; nothing was made.")
                if team is not None:
                    team.part(config.train.batch_size)
                    team.tell(json.dumps(info))
                    _agree(team, info, packed)
                return _run(workspace, name, config, info, packed, checkpoints, request, context, team)
        except BaseException:
            if not checkpoints.paths():  # nothing was trained: do not leave a name taken by nothing
                (folder / "run.json").unlink(missing_ok=True)
            elif workspace.run_info(name).get("state") == "running":
                write_json(folder / "run.json", {**info, "state": "failed"})
            raise


@contextlib.contextmanager
def _nothing_left_of(folder: Path, lock: FolderLock) -> Iterator[None]:
    """Around what may end before there is a run: an empty folder would take the name."""
    try:
        yield
    finally:
        leftovers.clear_held(folder, lock)


def _megabytes(config: RunConfig, packed: Packed, context: Context) -> float:
    with context.gpu_slice():
        size = size_of(packed.images, len(packed.train_ids))
        how = config.train.pictures
        held = size / 2**20 if how == "device" or (how == "auto" and fits(size, context.device)) else 0.0
        return estimate(config, context.device, most_seconds=0.0).megabytes + held


def _begin(
    workspace: Workspace, folder: Path, request: TrainRequest, context: Context
) -> tuple[RunConfig, dict[str, Any], Packed]:
    if request.dataset is None:
        raise UserError("Say which dataset to train on (--dataset NAME).")
    config, steps = configure(workspace, request, context.device)
    store = workspace.store(request.dataset)
    packed = pack(store, config.model.unet.image_size, config.train.crop, context.progress, context.stop)
    config = RunConfig(
        config.model,
        dataclasses.replace(config.train, precision=precision.choose(config.train.precision, context.device)),
    )
    info = {
        "format": RUN_FORMAT,
        "config": config.to_json(),
        "dataset": request.dataset,
        "fingerprint": packed.fingerprint,
        "images": len(packed.ids),
        "steps": steps,
        "minutes": request.minutes,
        "began": time.time(),
        "state": "running",
        "version": __version__,
        "init_from": request.init_from,
    }
    write_json(folder / "run.json", info)
    return config, info, packed


def _reopen(
    workspace: Workspace, folder: Path, request: TrainRequest, context: Context
) -> tuple[RunConfig, dict[str, Any], Packed]:
    info = workspace.run_info(request.model)
    if info.get("format", 0) > RUN_FORMAT:
        raise UserError(f"The run {request.model!r} was made by a newer version; update this extension to resume it.")
    CheckpointFolder(folder / "checkpoints").refuse_later()
    config = RunConfig.from_json(info.get("config"))
    fixed = {
        "preset": request.preset,
        "size": request.size,
        "batch_size": request.batch_size,
        "crop": request.crop,
        "seed": request.seed,
        "init_from": request.init_from,
        "settings": request.settings or None,
    }
    given = [name for name, value in fixed.items() if value is not None]
    if given:
        context.say(f"Resuming keeps the run's own settings; {', '.join(given)} is ignored.")
    if request.learning_rate is not None:
        config = RunConfig(config.model, dataclasses.replace(config.train, learning_rate=request.learning_rate))
    wanted = request.precision or config.train.precision
    try:
        chosen = precision.choose(wanted, context.device)
    except UserError:
        if request.precision is not None:
            raise
        chosen = precision.choose("auto", context.device)
        context.say(f"This device cannot continue in {wanted}; it continues in {chosen}.")
    config = RunConfig(config.model, dataclasses.replace(config.train, precision=chosen))
    if request.dataset is not None and request.dataset != info["dataset"]:
        raise UserError(
            f"The run {request.model!r} was trained on {info['dataset']!r}; to train on {request.dataset!r} start a new one "
            f"from the weights of {request.model} (--init-from)."
        )
    reached = steps_reached(workspace, request.model)
    if request.steps is not None and request.steps < reached:  # the record must not say that this was the plan
        raise UserError(
            f"{request.model} already has {reached} steps; give a larger number of steps to train it further."
        )
    packed = _pictures_of(workspace, info, config, context)
    minutes = info.get("minutes")
    if request.steps is not None or request.minutes is not None:
        minutes = request.minutes
        if minutes is not None:
            # the record counts from the run's beginning, so that the rest is known after a kill
            minutes += _spent(CheckpointFolder(folder / "checkpoints").newest_numbers()) / 60
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else info["steps"])
    info = {
        **{k: v for k, v in info.items() if k != "step"},
        "steps": steps,
        "minutes": minutes,
        "state": "running",
        "config": config.to_json(),
    }
    write_json(folder / "run.json", info)
    return config, info, packed


def steps_reached(workspace: Workspace, model: str) -> int:
    """How far a run can be gone on with: the step of its newest checkpoint that can be read."""
    return CheckpointFolder(workspace.run_folder(model) / "checkpoints").reached()


def _spent(numbers: dict[str, Any]) -> float:
    """Seconds that a run had taken at a checkpoint."""
    seconds = numbers.get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) and 0 <= seconds < 2**53 else 0.0


def _pictures_of(workspace: Workspace, info: dict[str, Any], config: RunConfig, context: Context) -> Packed:
    """The pictures that a run began with."""
    store = workspace.store(info["dataset"])
    size, crop = config.model.unet.image_size, config.train.crop
    path = packed_path(store, info["fingerprint"], size, crop)
    if path.exists():
        packed = load(path)
        if store.fingerprint() != info["fingerprint"]:
            context.say("The dataset has changed since this run began; it continues with the images it began with.")
    elif store.fingerprint() == info["fingerprint"]:
        packed = pack(store, size, crop, context.progress, context.stop)
    else:
        raise UserError(
            f"The dataset {info['dataset']!r} has changed and the images this run began with are gone; "
            "start a new run from its weights (--init-from, or More settings in the tab)."
        )
    return packed


def _run(
    workspace: Workspace,
    name: str,
    config: RunConfig,
    info: dict[str, Any],
    packed: Packed,
    checkpoints: CheckpointFolder,
    request: TrainRequest,
    context: Context,
    team: Team | None,
) -> dict[str, Any]:
    folder = workspace.run_folder(name)
    for text in expectations(len(packed.ids)):
        context.say(text)
    with context.gpu_slice():
        how = None if context.alone else hows.plain(context.device)
        trainer = Trainer(config, packed.images, context.device, context.say, packed.train_rows, team, how)
    spent = 0.0
    newest = checkpoints.load_newest()
    if newest is not None:
        with context.gpu_slice():
            _load_checkpoint(trainer, newest)
        spent = _spent(newest.numbers)
        newest = None  # the trainer has it; a second copy would only take memory
        if trainer.step >= info["steps"]:
            context.say(f"{name} already has {trainer.step} steps; give a larger number of steps to train it further.")
    elif info.get("init_from"):  # also when resuming a run that was cut off before its first checkpoint
        if request.resume and not is_name(info["init_from"]):  # a record could point anywhere
            raise UserError(
                f"The run {name!r} was interrupted before its first step, and its initial weights are a file; start it again."
            )
        weights = model_file.load(workspace.model_path(info["init_from"])).weights
        with context.gpu_slice():
            trainer.start_from(weights)
    minutes = request.minutes
    if (
        minutes is None and info.get("minutes") is not None
    ):  # a run by time that was cut off has the rest of its time left
        minutes = max(info["minutes"] - spent / 60, 0.01)
    _drop_later(folder / "previews", trainer.step)
    shown: dict[str, Tensor] = {}

    def preview(step: int, images: Tensor) -> None:
        shown["last"] = images
        strip = make_grid(images, columns=len(images))
        replace_with(
            folder / "previews" / f"step-{step:09d}.png", lambda temporary: strip.save(temporary, format="PNG")
        )
        _thin_out(folder / "previews")

    def saved() -> None:
        with context.gpu_slice():
            weights = {key: value.detach().cpu() for key, value in trainer.ema.named_parameters()}
        _write_model(workspace, name, weights, trainer, info, loop, shown.get("last"))

    outlets = Outlets(
        context.gpu_slice, context.stop, context.report, context.say, preview, saved, context.preview_seconds
    )
    limits = Limits(info["steps"], minutes, request.checkpoint_every)
    loop = TrainingLoop(
        trainer,
        checkpoints,
        Metrics(folder / "metrics.jsonl", trainer.step),
        packed.images[packed.held_rows[:MOST_IMAGES]],
        limits,
        outlets,
        spent,
    )
    state = "failed"
    try:
        summary = loop.run()
        # who ends the server did not mean to end the training: it counts as cut off, and the tab offers to go on
        stopped = "running" if context.leaving() else "stopped"
        state = stopped if summary["stopped"] else "finished"
    finally:
        trainer.free()
        write_json(folder / "run.json", {**info, "state": state})
    model_path = workspace.models_folder / f"{name}.safetensors"
    return {
        **summary,
        "model": str(model_path),
        "name": name,
        "precision": trainer.precision,
        "images": len(packed.train_ids),
        "held_out": len(packed.held_rows),
    }


def _drop_later(folder: Path, step: int) -> None:
    """Previews of steps that were lost when the run was cut off: they are no longer of this model."""
    for path in folder.glob("step-*.png"):
        if path.stem[5:].isdecimal() and int(path.stem[5:]) > step:
            with contextlib.suppress(OSError):
                path.unlink()


def _thin_out(folder: Path) -> None:
    """Of very many previews those go that lie closest together, so that a long run keeps its whole course in few files."""
    previews = sorted(path for path in folder.glob("step-*.png") if path.stem[5:].isdecimal())
    if len(previews) <= _MOST_PREVIEWS:
        return
    steps = [int(path.stem.split("-")[1]) for path in previews]
    # every second one, so that no two neighbours go at once
    closest = sorted(range(1, len(steps) - 1, 2), key=lambda i: steps[i + 1] - steps[i - 1])
    for i in closest[: _MOST_PREVIEWS // 4]:
        with contextlib.suppress(OSError):
            previews[i].unlink()


def _load_checkpoint(trainer: Trainer, checkpoint: Checkpoint) -> None:
    try:
        trainer.load_state(checkpoint.tensors, checkpoint.numbers)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"The checkpoint {checkpoint.path.name} does not fit its run ({error}); delete that file to go on from the "
            "one before it."
        ) from None


def _write_model(
    workspace: Workspace,
    name: str,
    weights: dict[str, Tensor],
    trainer: Trainer,
    info: dict[str, Any],
    loop: TrainingLoop,
    shown: Tensor | None,
) -> None:
    notes = {
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.settings.batch_size,
        "images": info["images"],
        "crop": trainer.settings.crop,
        "dataset": info["dataset"],
        "fingerprint": info["fingerprint"],
        "heldout_loss": loop.heldout_loss,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "version": __version__,
    }
    path = workspace.models_folder / f"{name}.safetensors"
    replace_with(
        path, lambda temporary: model_file.save(temporary, trainer.config.model, weights, title=name, info=notes)
    )
    if shown is not None:
        card = make_grid(shown[:4], columns=2).resize((512, 512), Image.Resampling.NEAREST)
        replace_with(path.with_name(f"{name}.preview.png"), lambda temporary: card.save(temporary, format="PNG"))
