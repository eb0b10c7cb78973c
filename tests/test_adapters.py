"""Adapters: their arithmetic, their files, their training, and what they do to a model."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import CommandLine, tiny_training_images
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainers import NET, run_steps, same

from ddpm_core.errors import UserError
from ddpm_core.model import adapter_file
from ddpm_core.model import file as model_file
from ddpm_core.model.build import build
from ddpm_core.model.config import AdapterConfig, DiffusionConfig, ModelConfig, TextConfig, UpscalerConfig
from ddpm_core.model.lora import (
    CONCEPT,
    WORDS,
    Adapter,
    Factors,
    is_adapted,
    key_of,
    merge,
    product,
    widened,
    with_concept,
)
from ddpm_core.model.network import Network
from ddpm_core.operations import tuning
from ddpm_core.operations.context import Context
from ddpm_core.operations.loading import adapters_in
from ddpm_core.operations.sampling import sample
from ddpm_core.requests import Prompt
from ddpm_core.sampling.generate import SampleSettings
from ddpm_core.training.objective import Denoise
from ddpm_core.training.settings import AdapterSettings, RunConfig, TrainSettings
from ddpm_core.training.trainer import Trainer
from ddpm_core.training.tuning import KeepWatch, Prior, Tuning
from ddpm_core.workspace import Workspace

PLAIN = ModelConfig(dataclasses.replace(NET, dropout=0.0))
WORDED = dataclasses.replace(PLAIN, tags=("red", "green"))
SMALL = UpscalerConfig(
    image_size=(32, 32), crop_size=16, block_out_channels=(8, 16), blocks_per_level=(1, 1), norm_num_groups=4
)
BOTH = [WORDED, ModelConfig(SMALL)]
READING = dataclasses.replace(PLAIN, text=TextConfig("pooled", "words", "0" * 64, 12, 4))
CROWN = AdapterConfig(rank=3, alpha=6.0, concept="crown")


def shaken(config: ModelConfig, seed: int = 0) -> Network:
    """A network none of whose weights is zero."""
    random = torch.Generator().manual_seed(seed)
    net = build(config, "cpu", random)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return net


def tensors(net: Network) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def adapter(model: ModelConfig, config: AdapterConfig, seed: int = 5, name: str = "one") -> Adapter:
    """One whose twins are all drawn, none zero."""
    random = torch.Generator().manual_seed(seed)
    factors = Factors(config, build(with_concept(model, config.concept), "meta"), "cpu", random)
    drawn = {key: 0.2 * torch.randn(value.shape, generator=random) for key, value in factors.tensors.items()}
    return Adapter(config, drawn, name, "base", "0" * 64)


def call(net: Network, model: ModelConfig, told: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn((2, *model.denoised), generator=random)
    own: dict[str, torch.Tensor] = {}
    if model.kind == "upscaler":
        own = {"low": torch.randn(x.shape, generator=random), "level": torch.tensor([0.1, 0.2])}
    with torch.no_grad():
        return net(x, torch.tensor([10, 500]), told={**own, **(told or {})})


# -- arithmetic -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", BOTH)
def test_a_merged_network_is_the_base_with_pairs_of_convolutions_beside_its_own(model: ModelConfig) -> None:
    """As kohya's scripts compute it: y + alpha / rank * up(down(x)), in every adapted layer."""
    config = AdapterConfig(rank=3, alpha=6.0)
    net, one = shaken(model), adapter(model, config)
    merged_model, weights = merge(model, tensors(net), [(one, 0.7)])
    merged = build(merged_model, "cpu", draw=False)
    merged.load_tensors(weights)
    adapted = 0
    for name, module in net.named_modules():
        parameter = dict(net.named_parameters()).get(f"{name}.weight")
        if parameter is None or not is_adapted(f"{name}.weight", parameter):
            continue
        key, adapted = key_of(f"{name}.weight"), adapted + 1
        down, up = one.tensors[f"{key}.lora_down.weight"], one.tensors[f"{key}.lora_up.weight"]

        def beside(module: Any, args: Any, output: torch.Tensor, down: Any = down, up: Any = up) -> torch.Tensor:
            x = args[0]
            if down.ndim == 2:
                more = F.linear(F.linear(x, down), up)
            else:
                more = F.conv2d(F.conv2d(x, down, stride=module.stride, padding=module.padding), up)
            return output + 0.7 * 2.0 * more

        module.register_forward_hook(beside)
    assert adapted > 5
    before = call(shaken(model), model)
    expected = call(net, model)
    torch.testing.assert_close(call(merged, model), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert float((expected - before).abs().max()) > 0.01


@pytest.mark.parametrize("model", BOTH)
def test_three_adapters_together_are_the_sum_of_what_each_changes(model: ModelConfig) -> None:
    base = tensors(shaken(model))
    each = [
        (adapter(model, AdapterConfig(rank, 4.0), rank, f"r{rank}"), weight)
        for rank, weight in ((2, 1.0), (4, -0.5), (8, 0.3))
    ]
    _, together = merge(model, base, each)
    changes = [merge(model, base, [one])[1] for one in each]
    for name, value in base.items():
        total = value + sum(changed[name] - value for changed in changes)
        torch.testing.assert_close(together[name], total, rtol=0, atol=1e-5)
    _, untouched = merge(model, base, [(each[0][0], 0.0)])
    assert same(untouched, base)
    _, reverse = merge(model, base, each[::-1])
    assert all(torch.allclose(reverse[name], together[name], atol=1e-6) for name in base)


def test_a_concept_is_a_word_more_that_changes_nothing_unasked() -> None:
    net = shaken(WORDED)
    one = adapter(WORDED, CROWN)
    only_word = Adapter(
        CROWN, {key: value if key == CONCEPT else 0 * value for key, value in one.tensors.items()}, "w", "base", ""
    )
    model, weights = merge(WORDED, tensors(net), [(only_word, 1.0)])
    assert model.tags == ("red", "green", "crown")
    merged = build(model, "cpu", draw=False)
    merged.load_tensors(weights)
    told = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    plain = call(net, WORDED, {"tags": told})
    torch.testing.assert_close(call(merged, model, {"tags": F.pad(told, (0, 1))}), plain)
    asked = F.pad(told, (0, 1), value=1.0)
    assert float((call(merged, model, {"tags": asked}) - plain).abs().max()) > 1e-3
    # two that teach one word: it means both; and a model without words gets its first
    _, twice = merge(WORDED, tensors(net), [(only_word, 1.0), (only_word, 0.5)])
    torch.testing.assert_close(twice[WORDS][2], 2.0 * one.tensors[CONCEPT])
    first, weights = merge(PLAIN, tensors(shaken(PLAIN)), [(adapter(PLAIN, CROWN), 1.0)])
    assert first.tags == ("crown",) and weights[WORDS].shape[0] == 1
    build(first, "cpu", draw=False).load_tensors(weights)


def test_weights_out_of_bounds_and_adapters_of_other_shapes_are_refused() -> None:
    base, one = tensors(shaken(PLAIN)), adapter(PLAIN, AdapterConfig())
    for weight in (math.nan, math.inf, 1e9, -11.0):
        with pytest.raises(UserError, match="weight of the adapter one"):
            merge(PLAIN, base, [(one, weight)])
    wider = dataclasses.replace(PLAIN, unet=dataclasses.replace(PLAIN.unet, block_out_channels=(8, 24)))
    with pytest.raises(UserError, match="does not fit"):
        merge(wider, tensors(shaken(wider)), [(one, 1.0)])
    for values in ({"rank": 0}, {"rank": 257}, {"rank": True}, {"alpha": 0.0}, {"alpha": math.nan}, {"concept": 3}):
        with pytest.raises(UserError):
            AdapterConfig(**values)  # type: ignore[arg-type]


def test_adapters_are_read_out_of_prompts() -> None:
    assert adapters_in("<ddpm:a:0.5> red, <ddpm:b>, <lora:c:1>, <ddpm:a: .25>") == (("a", 0.25), ("b", 1.0))
    assert adapters_in("nothing, <lora:a:1>") == ()
    for text in ("<ddpm:>", "<ddpm:a:1:2>"):
        with pytest.raises(UserError, match="is called by"):
            adapters_in(text)
    for text in ("<ddpm:a:nan>", "<ddpm:a:1e9>", "<ddpm:a:much>", "<ddpm:a:inf>"):
        with pytest.raises(UserError, match="weight of the adapter a"):
            adapters_in(text)
    with pytest.raises(UserError, match="At most 16 adapters"):
        adapters_in(" ".join(f"<ddpm:a{i}>" for i in range(40)))


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "config"), [(WORDED, CROWN), (ModelConfig(SMALL), AdapterConfig(4, 4.0))])
def test_a_file_is_kohyas_and_comes_back(model: ModelConfig, config: AdapterConfig, tmp_path: Path) -> None:
    one = adapter(model, config)
    path = tmp_path / "one.safetensors"
    adapter_file.save(path, one, with_concept(model, config.concept), info={"steps": 3, "images": 12})
    back, head = adapter_file.load(path), adapter_file.read_head(path)
    assert head is not None and (back.config, head.base, head.info["steps"]) == (config, "base", 3)
    for key, value in one.tensors.items():
        torch.testing.assert_close(back.tensors[key].float(), value, rtol=1e-3, atol=1e-4)
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        about, names = file.metadata(), set(file.keys())
    assert about["ss_base_model_version"] == f"ddpm-{model.kind}" and about["ss_network_dim"] == str(config.rank)
    assert (about["ss_sd_model_name"], about["ss_sd_model_hash"], about["ss_output_name"]) == ("base", "0" * 64, "one")
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert {f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"} <= names
    with pytest.raises(UserError, match="is an adapter"):
        model_file.load(path)
    whole = tmp_path / "whole.safetensors"
    model_file.save(whole, model, tensors(shaken(model)), title="whole", info={})
    assert adapter_file.read_head(whole) is None
    with pytest.raises(UserError, match="is a model and no adapter"):
        adapter_file.load(whole)


def test_forged_files_are_refused(tmp_path: Path) -> None:
    path, forged = tmp_path / "one.safetensors", tmp_path / "forged.safetensors"
    adapter_file.save(path, adapter(WORDED, CROWN), with_concept(WORDED, "crown"), info={})
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        about = file.metadata()
    good = load_file(path)
    down = next(name for name in good if name.endswith("lora_down.weight"))
    key = down.split(".")[0]

    def refused(changed: dict[str, torch.Tensor], match: str, metadata: dict[str, str] = about) -> None:
        save_file(changed, forged, metadata=metadata)
        with pytest.raises(UserError, match=match):
            adapter_file.load(forged)

    refused({**good, down: torch.full_like(good[down], math.nan)}, "not finite")
    refused({**good, f"{key}.alpha": torch.tensor(50.0)}, "another alpha than it says")
    refused({name: value for name, value in good.items() if name != CONCEPT}, "other names")
    refused({name: value for name, value in good.items() if not name.startswith(key) or name == down}, "other names")
    refused({**good, down: torch.ones(9, *good[down].shape[1:])}, "another rank than it says")
    refused({**good, CONCEPT: torch.ones(2, 2)}, "no embedding")

    def unfit(changed: dict[str, torch.Tensor]) -> None:
        """What can be seen only where it meets its base; before anything of a forged size is made."""
        save_file(changed, forged, metadata=about)
        with pytest.raises(UserError, match="does not fit"):
            merge(WORDED, tensors(shaken(WORDED)), [(adapter_file.load(forged), 1.0)])

    up = f"{key}.lora_up.weight"
    unfit({**good, CONCEPT: torch.ones(1)})
    unfit({**good, up: torch.ones(*good[up].shape[:2], 3, 3)})
    wide = {"lora_unet_x.lora_down.weight": torch.ones(1, 2**17), "lora_unet_x.lora_up.weight": torch.ones(2**17, 1)}
    unfit({**good, **wide, "lora_unet_x.alpha": torch.tensor(6.0)})
    values = json.loads(about["ddpm"])
    for broken in (
        {"base": 3},
        {"base": "<img src=x>"},
        {"config": {"concept": "crown <lora:x:1>"}},
        {"digest": None},
        {"config": {"rank": -1}},
        {"config": []},
    ):
        changed = {**values, "adapter": {**values["adapter"], **broken}}
        with pytest.raises(UserError):
            save_file(good, forged, metadata={**about, "ddpm": json.dumps(changed)})
            adapter_file.load(forged)
    forged.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        adapter_file.load(forged)


# -- training ---------------------------------------------------------------------------------------------------------------


def trainer(model: ModelConfig = WORDED, preserve: float = 1.0, prior: bool = True, **changes: Any) -> Trainer:
    """Of an adapter of a shaken base, on some images; half of each batch is the base's."""
    concept = "" if model.kind == "upscaler" or model.text is not None else "crown"
    after = with_concept(model, concept)
    settings = TrainSettings(
        **{"batch_size": 8, "precision": "fp32", "warmup_steps": 2, "flip_probability": 0.0, **changes}
    )
    tuning = AdapterSettings("base", "0" * 64, AdapterConfig(3, 6.0, concept), preserve)
    side = model.image_size[0]
    images, others = tiny_training_images(6, side), tiny_training_images(20, side, seed=3)
    held = torch.arange(20) >= 14
    told, own = {}, {}
    if after.tags:
        told = {"tags": torch.tensor([[1.0, 0.0, 1.0]]).repeat(6, 1)}
        own = {"tags": F.pad(torch.eye(2)[torch.arange(20) % 2], (0, 1))}
    if model.text is not None:
        random = torch.Generator().manual_seed(8)
        told, own = ({"text": torch.randn((count, 12), generator=random)} for count in (6, 20))
    base = widened(tensors(shaken(model)), model, after)
    kept = Prior(others, held, own) if prior else None
    return Trainer(RunConfig(after, settings, tuning), images, "cpu", told=told, tuning=Tuning(tuning, base, kept))


@pytest.mark.parametrize("model", BOTH)
def test_the_twins_get_the_gradients_that_autograd_gives_them(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole step against the same loss written down plainly: half of the batch towards its targets, half towards the base's answers."""
    t = trainer(model, preserve=0.7, learning_rate=1e-8, gradient_clip=1e6)
    twins = {name: value.detach().clone().requires_grad_() for name, value in _own(t).items()}
    with torch.no_grad():  # the products are zero at first, and so would be half of the gradients
        for number, (name, value) in enumerate(twins.items()):
            value.copy_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
            _own(t)[name].copy_(value)
    batch = t.batches.draw(0).beside(t.kept.draw(0))  # type: ignore[union-attr]
    assert t.tuning is not None
    base, config = t.tuning.base, t.tuning.settings.adapter
    changed = dict(base)
    for name in [name for name in base if f"{key_of(name)}.lora_up.weight" in twins]:
        pair = [twins[f"{key_of(name)}.lora_{side}.weight"] for side in ("down", "up")]
        changed[name] = base[name] + config.scale * product(*pair)
    if config.concept:
        changed[WORDS] = torch.cat([base[WORDS][:2], (base[WORDS][2] + twins[CONCEPT])[None]])
    told = {name: batch.told[name] for name in t.net.can_be_told}
    noisy = t.diffusion.add_noise(batch.x0, batch.noise, batch.times)
    answers = [
        torch.func.functional_call(t.net, weights, (noisy, batch.times), {"told": told})
        for weights in (changed, dict(base))
    ]
    target = t.diffusion.target(batch.x0, batch.noise, batch.times)
    target[4:] = answers[1][4:].detach()
    objective = t.work.objective
    assert isinstance(objective, Denoise)
    weights = objective.weights[batch.times]
    weights[4:] *= 0.7
    loss = ((answers[0] - target).square().flatten(1).mean(1) * weights).sum() / 8
    expected = torch.autograd.grad(loss, list(twins.values()))
    found: dict[str, torch.Tensor] = {}
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters: Any, most: float) -> torch.Tensor:
        found.update({name: value.grad.clone() for name, value in _own(t).items() if value.grad is not None})
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    t.run_steps(1)
    for (name, _), gradient in zip(twins.items(), expected):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert all(parameter.grad is None for parameter in t.net.parameters())


def _own(t: Trainer) -> dict[str, torch.nn.Parameter]:
    return {one.name: one.parameter for one in t.state}


@pytest.mark.parametrize("model", BOTH)
def test_a_training_moves_the_twins_alone_and_begins_as_the_base(model: ModelConfig) -> None:
    t = trainer(model)
    told = {"tags": torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])} if t.config.model.tags else None
    torch.testing.assert_close(call(t.ema, t.config.model, told), call(t.base_network(), t.config.model, told))
    before = {name: value.clone() for name, value in t.tuning.base.items()}  # type: ignore[union-attr]
    run_steps(t, 4)
    assert same(before, dict(t.tuning.base))  # type: ignore[union-attr]
    assert float((call(t.ema, t.config.model, told) - call(t.base_network(), t.config.model, told)).abs().max()) > 0
    names = set(t.state_tensors())
    assert not any("conv_in" in name or "conv_norm" in name for name in names)
    assert all(torch.isfinite(value).all() for value in t.averaged().values())
    moments = sum(value.numel() for name, value in t.state_tensors().items() if name.startswith("optimizer."))
    assert moments < 0.8 * 2 * sum(value.numel() for value in before.values())


