"""Training: exact resuming, order, health, and that it learns."""

from __future__ import annotations

import contextlib
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
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_core.errors import UserError
from ddpm_core.model.config import DiffusionConfig, ModelConfig, UNetConfig
from ddpm_core.operations.training import _thin_out
from ddpm_core.training import pictures
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.training.loop import Limits, Metrics, MetricsFollower, Outlets, TrainingLoop, read_metrics
from ddpm_core.training.random import DataOrder
from ddpm_core.training.settings import PRESETS, RunConfig, TrainSettings
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

LONG = pytest.mark.long  # each minutes of learning where the machine is slow; one of each kind is in the short form


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
        torch.empty(0, 3, 16, 16),
        limits,
        outlets,
    ), said


# -- exactness ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_equal_ten_and_ten(precision: str, tmp_path: Path) -> None:
    whole = trainer(precision=precision)
    run_steps(whole, 20)
    first = trainer(precision=precision)
    run_steps(first, 10)
    folder = CheckpointFolder(tmp_path)
    folder.save(first.state_tensors(), first.state_numbers())
    second = trainer(precision=precision)
    run_steps(second, 1)  # what it had before is gone
    loaded = folder.load_newest()
    assert loaded is not None
    second.load_state(loaded.tensors, loaded.numbers)
    run_steps(second, 10)
    assert same(weights(whole), weights(second))


def test_the_default_generator_neither_matters_nor_moves() -> None:
    """A host's seeded txt2img beside us calls torch.manual_seed at any moment."""
    one = trainer()
    run_steps(one, 6)
    two = trainer()
    for _ in range(6):
        torch.manual_seed(int(time.time()) % 1000)
        state = torch.get_rng_state()
        run_steps(two, 1)
        assert torch.equal(state, torch.get_rng_state())
    assert same(weights(one), weights(two))


def test_a_batch_in_pieces_is_the_same_batch() -> None:
    """Up to the order of summation; without dropout, whose masks are drawn piece by piece."""
    net = dataclasses.replace(NET, dropout=0.0)
    whole = Trainer(RunConfig(ModelConfig(net), config().train), tiny_training_images(), "cpu")
    pieces = Trainer(RunConfig(ModelConfig(net), config().train), tiny_training_images(), "cpu")
    pieces.pieces = 4
    run_steps(whole, 3)
    run_steps(pieces, 3)
    a, b = weights(whole), weights(pieces)
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a if k.startswith("net."))


@pytest.mark.parametrize("pieces", [1, 3])
def test_weights_cast_together_train_as_weights_cast_one_by_one(pieces: int) -> None:
    together, apart = trainer(precision="bf16"), trainer(precision="bf16")
    together.pieces = apart.pieces = pieces
    assert together._cast is not None
    apart._cast = None  # each layer then casts its own
    run_steps(together, 5)
    run_steps(apart, 5)
    assert same(weights(together), weights(apart))
    assert {p.dtype for p in together.parameters} == {torch.float32} and trainer()._cast is None


def test_streamed_pictures_are_those_held_on_the_device(tmp_path: Path) -> None:
    """From a memory-mapped file, some rows of it left out; also after the step was set anew."""
    save_file({"images": tiny_training_images(40)}, tmp_path / "packed.safetensors")
    with safe_open(tmp_path / "packed.safetensors", framework="pt") as file:
        mapped = file.get_tensor("images")
    rows = torch.tensor([i for i in range(40) if i % 7])
    ends = []
    for how in ("device", "stream"):
        t = Trainer(config(pictures=how), mapped, "cpu", rows=rows)
        assert type(t.pictures).__name__ == {"device": "OnDevice", "stream": "Streamed"}[how]
        run_steps(t, 5)
        tensors, numbers = t.state_tensors(), t.state_numbers()
        run_steps(t, 7)
        t.load_state(tensors, numbers)  # back, as after a loss that is not finite
        run_steps(t, 3)
        ends.append(weights(t))
        t.free()
    assert same(*ends)


def test_pictures_beyond_the_memory_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_training_images()
    monkeypatch.setattr(pictures, "_MOST_ON_CPU", images.numel())
    assert isinstance(Trainer(config(), images, "cpu").pictures, pictures.OnDevice)
    monkeypatch.setattr(pictures, "_MOST_ON_CPU", images.numel() - 1)
    streaming = Trainer(config(), images, "cpu")
    assert isinstance(streaming.pictures, pictures.Streamed)
    run_steps(streaming, 2)
    threads = {t.name for t in threading.enumerate()}
    assert any(name.startswith("ddpm-pictures") for name in threads)
    streaming.free()
    assert not any(t.name.startswith("ddpm-pictures") for t in threading.enumerate())


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
    for attempt in range(6):
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


