"""What a network is told: the numbers of its conditions, guidance, training with words, and their files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CommandLine, tiny_training_images
from torch import Tensor
from trainers import NET, config, run_steps, same

from ddpm_core.errors import UserError
from ddpm_core.evaluation.alignment import SURE, Classifier, alignment, recombined
from ddpm_core.model import file as model_file
from ddpm_core.model.build import build, network_of
from ddpm_core.model.condition import FEWEST_KEPT, Tags
from ddpm_core.model.config import DiffusionConfig, ModelConfig
from ddpm_core.model.diffusion import Diffusion
from ddpm_core.model.layers import Init
from ddpm_core.model.text import UNTOLD
from ddpm_core.operations.alignment import verdict
from ddpm_core.operations.context import Context
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.sampling.guidance import Asked
from ddpm_core.training.random import generator
from ddpm_core.training.trainer import Trainer

WORDS = ("red", "green", "blue")


def worded(**changes: Any) -> Any:
    base = config(**changes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, tags=WORDS))


def told(count: int) -> dict[str, Tensor]:
    """Words by hand: every image has one of three, some two."""
    values = torch.zeros(count, 3)
    values[torch.arange(count), torch.arange(count) % 3] = 1.0
    values[::5, 1] = 1.5
    return {"tags": values}


def words_trainer(**changes: Any) -> Trainer:
    images = tiny_training_images()
    return Trainer(worded(**changes), images, "cpu", told=told(len(images)))


def shaken(model: ModelConfig, seed: int = 3) -> Any:
    """A network whose last layers are not zero."""
    net = build(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return net


def test_words_are_summed_as_the_formula_says() -> None:
    made: Any = Tags(Init("cpu", torch.Generator().manual_seed(0)), 8, 3)
    with torch.no_grad():
        made.linear_2.weight.normal_(generator=torch.Generator().manual_seed(1))
        made.linear_2.bias.fill_(0.5)
    values = torch.tensor([[1.0, 0.0, 1.5], [0.0, 0.0, 0.0], [0.0, 0.7, 0.0]])
    ours = made(values, torch.float32)
    p = {name: value.detach().double() for name, value in made.named_parameters()}
    for row, found in zip(values.double(), ours.detach().double()):
        number = int((row != 0).sum())
        summed = sum((w * e for w, e in zip(row, p["embedding"])), torch.zeros(8, dtype=torch.float64))
        summed = summed / max(1, number) ** 0.5
        hidden = p["linear_1.weight"] @ summed + p["linear_1.bias"]
        expected = summed + p["linear_2.weight"] @ (hidden * torch.sigmoid(hidden)) + p["linear_2.bias"]
        if not number:
            expected = torch.zeros(8, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_is_told_nothing_is_the_one_without_words() -> None:
    plain, words = build(ModelConfig(NET)), build(ModelConfig(NET, tags=WORDS))
    own = dict(words.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in plain.named_parameters()), "other first weights"
    net = shaken(ModelConfig(NET, tags=WORDS))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 500])
    nothing = net(x, t, told={"tags": torch.zeros(2, 3)})
    assert torch.equal(net(x, t), nothing)
    assert not torch.equal(nothing, net(x, t, told={"tags": torch.eye(3)[:2]}))


def test_words_are_left_out_at_random_but_alike_at_each_try() -> None:
    values = torch.ones(20_000, 6)
    found = Tags.dropped(values, generator("cpu", 1, 2))
    assert torch.equal(found, Tags.dropped(values, generator("cpu", 1, 2)))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    # of what is not untold each has its own share, evenly between FEWEST_KEPT and 1
    per_image = found.mean(1)
    assert abs(float(found.mean()) - (1 - UNTOLD) * (1 + FEWEST_KEPT) / 2) < 0.01
    kept_none = (1 - UNTOLD) * float(torch.linspace(FEWEST_KEPT, 1, 1001).neg().add(1).pow(6).mean())
    assert abs(float((per_image == 0).float().mean()) - UNTOLD - kept_none) < 0.01
    assert (
        abs(
            float((per_image == 1).float().mean())
            - (1 - UNTOLD) * float(torch.linspace(FEWEST_KEPT, 1, 1001).pow(6).mean())
        )
        < 0.01
    )


# -- guidance -------------------------------------------------------------------------------------------------------------


class Linear:
    """A network whose answers are known: x times a number for each word."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x: Tensor, t: Tensor, *, told: dict[str, Tensor] | None = None) -> Tensor:
        self.calls.append((len(x), int(t[0])))
        words = torch.zeros(len(x), 3) if told is None else told["tags"]
        return x * (1.0 + words @ torch.tensor([0.1, 0.02, 0.3]))[:, None, None, None]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guidance_leads_towards_and_away(scale: float) -> None:
    net, x = Linear(), torch.randn(2, 3, 4, 4)
    positive, negative = torch.eye(3)[:2], torch.eye(3)[[2, 2]]
    asked = Asked({"tags": positive}, {"tags": negative}, scale, band=(0.2, 0.8))
    guided = asked.network(net, slice(0, 2), 100, torch.device("cpu"))
    inside = guided(x, torch.full((2,), 50))
    factors = torch.tensor([1.1, 1.02]).double()
    expected = 1.3 + scale * (factors - 1.3) if scale != 1 else factors
    torch.testing.assert_close(inside.double(), x.double() * expected[:, None, None, None], rtol=1e-5, atol=1e-6)
    outside = guided(x, torch.full((2,), 90))
    torch.testing.assert_close(outside.double(), x.double() * factors[:, None, None, None], rtol=1e-5, atol=1e-6)
    assert net.calls == [(4 if scale != 1 else 2, 50), (2, 90)], "guidance costs two calls inside its band only"