@pytest.mark.parametrize("model", [*BOTH, READING])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_training_is_exact(model: ModelConfig, precision: str) -> None:
    whole, first, second = (trainer(model, precision=precision) for _ in range(3))
    run_steps(whole, 5)
    run_steps(first, 3)
    second.load_state(first.state_tensors(), first.state_numbers())
    run_steps(second, 2)
    assert same(whole.state_tensors(), second.state_tensors())


def test_nothing_stays_in_memory() -> None:
    """Networks, base and images of a training that ended: a host wants its memory back, whoever still holds the trainer."""
    t = trainer()
    run_steps(t, 1)
    held = [parameter for net in (t.net, t.base_network()) for parameter in net.parameters()]
    t.free()
    assert sum(parameter.numel() for parameter in held) == 0
    alive = [one for one in gc.get_objects() if isinstance(one, torch.nn.Parameter) and one.numel() > 1000]
    assert not [one for one in alive if any(one is other for other in held)]
    assert not any(one.numel() for one in t.state.parameters)


@pytest.mark.parametrize("model", BOTH)
def test_a_batch_in_pieces_is_the_same_batch(model: ModelConfig) -> None:
    whole, pieces = trainer(model), trainer(model)
    pieces.pieces = 4
    assert abs(whole.run_steps(3).loss - pieces.run_steps(3).loss) < 1e-4
    for name, value in whole.averaged().items():
        torch.testing.assert_close(pieces.averaged()[name], value, rtol=1e-3, atol=1e-5)


