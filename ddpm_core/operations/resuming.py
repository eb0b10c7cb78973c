"""Going on with a training: its record, its settings, its pictures, its newest checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..dataset.packing import Packed, load, pack, packed_path
from ..errors import UserError
from ..model.config import FORMAT
from ..requests import TrainRequest
from ..runs import Run
from ..training import precision
from ..training.checkpoints import Checkpoint, CheckpointFolder
from ..training.settings import RunConfig
from ..training.trainer import Trainer
from ..workspace import Workspace
from .context import Context


def reopen(
    workspace: Workspace, folder: Path, request: TrainRequest, context: Context
) -> tuple[RunConfig, Run, Packed]:
    """The settings, record and pictures of a run that is gone on with; the record says so from now on."""
    run = Run.read(folder)
    if run.format > FORMAT:
        raise UserError(f"The run {request.model!r} was made by a newer version; update this extension to resume it.")
    CheckpointFolder(folder / "checkpoints").refuse_later()
    config = RunConfig.from_json(run.config)
    fixed = {
        "preset": request.preset,
        "size": request.size,
        "batch_size": request.batch_size,
        "crop": request.crop,
        "seed": request.seed,
        "init_from": request.init_from,
        "base": request.base,
        "concept": request.concept,
        "prior": request.prior,
        "settings": request.settings or None,
    }
    given = [name for name, value in fixed.items() if value is not None]
    if given:
        context.say(f"Resuming keeps the run's own settings; {', '.join(given)} is ignored.")
    if request.learning_rate is not None:
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, learning_rate=request.learning_rate)
        )
    wanted = request.precision or config.train.precision
    try:
        chosen = precision.choose(wanted, context.device)
    except UserError:
        if request.precision is not None:
            raise
        chosen = precision.choose("auto", context.device)
        context.say(f"This device cannot continue in {wanted}; it continues in {chosen}.")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=chosen))
    if request.dataset is not None and request.dataset != run.dataset:
        raise UserError(
            f"The run {request.model!r} was trained on {run.dataset!r}; to train on {request.dataset!r} start a new one "
            f"from the weights of {request.model} (--init-from)."
        )
    reached = workspace.steps_reached(request.model)
    if request.steps is not None and request.steps < reached:  # the record must not say that this was the plan
        raise UserError(
            f"{request.model} already has {reached} steps; give a larger number of steps to train it further."
        )
    packed = pictures_of(workspace, run, config, context)
    minutes = run.minutes
    if request.steps is not None or request.minutes is not None:
        minutes = request.minutes
        if minutes is not None:
            # the record counts from the run's beginning, so that the rest is known after a kill
            minutes += seconds_spent(CheckpointFolder(folder / "checkpoints").newest_numbers()) / 60
    steps = request.steps if request.steps is not None else (10**9 if request.minutes is not None else run.steps)
    past = run.past_copying if request.stop_before_copying is None else not request.stop_before_copying
    run = dataclasses.replace(
        run, steps=steps, minutes=minutes, state="running", config=config.to_json(), past_copying=past
    )
    run.write(folder)
    return config, run, packed


def seconds_spent(numbers: dict[str, Any]) -> float:
    """Seconds that a run had taken at a checkpoint."""
    seconds = numbers.get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) and 0 <= seconds < 2**53 else 0.0


def pictures_of(workspace: Workspace, run: Run, config: RunConfig, context: Context) -> Packed:
    """The pictures that a run began with."""
    store = workspace.store(run.dataset)
    size, crop = config.model.image_size, config.train.crop
    path = packed_path(store, run.fingerprint, size, crop, config.model.is_grey)
    if path.exists():
        packed = load(path, config.model.is_grey)
        if store.fingerprint() != run.fingerprint:
            context.say("The dataset has changed since this run began; it continues with the images it began with.")
    elif store.fingerprint() == run.fingerprint:
        packed = pack(store, size, crop, context.progress, context.stop, grey=config.model.is_grey)
    else:
        raise UserError(
            f"The dataset {run.dataset!r} has changed and the images this run began with are gone; "
            "start a new run from its weights (--init-from, or More settings in the tab)."
        )
    return packed


def load_checkpoint(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Load a checkpoint into a trainer; UserError where it belongs to another run."""
    try:
        trainer.load_state(checkpoint.tensors, checkpoint.numbers)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"The checkpoint {checkpoint.path.name} does not fit its run ({error}); delete that file to go on from the "
            "one before it."
        ) from None
