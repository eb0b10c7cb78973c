"""A follower's part of a training by several processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..dataset.packing import Packed
from ..errors import UserError
from ..model.values import Values, digest_of
from ..names import is_name
from ..runs import Run
from ..training.settings import RunConfig
from ..training.team import Team, follow
from ..training.trainer import Trainer
from ..training.tuning import Tuning
from ..workspace import Workspace
from .context import Context
from .resuming import pictures_of
from .telling import told_in_run
from .tuning import tuning_in_run


def help_along(workspace: Workspace, context: Context, team: Team) -> dict[str, Any]:
    """A follower's part: the same pictures, from its own workspace, and then what the leader says."""
    told = team.tell("")
    if not told:
        return {}  # the leader has said why
    run = Run.from_json(json.loads(told))
    config = RunConfig.from_json(run.config)
    packed: Packed | None = None
    values: dict[str, Values] = {}
    tuning: Tuning | None = None
    try:
        tuning = tuning_in_run(_folder(workspace, run), config)
        packed = pictures_of(workspace, run, config, Context(context.device))
        values = told_in_run(workspace, run, config, packed, _folder(workspace, run), context)
    except UserError as error:
        context.say(f"Process {team.rank}: {error}")
    agree(team, run, packed, values, tuning)
    assert packed is not None
    trainer = Trainer(
        config, packed.images, context.device, context.say, packed.train_rows, team, told=values, tuning=tuning
    )
    try:
        return follow(team, trainer)
    finally:
        trainer.free()


def _folder(workspace: Workspace, run: Run) -> Path:
    """Where the leader's run lies, if the workspace is the leader's; elsewhere there is nothing."""
    name = run.rest.get("run")
    return workspace.root / "runs" / (name if isinstance(name, str) and is_name(name) else "-")


def agree(
    team: Team, run: Run, packed: Packed | None, told: Mapping[str, Values], tuning: Tuning | None = None
) -> None:
    """UserError on every process where one has other pictures than the leader."""
    # the pictures themselves, not their names: another Pillow may resize otherwise
    digest = hashlib.sha256()
    if packed is not None:
        digest.update(bytes(packed.held_out))
        for part in torch.split(packed.images, 4096):
            digest.update(part.numpy().tobytes())
    for name in sorted(told):
        digest.update(name.encode() + digest_of(told[name]))
    if tuning is not None:
        digest.update(tuning.settings.digest.encode())
        for value in () if tuning.prior is None else (tuning.prior.images, tuning.prior.held):
            digest.update(value.contiguous().numpy().tobytes())
    team.agree(
        digest.hexdigest(),
        f"Process {{rank}} has other images than process 0 in its dataset {run.dataset!r}; copy the dataset's folder "
        "of process 0 to its workspace, or let both use one workspace.",
    )