def test_the_new_word_is_never_left_out_of_the_new_images_and_never_told_of_the_old() -> None:
    t = trainer()
    for step in range(20):
        batch = t.batches.draw(step).beside(t.kept.draw(step))  # type: ignore[union-attr]
        told = batch.told["tags"]
        assert told[:4, 2].tolist() == [1.0] * 4 and told[4:, 2].tolist() == [0.0] * 4
    assert {0.0, 1.0} == set(torch.cat([t.batches.draw(step).told["tags"][:, 0] for step in range(20)]).tolist())


def test_without_images_of_the_base_all_of_a_batch_is_new() -> None:
    for t in (trainer(prior=False), trainer(preserve=0.0)):
        assert t.kept is None and len(t.batches.draw(0).x0) == 8
        run_steps(t, 2)


def test_a_training_ends_before_it_forgets_or_copies() -> None:
    watch = KeepWatch(1.0)
    assert not watch.look(1.03, 0.0) and not watch.look(1.01, 0.0) and not watch.look(1.03, 0.0)
    assert watch.look(1.04, 0.0) and watch.begun and "4.0 %" in watch.sentence
    assert not watch.look(1.05, 0.0)  # said once
    assert KeepWatch(1.0, begun=True).sentence and watch.ending == "forgetting"
    careless = KeepWatch(1.0, preserving=False)
    assert not any(careless.look(2.0, 0.0) for _ in range(5))
    copies = KeepWatch(1.0)
    assert not copies.look(0.9, 0.5) and copies.look(0.9, 1.0) and "copy" in copies.sentence
    assert copies.ending == "copying"


