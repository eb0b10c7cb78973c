"""A tiny training, for the tests of its steps and of its course."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_training_images

from ddpm_core.model.config import ModelConfig, UNetConfig
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.training.loop import Limits, Outlets, TrainingLoop
from ddpm_core.training.metrics import Metrics
from ddpm_core.training.previews import Held
from ddpm_core.training.settings import RunConfig, TrainSettings
from ddpm_core.training.trainer import Trainer

NET = UNetConfig(
    (16, 16),
    block_out_channels=(8, 16),
    attention_levels=(False, True),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
    dropout=0.1,
)


def config(**changes: Any) -> RunConfig:
    return RunConfig(
        ModelConfig(NET),
        dataclasses.replace(
            TrainSettings(batch_size=8, precision="fp32", warmup_steps=5, flip_probability=0.5), **changes
        ),
    )


def trainer(**changes: Any) -> Trainer:
    return Trainer(config(**changes), tiny_training_images(), "cpu")


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return t.state_tensors()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run_steps(t: Trainer, steps: int) -> None:
    while steps:
        steps -= t.run_slice(min(steps, 3), 10.0).steps


def make_loop(t: Trainer, folder: Path, steps: int, **changes: Any) -> tuple[TrainingLoop, list[str]]:
    said: list[str] = []
    outlets = Outlets(
        contextlib.nullcontext,
        changes.pop("stop", threading.Event()),
        lambda values: None,
        said.append,
        lambda step, images: None,
        lambda: None,
    )
    folder.mkdir(exist_ok=True)
    limits = Limits(steps, checkpoint_every=changes.pop("every", None))
    return TrainingLoop(
        t,
        CheckpointFolder(folder / "checkpoints", **changes),
        Metrics(folder / "metrics.jsonl", t.step),
        Held(torch.empty(0, 3, 16, 16)),
        limits,
        outlets,
    ), said
