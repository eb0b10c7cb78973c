"""Upscalers: what a network is shown, what it answers, tiles, the whole way from folder to enlarged samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CommandLine, tiny_training_images
from PIL import Image
from trainers import run_steps, same

from ddpm_core import bundled
from ddpm_core.errors import UserError
from ddpm_core.evaluation import faithfulness as measures
from ddpm_core.evaluation.detail import crops_of, detail_features
from ddpm_core.evaluation.kid import kid
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model.build import build
from ddpm_core.model.config import DiffusionConfig, ModelConfig, UNetConfig, UpscalerConfig
from ddpm_core.model.diffusion import Diffusion
from ddpm_core.model.upscaling import Draws, blurred, consistent, draw, enlarge, example, noised, shrink
from ddpm_core.operations.context import Context
from ddpm_core.operations.upscaling import Upscaler
from ddpm_core.sampling.upscale import UpscaleSettings, in_tiles, starts, upscale
from ddpm_core.service import Service
from ddpm_core.training.estimate import estimate
from ddpm_core.training.settings import RunConfig, TrainSettings
from ddpm_core.training.tasks import task_of
from ddpm_core.training.trainer import Trainer
from ddpm_core.workspace import Workspace

SMALL = UpscalerConfig(
    image_size=(32, 32), crop_size=16, block_out_channels=(8, 16), blocks_per_level=(1, 1), norm_num_groups=4
)


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth shapes with noise, (N, 3, size, size) in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.randn((count, 3, 6, 6), generator=random), (size, size), mode="bicubic")
    return (0.5 * coarse + 0.1 * torch.randn((count, 3, size, size), generator=random)).clamp(-1, 1)


def test_what_is_enlarged_consistently_shrinks_to_what_it_came_from() -> None:
    small = images(3, 8)
    for factor in (2, 4):
        large = consistent(images(3, 8 * factor, 1), small, factor)
        assert torch.allclose(shrink(large, factor), small, atol=1e-6)
        plain = enlarge(small, factor)
        assert (consistent(plain, small, factor) - plain).abs().mean() < 0.1  # and hardly changes what nearly did


def test_an_example_is_what_the_whole_image_would_give_at_that_place() -> None:
    config = UpscalerConfig(image_size=(64, 48), crop_size=16)
    large = images(4, 64)[:, :, :, :48]
    random = torch.Generator().manual_seed(3)
    draws = draw(config, (64, 48), 4, random, torch.Generator().manual_seed(4))
    assert int(draws.tops.max()) <= 12 and int(draws.lefts.max()) <= 8
    draws = Draws(torch.tensor([0, 12, 5, 3]), torch.tensor([0, 8, 4, 7]), draws.levels, torch.zeros(4), draws.noise)
    x0, told = example(config, large, draws)
    whole = enlarge(F.pad(shrink(large, 4), (3, 3, 3, 3), mode="replicate"), 4)[:, :, 12:-12, 12:-12]
    for i, (top, left) in enumerate([(0, 0), (48, 32), (20, 16), (12, 28)]):
        place = (i, slice(None), slice(top, top + 16), slice(left, left + 16))
        assert torch.allclose(x0[i], (large[place] - whole[place]) * config.gain, atol=1e-5)
        level = draws.levels[i]
        assert torch.allclose(told["low"][i], (1 - level**2).sqrt() * whole[place] + level * draws.noise[i], atol=1e-5)


def test_blur_is_a_gaussian_of_each_images_own_sigma() -> None:
    from scipy.ndimage import gaussian_filter

    x = images(3, 20)
    found = blurred(x, torch.tensor([0.0, 0.4, 0.8]))
    assert torch.allclose(found[0], x[0], atol=1e-6)
    for i, sigma in ((1, 0.4), (2, 0.8)):
        for channel in range(3):
            wanted = gaussian_filter(x[i, channel].double().numpy(), sigma, mode="nearest", truncate=2.01 / sigma)
            assert np.abs(found[i, channel].numpy() - wanted).max() < 0.02  # at the border the padding differs
            assert np.abs(found[i, channel].numpy() - wanted)[3:-3, 3:-3].max() < 1e-5


def test_noise_keeps_the_variance() -> None:
    x = torch.randn((64, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert abs(float(noised(x, torch.full((64,), 0.4), noise).std()) - 1.0) < 0.01


def network(config: UpscalerConfig = SMALL) -> torch.nn.Module:
    net = build(ModelConfig(config))
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():  # nothing at zero, as after a training
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return net


def test_the_network_takes_any_size_and_reads_image_level_and_time() -> None:
    net = network()
    x, low = images(2, 24)[:, :, :, :16], images(2, 24, 1)[:, :, :, :16]
    t, level = torch.tensor([3, 700]), torch.tensor([0.1, 0.3])
    out = net(x, t, told={"low": low, "level": level})
    assert out.shape == x.shape
    for changed in ({"low": low.flip(0), "level": level}, {"low": low, "level": level + 0.05}):
        assert not torch.allclose(out, net(x, t, told=changed))
    assert not torch.allclose(out, net(x, t + 50, told={"low": low, "level": level}))


def test_tiles_cover_and_join_without_seams() -> None:
    for length, tile, overlap, stride in [
        (64, 32, 16, 8),
        (100, 32, 16, 4),
        (33, 32, 8, 1),
        (20, 32, 8, 4),
        (72, 32, 16, 8),
    ]:
        found = starts(length, tile, overlap, stride)
        assert found[0] == 0 and found[-1] + tile >= length
        assert all(b - a <= tile - overlap + stride for a, b in zip(found, found[1:]))
        assert all(place % stride == 0 for place in found)

    def steep(x: torch.Tensor, timesteps: torch.Tensor, *, told: object = None) -> torch.Tensor:
        return x + timesteps[:, None, None, None]  # whose answer does not depend on the tile

    x = images(1, 128)
    low, level = torch.zeros_like(x), torch.zeros(1)
    whole = in_tiles(steep, x, torch.tensor([7]), low, level, 32, 8)
    assert torch.allclose(whole, x + 7, atol=1e-5)


def test_upscaling_depends_on_image_and_seed_alone_and_is_consistent() -> None:
    net, diffusion = network(), Diffusion(DiffusionConfig())
    small = images(3, 9)  # no multiple of the stride
    settings = UpscaleSettings(steps=4)
    found = upscale(net, diffusion, SMALL, small, [5, 6, 7], settings)
    assert found is not None and found.shape == (3, 3, 36, 36) and float(found.abs().max()) <= 1.0
    alone = upscale(net, diffusion, SMALL, small[1:2], [6], settings)
    assert alone is not None and torch.allclose(found[1], alone[0], atol=1e-4)
    other = upscale(net, diffusion, SMALL, small[1:2], [8], settings)
    assert other is not None and not torch.allclose(alone, other, atol=1e-3)
    inside = small.abs() < 0.6  # where clipping changes nothing
    assert float((shrink(found, 4) - small)[inside].abs().max()) < 0.15


def test_a_stopped_upscaling_gives_nothing() -> None:
    import threading

    stop = threading.Event()
    stop.set()
    assert (
        upscale(network(), Diffusion(DiffusionConfig()), SMALL, images(1, 8), [0], UpscaleSettings(3), stop=stop)
        is None
    )


@pytest.mark.parametrize(
    "values",
    [
        {"factor": 3},
        {"crop_size": 10},
        {"image_size": (8, 8)},
        {"blocks_per_level": (1,)},
        {"gain": float("nan")},
        {"norm_num_groups": 5},
    ],
)
def test_an_upscaler_that_cannot_be_is_refused(values: dict[str, object]) -> None:
    import dataclasses

    with pytest.raises(UserError):
        dataclasses.replace(SMALL, **values)  # type: ignore[arg-type]


def test_a_model_says_of_which_kind_it_is_and_older_versions_are_told() -> None:
    upscaler, plain = ModelConfig(SMALL), ModelConfig(UNetConfig())
    assert (upscaler.kind, upscaler.format, upscaler.denoised) == ("upscaler", 6, (3, 16, 16))
    assert (plain.kind, plain.format) == ("unet", 1) and "kind" not in plain.to_json()
    assert ModelConfig.from_json(json.loads(json.dumps(upscaler.to_json()))) == upscaler
    with pytest.raises(UserError, match="kind that this version does not know"):
        ModelConfig.from_json({**upscaler.to_json(), "kind": "other"})


def test_detail_tells_a_blur_from_the_truth_where_kid_does_not() -> None:
    real, others = images(60, 64), images(60, 64, 9)
    assert crops_of(real).shape == (720, 3, 32, 32)
    reference = detail_features(real)

    def score(x: torch.Tensor) -> float:
        found = detail_features(x, 1)
        return kid(found.features, reference.features, groups=(found.groups, reference.groups), subsets=4).value

    lanczos = enlarge(shrink(others, 4), 4)
    noisy = (others + 0.3 * torch.randn(others.shape, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)
    truth = score(others)
    assert abs(truth) < 0.1 < score(lanczos) and score(noisy) > 0.1


def trainer(**changes: Any) -> Trainer:
    """Of the small network, on images of 32 pixels."""
    settings = TrainSettings(batch_size=4, precision="fp32", warmup_steps=2, optimizer="muon", **changes)
    return Trainer(RunConfig(ModelConfig(SMALL), settings), tiny_training_images(12, 32), "cpu")


def test_a_resumed_training_is_exact() -> None:
    whole, first, second = trainer(), trainer(), trainer()
    run_steps(whole, 5)
    run_steps(first, 3)
    second.load_state(first.state_tensors(), first.state_numbers())
    run_steps(second, 2)
    assert same(whole.state_tensors(), second.state_tensors())


def test_a_batch_in_pieces_is_the_same_batch() -> None:
    whole, pieces = trainer(), trainer()
    pieces.pieces = 4
    assert abs(whole.run_steps(3).loss - pieces.run_steps(3).loss) < 1e-4


def test_a_process_draws_its_part_of_the_whole_batch() -> None:
    task = task_of(ModelConfig(SMALL))
    batch = images(6, 32)
    x0, told = task.prepare(batch, 6, slice(None), 1, 2)
    assert x0.shape == (6, *task.shape(batch))
    part = slice(2, 5)
    mine, mine_told = task.prepare(batch[part], 6, part, 1, 2)
    assert torch.equal(mine, x0[part]) and all(torch.equal(mine_told[name], told[name][part]) for name in told)
    assert not torch.equal(task.prepare(batch, 6, slice(None), 1, 3)[0], x0)


@pytest.fixture(scope="module")
def trained(few: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A workspace with a dataset, a base model and an upscaler of some steps."""
    cli = CommandLine(tmp_path_factory.mktemp("upscaling") / "ws")
    cli.run("harvest", few, "--dataset", "d")
    cli.run("train", "--dataset", "d", "--model", "base", "--preset", "tiny-32", "--steps", 2, "--condition", "none")
    small = ["--set", "block_out_channels=16,32", "--set", "blocks_per_level=1,1"]
    cli.run("train", "--dataset", "d", "--model", "large", "--preset", "upscale-4x-small", "--steps", 30, *small)
    return cli