# -- the whole way ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(few: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A workspace with a base, six images of something new, and an adapter of some steps."""
    folder = tmp_path_factory.mktemp("adapters")
    cli = CommandLine(folder / "ws")
    cli.run("harvest", few, "--dataset", "d")
    small = ["--set", "block_out_channels=16,32", "--set", "attention_levels=0,0", "--set", "attention_head_dim=8"]
    cli.run(
        "train", "--dataset", "d", "--model", "base", "--preset", "tiny-32", "--steps", 3, "--condition", "tags", *small
    )
    new = folder / "new"
    new.mkdir()
    for path in sorted(few.iterdir())[:6]:
        with Image.open(path) as image:
            Image.blend(image.convert("RGB"), Image.new("RGB", image.size, (0, 200, 0)), 0.5).save(
                new / f"{path.stem}.png"
            )
    cli.run("harvest", new, "--dataset", "new")
    found = cli.run(
        "train", "--base", "base", "--adapter", "green", "--dataset", "new", "--concept", "Emerald", "--steps", 6
    )
    assert found["steps"] == 6 and isinstance(found["forgotten"], float) and found["name"] == "green"
    return cli


def test_an_adapter_is_a_run_like_any_other(taught: CommandLine) -> None:
    shown = taught.run("models", "show", "green")
    assert (shown["kind"], shown["base"], shown["rank"], shown["concept"]) == ("adapter", "base", 8, "emerald")
    kinds = {model["name"]: model["kind"] for model in taught.run("models", "list")["models"]}  # type: ignore[union-attr, call-overload]
    assert kinds == {"base": "unet", "green": "adapter"}
    # the base and its dataset may change meanwhile
    workspace = Workspace(taught.workspace)
    assert workspace.adapters_of("base") == ["green"] and workspace.model_names("unet") == ["base"]
    went_on = taught.run("train", "--resume", "--adapter", "green", "--steps", 8)
    assert went_on["steps"] == 8 and went_on["heldout_loss"]
    assert list((taught.workspace / "runs" / "green" / "previews").glob("*.png"))
    with Image.open(taught.workspace / "models" / "green.preview.png") as image:
        assert image.size == (512, 512)


