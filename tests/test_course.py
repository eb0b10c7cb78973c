"""The course of a training: checkpoints, resuming, numbers that are not finite, and what is written of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CommandLine, random_pictures, tiny_training_images
from safetensors import safe_open
from safetensors.torch import load_file
from trainers import make_loop, run_steps, same, trainer, weights

from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.operations.previews import drop_later, thin_out
from ddpm_core.requests import TrainRequest
from ddpm_core.service import Service
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.training.metrics import Metrics, MetricsFollower, read_metrics
from ddpm_core.training.previews import Held
from ddpm_core.training.trainer import Trainer


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_equal_ten_and_ten(precision: str, optimizer: str, tmp_path: Path) -> None:
    whole = trainer(precision=precision, optimizer=optimizer)
    run_steps(whole, 20)
    first = trainer(precision=precision, optimizer=optimizer)
    run_steps(first, 10)
    folder = CheckpointFolder(tmp_path)
    folder.save(first.state_tensors(), first.state_numbers())
    second = trainer(precision=precision, optimizer=optimizer)
    run_steps(second, 1)  # what it had before is gone
    loaded = folder.load_newest()
    assert loaded is not None
    second.load_state(loaded.tensors, loaded.numbers)
    run_steps(second, 10)
    assert same(weights(whole), weights(second))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_resuming_after_kill_is_exact(tmp_path: Path) -> None:
    """The real program, killed with SIGKILL between arbitrary steps, several times; the end is bit for bit that of an undisturbed run."""
    source = random_pictures(tmp_path / "in", 50)
    lines = [CommandLine(tmp_path / name, apart=True) for name in ("a", "b")]
    options = [
        "--preset",
        "tiny-32",
        "--size",
        "16",
        "--batch-size",
        "8",
        "--precision",
        "fp32",
        "--checkpoint-every",
        "5",
        "--set",
        "block_out_channels=8,16,16",
        "--set",
        "norm_num_groups=4",
        "--set",
        "attention_head_dim=8",
        "--set",
        "dropout=0.1",
    ]
    for line in lines:
        line.run("harvest", "--dataset", "d", source)
    # few enough steps that the undisturbed run is short, many enough that a kill meets it at work
    steps = 100
    lines[0].run("train", "--dataset", "d", "--model", "m", "--steps", steps, *options)
    kills = 0
    for attempt in range(4):
        arguments = [
            "train",
            "--model",
            "m",
            "--steps",
            steps,
            *(["--resume"] if attempt else ["--dataset", "d", *options]),
        ]
        process = lines[1].start(*arguments)
        folder = CheckpointFolder(lines[1].workspace / "runs" / "m" / "checkpoints")
        seen = folder.paths()[-1:]
        while process.poll() is None and (not folder.paths() or folder.paths()[-1:] == seen):
            time.sleep(0.005)
        time.sleep(0.037 * attempt)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    assert kills >= 2
    lines[1].run("train", "--model", "m", "--steps", steps, "--resume")
    ends = [
        load_file(line.workspace / "runs" / "m" / "checkpoints" / f"step-{steps:09d}.safetensors") for line in lines
    ]
    assert same(*ends)
    models = [load_file(line.workspace / "models" / "m.safetensors") for line in lines]
    assert same(*models)
    steps_logged = [
        line["step"]
        for line in read_metrics(lines[1].workspace / "runs" / "m" / "metrics.jsonl")
        if line["kind"] == "train"
    ]
    assert steps_logged == sorted(steps_logged)


def poison(t: Trainer, at_step: int, value: float = float("nan")) -> None:
    """Make the loss of one step not finite, once."""
    original = t.diffusion.target
    done = []

    def target(*values: Any) -> torch.Tensor:
        if t.step == at_step and not done:
            done.append(1)
            return original(*values) * value
        return original(*values)

    t.diffusion.target = target  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_a_checkpoint(value: float, tmp_path: Path) -> None:
    t = trainer()
    poison(t, 7, value)
    loop, said = make_loop(t, tmp_path, 15, every=2)
    summary = loop.run()
    assert summary["steps"] == 15
    assert any("not finite" in text and "learning rate" in text for text in said)
    assert t.lr_scale == 0.5
    for path in CheckpointFolder(tmp_path / "checkpoints").paths():
        assert all(torch.isfinite(v).all() for v in load_file(path).values())
    assert any(line["kind"] == "note" for line in read_metrics(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize("part", ["pictures", "gradient", "weights", "average", "moments"])
def test_a_number_that_is_not_finite_is_in_no_checkpoint_and_the_run_recovers(part: str, tmp_path: Path) -> None:
    t = trainer()
    plain, done = t.train_step, []

    @torch.no_grad()
    def step() -> None:
        if t.step == 7 and not done:
            done.append(1)
            some = t.net.conv_in.weight
            if part == "pictures":
                draw = t.batches.draw
                t.batches.draw = lambda number: dataclasses.replace(
                    draw(number), x0=torch.full_like(draw(number).x0, torch.nan)
                )  # type: ignore[method-assign]
                with torch.enable_grad():
                    plain()
                t.batches.draw = draw  # type: ignore[method-assign]
                return
            if part == "gradient":
                handle = some.register_hook(lambda gradient: gradient * torch.inf)
                with torch.enable_grad():
                    plain()
                handle.remove()
                return
            if part == "weights":
                some[0] = torch.nan
            elif part == "average":
                t.ema.conv_in.weight[0] = torch.inf
            else:
                t.work.optimizer.state[some]["exp_avg_sq"][0] = torch.nan
        with torch.enable_grad():
            plain()

    t.train_step = step  # type: ignore[method-assign]
    loop, said = make_loop(t, tmp_path, 15, every=2)
    saved: list[bool] = []
    loop.out.checkpoint_saved = lambda: saved.append(all(torch.isfinite(v).all() for v in t.ema.parameters()))
    assert loop.run()["steps"] == 15
    assert any("finite" in text and "learning rate" in text for text in said)
    assert saved and all(saved)  # what the model file is written from
    for path in CheckpointFolder(tmp_path / "checkpoints").paths():
        assert all(torch.isfinite(v).all() for v in load_file(path).values())
    assert all(torch.isfinite(v).all() for v in weights(t).values())


def test_a_heldout_loss_that_is_not_finite_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 an average may overflow on pictures that are not trained on, and the training goes on."""
    monkeypatch.setattr(
        "ddpm_core.training.loop.loss_by_band", lambda *values, **named: {"0-499": float("nan"), "500-999": 0.1}
    )
    told: list[dict[str, Any]] = []
    loop, _ = make_loop(trainer(), tmp_path, 4, every=2)
    loop.held = Held(tiny_training_images(4))
    loop.out.progress = told.append
    summary = loop.run()
    json.dumps([summary, told], allow_nan=False)
    assert summary["steps"] == 4 and summary["heldout_loss"] is None
    for path in CheckpointFolder(tmp_path / "checkpoints").paths():
        assert json.loads(safe_open(path, "pt").metadata()["numbers"])["heldout_loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales on CUDA only")
