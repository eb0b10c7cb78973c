"""Workspaces of every format there was open and go on; those of a later one are refused untouched.

``tests/data/formats/N.zip`` is a workspace of format N as the version that introduced the format wrote it: a dataset of 24
pictures, one of them rejected, a run of 6 steps, its model, and a picture sampled from it. When a format changes, add the
next one; never change one that is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, CommandLine, random_pictures
from encoders import WordVectors
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_core.dataset.schema import VERSION as SCHEMA_VERSION
from ddpm_core.model import adapter_file
from ddpm_core.model import file as model_file
from ddpm_core.model.file import FORMAT as MODEL_FORMAT
from ddpm_core.model.lora import merge
from ddpm_core.operations.context import Context
from ddpm_core.operations.sampling import sample
from ddpm_core.requests import Prompt
from ddpm_core.sampling.generate import SampleSettings
from ddpm_core.training.checkpoints import FORMAT as CHECKPOINT_FORMAT
from ddpm_core.workspace import Workspace

FORMATS = sorted((DATA / "formats").glob("*.zip"))
NEWEST = FORMATS[-1]
ONE_MODEL = DATA / "formats" / "5.zip"  # the newest that has one model only
TAGS = ["bright", "green", "red", "round"]


def unpacked(archive: Path, folder: Path) -> CommandLine:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return CommandLine(folder)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_every_format_is_kept() -> None:
    newest = max(SCHEMA_VERSION, MODEL_FORMAT, CHECKPOINT_FORMAT)
    assert [path.stem for path in FORMATS] == [str(n) for n in range(1, newest + 1)]


@pytest.mark.parametrize("archive", FORMATS, ids=lambda path: path.stem)
def test_a_workspace_of_that_format_goes_on(archive: Path, tmp_path: Path) -> None:
    line = unpacked(archive, tmp_path / "ws")
    dataset = tmp_path / "ws" / "datasets" / "d"
    first = line.run("dataset", "list")["datasets"][0]  # type: ignore[index]
    assert first == {"name": "d", "items": 24, "kept": 23, "rejected": {"user": 1}}
    version = int(archive.stem)
    if version < SCHEMA_VERSION:  # as it was, beside what it has become
        with contextlib.closing(sqlite3.connect(dataset / f"dataset.format-{version}.sqlite")) as before:
            assert before.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == (str(version),)
            assert before.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert before.execute("SELECT COUNT(*) FROM items").fetchone() == (24,)
    with contextlib.closing(sqlite3.connect(dataset / "dataset.sqlite")) as now:
        assert now.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == (str(SCHEMA_VERSION),)
        indexes = {name for (name,) in now.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        assert {"items_reason", "items_twins"} <= indexes
    out = tmp_path / "out"
    line.run("sample", "--model", "m", "--count", 1, "--steps", 5, "--seed", 1, "--sampler", "ddim", "--out", out)
    with Image.open(out / "00000-1.png") as mine, Image.open(tmp_path / "ws" / "expected.png") as before:
        assert np.abs(np.asarray(mine, int) - np.asarray(before, int)).max() <= 2
    if version == 5:  # with a text encoder
        encoder = WordVectors()
        context = Context(torch.device("cpu"), text_encoder=lambda: encoder)
        prompts = [Prompt("(red:1.1), bright")]
        found = sample(Workspace(tmp_path / "ws"), "m", 1, SampleSettings("ddim", 5, seed=1), context, prompts=prompts)
        with Image.open(tmp_path / "ws" / "expected-red-bright.png") as before:
            assert np.abs(np.asarray(found.pictures[0], int) - np.asarray(before, int)).max() <= 2
    if version in (4, 6, 7, 8, 9):  # with words
        assert sorted(line.run("models", "show", "m")["config"]["tags"]) == TAGS
        asked = ("--prompt", "red, bright", "--out", tmp_path / "red")
        line.run("sample", "--model", "m", "--count", 1, "--steps", 5, "--seed", 1, "--sampler", "ddim", *asked)
        theirs = tmp_path / "ws" / "expected-red-bright.png"
        with Image.open(tmp_path / "red" / "00000-1.png") as mine, Image.open(theirs) as before:
            assert np.abs(np.asarray(mine, int) - np.asarray(before, int)).max() <= 2
    if version in (6, 7, 8, 9):  # with an upscaler
        asked = ("--upscaler", "large", "--out", tmp_path / "large")
        line.run("sample", "--model", "m", "--count", 1, "--steps", 5, "--seed", 1, "--sampler", "ddim", *asked)
        theirs = tmp_path / "ws" / "expected-large.png"
        with Image.open(tmp_path / "large" / "00000-1.png") as mine, Image.open(theirs) as before:
            assert mine.size == (64, 64) and np.abs(np.asarray(mine, int) - np.asarray(before, int)).max() <= 4
        assert line.run("train", "--model", "large", "--resume", "--steps", 7)["steps"] == 7
    if version in (7, 8, 9):  # with an adapter
        expected = json.loads((tmp_path / "ws" / "expected-adapter.json").read_text())
        base = model_file.load(tmp_path / "ws" / "models" / "m.safetensors")
        adapter = adapter_file.load(tmp_path / "ws" / "models" / "a.safetensors")
        config, merged = merge(base.config, base.weights, [(adapter, 1.0)])
        assert list(config.tags) == expected["tags"]
        for name, change in expected["changed"].items():
            assert float((merged[name] - base.weights[name]).abs().mean()) == pytest.approx(change, abs=1e-6)
        asked = ("--prompt", "stripes", "--adapter", "a:0.5", "--out", tmp_path / "stripes")
        assert line.run("sample", "--model", "m", "--count", 1, "--steps", 2, *asked)["tags"] == ["stripes"]
        assert line.run("train", "--adapter", "a", "--resume", "--steps", 62)["steps"] == 62
    if version in (8, 9):  # with the annotated model's parts, and grey
        asked = ("--steps", 5, "--seed", 1, "--sampler", "ddim", "--out", tmp_path / "grey")
        line.run("sample", "--model", "grey", "--count", 1, *asked)
        theirs = tmp_path / "ws" / "expected-grey.png"
        with Image.open(tmp_path / "grey" / "00000-1.png") as mine, Image.open(theirs) as before:
            assert np.abs(np.asarray(mine, int) - np.asarray(before, int)).max() <= 2
        assert line.run("train", "--model", "grey", "--resume", "--steps", 7)["steps"] == 7
    if version == 9:  # with an image-text encoder, and a model that it tells what its images are like
        asked = ("--steps", 5, "--seed", 1, "--sampler", "ddim", "--prompt", "red, bright", "--out", tmp_path / "like")
        line.run("sample", "--model", "like", "--count", 1, *asked)
        theirs = tmp_path / "ws" / "expected-like.png"
        with Image.open(tmp_path / "like" / "00000-1.png") as mine, Image.open(theirs) as before:
            assert np.abs(np.asarray(mine, int) - np.asarray(before, int)).max() <= 4
        expected = json.loads((tmp_path / "ws" / "expected-search.json").read_text())["items"]
        found = line.run("search", "--dataset", "d", "--prompt", "red", "--count", 5)["items"]
        assert {one["id"]: one["score"] for one in found} == pytest.approx(  # type: ignore[attr-defined]
            {one["id"]: one["score"] for one in expected}, abs=2e-3
        )
        assert line.run("train", "--model", "like", "--resume", "--steps", 7)["steps"] == 7
        assert line.run("train", "--model", "finder", "--resume", "--steps", 7)["steps"] == 7
    line.run("dataset", "undo", "d")
    more = line.run("harvest", "--dataset", "d", random_pictures(tmp_path / "more", 3, 32, seed=9))
    assert more["added"] == 3
    line.run("dataset", "reject", "d", "3", "25", "26", "27")  # the run's pictures again
    assert line.run("train", "--model", "m", "--resume", "--steps", 8)["steps"] == 8


def later_dataset(root: Path) -> None:
    with contextlib.closing(sqlite3.connect(root / "datasets" / "d" / "dataset.sqlite")) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA_VERSION + 1),))
        db.commit()


def later_run(root: Path) -> None:
    path = root / "runs" / "m" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": MODEL_FORMAT + 1}))


def later_checkpoint(root: Path) -> None:
    """Beside one of today's, which must not be taken instead: what came after it would be lost."""
    path = root / "runs" / "m" / "checkpoints" / "step-000000006.safetensors"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    later = path.with_name("step-000000007.safetensors")
    save_file(load_file(path), later, metadata={**about, "format": str(CHECKPOINT_FORMAT + 1)})