def test_a_prompt_calls_an_adapter(taught: CommandLine, tmp_path: Path) -> None:
    asked = ["sample", "--model", "base", "--count", 1, "--steps", 2, "--seed", 4, "--out"]
    plain = taught.run(*asked, tmp_path / "a")
    none = taught.run(*asked, tmp_path / "b", "--prompt", "<ddpm:green:0>")
    used = taught.run(*asked, tmp_path / "c", "--prompt", "<ddpm:green:1> emerald")
    assert used["tags"] == ["emerald"] and used["unknown_words"] == []

    def pixels(found: dict[str, object]) -> tuple[bytes, str]:
        with Image.open(found["files"][0]) as image:  # type: ignore[index]
            return image.tobytes(), image.info["parameters"]

    assert pixels(plain)[0] == pixels(none)[0] != pixels(used)[0]
    assert pixels(used)[1].startswith("<ddpm:green:1> emerald\n")
    # in one batch each image is by what its own prompt calls
    context = Context(torch.device("cpu"))
    prompts = [Prompt("emerald <ddpm:green>"), Prompt("")]
    mixed = sample(Workspace(taught.workspace), "base", 2, SampleSettings(steps=2, seed=4), context, prompts=prompts)
    assert mixed.seeds == [4, 5] and [text.split("\n")[0][:7] for text in mixed.texts] == ["emerald", "Steps: "]
    second = sample(Workspace(taught.workspace), "base", 1, SampleSettings(steps=2, seed=5), context)
    assert torch.equal(mixed.images[1], second.images[0])
    assert mixed.pictures[0].tobytes() == pixels(used)[0]
    unknown = taught.run(*asked, tmp_path / "d", "--prompt", "emerald")
    assert unknown["unknown_words"] == ["emerald"]


