"""Killed anywhere, on a disk that is full at any byte, short of memory, without permissions: what was finished stays, and
the work goes on exactly."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, random_pictures
from lives import INSIDE, POINTS
from PIL import Image
from safetensors.torch import load_file

from ddpm_core.model import adapter_file
from ddpm_core.model import file as model_file
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.training.metrics import read_metrics
from ddpm_core.workspace import Workspace

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks and SIGKILL")

PICTURES, STEPS = 44, 12
SETTINGS = ["block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8", "dropout=0.1"]
TRAIN = ["train", "--dataset", "d", "--model", "m", "--preset", "tiny-32", "--size", "16", "--batch-size", "8"]
TRAIN += ["--precision", "fp32", "--steps", str(STEPS), "--checkpoint-every", "3"]
TRAIN += [word for setting in SETTINGS for word in ("--set", setting)]
RESUME = ["train", "--model", "m", "--resume", "--steps", str(STEPS), "--checkpoint-every", "3"]
TUNED = 6
TUNE = ["train", "--dataset", "d", "--adapter", "a", "--base", "m", "--concept", "new", "--batch-size", "4"]
TUNE += ["--precision", "fp32", "--steps", str(TUNED), "--checkpoint-every", "2", "--no-stop-before-copying"]
RESUME_TUNING = ["train", "--adapter", "a", "--resume", "--steps", str(TUNED), "--checkpoint-every", "2"]


Trouble = Callable[[random.Random, list[str]], dict[str, Any]]


class Lives:
    """The program that forks and kills."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lives.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def run(self, workspace: Path, arguments: list[str], **how: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"arguments": ["--workspace", str(workspace), *arguments], **how}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