def test_a_picture_depends_on_its_own_prompt_and_seed_only() -> None:
    model = ModelConfig(NET, DiffusionConfig(timesteps=100), tags=WORDS)
    net, diffusion = shaken(model), Diffusion(model.diffusion)
    asked = Asked({"tags": torch.eye(3)[[0, 1, 2, 0, 1]]}, None, 3.0)
    settings = SampleSettings(steps=6, seed=5)
    whole, _ = generate(net, diffusion, (3, 16, 16), 5, settings, asked=asked)
    parts, _ = generate(net, diffusion, (3, 16, 16), 5, settings, asked=asked, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-4)
    other, _ = generate(net, diffusion, (3, 16, 16), 1, settings, asked=Asked({"tags": torch.eye(3)[[1]]}, None, 3.0))
    assert float((other[0] - whole[0]).abs().max()) > 0.01


# -- training ---------------------------------------------------------------------------------------------------------------


def test_a_training_learns_to_tell_words_apart() -> None:
    """Three words, three colours: asked for one, the network gives that one. One in twelve may miss, as a processor's rounding decides in
    trainings of so few steps; who does not listen has nine wrong."""
    colours = torch.tensor([[230, 30, 30], [30, 230, 30], [30, 30, 230]], dtype=torch.uint8)
    which = torch.arange(96) % 3
    images = colours[which][:, :, None, None].expand(-1, 3, 16, 16).contiguous()
    values = {"tags": torch.eye(3)[which]}
    t = Trainer(
        worded(batch_size=16, learning_rate=3e-3, warmup_steps=10, flip_probability=0.0), images, "cpu", told=values
    )
    t.run_steps(150)
    asked = Asked({"tags": torch.eye(3)[[0, 1, 2] * 4]}, None, 2.0)
    found, _ = generate(t.ema, t.diffusion, (3, 16, 16), 12, SampleSettings(steps=10, seed=1), asked=asked)
    seen = found.mean((2, 3)).argmax(1)
    assert int((seen == torch.tensor([0, 1, 2] * 4)).sum()) >= 11


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_training_is_told_the_same(optimizer: str) -> None:
    whole, first = words_trainer(optimizer=optimizer), words_trainer(optimizer=optimizer)
    run_steps(whole, 8)
    run_steps(first, 5)
    second = words_trainer(optimizer=optimizer)
    second.load_state(first.state_tensors(), first.state_numbers())
    run_steps(second, 3)
    assert same(whole.state_tensors(), second.state_tensors())
    assert any(name.startswith("ema.conditions.tags") for name in whole.state_tensors())


def test_pieces_change_nothing() -> None:
    whole, parts = words_trainer(), words_trainer()
    parts.pieces = 3
    run_steps(whole, 3)
    run_steps(parts, 3)
    a, b = whole.state_tensors(), parts.state_tensors()
    # dropout's masks are drawn for each piece, so only what does not depend on them is alike: the words that were drawn
    assert a.keys() == b.keys()
    batches = [t.batches.draw(3).told["tags"] for t in (whole, parts)]
    assert torch.equal(*batches)