def later_model(root: Path) -> None:
    path = root / "models" / "m.safetensors"
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    key = next(key for key, value in about.items() if "format" in value)
    about[key] = json.dumps({**json.loads(about[key]), "format": MODEL_FORMAT + 1})
    save_file(load_file(path), path, metadata=about)


RESUME = ("train", "--model", "m", "--resume", "--steps", 8)


@pytest.mark.parametrize(
    ("make", "commands"),
    [
        (later_dataset, [("dataset", "show", "d"), ("dataset", "reject", "d", "4"), RESUME]),
        (later_run, [RESUME]),
        (later_checkpoint, [RESUME]),
        (later_model, [("sample", "--model", "m", "--out", "unused"), ("models", "show", "m")]),
    ],
    ids=["dataset", "run", "checkpoint", "model"],
)
def test_a_later_format_is_refused_untouched(
    make: Callable[[Path], None], commands: list[tuple[object, ...]], tmp_path: Path
) -> None:
    line = unpacked(NEWEST, tmp_path / "ws")
    make(tmp_path / "ws")
    before = contents(tmp_path / "ws")
    for command in commands:
        process = line.start(*command)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2 and said.count("ddpm: ") == 1 and "newer version" in said, (command, said)
        assert contents(tmp_path / "ws") == before, command


def test_an_upgrade_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    """No room for the backup: refused, and it works once there is."""
    line = unpacked(FORMATS[0], tmp_path / "ws")
    dataset = tmp_path / "ws" / "datasets" / "d"
    (dataset / "dataset.format-1.sqlite").mkdir()  # nothing can be renamed to it
    before = (dataset / "dataset.sqlite").read_bytes()
    assert "could not be written" in str(line.run("dataset", "show", "d", code=2)["error"])
    assert (dataset / "dataset.sqlite").read_bytes() == before
    (dataset / "dataset.format-1.sqlite").rmdir()
    assert len(line.run("dataset", "show", "d")["items"]) == 24  # type: ignore[arg-type]
