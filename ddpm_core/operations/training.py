"""Train a new model or go on with one, on what the workspace holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .. import __version__, leftovers
from ..dataset.packing import Packed, pack
from ..errors import Stopped, UserError
from ..files import FolderLock, replace_with
from ..model import adapter_file
from ..model import file as model_file
from ..model.lora import Adapter
from ..model.values import Values
from ..names import check_name, is_name
from ..requests import TrainRequest
from ..runs import FILE, Run
from ..training import how as hows
from ..training import precision
from ..training.checkpoints import CheckpointFolder
from ..training.estimate import estimate
from ..training.heldout import MOST_IMAGES
from ..training.loop import Limits, Outlets, TrainingLoop
from ..training.metrics import Metrics
from ..training.pictures import fits, size_of
from ..training.previews import Held
from ..training.settings import RunConfig
from ..training.team import Team
from ..training.trainer import Trainer
from ..training.tuning import Tuning
from ..workspace import Workspace
from .configuring import check_free, configure, expectations, with_condition
from .context import Context
from .following import agree, help_along
from .pictures import make_grid
from .previews import drop_later, save_preview
from .resuming import load_checkpoint, reopen, seconds_spent
from .retrieval import evaluate_encoder
from .telling import remember_told, told_in_run, told_of
from .tuning import keep_base, tuning_in_run


@dataclass(frozen=True)
class Prepared:
    """A training that may begin: its record as it is in ``folder``, its settings and pictures, and what was asked for."""

    workspace: Workspace
    name: str
    folder: Path
    request: TrainRequest
    run: Run
    config: RunConfig
    packed: Packed
    told: dict[str, Values]
    checkpoints: CheckpointFolder
    tuning: Tuning | None = None

    @property
    def model_path(self) -> Path:
        """Where the model is saved."""
        return self.workspace.models_folder / f"{self.name}.safetensors"


def train(workspace: Workspace, request: TrainRequest, context: Context, team: Team | None = None) -> dict[str, Any]:
    """Train a new model or go on with one; returns the summary that ``train --json`` prints.

    With a ``team`` the leader does all of it and the others do their part of each step; their summary is empty.
    """
    if team is None:
        return _train(workspace, request, context, None)
    try:
        return _train(workspace, request, context, team) if team.leads else help_along(workspace, context, team)
    finally:
        team.leave()


def _train(workspace: Workspace, request: TrainRequest, context: Context, team: Team | None) -> dict[str, Any]:
    name = check_name(request.model, "model")
    request.check_limits()
    folder = workspace.run_folder(name)
    model_path = workspace.models_folder / f"{name}.safetensors"
    checkpoints = CheckpointFolder(folder / "checkpoints", context.keep_checkpoints)
    if not request.resume:
        check_free(workspace, name)
    if request.resume and not (folder / FILE).exists():
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
        for part in (FILE, *leftovers.KEPT_FILES, "metrics.jsonl", "checkpoints", "previews"):
            if (folder / part).is_symlink():  # it could lead anywhere, and is written to
                raise UserError(f"The run {name!r} is damaged ({part} is a link); put back what it leads to.")
        config, run, packed = (reopen if request.resume else _begin)(workspace, folder, request, context)
        try:
            if team is not None and config.model.kind == "contrast":
                raise UserError("An image-text encoder compares all images of a batch: train it with one process.")
            if not request.resume and model_path.exists():
                raise UserError(f"There is a model {name!r} now, made meanwhile; choose another name.")
            with context.room_for(lambda: _megabytes(config, packed, context)):
                if context.stop.is_set() and not checkpoints.paths():
                    raise Stopped("Stopped before the first step; nothing was made.")
                told = told_in_run(workspace, run, config, packed, folder, context)
                tuning = tuning_in_run(folder, config)
                if team is not None:
                    team.part(config.train.batch_size)
                    team.tell(json.dumps({**run.to_json(), "run": name}))
                    agree(team, run, packed, told, tuning)
                prepared = Prepared(workspace, name, folder, request, run, config, packed, told, checkpoints, tuning)
                return _course(prepared, context, team)
        except BaseException:
            if not checkpoints.paths():  # nothing was trained: do not leave a name taken by nothing
                _forget(folder)
            elif Run.read(folder).state == "running":
                dataclasses.replace(run, state="failed").write(folder)
            raise


@contextlib.contextmanager
def _nothing_left_of(folder: Path, lock: FolderLock) -> Iterator[None]:
    """Around what may end before there is a run: an empty folder would take the name."""
    try:
        yield
    finally:
        leftovers.clear_held(folder, lock)


def _forget(folder: Path) -> None:
    """Of a training that never began nothing stays."""
    for part in (FILE, *leftovers.KEPT_FILES):
        (folder / part).unlink(missing_ok=True)


def _megabytes(config: RunConfig, packed: Packed, context: Context) -> float:
    with context.gpu_slice():
        size = size_of(packed.images, len(packed.train_ids))
        how = config.train.pictures
        held = size / 2**20 if how == "device" or (how == "auto" and fits(size, context.device)) else 0.0
        return estimate(config, context.device, most_seconds=0.0).megabytes + held


def _begin(
    workspace: Workspace, folder: Path, request: TrainRequest, context: Context
) -> tuple[RunConfig, Run, Packed]:
    if request.dataset is None:
        raise UserError("Say which dataset to train on (--dataset NAME).")
    config, steps = configure(workspace, request, context.device)
    store = workspace.store(request.dataset)
    packed = pack(
        store,
        config.model.image_size,
        config.train.crop,
        context.progress,
        context.stop,
        grey=config.model.is_grey,
    )
    chosen = precision.choose(config.train.precision, context.device)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=chosen))
    config = with_condition(config, request, workspace, store, context)
    run = Run(
        config=config.to_json(),
        dataset=request.dataset,
        fingerprint=packed.fingerprint,
        format=config.format,
        images=len(packed.ids),
        steps=steps,
        minutes=request.minutes,
        init_from=request.init_from,
        began=time.time(),
        version=__version__,
        past_copying=request.stop_before_copying is False,
    )
    try:
        if config.tuning is not None:  # before there is a record: a run without its base could not go on
            keep_base(workspace, config, folder, context)
        run.write(folder)
        remember_told(folder, packed, told_of(store, config, packed, context))
    except BaseException:
        _forget(folder)
        raise
    return config, run, packed


def _course(prepared: Prepared, context: Context, team: Team | None) -> dict[str, Any]:
    """Train until it ends; the summary of it."""
    folder, run, config, packed = prepared.folder, prepared.run, prepared.config, prepared.packed
    for text in expectations(len(packed.ids)) if config.tuning is None else ():
        context.say(text)
    with context.gpu_slice():
        how = None if context.alone else hows.plain(context.device)
        trainer = Trainer(
            config,
            packed.images,
            context.device,
            context.say,
            packed.train_rows,
            team,
            how,
            prepared.told,
            prepared.tuning,
        )
    spent = _load(prepared, trainer, context)
    minutes = prepared.request.minutes
    if minutes is None and run.minutes is not None:  # a run by time that was cut off has the rest of its time left
        minutes = max(run.minutes - spent / 60, 0.01)
    drop_later(folder / "previews", trainer.step)
    shown: dict[str, Tensor] = {}

    def preview(step: int, images: Tensor) -> None:
        shown["last"] = images
        save_preview(folder / "previews", step, images)

    def saved() -> None:
        with context.gpu_slice():
            weights = {key: value.detach().cpu() for key, value in trainer.averaged().items()}
        _write_model(prepared, weights, trainer.step, loop.heldout_loss, shown.get("last"))

    held = _held(prepared)
    outlets = Outlets(
        context.gpu_slice, context.stop, context.report, context.say, preview, saved, context.preview_seconds
    )
    loop = TrainingLoop(
        trainer,
        prepared.checkpoints,
        Metrics(folder / "metrics.jsonl", trainer.step),
        held,
        Limits(
            run.steps,
            minutes,
            prepared.request.checkpoint_every,
            before_copying=not run.past_copying,
            copies=run.copies,
        ),
        outlets,
        spent,
    )
    state = "failed"
    try:
        summary = loop.run()
        # who ends the server did not mean to end the training: it counts as cut off, and the tab offers to go on
        stopped = "running" if context.leaving() else "stopped"
        state = stopped if summary["stopped"] else "finished"
        run = dataclasses.replace(run, copies=summary.pop("copies"))
    finally:
        trainer.free()
        dataclasses.replace(run, state=state).write(folder)
    if config.model.kind == "contrast" and not summary["stopped"]:
        summary["retrieval"] = _judged(prepared, context)
    return {
        **summary,
        "model": str(prepared.model_path),
        "name": prepared.name,
        "precision": trainer.precision,
        "images": len(packed.train_ids),
        "held_out": len(packed.held_rows),
    }


def _judged(prepared: Prepared, context: Context) -> dict[str, Any] | None:
    """How well an image-text encoder finds what it has not seen, of which the sentence is said; None where too few images are held out."""
    try:
        found = evaluate_encoder(prepared.workspace, prepared.run.dataset, context, model=prepared.name)
    except UserError as error:
        context.say(str(error))
        return None
    context.say(found["verdict"])
    return {key: found[key] for key in ("words_to_images", "images_to_words", "mean_average_precision", "verdict")}


def _held(prepared: Prepared) -> Held:
    """What a training is judged by: images that are held out of it, or, of an adapter, of what its base learned from."""
    packed = prepared.packed
    if prepared.tuning is None:
        rows = packed.held_rows[:MOST_IMAGES]
        return Held(packed.images[rows], {name: values[rows] for name, values in prepared.told.items()})
    prior = prepared.tuning.prior
    if prior is None:
        return Held(packed.images[:0], {})
    rows = prior.held_rows[:MOST_IMAGES]
    return Held(prior.images[rows], {name: values[rows] for name, values in prior.told.items()})


def _load(prepared: Prepared, trainer: Trainer, context: Context) -> float:
    """Give a trainer what its run already has; the seconds that took."""
    name, run = prepared.name, prepared.run
    newest = prepared.checkpoints.load_newest()
    if newest is not None:
        with context.gpu_slice():
            load_checkpoint(trainer, newest)
        if trainer.step >= run.steps:
            context.say(f"{name} already has {trainer.step} steps; give a larger number of steps to train it further.")
        return seconds_spent(newest.numbers)
    if run.init_from:  # also when resuming a run that was cut off before its first checkpoint
        if prepared.request.resume and not is_name(run.init_from):  # a record could point anywhere
            raise UserError(
                f"The run {name!r} was interrupted before its first step, and its initial weights are a file; start it again."
            )
        weights = model_file.load(prepared.workspace.model_path(run.init_from)).weights
        with context.gpu_slice():
            trainer.start_from(weights)
    return 0.0


def _write_model(
    prepared: Prepared, weights: dict[str, Tensor], step: int, heldout_loss: float | None, shown: Tensor | None
) -> None:
    run, settings = prepared.run, prepared.config.train
    notes = {
        "steps": step,
        "images_seen": step * settings.batch_size,
        "images": run.images,
        "crop": settings.crop,
        "dataset": run.dataset,
        "fingerprint": run.fingerprint,
        "heldout_loss": heldout_loss,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "version": __version__,
        **({"base": Path(run.init_from).stem} if run.init_from else {}),
    }
    path, title, model = prepared.model_path, prepared.name, prepared.config.model
    tuning = prepared.config.tuning
    if tuning is None:
        replace_with(path, lambda temporary: model_file.save(temporary, model, weights, title=title, info=notes))
    else:
        adapter = Adapter(tuning.adapter, weights, title, tuning.base, tuning.digest)
        replace_with(path, lambda temporary: adapter_file.save(temporary, adapter, model, info=notes))
    if shown is not None:
        card = make_grid(shown[:4], columns=2).resize((512, 512), Image.Resampling.NEAREST)
        replace_with(path.with_name(f"{title}.preview.png"), lambda temporary: card.save(temporary, format="PNG"))