def test_words_can_be_added_to_a_model_without() -> None:
    plain = Trainer(config(), tiny_training_images(), "cpu")
    run_steps(plain, 2)
    t = words_trainer()
    t.start_from({name: value.detach().clone() for name, value in plain.ema.named_parameters()})
    assert torch.equal(t.net.conv_in.weight, plain.ema.conv_in.weight)
    x, time = torch.randn(1, 3, 16, 16), torch.tensor([10])
    torch.testing.assert_close(t.ema(x, time), plain.ema(x, time))
    # words that it has not learnt yet must not disturb what it has
    asked = {"tags": torch.eye(3)[:1]}
    torch.testing.assert_close(t.ema(x, time, told=asked), plain.ema(x, time))
    run_steps(t, 3)
    assert not torch.equal(t.net(x, time, told=asked), t.net(x, time))


# -- files and commands -----------------------------------------------------------------------------------------------------


def test_a_forged_vocabulary_is_refused(tmp_path: Path) -> None:
    model = ModelConfig(NET, tags=WORDS)
    weights = {name: value.detach() for name, value in build(model).named_parameters()}
    path = tmp_path / "m.safetensors"
    model_file.save(path, model, weights, title="m", info={})
    loaded = model_file.load(path)
    assert loaded.config.tags == WORDS
    network_of(loaded.config, loaded.weights, "cpu")
    for tags, problem in (
        (["red"], "do not fit"),
        (["red", "red", "blue"], "twice"),
        (["red", 3, "x"], "no list"),
        (["red", "", "x"], "no list"),
        ("red", "no list"),
        ([f"w{i}" for i in range(5000)], "more than"),
    ):
        forged = ModelConfig.to_json(model)
        forged["tags"] = tags
        with pytest.raises(UserError, match=problem):
            if isinstance(tags, list) and tags == ["red"]:
                model_file.save(path, dataclasses.replace(model, tags=("red",)), weights, title="m", info={})
                model_file.load(path)
            else:
                ModelConfig.from_json(forged)


SETTINGS = ["block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8"]
OPTIONS = ["--preset", "tiny-32", "--size", "16", "--precision", "fp32", *(w for s in SETTINGS for w in ("--set", s))]


def test_the_commands(cli: CommandLine, few: Path, tmp_path: Path) -> None:
    cli.run("harvest", "--dataset", "d", few)
    shown = cli.run("dataset", "tags", "d")
    entries = [one["word"] for one in shown["tags"]]
    assert len(entries) >= 4 and shown["pictures"] == 60
    dropped = cli.run("dataset", "tags", "d", "--drop", entries[0])
    assert entries[0] not in [one["word"] for one in dropped["tags"]]
    assert cli.run("dataset", "tags", "d", "--undo")["tags"] == shown["tags"]
    edited = cli.run("dataset", "tags", "d", "--items", *range(1, 61), "--add", "seen", "--remove", entries[1])
    assert entries[1] not in [one["word"] for one in edited["tags"]]  # and all images have what was added
    assert "seen" in [one["word"] for one in edited["left_out"]]
    assert cli.run("dataset", "tags", "d", "--undo")["tags"] == shown["tags"]
    assert "None of these images" in str(
        cli.run("dataset", "tags", "d", "--items", 999, "--add", "hat", code=2)["error"]
    )
    cli.run("train", "--model", "m", "--dataset", "d", "--steps", 4, *OPTIONS)
    assert cli.run("models", "show", "m")["tags"] == entries
    # what it was told is kept with the run, whatever a person decides afterwards
    cli.run("dataset", "tags", "d", "--drop", entries[0])
    cli.run("train", "--model", "m", "--resume", "--steps", 6)
    cli.run("train", "--model", "whole", "--dataset", "d", "--steps", 6, "--condition", "tags", *OPTIONS)
    assert cli.run("models", "show", "whole")["config"]["tags"] == entries[1:]

    asked = f"({entries[0]}:1.2), {entries[1]}, zebra"
    out = cli.run("sample", "--model", "m", "--count", 2, "--steps", 2, "--prompt", asked, "--negative-prompt",
                  entries[2], "--cfg-scale", 3, "--out", tmp_path / "out")  # fmt: skip
    assert out["tags"] == entries[:2] and out["unknown_words"] == ["zebra"] and out["size"] == [16, 16]
    from PIL import Image

    text = Image.open(out["files"][0]).info["parameters"]
    assert text.startswith(f"{asked}\nNegative prompt: {entries[2]}\nSteps: 2, ") and "CFG scale: 3" in text
    plain = cli.run("sample", "--model", "m", "--count", 2, "--steps", 2, "--out", tmp_path / "plain")
    assert plain["tags"] == []
    assert Path(out["files"][0]).read_bytes() != Path(plain["files"][0]).read_bytes()

    cli.run("train", "--model", "none", "--dataset", "d", "--steps", 2, "--condition", "none", *OPTIONS)
    assert cli.run("models", "show", "none")["config"]["tags"] == []
    kept = cli.run("sample", "--model", "none", "--count", 1, "--steps", 2, "--prompt", "hat", "--out", tmp_path / "n")
    assert "hat" not in Image.open(kept["files"][0]).info["parameters"], "a prompt that changed nothing is none of it"
    odd = cli.run(
        "sample", "--model", "m", "--count", 1, "--steps", 2, "--prompt", "red \ud800", "--out", tmp_path / "odd"
    )
    assert Image.open(odd["files"][0]).info["parameters"].startswith("red ?\n")
    only = cli.run(
        "sample", "--model", "m", "--count", 1, "--steps", 2, "--negative-prompt", entries[0], "--out", tmp_path / "o"
    )
    assert "CFG scale: 2" in Image.open(only["files"][0]).info["parameters"]
    for bad in ("nan", "-1", "1e9", "0.5"):
        assert "CFG scale" in str(
            cli.run("sample", "--model", "m", "--cfg-scale", bad, "--out", tmp_path / "x", code=2)["error"]
        )
    assert "20000" in str(
        cli.run("sample", "--model", "m", "--prompt", "x" * 100_000, "--out", tmp_path / "x", code=2)["error"]
    )


