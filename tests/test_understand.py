"""What the Understand tab shows is what the library computes; and the perfect memoriser is right."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CommandLine, random_pictures, tiny_training_images
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trainers import NET, trainer

from ddpm_core import bundled
from ddpm_core.errors import UserError
from ddpm_core.host.server import build_app
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model.build import build
from ddpm_core.model.config import SCHEDULES, DiffusionConfig, ModelConfig
from ddpm_core.model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from ddpm_core.model.schedule import make_alphas_cumprod
from ddpm_core.operations.context import Context
from ddpm_core.sampling.denoiser import Denoiser
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.sampling.guidance import Asked
from ddpm_core.sampling.memoriser import Memoriser, effective
from ddpm_core.sampling.samplers import ddim
from ddpm_core.sampling.trace import trace
from ddpm_core.service import Service
from ddpm_core.training.trainer import Trainer
from ddpm_core.understand import desk as desks
from ddpm_core.understand.answers import ANSWERS
from ddpm_core.understand.desk import Images, Opened
from ddpm_core.understand.memory import compared, judged, spacing
from ddpm_core.understand.network import parts
from ddpm_core.understand.noise import step_by_step
from ddpm_core.understand.words import Guided

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth function of image and time, different at every pixel."""
    scale = (t.float() / 700 + 0.4)[:, None, None, None]
    return torch.sin(1.7 * x + scale) + 0.3 * torch.roll(x, 1, -1) * scale


