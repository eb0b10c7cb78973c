"""Kill anywhere: SIGKILL at random moments and at chosen points; what was finished stays, and the work goes on exactly."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, random_pictures
from lives import INSIDE, POINTS
from PIL import Image
from safetensors.torch import load_file

from ddpm_core.model import file as model_file
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.training.loop import read_metrics
from ddpm_core.workspace import Workspace

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks and SIGKILL")

PICTURES, STEPS = 44, 12
SETTINGS = ["block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8", "dropout=0.1"]
TRAIN = ["train", "--dataset", "d", "--model", "m", "--preset", "tiny-32", "--size", "16", "--batch-size", "8"]
TRAIN += ["--precision", "fp32", "--steps", str(STEPS), "--checkpoint-every", "3"]
TRAIN += [word for setting in SETTINGS for word in ("--set", setting)]
RESUME = ["train", "--model", "m", "--resume", "--steps", str(STEPS), "--checkpoint-every", "3"]


class Lives:
    """The program that forks and kills."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "lives.log"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lives.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def run(self, workspace: Path, arguments: list[str], **how: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"arguments": ["--workspace", str(workspace), *arguments], "log": str(self.log), **how}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    found = Lives(tmp_path)
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(30)


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
            assert workspace.run_info("m")["step"] == self.newest
            logged = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
            assert all(isinstance(step, int) for step in logged)
        if "m" in workspace.model_names():
            model_file.load(workspace.model_path("m"))


def commands(source: Path) -> list[list[str]]:
    return [
        ["harvest", "--dataset", "d", str(source)],
        ["dataset", "reject", "d", "3", "5"],
        TRAIN,
        ["models", "delete", "m"],
        ["models", "restore", "m"],
        ["dataset", "delete", "d"],
        ["dataset", "restore", "d"],
    ]


def result(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    workspace = Workspace(root)
    end = load_file(workspace.run_folder("m") / "checkpoints" / f"step-{STEPS:09d}.safetensors")
    rejected = [Path(item["source"]).name for item in workspace.store("d").items(status="rejected")]
    return end, load_file(workspace.model_path("m")), sorted(rejected)


def undone(workspace: Workspace, command: list[str]) -> bool:
    """Whether a command that was cut off must be given again; :meth:`Known.look` has restored what it deleted."""
    return not (command[:2] == ["dataset", "reject"] and workspace.store("d").counts()["rejected"])


def kill_many(lives: Lives, folder: Path, kills: int, seed: int) -> Counter[str]:
    chance = random.Random(seed)
    source = random_pictures(folder / "in", PICTURES)
    calm = folder / "calm"
    for command in commands(source):
        assert lives.run(calm, command) == {"killed": False, "code": 0}, lives.log.read_text()[-2000:]
    wanted = result(calm)
    survived: Counter[str] = Counter()
    life = 0
    while survived.total() < kills:
        life += 1
        known = Known(folder / f"life{life}")
        for command in commands(source):
            while True:
                how = choose(chance) if survived.total() < kills and chance.random() < 0.9 else {}
                given = command
                if command is TRAIN and (known.root / "runs" / "m" / "run.json").exists():
                    given = RESUME
                if command[1] == "restore":
                    lives.run(known.root, [command[0], "delete", command[2]])
                ended = lives.run(known.root, given, **how)
                place = f"seed {seed}, life {life}, {given[:2]}, {how}"
                if not ended["killed"]:
                    assert ended["code"] == 0, f"{place}: {lives.log.read_text()[-2000:]}"
                    break
                survived[how.get("point", "moment")] += 1
                try:
                    if not undone(known.look(), command):
                        break
                except Exception as error:
                    raise AssertionError(f"{place}: {error}") from error
        known.look()
        for mine, calmly in zip(result(known.root)[:2], wanted[:2]):
            assert mine.keys() == calmly.keys()
            assert all(torch.equal(mine[name], calmly[name]) for name in mine), f"seed {seed}, life {life}: another end"
        assert result(known.root)[2] == wanted[2]
    return survived


def choose(chance: random.Random) -> dict[str, Any]:
    """A moment in one case of three, else a point."""
    if chance.random() < 0.34:
        return {"seconds": chance.uniform(0.0, 1.5)}
    point = chance.choice([*POINTS, INSIDE])
    return {"point": point, "passage": int(chance.expovariate(0.25)), "after": chance.random() < 0.5}


def test_killed_anywhere_nothing_finished_is_lost(lives: Lives, tmp_path: Path) -> None:
    kill_many(lives, tmp_path, 15, seed=1)


@pytest.mark.long
def test_two_hundred_kills(lives: Lives, tmp_path: Path) -> None:
    seed = int(os.environ.get("DDPM_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed} (DDPM_SEED)")
    survived = kill_many(lives, tmp_path, 200, seed)
    print(f"{survived.total()} kills survived: {dict(survived)}")