def test_resuming_keeps_the_course_of_the_loss_scale() -> None:
    def scaled() -> Trainer:
        t = trainer()
        t.work.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        return t

    whole, half = scaled(), scaled()
    whole.run_steps(6)
    half.run_steps(2)
    again = scaled()
    again.load_state(half.state_tensors(), half.state_numbers())
    again.run_steps(4)
    assert again.state_numbers() == whole.state_numbers() and whole.state_numbers()["loss_scale"] == 16.0
    assert same(weights(again), weights(whole))


def test_a_run_that_keeps_diverging_stops_and_says_so(tmp_path: Path) -> None:
    t = trainer()
    t.diffusion.target = lambda *values: torch.full((8, 3, 16, 16), float("nan"))  # type: ignore[method-assign]
    loop, _ = make_loop(t, tmp_path, 10)
    with pytest.raises(UserError, match="lower learning rate"):
        loop.run()


def test_checkpoints_refuse_what_is_not_finite(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        folder.save({"a": torch.tensor([1.0, float("inf")])}, {"step": 1})
    assert folder.paths() == []


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    t = trainer()
    folder = CheckpointFolder(tmp_path, keep=lambda: 3)
    for _ in range(3):
        run_steps(t, 1)
        folder.save(t.state_tensors(), t.state_numbers())
    newest = folder.paths()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    loaded = folder.load_newest()
    assert loaded is not None and loaded.numbers["step"] == 2


def test_a_damaged_newest_checkpoint_takes_no_place_of_a_good_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=lambda: 1)
    for step, loss in ((2, 0.1), (5, 0.2)):
        folder.save({"a": torch.zeros(1000)}, {"step": step, "heldout_loss": loss})
    damaged = folder.paths()[-1]
    damaged.write_bytes(damaged.read_bytes()[:500])
    for step in (3, 4):
        folder.save({"a": torch.zeros(1000)}, {"step": step, "heldout_loss": 0.3})
        newest = folder.load_newest()
        assert newest is not None and newest.numbers["step"] == step
    assert [path.name[5:14] for path in folder.paths()] == ["000000002", "000000004", "000000005"]


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    t = trainer()
    folder = CheckpointFolder(tmp_path, keep=lambda: 2)
    for loss in (0.5, 0.2, 0.3, 0.4, 0.6):
        run_steps(t, 1)
        folder.save(t.state_tensors(), {**t.state_numbers(), "heldout_loss": loss})
    assert [int(p.stem[5:]) for p in folder.paths()] == [2, 4, 5]


