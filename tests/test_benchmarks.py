"""The benchmarks' peers are what they say they are: their recipes step for step, their networks of one size with ours."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_training_images
from trainers import config

sys.path.insert(0, str(ROOT))

from benchmarks import common, gpu, levers, quality, training
from ddpm_core.dataset.packing import Packed
from ddpm_core.model.unet import UNet
from ddpm_core.training.settings import PRESETS


def test_diffusers_recipe_is_its_own() -> None:
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    settings = quality.recipes(32, 1200)["diffusers"].train
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=1200)
    average = EMAModel([weight], decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for step in range(1200):
        assert settings.learning_rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-10)
        assert settings.ema_decay_at(step) == pytest.approx(average.get_decay(step + 1), abs=1e-7)
        optimizer.step()
        rate.step()


def test_the_peers_network_has_our_size() -> None:
    for name in ("tiny-32", "article-64"):
        config = PRESETS[name].model.unet
        size = config.image_size[0]
        sample = (torch.zeros(1, 3, size, size), torch.zeros(1))
        ours, theirs = UNet(config, "cpu"), training.diffusers_model(config)
        assert training.multiply_adds(ours, *sample) == pytest.approx(training.multiply_adds(theirs, *sample), rel=0.03)


def row(recipe: str, images: int, seconds: float, kid: float, seed: int = 0) -> dict[str, object]:
    found = {"recipe": recipe, "seed": seed, "images": images, "seconds": seconds}
    return {**found, "kid": kid, "low": kid - 0.05, "high": kid + 0.05}


def test_bare_steps_learn() -> None:
    """What the bars of speed are measured with is a step of the trainer as it is now."""
    preset = dataclasses.replace(PRESETS["tiny-32"], model=config().model)
    preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, batch_size=4, precision="fp32"))
    images, device = tiny_training_images(), torch.device("cpu")
    packed = Packed(images, list(range(len(images))), [False] * len(images), Path(), "")
    for step in (training.bare_step(preset, images, device), levers.step_of(preset, packed, device)):
        step()
        step()


def test_the_verdict_on_quality() -> None:
    good = [row("ours", 100, 10.0, 0.4), row("ours", 200, 20.0, 0.2)]
    peer = [row("story", 100, 11.0, 2.0), row("story", 200, 21.0, 1.0)]
    assert quality.verdict([*good, *peer])["passed"]
    near = [row("story", 100, 11.0, 2.0), row("story", 200, 21.0, 0.25)]
    assert not quality.verdict([*good, *near])["passed"], "intervals that overlap decide nothing"
    prototype = [row("prototype", 400, 60.0, 0.4)]
    found = quality.verdict([*good, *peer, *prototype])
    assert found["passed"] and found["prototype_reached_at"] == [
        {"seed": 0, "images_share": 0.25, "seconds_share": round(10 / 60, 3)}
    ]
    assert not quality.verdict([*good, *peer, row("prototype", 150, 60.0, 0.4)])["passed"], "more than half the images"


def test_alternating_goes_back_and_forth() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = common.alternate({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2, lambda text: None)
    assert order == ["a", "b", "b", "a"] and found == {"a": [1.0, 4.0], "b": [2.0, 3.0]}
    assert common.paired_ratio([2.0, 6.0], [1.0, 2.0]) == 2.5


def test_results_name_only_commands_that_are_there() -> None:
    import re

    text = (Path(ROOT) / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    named = set(re.findall(r"benchmarks\.(\w+)", text)) - {"NAME"}
    assert named and all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in named)


def test_the_gpu_script_runs_through_in_miniature(tmp_path: Path) -> None:
    """Every rung, so that a machine that is available for minutes is not spent on a mistake."""
    rungs = sorted(set(gpu.RUNGS) - {"kernels"})  # which needs Triton: tests/test_kernels.py runs it in the interpreter
    assert gpu.run(["--alone", "--miniature", "--device", "cpu", "--out", str(tmp_path), "--rungs", *rungs]) == 0
    assert gpu.measured(tmp_path) == set(rungs) - {"tuning", "constants", "peers", "compiled"}, (
        "those want a GPU or peers"
    )
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert not any("failed" in line for line in lines)
    kinds = {line["kind"] for line in lines if line["rung"] == "ladder" and "times_as_fast" in line}
    assert {"plain", "captured", "... and flat updates"} <= kinds
    exact = [line["apart"] for line in lines if "apart" in line]
    assert exact and all(set(apart.values()) == {0.0} and len(apart) == 4 for apart in exact)


def test_the_gpu_script_says_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu.run(["--miniature", "--device", "cpu", "--out", str(tmp_path), "--rungs", "machine"]) == 0
    out = capfd.readouterr().out
    assert "== machine: done" in out and out.splitlines()[-1].startswith("Not measured in") and "ladder" in out