@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_every_epoch_shows_every_image_once(count: int, batch: int, seed: int) -> None:
    order = DataOrder(count, batch, seed)
    seen = torch.cat([order.batch(step) for step in range(-(-3 * count // batch))])[: 3 * count]
    epochs = seen.view(3, count)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(count))
    if count > 8:
        assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(DataOrder(count, batch, seed).batch(5), order.batch(5))


def test_held_out_images_are_not_given_to_the_trainer(tmp_path: Path, cli: CommandLine) -> None:
    cli.run("harvest", "--dataset", "d", random_pictures(tmp_path / "in", 60))
    answer = cli.run(
        "train",
        "--dataset",
        "d",
        "--model",
        "m",
        "--steps",
        2,
        "--batch-size",
        4,
        "--preset",
        "tiny-32",
        "--size",
        "16",
    )
    assert answer["held_out"] > 0 and answer["images"] + answer["held_out"] == 60  # type: ignore[operator]


# -- health -------------------------------------------------------------------------------------------------------------------


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
    plain, done = t._train_step, []

    @torch.no_grad()
    def step() -> None:
        if t.step == 7 and not done:
            done.append(1)
            some = t.net.conv_in.weight
            if part == "pictures":
                draw = t._draw
                t._draw = lambda number: (torch.full_like(draw(number)[0], torch.nan), *draw(number)[1:])  # type: ignore[method-assign]
                with torch.enable_grad():
                    plain()
                t._draw = draw  # type: ignore[method-assign]
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
                t.optimizer.state[some]["exp_avg_sq"][0] = torch.nan
        with torch.enable_grad():
            plain()

    t._train_step = step  # type: ignore[method-assign]
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
    loop.held = tiny_training_images(4)
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
        t._scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        return t

    whole, half = scaled(), scaled()
    whole.run_steps(6)
    half.run_steps(2)
    again = scaled()
    again.load_state(half.state_tensors(), half.state_numbers())
    again.run_steps(4)
    assert again.state_numbers() == whole.state_numbers() and whole.state_numbers()["loss_scale"] == 16.0
    assert same(weights(again), weights(whole))


def test_memory_that_runs_out_in_the_optimizers_first_step_is_no_obstacle() -> None:
    plain, starved = trainer(), trainer()
    step, calls = starved.optimizer.step, []

    def short(*values: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            for parameter in starved.parameters[:3]:  # as AdamW leaves it
                starved.optimizer.state[parameter]["step"] = torch.tensor(0.0)
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(*values, **named)

    starved.optimizer.step = short  # type: ignore[method-assign]
    plain.pieces = 2  # as the other one goes on
    starved.run_steps(3)
    plain.run_steps(3)
    assert starved.pieces == 2 and starved.step == 3
    assert same(weights(starved), weights(plain))


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_out_of_memory_goes_on_in_smaller_pieces(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    t = Trainer(config(precision=precision), tiny_training_images(), "cpu", said.append)
    net: Any = t.net if t._cast is None else t._cast.network.net
    forward = net.forward

    def tight(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(x, *rest)

    monkeypatch.setattr(net, "forward", tight)
    run_steps(t, 2)
    assert t.pieces == 4 and t.step == 2
    assert said and "4 pieces" in said[-1]


@pytest.mark.parametrize("when", [1, 2])
def test_memory_that_runs_out_after_a_backward_leaves_no_gradient_behind(
    when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = Trainer(config(precision="bf16"), tiny_training_images(), "cpu")
    calm = Trainer(config(precision="bf16"), tiny_training_images(), "cpu")
    tight.pieces, calm.pieces = 2, 4
    assert tight._cast is not None
    hand_over, called = tight._cast.hand_gradients_over, 0

    def failing() -> None:
        nonlocal called
        called += 1
        if called == when:  # of the first step's two pieces
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        hand_over()

    monkeypatch.setattr(tight._cast, "hand_gradients_over", failing)
    run_steps(tight, 3)
    run_steps(calm, 3)
    assert tight.pieces == 4 and same(weights(tight), weights(calm))


def test_another_error_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer()

    def broken(*values: Any) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(t.net, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_steps(t, 1)


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


# -- settings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, word",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"loss": "l3"}, "mse, l1, huber"),
        ({"weighting": "odd"}, "uniform, min-snr"),
        ({"precision": "fp8"}, "auto, fp32"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_say_what_is_allowed(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        TrainSettings(**change)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name: str) -> None:
    preset = RunConfig(PRESETS[name].model, PRESETS[name].train)
    assert RunConfig.from_json(json.loads(json.dumps(preset.to_json()))) == preset


def test_settings_that_only_fit_together_can_be_set_together() -> None:
    changed = config().with_settings(
        {"block_out_channels": "8,16,32", "attention_levels": "no,no,yes", "schedule": "linear", "seed": "5"}
    )
    assert (
        changed.model.unet.block_out_channels == (8, 16, 32)
        and changed.model.diffusion.schedule == "linear"
        and changed.train.seed == 5
    )
    with pytest.raises(UserError, match="the settings are: attention_head_dim"):
        config().with_settings({"nonsense": "1"})
    with pytest.raises(UserError, match="whole number"):
        config().with_settings({"seed": "x"})


def test_the_average_is_the_power_average_of_the_paper() -> None:
    """EMA by the recursion equals the weighted mean with weights (s/t)^power, up to the discretisation (Karras et al. 2024, eq. 5)."""
    power = 6.0
    s = TrainSettings(ema_power=power)
    average = 0.0
    values = [float((i * 7919) % 13) for i in range(400)]
    for step, value in enumerate(values):
        keep = s.ema_decay_at(step)
        average = keep * average + (1 - keep) * value
    weights_ = [((i + 1) / len(values)) ** power for i in range(len(values))]
    expected = sum(w * v for w, v in zip(weights_, values)) / sum(weights_)
    assert abs(average - expected) < 0.15


# -- learning -----------------------------------------------------------------------------------------------------------------


def overfit(diffusion: DiffusionConfig, steps: int = 700, sabotage: str = "") -> float:
    """Train on 8 pictures and return the share of samples whose nearest neighbour is far nearer than the second."""
    from ddpm_core.evaluation.neighbours import nearest
    from ddpm_core.model.diffusion import uint8_to_model
    from ddpm_core.sampling.generate import SampleSettings, generate

    images = tiny_training_images(8, seed=4)
    net = UNetConfig(
        (16, 16),
        block_out_channels=(16, 32),
        attention_levels=(False, True),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=4,
    )
    run = RunConfig(
        ModelConfig(net, diffusion),
        TrainSettings(batch_size=16, precision="fp32", learning_rate=2e-3, warmup_steps=20, flip_probability=0.0),
    )
    t = Trainer(run, images, "cpu")
    if sabotage == "loss":
        original = t.diffusion.target
        t.diffusion.target = lambda x0, noise, times: -original(x0, noise, times)  # type: ignore[method-assign]
    if sabotage == "schedule":
        t.diffusion.sqrt_alpha = t.diffusion.sqrt_alpha.flip(0)
    run_steps(t, steps)
    settings_ = SampleSettings(steps=20, seed=1)
    sampling = t.diffusion
    network = (lambda x, time: t.ema(x, 999 - time)) if sabotage == "sampler" else t.ema
    samples, _ = generate(network, sampling, (3, 16, 16), 32, settings_)  # type: ignore[arg-type]
    found = nearest(samples, uint8_to_model(images))
    return float(((found.d1 < 0.2) & found.memorised).float().mean())


@pytest.mark.parametrize("prediction", ["v", pytest.param("epsilon", marks=LONG), pytest.param("x0", marks=LONG)])
def test_it_learns_eight_pictures_by_heart(prediction: str) -> None:
    assert overfit(DiffusionConfig("cosine" if prediction != "epsilon" else "linear", prediction=prediction)) > 0.8


@pytest.mark.parametrize(
    "sabotage", ["loss", pytest.param("schedule", marks=LONG), pytest.param("sampler", marks=LONG)]
)
def test_a_broken_part_would_be_noticed(sabotage: str) -> None:
    """The check above can fail: with the loss, the schedule or the sampler broken it does."""
    assert overfit(DiffusionConfig("cosine"), steps=300, sabotage=sabotage) < 0.2


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
        _thin_out(tmp_path)
    kept = sorted(int(path.stem.split("-")[1]) for path in tmp_path.iterdir())
    assert 100 <= len(kept) <= 240 and kept[0] == 1 and kept[-1] == 2000
    assert all(b - a <= 40 for a, b in zip(kept, kept[1:]))