def test_a_preset_may_learn_no_words(few: Path, tmp_path: Path) -> None:
    from ddpm_core.operations.configuring import configure, with_condition
    from ddpm_core.requests import TrainRequest
    from ddpm_core.workspace import Workspace

    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])

    def learnt(preset: str, condition: str | None) -> int:
        request = TrainRequest("m", "d", preset=preset, condition=condition)
        settings, _ = configure(workspace, request, torch.device("cpu"))
        context = Context(torch.device("cpu"))
        return len(with_condition(settings, request, workspace, workspace.store("d"), context).model.tags)

    assert learnt("tiny-32", None) == learnt("tiny-32", "auto") == learnt("article-64", "tags") >= 4
    assert learnt("article-64", None) == learnt("article-64", "auto") == learnt("tiny-32", "none") == 0


def test_prompts_that_share_nothing_teach_nothing(cli: CommandLine, tmp_path: Path) -> None:
    from conftest import random_pictures

    cli.run("harvest", "--dataset", "d", random_pictures(tmp_path / "in", 20))
    assert cli.run("dataset", "tags", "d")["tags"] == []
    cli.run("train", "--model", "m", "--dataset", "d", "--steps", 2, *OPTIONS)
    assert cli.run("models", "show", "m")["config"]["tags"] == []
    assert "share no words" in str(
        cli.run("train", "--model", "n", "--dataset", "d", "--condition", "tags", *OPTIONS, code=2)["error"]
    )


# -- whether it does what it is asked for -------------------------------------------------------------------------------------


def painted(words: Tensor, draw: torch.Generator) -> Tensor:
    """Images of known words: the first colours the left half, the second the right, the third nothing."""
    images = 0.1 * torch.randn((len(words), 3, 16, 16), generator=draw)
    images[:, 0, :, :8] += words[:, 0, None, None]
    images[:, 2, :, 8:] += words[:, 1, None, None]
    return images.clamp(-1, 1)