def opened(config: ModelConfig, net: Any = None) -> Opened:
    net = net if net is not None else build(config, CPU, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in net.parameters():  # the last layers begin at zero: all shall matter
            if float(parameter.abs().max()) == 0:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    return Opened("m", config, net, Diffusion(config.diffusion), {}, Context(CPU), torch.float32)


# -- the perfect memoriser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0, 20, 300, 700, 999])
def test_the_memoriser_is_the_softmax_over_all_images(t: int, schedule: str, zero: bool) -> None:
    """Against the formula by brute force in float64; more images than it holds at once."""
    images = torch.randint(0, 256, (300, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    process = Diffusion(DiffusionConfig(schedule=schedule, zero_terminal_snr=zero, prediction="v"))
    memoriser = Memoriser(images, process)
    alpha, sigma = process.sqrt_alpha[t], process.sqrt_one_minus_alpha[t]
    x = alpha * uint8_to_model(images[[5, 290]]) + sigma * noise(2, 3, 6, 6)
    clean = uint8_to_model(images).double()
    away = (x.double()[:, None] - alpha.double() * clean[None]).pow(2).flatten(2).sum(2)
    weights = torch.softmax(-away / (2 * sigma.double() ** 2), 1)
    expected = torch.einsum("nm,mchw->nchw", weights, clean)
    times = torch.full((2,), t)
    torch.testing.assert_close(memoriser.weights(x, times), weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(memoriser.x0(x, times).double(), expected, rtol=0, atol=1e-5)


def test_the_memoriser_names_the_nearest_at_little_noise_and_the_mean_at_much() -> None:
    images = tiny_training_images(40)
    process = Diffusion(DiffusionConfig(zero_terminal_snr=True, prediction="v"))
    memoriser = Memoriser(images, process)
    clean = uint8_to_model(images)
    first, last = torch.tensor([0]), torch.tensor([999])
    near = process.add_noise(clean[7:8], noise(1, 3, 16, 16), first)
    torch.testing.assert_close(memoriser.x0(near, first), clean[7:8], rtol=0, atol=1e-5)
    torch.testing.assert_close(memoriser.x0(noise(1, 3, 16, 16), last), clean.mean(0, keepdim=True), rtol=0, atol=1e-5)
    assert float(effective(memoriser.weights(near, first))[0]) == pytest.approx(1.0)
    assert float(effective(memoriser.weights(noise(1, 3, 16, 16), last))[0]) == pytest.approx(40.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_memoriser_answers_as_a_network_of_each_prediction(prediction: str) -> None:
    images = tiny_training_images(12)
    process = Diffusion(DiffusionConfig(prediction=prediction))
    memoriser = Memoriser(images, process)
    x = noise(3, 3, 16, 16)
    x0, epsilon = Denoiser(memoriser, process)(x, 600)
    torch.testing.assert_close(x0, memoriser.x0(x, torch.full((3,), 600)), rtol=1e-4, atol=1e-4)
    a = process.alphas_cumprod[600]
    torch.testing.assert_close(a.sqrt() * x0 + (1 - a).sqrt() * epsilon, x, rtol=1e-4, atol=1e-4)


def test_a_sampling_by_the_memoriser_gives_training_images_back() -> None:
    images = tiny_training_images(24)
    process = Diffusion(DiffusionConfig(schedule="cosine", prediction="v"))
    times = SampleSettings("ddim", 40).times(1000)
    drawn = noise(16, 3, 16, 16)
    found = ddim(Denoiser(Memoriser(images, process), process), drawn, times, noise=lambda _: drawn)
    nearest = torch.cdist(found.flatten(1), uint8_to_model(images).flatten(1))
    assert float(nearest.min(1).values.max()) < 0.05, "each is one of them"
    assert len(set(nearest.argmin(1).tolist())) > 4, "and not always the same"


@pytest.fixture(scope="module")
def overfitted() -> tuple[Opened, Images]:
    plain = trainer(
        batch_size=8, optimizer="muon", learning_rate=2e-3, warmup_steps=10, ema_power=4.0, flip_probability=0.0
    )
    unet = dataclasses.replace(NET, block_out_channels=(16, 32), dropout=0.0)
    config = dataclasses.replace(plain.config, model=dataclasses.replace(plain.config.model, unet=unet))
    t = Trainer(config, tiny_training_images(8), "cpu")
    t.run_steps(550)
    model = Opened("m", t.config.model, t.ema, Diffusion(t.config.model.diffusion), {}, Context(CPU), torch.float32)
    rows = torch.arange(8)
    return model, Images("d", tiny_training_images(8), rows, rows[:0], False, True)


def test_a_network_that_overfits_agrees_with_the_memoriser(overfitted: tuple[Opened, Images]) -> None:
    model, images = overfitted
    found = compared(model, images, Memoriser(images.images, model.diffusion), 0)
    assert found["verdict"] == "copies" and found["agreement"] < 0.45, found
    assert found["mirrored"]


def test_a_network_that_learned_parts_from_the_memoriser(tmp_path: Path, portraits: Path) -> None:
    """The bundled model on the portraits that it learned from, held out ones."""
    service = Service(StandaloneHost(tmp_path / "ws"))
    try:
        service.workspace.harvest("faces", [portraits])
        found = service.understand({"part": "memory/levels", "model": bundled.BASE})
    finally:
        service.shutdown()
    assert found["own"] and not found["mirrored"]
    assert found["verdict"] == "learned" and found["agreement"] > 1.3, found
    settled = [i for i, count in enumerate(found["effective"]) if count < 1.5]
    assert all(found["network_error"][i] < found["memoriser_error"][i] for i in settled)


def test_verdicts() -> None:
    assert [judged(value, True) for value in (0.2, 0.7, 1.5, None)] == ["copies", "partly", "learned", "open"]
    assert [judged(value, False) for value in (0.2, 0.7, 1.5, None)] == ["copies", "untrained", "untrained", "open"]


def test_the_spacing_of_images_is_that_to_the_nearest_other_one() -> None:
    images = torch.zeros((3, 3, 4, 4), dtype=torch.uint8)
    images[1], images[2] = 51, 255  # -1, -0.6, 1: the middle one is 0.4 and 1.6 away
    assert spacing(images) == pytest.approx(0.4)
    assert spacing(images[:1]) == 0.0


# -- what the other pages show ------------------------------------------------------------------------------------------------


def test_noise_in_small_steps_has_the_distribution_of_noise_at_once() -> None:
    config = DiffusionConfig(schedule="linear")
    table = make_alphas_cumprod(config)
    x0 = torch.full((1, 3, 16, 16), 0.7)
    for t in (0, 250, 999):
        many = torch.cat([step_by_step(x0, config, t, seed) for seed in range(24)])
        alpha, sigma = float(table[t].sqrt()), float((1 - table[t]).sqrt())
        assert float(many.mean()) == pytest.approx(0.7 * alpha, abs=4 * sigma / many.numel() ** 0.5)
        assert float(many.std()) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc", "ddpm"])
def test_a_trace_is_the_sampling_itself(sampler: str) -> None:
    process = Diffusion(DiffusionConfig(schedule="linear", prediction="epsilon"))
    settings = SampleSettings(sampler, 12, seed=4)
    whole, calls = generate(network, process, (3, 8, 8), 2, settings)
    found = trace(network, process, (3, 8, 8), settings, [4, 5])
    assert found.states.shape == (13, 2, 3, 8, 8) and found.guesses.shape == (12, 2, 3, 8, 8) and calls == 12
    torch.testing.assert_close(found.states[-1], whole, rtol=0, atol=1e-6)


def test_the_shares_of_a_step_lead_to_the_next_state() -> None:
    """Without clipping, for which DDIM keeps the network's own noise."""
    process = Diffusion(DiffusionConfig(schedule="cosine", prediction="v"))
    found = trace(network, process, (3, 8, 8), SampleSettings("ddim", 10, clip=False), [1])
    for i, (of_state, of_guess) in enumerate(found.steps()):
        again = of_state * found.states[i] + of_guess * found.guesses[i]
        torch.testing.assert_close(again, found.states[i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts_of", [{}, {"block": "convnext", "attention": "linear"}], ids=["ddpm", "annotated"])
def test_the_parts_of_a_network_account_for_its_multiply_adds_and_weights(parts_of: dict[str, Any]) -> None:
    config = ModelConfig(dataclasses.replace(NET, **parts_of), DiffusionConfig(prediction="v"))
    model = opened(config)
    x, times = noise(1, 3, 16, 16), torch.tensor([500])
    found, output = parts(model, x, times)
    torch.testing.assert_close(output, model.net(x, times))
    assert not any(module._forward_hooks for module in model.net.modules()), "nothing is left in the network"
    # attention as plain products: the counter does not know the processor's own
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.net(x, times)
    embedding: Any = model.net.time_embedding  # all else than the parts, and the last norm
    outside = sum(p.numel() for p in embedding.parameters() if p.ndim == 2)
    assert 2 * (sum(part["multiply_adds"] for part in found) + outside) == counter.get_total_flops()
    norm: Any = model.net.conv_norm_out
    rest = sum(p.numel() for module in (embedding, norm) for p in module.parameters())
    assert sum(part["weights"] for part in found) + rest == sum(p.numel() for p in model.net.parameters())
    names = [part["name"] for part in found]
    assert names[0] == "conv_in" and names[-1] == "conv_out" and len(set(names)) == len(names)


def test_guidance_on_the_page_is_that_of_the_library() -> None:
    config = ModelConfig(NET, DiffusionConfig(prediction="v"), tags=("red", "green", "blue"))
    model = opened(config)
    asked = torch.tensor([[0.0, 1.0, 0.0]])
    guided = Guided(model, {"tags": asked}, torch.tensor([0.0, 1.0, 4.0]))
    images, guesses = guided.sample(9)
    settings = SampleSettings(steps=12, seed=9)
    for row, question in (
        (0, None),
        (1, Asked({"tags": asked}, None, 1.0)),
        (2, Asked({"tags": asked}, None, 4.0, band=(0.0, 1.0))),
    ):
        alone, _ = generate(model.net, model.diffusion, model.shape, 1, settings, asked=question)
        torch.testing.assert_close(images[row : row + 1], alone, rtol=0, atol=1e-4)
    assert len(guided.changes) == len(guesses) == 12
    assert float(guided.changes[0].abs().max()) > 0
    assert float((images[0] - images[2]).abs().max()) > 1e-3


# -- the pages, asked as the browser asks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Iterator[tuple[TestClient, Service]]:
    folder = tmp_path_factory.mktemp("understand")
    line = CommandLine(folder / "ws")
    line.run("harvest", "--dataset", "faces", few)
    line.run("harvest", "--dataset", "three", random_pictures(folder / "three", 3))
    small = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")
    options = [word for setting in small for word in ("--set", setting)]
    plain = ["train", "--dataset", "faces", "--preset", "tiny-32", "--size", 16, "--steps", 2, *options]
    line.run(*plain, "--model", "worded")
    line.run(*plain, "--model", "wordless", "--condition", "none")
    app, service = build_app(StandaloneHost(folder / "ws"))
    try:
        yield TestClient(app, base_url="http://127.0.0.1:7870"), service
    finally:
        service.shutdown()


def seen(url: str) -> np.ndarray[Any, Any]:
    """The pixels of an image of an answer, (H, W, 3) uint8."""
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def ask(served: tuple[TestClient, Service], part: str, code: int = 200, **values: Any) -> dict[str, Any]:
    answer = served[0].get("/ddpm/ui/understand", params={"part": part, **values})
    assert answer.status_code == code, answer.text
    found = answer.json()
    json.dumps(found, allow_nan=False)
    return found  # type: ignore[no-any-return]


def test_an_image_under_noise_is_that_of_the_forward_process(served: tuple[TestClient, Service]) -> None:
    found = ask(served, "noise", model="worded", image=2, t=400, seed=8)
    model = served[1].workspace.model_config("worded")
    process = Diffusion(model.diffusion)
    images = served[1].workspace.store("faces")
    from ddpm_core.dataset.packing import pack

    packed = pack(images, (16, 16), "center")
    row = torch.cat([packed.held_rows, packed.train_rows])[2]
    clean = packed.images[row][None]
    assert (seen(found["x0"]) == clean[0].permute(1, 2, 0).numpy()).all()
    drawn = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(8))
    noised = process.add_noise(uint8_to_model(clean), drawn, torch.tensor([400]))
    # image and noise in one scale, of which 2.5 standard deviations are black or white
    expected = model_to_uint8(noised / (process.sqrt_alpha[400] + 2.5 * process.sqrt_one_minus_alpha[400]))
    assert (seen(found["at_once"]) == expected[0].permute(1, 2, 0).numpy()).all()
    assert found["alpha_bar"] == pytest.approx(float(process.alphas_cumprod[400]))
    assert found["count"] == 60 and found["held_out"] == (len(packed.held_rows) > 2) and not found["stand_in"]
    assert found["curves"]["linear"][-1] == pytest.approx(
        float(make_alphas_cumprod(DiffusionConfig(schedule="linear"))[-1]), abs=1e-4
    )


def test_the_errors_of_the_three_forms_belong_together(served: tuple[TestClient, Service]) -> None:
    """eps - eps' = -(alpha / sigma) (x0 - x0'), and v's error is x0's over sigma: Salimans & Ho 2022."""
    found = ask(served, "pair", model="worded", image=1, t=350)
    a, s = found["alpha"], found["sigma"]
    assert found["error"]["epsilon"] == pytest.approx(found["error"]["x0"] * (a / s) ** 2, rel=1e-3)
    assert found["error"]["v"] == pytest.approx(found["error"]["x0"] / s**2, rel=1e-3)
    curve = ask(served, "pair/levels", model="worded")
    assert len(curve["times"]) == len(curve["error"]["v"]) == 12 and curve["held_out"]


def test_every_page_answers(served: tuple[TestClient, Service]) -> None:
    for part in [part for part in ANSWERS if not part.startswith("chapters/")]:
        found = ask(served, part, model="worded", t=500, steps=5, what="steps")
        pictures = [value for value in found.values() if isinstance(value, str) and value.startswith("data:image/png")]
        for url in pictures:
            assert seen(url).size
    path = ask(served, "path", model="worded", steps=5)
    assert seen(path["picture"]).shape == (3 * 16, 6 * 16, 3) and len(path["numbers"]) == 5
    film = ask(served, "path/animation", model="worded", steps=5)["animation"]
    with Image.open(io.BytesIO(base64.b64decode(film.partition(",")[2]))) as moving:
        assert moving.format == "WEBP" and moving.n_frames == 6  # type: ignore[attr-defined]
    quiz = ask(served, "memory/quiz", model="worded", seed=3)
    assert len(quiz["cards"]) == len(quiz["kinds"]) == 9 and len(set(quiz["kinds"])) == 3
    for card, near, kind in zip(quiz["cards"], quiz["nearest"], quiz["kinds"]):
        far = np.abs(seen(card).astype(int) - seen(near)).mean()
        assert (far < 3) == (kind == "copy"), "a copy equals its original, and nothing else does"
    origin = ask(served, "memory/origin", model="worded")
    assert sum(origin["shares"]) <= 1.0001 and origin["shares"] == sorted(origin["shares"], reverse=True)


def test_the_chapters_are_drawn_by_ones_own_models(served: tuple[TestClient, Service]) -> None:
    found = ask(served, "chapters/words", model="worded")["images"]
    known = served[1].workspace.model_config("worded").tags
    assert [one["label"] for one in found] == ["", *(tag.split(" | ")[0] for tag in known[: len(found) - 1])]
    assert "knows no words" in ask(served, "chapters/words", 400, model="wordless")["error"]
    small, large = ask(served, "chapters/cascade", model=bundled.BASE)["images"]
    assert (small["label"], large["label"]) == ("32x32", "128x128") and seen(large["image"]).shape == (128, 128, 3)
    low = seen(large["image"]).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(low - seen(small["image"])).mean() < 2, "the same image"
    assert "There is no upscaler" in ask(served, "chapters/cascade", 400, model="worded")["error"]
    assert "There is no adapter" in ask(served, "chapters/adapter", 400, model="worded")["error"]
    line = CommandLine(served[1].workspace.root)
    line.run("train", "--dataset", "three", "--base", "worded", "--adapter", "a", "--concept", "hat", "--steps", 2)
    assert [one["label"] for one in ask(served, "chapters/adapter", model="worded")["images"]] == ["0", "0.5", "1"]


def test_a_network_that_has_hardly_learned_is_called_so(served: tuple[TestClient, Service]) -> None:
    assert ask(served, "memory/levels", model="worded")["verdict"] == "untrained"


def test_what_cannot_be_shown_is_told_in_a_sentence(served: tuple[TestClient, Service], tmp_path: Path) -> None:
    def refused(part: str, **values: Any) -> str:
        return str(ask(served, part, 400, **values)["error"])

    assert "Choose a model first" in refused("noise")
    assert "There is no model 'gone'" in refused("noise", model="gone")
    assert "There is no dataset 'gone'" in refused("noise", model="worded", dataset="gone")
    assert "makes no images" in refused("pair", model=bundled.UPSCALER)
    assert "trained without prompts" in refused("words", model="wordless")
    assert "knows none of these words" in refused("words", model="worded", prompt="xyzzy")
    assert "There is no page" in refused("nothing", model="worded")
    assert "must be one of" in refused("path", model="worded", sampler="ddpm_large")
    # a model whose dataset is not here: its own samples stand in, and the memoriser has nothing to know
    assert ask(served, "noise", model=bundled.BASE)["stand_in"]
    assert "is not here" in refused("memory", model=bundled.BASE)
    # a dataset of three
    found = ask(served, "memory", model="wordless", dataset="three", t=10)
    assert found["memorised"] == 3 and not found["own"] and not found["held_out"]
    assert ask(served, "memory/levels", model="wordless", dataset="three")["mirrored"]
    assert ask(served, "memory/origin", model="wordless", dataset="three")["leans_on"]


def test_hostile_values_get_an_answer_or_a_sentence(served: tuple[TestClient, Service]) -> None:
    chance = random.Random(5)
    hostile = ["", "-1", "1e9", "nan", "99999999999999999999", "a" * 5000, "\x00", "../..", "<img>", "0", "7", "\ud800"]
    names = ("model", "dataset", "image", "t", "seed", "schedule", "sampler", "steps", "what", "prompt")
    for _ in range(150):
        values: dict[str, Any] = {"part": chance.choice([*ANSWERS]), "model": "worded", "steps": "2"}
        for name in chance.sample(names, 3):
            values[name] = chance.choice(hostile)
        try:
            found = served[1].understand(values)
        except UserError as error:
            assert len(str(error)) < 400
        else:
            json.dumps(found, allow_nan=False)
    with pytest.raises(UserError):
        served[1].understand({"part": ["x"], "model": {}})


def test_few_models_are_kept_open_and_none_when_nobody_looks(
    served: tuple[TestClient, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desks.Desk(served[1].host, lambda: served[1].workspace)
    first = desk.model("worded")
    assert desk.model("worded") is first
    for name in ("wordless", bundled.BASE):
        desk.model(name)
    assert desk.model("worded") is not first, "only two are kept"
    monkeypatch.setattr(desks, "IDLE_SECONDS", 0.2)
    with desk.turn():
        again = desk.model("worded")
    assert desk.model("worded") is again
    end = time.monotonic() + 10
    while desk.model_is_open and time.monotonic() < end:
        time.sleep(0.05)
    assert not desk.model_is_open