def test_an_upscaler_is_a_run_like_any_other(trained: CommandLine) -> None:
    shown = trained.run("models", "show", "large")
    assert (shown["kind"], shown["size"]) == ("upscaler", [128, 128])
    went_on = trained.run("train", "--resume", "--model", "large", "--steps", 34)
    assert went_on["steps"] == 34 and went_on["heldout_loss"]
    previews = sorted((trained.workspace / "runs" / "large" / "previews").glob("*.png"))
    with Image.open(previews[-1]) as image:
        assert image.size == (3 * 3 * 128, 128)  # three times small, ours, real
    lines = [
        json.loads(line) for line in (trained.workspace / "runs" / "large" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["heldout_loss"] for line in lines if line["kind"] == "heldout"]
    assert losses[-1] < 1.0


def test_samples_are_enlarged_by_an_upscaler_of_ones_own(trained: CommandLine, tmp_path: Path) -> None:
    asked = ["sample", "--model", "base", "--count", 2, "--steps", 3, "--seed", 4, "--upscaler"]
    found = trained.run(*asked, "large", "--out", tmp_path / "a")
    again = trained.run(*asked, "DDPM: large", "--out", tmp_path / "b")
    for one, other in zip(found["files"], again["files"]):  # type: ignore[call-overload]
        with Image.open(one) as first, Image.open(other) as second:
            assert first.size == (128, 128) and first.tobytes() == second.tobytes()
            assert "DDPM upscaler: " in first.info["parameters"] and "Size: 128x128" in first.info["parameters"]
    more = trained.run(*asked, "large", "--factor", 6, "--out", tmp_path / "c")
    with Image.open(more["files"][0]) as image:  # type: ignore[index]
        assert image.size == (192, 192)


def test_odd_images_are_enlarged_within_bounds(trained: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one pixel, of other proportions, to more than is bearable: never more is worked on than the result or four times the image."""
    upscaler = Upscaler(Workspace(trained.workspace), "large", Context(torch.device("cpu")))
    worked: list[tuple[int, ...]] = []
    plainly = Upscaler.__call__

    def watched(self: Upscaler, pixels: torch.Tensor, *values: Any) -> Any:
        worked.append(tuple(pixels.shape[2:]))
        return plainly(self, pixels, *values)

    monkeypatch.setattr(Upscaler, "__call__", watched)
    monkeypatch.setattr("ddpm_core.operations.upscaling.MOST_PIXELS", 96)
    settings = UpscaleSettings(1)
    for mode, size, target in [
        ("RGB", (1, 1), (4, 4)),
        ("L", (1, 100), (32, 32)),
        ("RGBA", (20, 5), (16, 64)),
        ("RGB", (8, 8), (96, 96)),
    ]:
        found = upscaler.enlarge(Image.new(mode, size, 90), target, 0, settings)
        assert found is not None and found.size == target and found.mode == "RGB"
    assert max(max(sides) for sides in worked) * 4 <= 96
    with pytest.raises(UserError, match="at most 96 pixels"):
        upscaler.enlarge(Image.new("RGB", (8, 8)), (97, 8), 0, settings)


def test_an_upscaler_is_judged_on_images_that_it_has_not_seen(trained: CommandLine) -> None:
    host = StandaloneHost(trained.workspace)
    service = Service(host)
    try:
        assert service.upscalers()[:2] == [f"DDPM: {bundled.UPSCALER}", "DDPM: large"]
        assert service.workspace.model_names("unet") == ["base", bundled.BASE]
        job = service.start_evaluation("large", "d", 0)
        assert job.finished.wait(120) and job.state == "done", job.error
        found = job.result
    finally:
        service.shutdown()
    assert found is not None and found["upscaler"] == "large"
    assert (
        found["consistency_db"] > 30
        and 0 <= found["spectrum_ratio"] < 5
        and found["diversity_coarse"] < found["diversity"] + 1
    )
    assert found["detail_kid_lanczos"] > found["detail_kid_floor"]
    with Image.open(job.artifacts["picture"]) as image:
        assert image.size == (8 * 128, 4 * 128)
    by_hand = trained.run("evaluate", "--upscaler", "large", "--dataset", "d")
    assert by_hand["detail_kid"] == found["detail_kid"]


def test_the_measures_of_faithfulness_know_the_truth() -> None:
    real = images(16, 64)
    small = shrink(real, 4)
    assert measures.consistency_db(real, small, 4) > 100
    assert measures.spectrum_ratio(real, real, 4) == pytest.approx(1.0)
    assert measures.colour_drift(real + torch.tensor([0.0, 0.02, 0.0])[:, None, None], real) == pytest.approx(
        2.55, rel=1e-3
    )
    plain = measures.lanczos(small, 4)
    assert plain.shape == real.shape and measures.spectrum_ratio(plain, real, 4) < 0.5
    assert measures.consistency_db(plain, small, 4) < 60
    noise = torch.randn((4, 16, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 0.1
    varied, coarse = measures.diversity(real[None] + noise, 4)
    # over four draws a deviation is 0.921 of the true one on the mean; averages of 16 pixels vary a quarter as much
    assert varied == pytest.approx(127.5 * 0.1 * 0.921, rel=0.02) and coarse == pytest.approx(varied / 4, rel=0.02)


def test_its_time_and_memory_are_estimated() -> None:
    found = estimate(RunConfig(ModelConfig(SMALL), TrainSettings(batch_size=4)), torch.device("cpu"), 0.1)
    assert found.seconds_per_step > 0 and found.parameters == sum(
        p.numel() for p in build(ModelConfig(SMALL)).parameters()
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sample", "--model", "large", "--count", 1], "enlarges images and makes none"),
        (["sample", "--model", "base", "--count", 1, "--upscaler", "base"], "makes images and enlarges none"),
        (["sample", "--model", "base", "--count", 1, "--upscaler", "DDPM: none"], "There is no model"),
        (["evaluate", "--model", "large", "--dataset", "d"], "--upscaler"),
        (["export", "--model", "large"], "diffusers has no network"),
        (
            ["train", "--dataset", "d", "--model", "x", "--preset", "upscale-4x-small", "--condition", "tags"],
            "leave out the condition",
        ),
        (["train", "--dataset", "d", "--model", "x", "--preset", "upscale-4x-small", "--size", 30], "multiples of 4"),
    ],
)
def test_what_does_not_fit_an_upscaler_is_said(
    trained: CommandLine, arguments: list[object], sentence: str, tmp_path: Path
) -> None:
    last = ["--out", tmp_path / "out"] if arguments[0] in ("sample", "export") else []
    assert sentence in str(trained.run(*arguments, *last, code=2)["error"])
