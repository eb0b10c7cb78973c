"""Training: a step, the order of the pictures, memory, settings, and that it learns."""

from __future__ import annotations

import dataclasses
import json
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
from safetensors.torch import save_file
from trainers import NET, config, run_steps, same, trainer, weights

from ddpm_core.errors import UserError
from ddpm_core.model.config import DiffusionConfig, ModelConfig, UNetConfig
from ddpm_core.training import pictures
from ddpm_core.training.random import DataOrder
from ddpm_core.training.settings import PRESETS, RunConfig, TrainSettings
from ddpm_core.training.trainer import Trainer

LONG = pytest.mark.long  # each minutes of learning where the machine is slow; one of each kind is in the short form


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
    assert together.work.cast is not None
    apart.work.cast = None  # each layer then casts its own
    run_steps(together, 5)
    run_steps(apart, 5)
    assert same(weights(together), weights(apart))
    assert {p.dtype for p in together.state.parameters} == {torch.float32} and trainer().work.cast is None


def test_streamed_pictures_are_those_held_on_the_device(tmp_path: Path) -> None:
    """From a memory-mapped file, some rows of it left out; also after the step was set anew."""
    save_file({"images": tiny_training_images(40)}, tmp_path / "packed.safetensors")
    with safe_open(tmp_path / "packed.safetensors", framework="pt") as file:
        mapped = file.get_tensor("images")
    rows = torch.tensor([i for i in range(40) if i % 7])
    ends = []
    for how in ("device", "stream"):
        t = Trainer(config(pictures=how), mapped, "cpu", rows=rows)
        assert type(t.batches.pictures).__name__ == {"device": "OnDevice", "stream": "Streamed"}[how]
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
    assert isinstance(Trainer(config(), images, "cpu").batches.pictures, pictures.OnDevice)
    monkeypatch.setattr(pictures, "_MOST_ON_CPU", images.numel() - 1)
    streaming = Trainer(config(), images, "cpu")
    assert isinstance(streaming.batches.pictures, pictures.Streamed)
    run_steps(streaming, 2)
    threads = {t.name for t in threading.enumerate()}
    assert any(name.startswith("ddpm-pictures") for name in threads)
    streaming.free()
    assert not any(t.name.startswith("ddpm-pictures") for t in threading.enumerate())


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


def test_memory_that_runs_out_in_the_optimizers_first_step_is_no_obstacle() -> None:
    plain, starved = trainer(), trainer()
    step, calls = starved.work.optimizer.step, []

    def short(*values: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            for parameter in starved.state.parameters[:3]:  # as AdamW leaves it
                starved.work.optimizer.state[parameter]["step"] = torch.tensor(0.0)
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(*values, **named)

    starved.work.optimizer.step = short  # type: ignore[method-assign]
    plain.pieces = 2  # as the other one goes on
    starved.run_steps(3)
    plain.run_steps(3)
    assert starved.pieces == 2 and starved.step == 3
    assert same(weights(starved), weights(plain))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_out_of_memory_goes_on_in_smaller_pieces(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    t = Trainer(config(precision=precision), tiny_training_images(), "cpu", said.append)
    net: Any = t.net if t.work.cast is None else t.work.cast.network
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
    assert tight.work.cast is not None
    hand_over, called = tight.work.cast.hand_gradients_over, 0

    def failing() -> None:
        nonlocal called
        called += 1
        if called == when:  # of the first step's two pieces
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        hand_over()

    monkeypatch.setattr(tight.work.cast, "hand_gradients_over", failing)
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
    words = ("red",) if PRESETS[name].model.kind == "contrast" else ()  # it learns nothing else
    preset = RunConfig(dataclasses.replace(PRESETS[name].model, tags=words), PRESETS[name].train)
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
    with pytest.raises(UserError, match="the settings are: attention, attention_head_dim"):
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