def test_the_classifier_counts_what_is_there() -> None:
    draw = torch.Generator().manual_seed(0)
    words = (torch.rand((300, 3), generator=draw) < 0.4).float()
    classifier = Classifier(painted(words, draw), words)
    assert (classifier.accuracy[:2] >= SURE).all() and classifier.accuracy[2] < 0.7, "nobody can tell the third"
    asked = (torch.rand((200, 3), generator=draw) < 0.5).float()
    right = alignment(classifier, WORDS, painted(asked, draw), asked)
    assert set(right.shares) == {"red", "green"} and right.mean > 0.97 and right.unasked < 0.05
    half = asked.clone()
    half[: len(half) // 2, 0] = 0.0  # the first half never shows the first word
    partly = alignment(classifier, WORDS, painted(half, draw), asked)
    expected = float((half[:, 0] * asked[:, 0]).sum() / asked[:, 0].sum())
    assert abs(partly.shares["red"] - expected) < 0.05 and partly.shares["green"] > 0.97


def test_recombined_words_are_new_and_possible() -> None:
    draw = torch.Generator().manual_seed(0)
    n = 200
    words = torch.zeros(n, 8)
    words[torch.arange(n), torch.randint(4, (n,), generator=draw)] = 1.0  # one of four that exclude each other
    words[torch.arange(n), 4 + torch.randint(3, (n,), generator=draw)] = 1.0  # one of three
    words[:, 7] = (torch.rand(n, generator=draw) < 0.3).float()
    words = words[~((words[:, 0] > 0) & (words[:, 4] > 0))]  # these two never meet, which is to be found as exclusive
    found = recombined(words, 30)
    for row in found:
        assert not (words @ row >= row.sum()).any(), "an image has these words together"
        assert row[:4].sum() <= 1


def test_the_verdict_says_what_the_figures_say() -> None:
    base = {"alignment": {"red": 0.95, "hat": 0.3}, "copied": {"none": 0.0, "own": 0.0, "recombined": 0.0}}
    assert verdict(base) == "It does what you ask for 1 of 2 words; weak: hat. Its words unlock no copies."
    unlocked = {**base, "copied": {"none": 0.01, "own": 0.2, "recombined": 0.0}}
    assert "unlock copies: 20.0 % with them, 1.0 % without" in verdict(unlocked)
    assert "cannot be judged" in verdict({**base, "alignment": {}})
    assert json.dumps(base)


def test_an_export_takes_words_by_its_own_pipeline(tmp_path: Path) -> None:
    """The same images as ours from the same noise, prompts and guidance; and without the pipeline's code a plain one, as before."""
    from diffusers import (
        DDIMScheduler,
        DDPMPipeline,
        DiffusionPipeline,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    from ddpm_core.model.export import to_diffusers
    from ddpm_core.sampling.guidance import BAND

    model = ModelConfig(NET, tags=("red", "green | verde", "blue (sky)"))
    net = shaken(model)
    weights = {name: value.detach() for name, value in net.named_parameters()}
    folder = tmp_path / "out"
    files = to_diffusers(model_file.ModelFile(model, weights, {}), folder)
    assert {path.name for path in files} >= {"pipeline.py", "words.json", "words.safetensors"}
    plain = DDPMPipeline.from_pretrained(folder)
    pipe: Any = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    assert pipe.words() == list(model.tags)
    pipe.scheduler = DDIMScheduler.from_config(plain.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    prompts, negatives = ["(Red:1.3), verde", r"blue \(sky\)", "green"], ["blue (sky)", "", "red"]
    values = torch.tensor([[1.3, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    against = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(pipe.told(prompts), values) and torch.equal(pipe.told(negatives), against)
    for scale in (1.0, 2.5):
        asked = Asked({"tags": values}, {"tags": against}, scale)
        settings = SampleSettings("ddim", 8, seed=4)
        ours, _ = generate(net, Diffusion(model.diffusion), (3, 16, 16), 3, settings, asked=asked)
        noise = torch.stack(
            [torch.randn((3, 16, 16), generator=torch.Generator().manual_seed(4 + i)) for i in range(3)]
        )
        found = pipe(prompts, negatives, num_inference_steps=8, guidance_scale=scale, latents=noise, output_type="np")
        theirs = torch.tensor(found.images).permute(0, 3, 1, 2)
        torch.testing.assert_close(theirs, (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=2e-4)
    # other schedulers take other arguments and other noise; all lead to about the same image
    near = pipe(prompts[:1], num_inference_steps=40, guidance_scale=1, latents=noise[:1], output_type="np").images
    for other in (EulerDiscreteScheduler, UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = other.from_config(plain.scheduler.config)
        found = pipe(prompts[:1], num_inference_steps=40, guidance_scale=1, latents=noise[:1], output_type="np").images
        assert abs(found - near).mean() < 0.1, other.__name__
    with pytest.warns(UserWarning, match="does not know 'zebra'"):
        pipe.told(["zebra"])
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("exported_pipeline", folder / "pipeline.py")
    assert spec is not None and spec.loader is not None
    written = module_from_spec(spec)
    spec.loader.exec_module(written)
    assert written.BAND == BAND