def test_stopping_saves_where_it_is(tmp_path: Path) -> None:
    stop = threading.Event()
    t = trainer()
    original = t.run_slice

    def run_slice(*values: Any) -> Any:
        if t.step >= 5:
            stop.set()
        return original(*values)

    t.run_slice = run_slice  # type: ignore[method-assign]
    loop, _ = make_loop(t, tmp_path, 1000, stop=stop)
    summary = loop.run()
    assert summary["stopped"] and 5 <= summary["steps"] < 1000
    newest = CheckpointFolder(tmp_path / "checkpoints").load_newest()
    assert newest is not None and newest.numbers["step"] == summary["steps"]


@pytest.mark.parametrize("leaving", [True, False], ids=["the server ends", "Stop is pressed"])
def test_a_training_that_the_servers_end_cuts_off_is_offered_again(leaving: bool, tmp_path: Path) -> None:
    service = Service(StandaloneHost(tmp_path / "ws"))
    try:
        service.start_harvest("d", [str(random_pictures(tmp_path / "in", 10))]).finished.wait(60)
        small = {"block_out_channels": "32", "attention_levels": "false", "layers_per_block": "1"}
        request = TrainRequest("m", "d", preset="tiny-32", steps=10**6, settings={**small, "attention_head_dim": "32"})
        job = service.start_training(request)
        while not job.progress.get("done") and not job.finished.is_set():
            time.sleep(0.01)
        with pytest.raises(UserError, match="being trained already"):  # a second press, when the first has the name
            service.start_training(request)
        if leaving:
            service.shutdown()
        else:
            assert service.stop("train")
        assert job.finished.wait(60) and job.state == "stopped"
        (run,) = service.workspace.unfinished_runs()  # the tab offers to go on with those that "run"
        assert run["step"] > 0 and run["state"] == ("running" if leaving else "stopped")
        with pytest.raises(UserError, match="already a model 'm'; resume it"):
            service.start_training(request)  # said at once, not by a training that fails
    finally:
        service.shutdown()


def test_metrics_are_followed_as_they_grow_and_read_anew_when_they_shrink(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.lines() == []
    metrics = Metrics(path, 0)
    for step in range(1, 6):
        metrics.write("train", step=step)
        assert [line["step"] for line in follower.lines()] == list(range(1, step + 1))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"kind": "tra')
    assert len(follower.lines()) == 5  # what is just being written waits
    Metrics(path, 2)  # resumed from step 2: later lines are dropped
    assert [line["step"] for line in follower.lines()] == [1, 2] == [line["step"] for line in read_metrics(path)]


def test_a_very_long_run_keeps_its_whole_course_in_few_previews(tmp_path: Path) -> None:
    for step in range(1, 2001):
        (tmp_path / f"step-{step:09d}.png").write_bytes(b"")
        thin_out(tmp_path)
    kept = sorted(int(path.stem.split("-")[1]) for path in tmp_path.iterdir())
    assert 100 <= len(kept) <= 240 and kept[0] == 1 and kept[-1] == 2000
    assert all(b - a <= 40 for a, b in zip(kept, kept[1:]))


def test_previews_of_lost_steps_go(tmp_path: Path) -> None:
    """Cut off at 30, resumed from 20: what the newest one showed is no longer what the model makes."""
    for step in (10, 20, 30):
        (tmp_path / f"step-{step:09d}.png").write_bytes(b"")
    (tmp_path / "step-mine.png").write_bytes(b"")
    drop_later(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.png",
        "step-000000020.png",
        "step-mine.png",
    ]
    drop_later(tmp_path / "none", 20)