def test_mistakes_are_said_in_one_sentence(taught: CommandLine, tmp_path: Path, few: Path) -> None:
    def said(*arguments: object) -> str:
        return str(taught.run(*arguments, code=2)["error"])

    sample = ["sample", "--count", 1, "--steps", 2, "--out", tmp_path, "--model"]
    assert "no adapter 'gren'; there are: green" in said(*sample, "base", "--prompt", "<ddpm:gren>")
    assert "base is a model and no adapter" in said(*sample, "base", "--prompt", "<ddpm:base>")
    assert "green is an adapter" in said(*sample, "green")
    assert "weight of the adapter green" in said(*sample, "base", "--prompt", "<ddpm:green:nan>")
    raw = said(*sample, "base", "--prompt", "<ddpm:green>", "--weights", "raw")
    assert "belongs to base as it was when it was trained" in raw
    train = ["train", "--dataset", "new", "--steps", 2, "--adapter"]
    assert "already knows the word" in said(*train, "x", "--base", "base", "--concept", _word(taught))
    assert "one word or a few" in said(*train, "x", "--base", "base", "--concept", "a, b")
    assert "is an adapter" in said(*train, "x", "--base", "green")
    assert "rank" in said(*train, "x", "--base", "base", "--set", "rank=0")
    assert "leave out the preset" in said(*train, "x", "--base", "base", "--preset", "tiny-32")
    assert "rank must be a whole number" in said(*train, "x", "--base", "base", "--set", "rank=much")
    assert "say which" in said(*train, "x")
    assert "setting optimizer" in said(*train, "x", "--base", "base", "--set", "optimizer=muon")
    between = ["interpolate", "--model", "base", "--seeds", 1, 2, "--out", tmp_path, "--to-prompt", "<ddpm:green>"]
    assert "let them call the same adapters" in said(*between)
    assert "Only an adapter has a concept" in said("train", "--dataset", "new", "--model", "x", "--concept", "crown")
    assert "no setting dropout" in said(*train, "x", "--base", "base", "--set", "dropout=0.5")
    assert "There is already a model 'green'" in said(*train, "green", "--base", "base")
    assert not (taught.workspace / "runs" / "x").exists()


