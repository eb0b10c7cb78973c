"""A training knows when it begins to copy: the losses say so, it says so once, stops there, and goes on only when it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CommandLine, random_pictures

from ddpm_core.training import copying
from ddpm_core.training.copying import FEWEST, ONSET, CopyWatch, gap

NAMES = ("0-49", "50-199", "200-499", "500-999")


def bands(third: float) -> dict[str, float]:
    return dict(zip(NAMES, (0.5, 0.1, third, 0.1)))


def test_two_looks_in_a_row_say_it_and_only_once() -> None:
    watch = CopyWatch()
    high, low = bands(0.02 * (1 + ONSET) * 1.05), bands(0.02 * (1 + ONSET) * 0.95)
    seen = bands(0.02)
    assert not watch.look(seen, high, FEWEST)
    assert not watch.look(seen, low, FEWEST), "one look alone may err"
    assert not watch.look(seen, high, FEWEST) and not watch.begun
    assert watch.look(seen, high, FEWEST) and watch.begun
    assert not watch.look(seen, high, FEWEST), "it is said once"
    overflown = CopyWatch()
    assert not any(overflown.look(seen, bands(float("inf")), FEWEST) for _ in range(9))
    few = CopyWatch()
    assert not any(few.look(seen, high, FEWEST - 1) for _ in range(9)), "of too few held-out images nothing is known"


def test_the_gap_is_that_of_the_middle_noise() -> None:
    assert gap(bands(0.02), bands(0.03)) == pytest.approx(0.5)
    assert gap(bands(0.0), bands(0.03)) is None
    assert gap({}, bands(0.03)) is None


SMALL = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")


def test_a_training_stops_there_and_goes_on_when_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ONSET", -1.0)  # from the first looks on
    monkeypatch.setattr("ddpm_core.training.loop._EARLY_SHARE", 1.0)
    line = CommandLine(tmp_path / "ws")
    line.run("harvest", "--dataset", "d", random_pictures(tmp_path / "images", 220, side=24))
    options = [word for setting in SMALL for word in ("--set", setting)]
    first = ["train", "--model", "m", "--dataset", "d", "--preset", "tiny-32", "--size", 16, *options, "--minutes", 2]
    found = line.run(*first)
    assert found["ended"] == "copying" and not found["stopped"]
    notes = (tmp_path / "ws" / "runs" / "m" / "metrics.jsonl").read_text()
    assert notes.count(copying.SENTENCE) == 1
    assert (tmp_path / "ws" / "models" / "m.safetensors").exists()
    reached = int(found["steps"])  # type: ignore[call-overload]

    def resumed(*flags: str, steps: int) -> tuple[str, int]:
        more = line.run("train", "--model", "m", "--resume", "--steps", reached + steps, *flags)
        return str(more["ended"]), int(more["steps"]) - reached  # type: ignore[call-overload]

    assert resumed(steps=5) == ("copying", 0), "who resumes without saying so is stopped at once"
    assert resumed("--no-stop-before-copying", steps=5) == ("steps", 5)
    assert resumed(steps=10) == ("steps", 10), "what a person has said holds"
    assert resumed("--stop-before-copying", steps=15) == ("copying", 10)


def test_an_upscaler_is_not_watched() -> None:
    from ddpm_core.training.settings import PRESETS
    from ddpm_core.training.tasks import task_of

    assert task_of(PRESETS["tiny-32"].model).whole_images
    assert not task_of(PRESETS["upscale-4x-small"].model).whole_images
