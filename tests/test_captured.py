"""Captured steps where nothing can be captured: what a CPU can show of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_pictures, tiny_training_images
from trainers import config, run_steps, same, trainer, weights

from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.jobs import Job
from ddpm_core.model import ways
from ddpm_core.operations import training
from ddpm_core.operations.training import train
from ddpm_core.requests import TrainRequest
from ddpm_core.service import Service
from ddpm_core.training import how as hows
from ddpm_core.training.captured import CapturedStep
from ddpm_core.training.how import How
from ddpm_core.training.trainer import Trainer


def test_on_a_cpu_the_step_is_plain() -> None:
    t = trainer()
    assert (
        t.work.captured is None
        and isinstance(t.work.optimizer, torch.optim.AdamW)
        and t.net.ways == ways.plain("cpu")
        and not t.net.ways.fused
    )
    assert hows.fastest(torch.device("cpu"), "bf16") == hows.plain(torch.device("cpu"))


def test_without_a_working_kernel_a_gpu_takes_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old torch, no Triton, an old GPU, AMD: asked in this order, and nothing of CUDA is touched before."""
    monkeypatch.setattr(torch, "__version__", "2.1.2+cu121")
    ways.fused_works.cache_clear()
    assert ways.best("cuda:0") == ways.plain("cuda")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    ways.fused_works.cache_clear()
    assert ways.best("cuda:0") == ways.plain("cuda") and not ways.plain("cuda").channels_last
    monkeypatch.setattr(ways, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    ways.fused_works.cache_clear()
    assert ways.best("cuda:0") == ways.plain("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    ways.fused_works.cache_clear()
    assert ways.best("cuda:0") == ways.plain("cuda"), "the trial on this device fails: there is none"
    ways.fused_works.cache_clear()


def test_a_step_that_cannot_be_captured_goes_on_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose capture fails: said once, nothing left of the attempt, the same numbers."""
    said: list[str] = []
    t = Trainer(config(), tiny_training_images(), "cpu", said.append, how=How(ways.plain("cpu"), captured=True))
    assert t.work.captured is not None

    class Graph:
        def __init__(self, *values: Any, **named: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *values: Any) -> None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    work, attempts = t.work.captured.work, 0

    def counted(*inputs: torch.Tensor) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:  # a capture records the work without doing it; here it ends in the middle of it
            next(t.net.parameters()).grad = torch.full_like(next(t.net.parameters()), torch.nan)
            return
        work(*inputs)

    t.work.captured.work = counted
    t.work.captured.runs = 3
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *values: None)
    run_steps(t, 4)
    assert len(said) == 1 and said[0].startswith("CUDA graph capture failed (CUDA error: operation not permitted")
    assert attempts == 5 and t.work.captured.failed and not t.work.captured.captured
    plain = Trainer(config(), tiny_training_images(), "cpu", how=How(ways.plain("cpu"), captured=False))
    run_steps(plain, 4)
    a, b = weights(t), weights(plain)
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_numbers_that_change_are_read_from_tensors() -> None:
    """A captured step cannot read Python numbers: its rate and average are tensors, and end where plain ones do."""
    tensors = Trainer(config(), tiny_training_images(), "cpu", how=How(ways.plain("cpu"), captured=True))
    run_steps(tensors, 8)
    plain = trainer()
    run_steps(plain, 8)
    assert isinstance(tensors.work.optimizer.param_groups[0]["lr"], torch.Tensor)
    a, b = weights(tensors), weights(plain)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    again = Trainer(config(), tiny_training_images(), "cpu", how=How(ways.plain("cpu"), captured=True))
    run_steps(again, 3)
    again.load_state(tensors.state_tensors(), tensors.state_numbers())
    run_steps(again, 2)
    run_steps(tensors, 2)
    assert same(weights(again), weights(tensors))


def test_what_is_dropped_is_captured_anew() -> None:
    step = CapturedStep(lambda *inputs: None, torch.device("cpu"), lambda text: None)
    step.graph, step.runs, step.inputs = object(), 3, [torch.zeros(1)]  # type: ignore[assignment]
    assert step.captured
    step.drop()
    assert not step.captured and step.runs == 0 and not step.inputs


@pytest.mark.parametrize("generates", [True, False])
def test_beside_a_host_the_step_is_plain(generates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A WebUI shares the device: no kernels are compiled under its lock, no memory is kept between its turns."""
    asked: list[How | None] = []

    def remembered(*values: Any) -> Any:
        asked.append(values[6])
        raise UserError("enough")

    class Shared(StandaloneHost):
        pass

    Shared.generates = generates
    monkeypatch.setattr(training, "Trainer", remembered)
    service = Service(Shared(tmp_path / "ws"))
    service.workspace.harvest("d", [random_pictures(tmp_path / "in", 20)])
    request = TrainRequest("m", "d", preset="tiny-32", size=16, steps=1)
    context = service.context_of(Job(1, "train", "m", "gpu", lambda job: None, "m"))
    with pytest.raises(UserError, match="enough"):
        train(service.workspace, request, context)
    assert asked == [hows.plain(context.device) if generates else None]