def _word(cli: CommandLine) -> str:
    return str(cli.run("models", "show", "base")["tags"][0]).split(" | ")[0]  # type: ignore[index]


def test_a_run_keeps_its_base_and_goes_on_without_it(
    taught: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SAMPLED", 64)
    taught.run("train", "--base", "base", "--adapter", "other", "--dataset", "new", "--steps", 2, "--set", "rank=2")
    taught.run("models", "rename", "base", "other-name")
    assert Workspace(taught.workspace).adapters_of("other-name") == ["green", "other"]
    taught.run("models", "rename", "other-name", "base")
    taught.run("models", "delete", "base")
    taught.run("dataset", "delete", "d")
    assert taught.run("train", "--resume", "--adapter", "other", "--steps", 4)["steps"] == 4
    kept = taught.workspace / "runs" / "other" / "base.safetensors"
    good = kept.read_bytes()
    kept.write_bytes(good[:100])
    assert "is damaged" in str(taught.run("train", "--resume", "--adapter", "other", "--steps", 6, code=2)["error"])
    kept.write_bytes(good)
    taught.run("models", "restore", "base")
    # without the base's dataset it makes images of its kind by itself
    found = taught.run("train", "--base", "base", "--adapter", "third", "--dataset", "new", "--steps", 2)
    assert found["steps"] == 2 and found["base_loss"]
    taught.run("dataset", "restore", "d")


def test_upscalers_take_adapters_of_their_own(taught: CommandLine, tmp_path: Path) -> None:
    small = ["--set", "block_out_channels=16,32", "--set", "blocks_per_level=1,1", "--steps", 2]
    taught.run("train", "--dataset", "d", "--model", "large", "--preset", "upscale-4x-small", *small)
    sharper = ["--base", "large", "--adapter", "sharper", "--dataset", "new", "--steps", 3, "--lr", 0.05]
    assert taught.run("train", *sharper)["steps"] == 3
    asked = [
        "sample",
        "--model",
        "base",
        "--count",
        1,
        "--steps",
        2,
        "--prompt",
        "<ddpm:sharper:5>",
        "--out",
        tmp_path / "a",
    ]
    assert "is an adapter of an upscaler" in str(taught.run(*asked, code=2)["error"])
    taught.run(*asked, "--upscaler", "large")
    taught.run("sample", "--model", "base", "--count", 1, "--steps", 2, "--upscaler", "large", "--out", tmp_path / "b")
    with Image.open(tmp_path / "a" / "00000-0.png") as one, Image.open(tmp_path / "b" / "00000-0.png") as other:
        assert one.size == other.size == (128, 128) and one.tobytes() != other.tobytes()


def test_a_process_may_not_take_the_schedule_for_another(taught: CommandLine) -> None:
    config = RunConfig.from_json(Workspace(taught.workspace).run("green").config)
    assert config.tuning is not None and config.format == 7 and config.model.diffusion == DiffusionConfig()
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(UserError):
        RunConfig.from_json({**config.to_json(), "tuning": {"base": "b"}})