class Known:
    """What was finished before, and must still be there; looked at as the next start would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.items: dict[str, str] = {}  # source: status
        self.newest = -1

    def look(self) -> Workspace:
        workspace = Workspace(self.root)
        for record in workspace.trash():
            workspace.restore(record["place"])
        if workspace.dataset_names():
            self._dataset(workspace)
        else:
            assert not self.items, "the dataset is lost"
        self._run(workspace)
        workspace = Workspace(self.root)
        strays = [path for path in self.root.rglob("*") if path.name.endswith(".tmp")]
        assert not strays and not list((self.root / "trash").iterdir())
        return workspace

    def _dataset(self, workspace: Workspace) -> None:
        store = workspace.store("d")
        with store.transaction() as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        found = {item["source"]: item for item in store.items()}
        assert self.items.keys() <= found.keys(), "items are lost"
        for source, item in found.items():
            with Image.open(store.copy_path(item["sha256"])) as image:
                image.load()
            self.items[source] = item["status"]

    def _run(self, workspace: Workspace) -> None:
        folder = workspace.run_folder("m")
        steps = [-1]
        for path in CheckpointFolder(folder / "checkpoints").paths():
            loaded = CheckpointFolder(folder / "checkpoints").load(path)
            assert all(torch.isfinite(v).all() for v in loaded.tensors.values())
            steps.append(int(loaded.numbers["step"]))
        assert max(steps) >= self.newest, "a checkpoint is lost"
        self.newest = max(steps)
        if self.newest >= 0:
            assert workspace.newest_step("m") == self.newest
            logged = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
            assert all(isinstance(step, int) for step in logged)
        if "m" in workspace.model_names():
            model_file.load(workspace.model_path("m"))
        if "a" in workspace.model_names():
            adapter_file.load(workspace.adapter_path("a"))


def commands(source: Path) -> list[list[str]]:
    return [
        ["harvest", "--dataset", "d", str(source)],
        ["dataset", "reject", "d", "3", "5"],
        TRAIN,
        TUNE,
        ["models", "delete", "m"],
        ["models", "restore", "m"],
        ["dataset", "delete", "d"],
        ["dataset", "restore", "d"],
    ]


def result(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    workspace = Workspace(root)
    end = load_file(workspace.run_folder("m") / "checkpoints" / f"step-{STEPS:09d}.safetensors")
    tuned = load_file(workspace.run_folder("a") / "checkpoints" / f"step-{TUNED:09d}.safetensors")
    end |= {f"a.{name}": value for name, value in tuned.items()}
    rejected = [Path(item["source"]).name for item in workspace.store("d").items(status="rejected")]
    return end, load_file(workspace.model_path("m")), sorted(rejected)


def undone(workspace: Workspace, command: list[str]) -> bool:
    """Whether a command that was cut off must be given again; :meth:`Known.look` has restored what it deleted."""
    return not (command[:2] == ["dataset", "reject"] and workspace.store("d").counts()["rejected"])


def looked_at(known: Known, place: str) -> Workspace:
    try:
        return known.look()
    except Exception as error:
        raise AssertionError(f"{place}: {error}") from error


def endure(lives: Lives, folder: Path, many: int, seed: int, choose: Trouble) -> Counter[str]:
    """Live whole lives, in trouble again and again, until so many troubles are survived; each must end as a calm one.

    ``choose`` gives the trouble, if any, that a command gets into.
    """
    chance = random.Random(seed)
    source = random_pictures(folder / "in", PICTURES)
    calm = folder / "calm"
    for command in commands(source):
        ended = lives.run(calm, command)
        assert ended["code"] == 0, ended["said"]
    wanted = result(calm)
    survived: Counter[str] = Counter()
    life = 0
    while survived.total() < many:
        life += 1
        known = Known(folder / f"life{life}")
        for command in commands(source)[: 4 if choose is starved else None]:  # the others make no large allocation
            while True:
                how = choose(chance, command) if survived.total() < many and chance.random() < 0.9 else {}
                given = command
                if command is TRAIN and (known.root / "runs" / "m" / "run.json").exists():
                    given = RESUME
                if command is TUNE and (known.root / "runs" / "a" / "run.json").exists():
                    given = RESUME_TUNING
                if command[1] == "restore":
                    lives.run(known.root, [command[0], "delete", command[2]])
                ended = lives.run(known.root, given, **how)
                place = f"seed {seed}, life {life}, {given[:2]}, {how}: {ended['said'][-2000:]}"
                assert "Traceback" not in ended["said"], place
                if not ended["killed"] and ended["code"] == 0:
                    if ended["troubled"]:
                        survived[f"{how['point']}, went on"] += 1
                        looked_at(known, place)
                    break
                if not ended["killed"]:
                    assert how and ended["code"] == 2 and ended["said"].count("ddpm: ") == 1, place
                survived[how.get("point") or next(iter(how))] += 1
                if not undone(looked_at(known, place), command):
                    break
        known.look()
        for mine, calmly in zip(result(known.root)[:2], wanted[:2]):
            assert mine.keys() == calmly.keys()
            assert all(torch.equal(mine[name], calmly[name]) for name in mine), f"seed {seed}, life {life}: another end"
        assert result(known.root)[2] == wanted[2]
    return survived


def killed(chance: random.Random, command: list[str]) -> dict[str, Any]:
    """At a moment in one case of three, else at a point."""
    if chance.random() < 0.34:
        return {"seconds": chance.uniform(0.0, 1.5)}
    point = chance.choice([*POINTS, INSIDE])
    return {"point": point, "passage": int(chance.expovariate(0.25)), "after": chance.random() < 0.5}


def full(chance: random.Random, command: list[str]) -> dict[str, Any]:
    """Files end at some byte between the first and the largest that is written, small ones as likely as large ones."""
    return {"file_limit": int(2 ** chance.uniform(0.0, 20.0))}


def starved(chance: random.Random, command: list[str]) -> dict[str, Any]:
    """An allocation that fails, once or from then on, where a command makes large ones."""
    if command in (TRAIN, TUNE):
        point = chance.choice(["state", "preview", "checkpoint", "pack"])
    elif command[0] == "harvest" and chance.random() < 0.3:
        point = "copy"
    else:
        return {}
    return {
        "point": point,
        "passage": int(chance.expovariate(0.25)),
        "after": False,
        "memory": chance.choice([1, 1000]),
    }


def denied(chance: random.Random, command: list[str]) -> dict[str, Any]:
    """Nothing in the workspace may be written, or not even be read, from some point on."""
    point, mode = chance.choice([*POINTS, INSIDE]), chance.choice([0o555, 0o000])
    return {"point": point, "passage": int(chance.expovariate(0.25)), "after": chance.random() < 0.5, "denied": mode}


Endured = Callable[[str], "tuple[int, Counter[str]]"]  # kind of trouble -> seed, and how often what was survived


def beside_each_other(folders: pytest.TempPathFactory, wanted: dict[Trouble, tuple[int, int]]) -> Iterator[Endured]:
    """So many troubles of each kind, with that seed, as many kinds at a time as there are cores: each is one process at
    work after the other."""

    def run(trouble: Trouble, many: int, seed: int) -> tuple[int, Counter[str]]:
        folder = folders.mktemp(trouble.__name__)
        lives = Lives(folder)
        try:
            return seed, endure(lives, folder, many, seed, trouble)
        finally:
            lives.end()

    pool = ThreadPoolExecutor(os.cpu_count())
    running = {trouble.__name__: pool.submit(run, trouble, *how) for trouble, how in wanted.items()}
    yield lambda kind: running[kind].result()
    pool.shutdown(cancel_futures=True)


KINDS = ["killed", "full", "starved", "denied"]


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endured]:
    wanted: dict[Trouble, tuple[int, int]] = {killed: (6, 1), denied: (6, 4), full: (6, 2), starved: (6, 3)}
    yield from beside_each_other(tmp_path_factory, wanted)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endured]:
    count, given = int(os.environ.get("DDPM_TROUBLES", "200")), int(os.environ.get("DDPM_SEED", "0"))
    seeds = [given or int.from_bytes(os.urandom(4), "big") for _ in KINDS]
    kinds: list[Trouble] = [killed, full, starved, denied]
    yield from beside_each_other(tmp_path_factory, {kind: (count, seed) for kind, seed in zip(kinds, seeds)})


@pytest.mark.parametrize("trouble", KINDS)
def test_one_sentence_and_nothing_finished_is_lost(some: Endured, trouble: str) -> None:
    assert some(trouble)[1].total() >= 6


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("trouble", KINDS)
def test_two_hundred_times(many: Endured, trouble: str) -> None:
    seed, survived = many(trouble)
    print(f"{trouble}: seed {seed} (DDPM_SEED), {survived.total()} survived: {dict(survived)}")
