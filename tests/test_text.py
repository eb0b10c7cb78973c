"""Prompts read by a text encoder: its numbers, training with them, and what a model asks of its host."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_training_images
from encoders import WordVectors
from torch import Tensor
from trainers import NET, config, run_steps, same

from ddpm_core.errors import UserError
from ddpm_core.model import file as model_file
from ddpm_core.model.build import build
from ddpm_core.model.config import ModelConfig, TextConfig
from ddpm_core.model.layers import Init
from ddpm_core.model.text import COMPONENTS, NOISE, UNTOLD, CrossAttention, Pooled, dropped, whitening
from ddpm_core.model.values import Shared, dense, digest_of, distinct, drawn
from ddpm_core.operations.context import Context
from ddpm_core.operations.sampling import sample
from ddpm_core.operations.telling import FILE
from ddpm_core.operations.texts import VARIANTS, shared, variants
from ddpm_core.operations.training import train
from ddpm_core.requests import Prompt, TrainRequest
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.sampling.guidance import Asked
from ddpm_core.training.random import generator
from ddpm_core.training.trainer import Trainer
from ddpm_core.workspace import Workspace

READINGS = ("pooled", "cross-attention")


def text_config(reading: str, encoder: WordVectors | None = None) -> TextConfig:
    encoder = encoder or WordVectors()
    return TextConfig(reading, encoder.name, encoder.fingerprint, encoder.width, encoder.tokens)


def reading(kind: str, **changes: Any) -> Any:
    base = config(**changes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, text=text_config(kind)))


def told(kind: str, texts: list[str], encoder: WordVectors | None = None) -> Shared:
    encoder = encoder or WordVectors()
    context = Context(torch.device("cpu"), text_encoder=lambda: encoder)
    return shared([variants(text, 1) for text in texts], text_config(kind, encoder), context)


def text_trainer(kind: str, **changes: Any) -> Trainer:
    images = tiny_training_images()
    texts = [f"{('red', 'green', 'blue')[i % 3]}, number {i % 7}" if i % 4 else "" for i in range(len(images))]
    return Trainer(reading(kind, **changes), images, "cpu", told={"text": told(kind, texts)})


def shaken(model: ModelConfig) -> Any:
    net = build(model)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return net


# -- numbers ------------------------------------------------------------------------------------------------------------------


def test_whitening_is_that_of_the_covariance() -> None:
    draw = np.random.default_rng(0)
    rows = (
        draw.normal(size=(200, 5)) @ draw.normal(size=(5, 40)) + 7.0
    )  # five directions of forty, beside what all share
    weight, bias = whitening(torch.tensor(rows), 16)
    found = torch.tensor(rows) @ weight.double().T + bias.double()
    assert torch.count_nonzero(weight.abs().sum(1)) == 5
    torch.testing.assert_close(found.mean(0), torch.zeros(16).double(), rtol=0, atol=1e-4)
    expected = torch.diag(torch.tensor([1.0] * 5 + [0.0] * 11)).double()
    torch.testing.assert_close(found.T @ found / len(rows), expected, rtol=0, atol=1e-4)
    assert bool((weight.gather(1, weight.abs().argmax(1, keepdim=True))[:5] > 0).all()), "signs are the same everywhere"
    alike, shift = whitening(torch.ones(3, 40), 16)  # all prompts are one
    assert not alike.any() and not shift.any()


def test_a_pooled_answer_is_told_as_the_formula_says() -> None:
    made: Any = Pooled(Init("cpu", torch.Generator().manual_seed(0)), 8, text_config("pooled"))
    with torch.no_grad():
        made.linear_2.weight.normal_(generator=torch.Generator().manual_seed(1))
    values = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    made.fit(values)
    values[3] = 0.0
    p = {name: value.detach().double() for name, value in made.named_parameters()}
    white = values.double() @ p["whitening.weight"].T + p["whitening.bias"]
    white = 3 * torch.tanh(white / 3)
    direct = white @ p["direct.weight"].T + p["direct.bias"]
    hidden = direct @ p["linear_1.weight"].T + p["linear_1.bias"]
    expected = direct + (hidden * torch.sigmoid(hidden)) @ p["linear_2.weight"].T + p["linear_2.bias"]
    expected[3] = 0.0
    torch.testing.assert_close(made(values, torch.float32).double(), expected, rtol=1e-4, atol=1e-4)
    assert made.whitening.weight.shape == (COMPONENTS, 24)


def test_cross_attention_is_that_of_diffusers() -> None:
    from diffusers.models.attention_processor import Attention

    made: Any = CrossAttention(Init("cpu", torch.Generator().manual_seed(0)), NET, NET.block_out_channels[-1], 20)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    channels = NET.block_out_channels[-1]
    theirs = Attention(
        channels,
        cross_attention_dim=20,
        heads=channels // NET.attention_head_dim,
        dim_head=NET.attention_head_dim,
        bias=True,
        norm_num_groups=NET.norm_num_groups,
        eps=NET.norm_eps,
        residual_connection=True,
    ).double()
    theirs.load_state_dict({name.replace("to_out.", "to_out.0."): v.double() for name, v in made.state_dict().items()})
    draw = torch.Generator().manual_seed(5)
    x, tokens = torch.randn(3, channels, 4, 4, generator=draw), torch.randn(3, 6, 20, generator=draw)
    there = torch.ones(3, 6, dtype=torch.bool)
    there[1, 4:] = False
    bias = torch.where(there, 0.0, -1e9).double()[:, None, :]
    expected = theirs(x.double(), encoder_hidden_states=tokens.double(), attention_mask=bias)
    torch.testing.assert_close(made(x, tokens, there).double(), expected, rtol=1e-4, atol=1e-4)
    there[2] = False
    assert torch.equal(made(x, tokens, there)[2], x[2]), "without a text the image stays as it is"


@pytest.mark.parametrize("kind", READINGS)
def test_a_network_that_is_told_nothing_is_the_one_without_texts(kind: str) -> None:
    model = ModelConfig(NET, text=text_config(kind))
    plain, own = build(ModelConfig(NET)), dict(build(model).named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in plain.named_parameters()), "other first weights"
    net = shaken(model)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 500])
    values = dense(told(kind, ["a red hat", ""]))
    found, nothing = net(x, t, told={"text": values}), net(x, t)
    assert torch.equal(nothing[1], found[1]) and not torch.allclose(nothing[0], found[0])
    if kind == "cross-attention":  # tokens that are none do not count, nor does how many there could be
        torch.testing.assert_close(net(x, t, told={"text": values[:, :5]}), found)


@pytest.mark.parametrize("tokens", [0, 3])
def test_what_a_training_is_told_varies_but_alike_at_each_try(tokens: int) -> None:
    values = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 11)
    values[:50] = 0.0
    if tokens:
        values = torch.stack([values, values, torch.zeros_like(values)], dim=1)
    found = dropped(values, UNTOLD, generator("cpu", 1, 2))
    assert torch.equal(found, dropped(values, UNTOLD, generator("cpu", 1, 2)))
    if tokens:
        assert torch.equal(found[:, 0], found[:, 1]), "one noise for all tokens"
        assert not found[:, 2].any(), "a token that is none stays none"
        values, found = values[:, 0], found[:, 0]
    assert not found[:50].any(), "who has no prompt is told none"
    kept = found[50:].any(1)
    assert abs(float(kept.float().mean()) - (1 - UNTOLD)) < 0.02
    off = (found - values)[50:][kept].std(0) / values.std(0)
    torch.testing.assert_close(off, torch.full((10,), NOISE), rtol=0.1, atol=0.0)


def test_values_are_shared_by_images_of_one_prompt() -> None:
    encoder = WordVectors()
    values = told("cross-attention", ["b", "a", "", "b", "a b"], encoder)
    assert sorted(encoder.read) == ["a", "a b", "b"] and len(values.table) == 4 and len(values) == 5
    whole = dense(values)
    assert torch.equal(whole[0], whole[3]) and not whole[2].any() and bool(whole[1].any())
    torch.testing.assert_close(whole[4], encoder.encode(["a b"])[0], rtol=1e-3, atol=1e-3)
    some = values[torch.tensor([2, 4])]
    assert torch.equal(dense(some), whole[[2, 4]]) and torch.equal(dense(values[1:3]), whole[1:3])
    assert len(distinct(values, 100)) == 4 and len(distinct(some, 100)) == 2 and len(distinct(values, 2)) == 2
    many = Shared(values.table, torch.tensor([[1, 2], [3, 3], [2, 0]]))
    assert torch.equal(dense(many), many.table[[1, 3, 2]].float())
    assert torch.equal(many.at(torch.tensor([1, 0, 1])), many.table[[2, 3, 0]].float())
    seen = {tuple(drawn(many, generator("cpu", i, 3))[0].flatten().tolist()) for i in range(30)}
    assert seen == {tuple(many.table[i].float().flatten().tolist()) for i in (1, 2)}, (
        "either of an image's rows is drawn"
    )
    assert digest_of(values) != digest_of(some) and digest_of(values) == digest_of(values[:])


def test_a_training_is_told_parts_of_prompts_too() -> None:
    text = "portrait, red hair, a hat, smiling"
    found = variants(text, 6)
    assert found[0] == text and variants(text, 6) == found and len(set(found)) > 3
    pieces = text.split(", ")
    for part in found[1:]:
        some = part.split(", ")
        assert 0 < len(some) < 4 and some == [piece for piece in pieces if piece in some], "in their order"
    assert all(
        set(part.split()) < {"an", "old", "man", "with", "a", "beard"}
        for part in variants("an old man with a beard", 4)[1:]
    )
    assert variants("hat", 3) == ("hat",) * 3 and variants("", 2) == ("", "")
    assert set(VARIANTS) == set(READINGS)


# -- training -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READINGS)
def test_a_training_learns_what_texts_say(kind: str) -> None:
    """Three colours, each by several prompts: asked for one, also by a prompt that no image has, the network gives that one."""
    colours = torch.tensor([[230, 30, 30], [30, 230, 30], [30, 30, 230]], dtype=torch.uint8)
    names, things = ("red", "green", "blue"), ("hat", "scarf", "coat", "glove", "boot")
    which = torch.arange(120) % 3
    images = colours[which][:, :, None, None].expand(-1, 3, 16, 16).contiguous()
    texts = [f"a {names[i % 3]} {things[(i // 3) % 4]}" for i in range(120)]
    settings = {"batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 10, "flip_probability": 0.0}
    t = Trainer(reading(kind, **settings), images, "cpu", told={"text": told(kind, texts)})
    t.run_steps(320)
    new = [f"a {name} boot" for name in names] * 4
    asked = Asked({"text": told(kind, new)}, {"text": told(kind, [""] * 12)}, 2.0)
    found, _ = generate(t.ema, t.diffusion, (3, 16, 16), 12, SampleSettings(steps=10, seed=1), asked=asked)
    assert found.mean((2, 3)).argmax(1).tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("kind", READINGS)
def test_a_resumed_training_is_told_the_same(kind: str) -> None:
    whole, first = text_trainer(kind), text_trainer(kind)
    run_steps(whole, 6)
    run_steps(first, 4)
    second = text_trainer(kind)
    second.load_state(first.state_tensors(), first.state_numbers())
    run_steps(second, 2)
    assert same(whole.state_tensors(), second.state_tensors())
    assert any(name.startswith("ema.conditions.text") for name in whole.state_tensors())


@pytest.mark.parametrize("kind", READINGS)
def test_texts_can_be_added_to_a_model_without(kind: str) -> None:
    plain = Trainer(config(), tiny_training_images(), "cpu")
    run_steps(plain, 2)
    t = text_trainer(kind)
    t.start_from({name: value.detach().clone() for name, value in plain.ema.named_parameters()})
    x, time = torch.randn(1, 3, 16, 16), torch.tensor([10])
    asked = {"text": dense(told(kind, ["red"]))}
    # what it has not learnt yet must not disturb what it has
    torch.testing.assert_close(t.ema(x, time, told=asked), plain.ema(x, time))
    run_steps(t, 3)
    assert not torch.equal(t.net(x, time, told=asked), t.net(x, time))


# -- files and operations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READINGS)
def test_a_model_file_holds_its_encoder_and_a_forged_one_is_refused(kind: str, tmp_path: Path) -> None:
    model = ModelConfig(NET, text=text_config(kind))
    weights = {name: value.detach() for name, value in build(model).named_parameters()}
    path = tmp_path / "m.safetensors"
    model_file.save(path, model, weights, title="m", info={})
    assert model_file.load(path).config == model
    for changes, problem in (
        ({"reading": "aloud"}, "reading"),
        ({"width": 10**9}, "range"),
        ({"tokens": 0}, "range"),
        ({"name": 3}, "no text"),
        ({"more": 1}, "does not know"),
        ({"width": 23}, "do not fit"),
    ):
        values = json.loads(json.dumps(model.to_json()))
        values["text"] = {**values["text"], **changes}
        with pytest.raises(UserError, match=problem):
            model_file.save(path, ModelConfig.from_json(values), weights, title="m", info={})
            model_file.load(path)
    assert "text" not in ModelConfig(NET).to_json(), "models of before are written as before"


SETTINGS = {"block_out_channels": "8,16,16", "norm_num_groups": "4", "attention_head_dim": "8"}


def ready(few: Path, tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])
    return workspace


def request(model: str, **changes: Any) -> TrainRequest:
    base = TrainRequest(model, "d", preset="tiny-32", size=16, steps=2, precision="fp32", settings=SETTINGS)
    return dataclasses.replace(base, **changes)


def at_host(encoder: WordVectors, said: list[str] | None = None) -> Context:
    heard = said if said is not None else []
    return Context(torch.device("cpu"), text_encoder=lambda: encoder, say=heard.append)


def pixels(workspace: Workspace, context: Context, prompt: str, negative: str = "") -> Tensor:
    found = sample(workspace, "m", 2, SampleSettings(steps=2, seed=3), context, prompts=[Prompt(prompt, negative)] * 2)
    return found.images


@pytest.mark.parametrize("kind", READINGS)
def test_the_whole_way(kind: str, few: Path, tmp_path: Path) -> None:
    workspace, encoder = ready(few, tmp_path), WordVectors()
    train(workspace, request("m", condition=kind), at_host(encoder))
    assert workspace.model_config("m").text == text_config(kind, encoder)
    assert workspace.run("m").format == 5
    assert len(encoder.read) == len(set(encoder.read)) > 4, "each text is read once"
    # what it was told is kept with the run: it goes on without any encoder
    train(workspace, request("m", dataset=None, preset=None, size=None, precision=None, settings={}, resume=True, steps=4),
          Context(torch.device("cpu")))  # fmt: skip
    prompt = encoder.read[0]
    found = sample(
        workspace, "m", 1, SampleSettings(steps=2, seed=3), at_host(encoder), prompts=[Prompt(f"({prompt}:1.2)", "hat")]
    )
    assert found.texts[0].startswith(f"({prompt}:1.2)\nNegative prompt: hat\n") and "CFG scale: 2" in found.texts[0]
    assert not torch.equal(pixels(workspace, at_host(encoder), prompt), pixels(workspace, at_host(encoder), ""))
    assert not torch.equal(pixels(workspace, at_host(encoder), "", "hat"), pixels(workspace, at_host(encoder), ""))
    assert torch.equal(
        pixels(workspace, at_host(encoder), prompt), pixels(workspace, at_host(encoder), f"({prompt}:1.3)")
    )

    other = WordVectors("others")
    with pytest.raises(UserError, match="text encoder of vectors, and the one that is loaded, of others, is another"):
        pixels(workspace, at_host(other), prompt)
    with pytest.raises(UserError, match="no text encoder here"):
        pixels(workspace, Context(torch.device("cpu")), prompt)
    pixels(workspace, Context(torch.device("cpu")), "")  # without a prompt none is needed

    # goes on from its weights with the same encoder, and is not told words instead
    train(workspace, request("n", init_from="m", preset=None, size=None, settings={}), at_host(encoder))
    assert workspace.model_config("n").text == text_config(kind, encoder)
    with pytest.raises(UserError, match="leave out the condition tags"):
        train(
            workspace,
            request("o", init_from="m", preset=None, size=None, settings={}, condition="tags"),
            at_host(encoder),
        )
    with pytest.raises(UserError, match="is another"):
        train(workspace, request("o", init_from="m", preset=None, size=None, settings={}), at_host(other))
    assert not (workspace.root / "runs" / "o").exists()


def test_what_a_run_was_told_may_be_damaged_or_gone(few: Path, tmp_path: Path) -> None:
    workspace, encoder, said = ready(few, tmp_path), WordVectors(), []
    train(workspace, request("m", condition="pooled"), at_host(encoder))
    path = workspace.run_folder("m") / FILE
    again = request("m", dataset=None, preset=None, size=None, precision=None, settings={}, resume=True, steps=4)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        train(workspace, again, at_host(encoder))
    path.unlink()
    train(workspace, again, at_host(encoder, said))
    assert any("read from the prompts again" in text for text in said) and path.read_bytes() == whole


def test_an_encoder_may_answer_nonsense(few: Path, tmp_path: Path) -> None:
    class Broken(WordVectors):
        def encode(self, texts: Any) -> Tensor:
            return super().encode(texts) * float("nan")

    class Small(WordVectors):
        def encode(self, texts: Any) -> Tensor:
            return super().encode(texts)[:, :, :3]

    workspace = ready(few, tmp_path)
    for encoder in (Broken(), Small()):
        with pytest.raises(UserError, match="no usable answer"):
            train(workspace, request("m", condition="text"), at_host(encoder))
    assert not workspace.run_names() and not (workspace.root / "runs" / "m").exists()
    with pytest.raises(UserError, match="no text encoder here"):
        train(workspace, request("m", condition="text"), Context(torch.device("cpu")))
    assert not workspace.run_names()


def test_few_images_are_read_pooled_and_those_without_prompts_not_at_all(few: Path, tmp_path: Path) -> None:
    from ddpm_core.dataset import words
    from ddpm_core.operations.configuring import configure, with_condition

    workspace = ready(few, tmp_path)
    store = workspace.store("d")
    encoder = WordVectors()
    asked = request("m", condition="text")
    found, _ = configure(workspace, asked, torch.device("cpu"))
    assert with_condition(found, asked, workspace, store, at_host(encoder)).model.text == text_config("pooled", encoder)
    # a word that a person left out is told to no encoder
    word = words.words_of(store).words[0].entry
    words.choose(store, [], [word])
    train(workspace, asked, at_host(encoder))
    assert encoder.read and not any(word in text.split(", ") for text in encoder.read)
    with contextlib.closing(sqlite3.connect(store.folder / "dataset.sqlite")) as db, db:
        db.execute("UPDATE items SET prompt = ''")
    with pytest.raises(UserError, match="no prompts"):
        with_condition(found, asked, workspace, store, at_host(encoder))


def test_a_model_is_judged_by_the_words_of_its_prompts(few: Path, tmp_path: Path) -> None:
    """Through the command line for one with words, and with its encoder for one that reads texts."""
    from conftest import CommandLine

    from ddpm_core.operations.evaluation import evaluate

    workspace, encoder = ready(few, tmp_path), WordVectors()
    line = CommandLine(workspace.root)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    options = ("--preset", "tiny-32", "--size", 16, "--steps", 3, "--precision", "fp32", *settings)
    line.run("train", "--model", "words", "--dataset", "d", "--condition", "tags", *options)
    line.run("train", "--model", "none", "--dataset", "d", "--condition", "none", *options)
    asked = ("evaluate", "--dataset", "d", "--count", 16, "--steps", 2, "--prompts")
    found = line.run(*asked, "--model", "words")
    assert found["words"] == len(line.run("models", "show", "words")["tags"])
    assert set(found["copied"]) >= {"none", "own"} and set(found["gain"]) == {"seen", "held_out"}
    assert found["verdict"] and len(found["kid_prompted"]) == 3 and set(found["alignment"]) <= set(found["told_apart"])
    assert "trained without prompts" in str(line.run(*asked, "--model", "none", code=2)["error"])

    train(workspace, request("m", condition="cross-attention"), at_host(encoder))
    how = SampleSettings(steps=2)
    judged = evaluate(workspace, "d", at_host(encoder), model="m", count=16, settings=how, prompts=True)
    assert judged["words"] == found["words"] and judged["verdict"] and set(judged["gain"]) == {"seen", "held_out"}
    with pytest.raises(UserError, match="no text encoder here"):
        evaluate(workspace, "d", Context(torch.device("cpu")), model="m", count=16, settings=how, prompts=True)
    assert "no text encoder here" in str(line.run(*asked, "--model", "m", code=2)["error"])


# -- what a review found ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "tags", *READINGS])
def test_memory_is_estimated_for_every_condition(kind: str) -> None:
    """A WebUI on CUDA asks for it before each training."""
    from ddpm_core.training.estimate import estimate

    plain = config()
    model = dataclasses.replace(plain.model, tags=("red", "hat")) if kind == "tags" else plain.model
    if kind in READINGS:
        model = dataclasses.replace(model, text=text_config(kind))
    found = estimate(dataclasses.replace(plain, model=model), torch.device("cpu"), most_seconds=0.0)
    least = estimate(plain, torch.device("cpu"), most_seconds=0.0)
    assert found.parameters >= least.parameters and found.megabytes >= least.megabytes
    assert (found.parameters > least.parameters) == (kind != "none")


def test_an_image_set_without_prompts_goes_on_from_a_model_of_texts(few: Path, tmp_path: Path) -> None:
    workspace, encoder = ready(few, tmp_path), WordVectors()
    train(workspace, request("m", condition="pooled"), at_host(encoder))
    with contextlib.closing(sqlite3.connect(workspace.store("d").folder / "dataset.sqlite")) as db, db:
        db.execute("UPDATE items SET prompt = ''")
    train(workspace, request("n", init_from="m", preset=None, size=None, settings={}), at_host(encoder))
    assert workspace.model_config("n").text is not None


def test_prompts_that_share_no_words_are_judged_by_their_gain(few: Path, tmp_path: Path) -> None:
    from ddpm_core.operations.evaluation import evaluate

    workspace, encoder = ready(few, tmp_path), WordVectors()
    with contextlib.closing(sqlite3.connect(workspace.store("d").folder / "dataset.sqlite")) as db, db:
        db.execute("UPDATE items SET prompt = 'picture' || id")
    train(workspace, request("m", condition="pooled"), at_host(encoder))
    encoder.read.clear()
    how = SampleSettings(steps=2)
    found = evaluate(workspace, "d", at_host(encoder), model="m", count=16, settings=how, prompts=True)
    assert found["words"] == 0 and set(found["gain"]) == {"seen", "held_out"} and "cannot be judged" in found["verdict"]
    assert found["kid"] > 0 and len(encoder.read) == 60, "no more is read than is needed"


def test_another_clip_skip_is_said(few: Path, tmp_path: Path) -> None:
    first, second = WordVectors(), WordVectors()
    first.fingerprint, second.fingerprint = "0f-skip2", "0f-skip1"
    workspace = ready(few, tmp_path)
    train(workspace, request("m", condition="pooled"), at_host(first))
    with pytest.raises(UserError, match="Clip skip 2 that it was trained with"):
        pixels(workspace, at_host(second), "red")
