"""What changes around us while we work: files under a harvest, the clock, other processes, names that collide."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, CommandLine, random_pictures
from PIL import Image

from ddpm_core.dataset.store import Store
from ddpm_core.errors import UserError
from ddpm_core.files import FolderLock, machine, temporary_beside
from ddpm_core.workspace import Workspace

SMALL = ["--preset", "tiny-32", "--size", "16", "--batch-size", "8", "--precision", "fp32"]
for _setting in ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8"):
    SMALL += ["--set", _setting]


def consistent(store: Store) -> None:
    """Each item that is kept has a copy that can be read; no half file lies about."""
    for item in store.items():
        if item["has_copy"]:
            with Image.open(store.copy_path(item["sha256"])) as copy:
                copy.load()
        else:
            assert item["status"] == "rejected"
    assert not list(store.folder.rglob("*.tmp"))


def test_files_that_vanish_grow_and_change_while_they_are_harvested(tmp_path: Path) -> None:
    source = random_pictures(tmp_path / "in", 300)
    stop, chance = threading.Event(), random.Random(5)
    files = sorted(source.iterdir())
    whole = files[0].read_bytes()

    def meddle() -> None:
        while not stop.is_set():
            path = chance.choice(files)
            kind = chance.randrange(5)
            with contextlib.suppress(PermissionError):  # Windows, where a file being read cannot be removed
                if kind == 0:
                    path.unlink(missing_ok=True)
                elif kind == 1:
                    path.write_bytes(whole[: chance.randrange(len(whole))])
                elif kind == 2:
                    with path.open("ab") as file:
                        file.write(bytes(chance.randrange(100_000)))
                elif kind == 3 and path.exists():
                    path.replace(chance.choice(files))
                else:
                    path.write_bytes(whole)

    workspace = Workspace(tmp_path / "ws")
    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        for _ in range(3):
            workspace.harvest("d", [source])
            consistent(workspace.store("d"))
    finally:
        stop.set()
        meddler.join()
    # in peace again: everything that lies there is known, and nothing is added twice
    workspace.harvest("d", [source])
    counts = workspace.store("d").counts()
    assert workspace.harvest("d", [source]).added == 0 and workspace.store("d").counts() == counts
    good = [item["sha256"] for item in workspace.store("d").items(status="kept")]
    assert good and len(good) == len(set(good))


def test_a_folder_that_vanishes_while_it_is_harvested(tmp_path: Path) -> None:
    source = random_pictures(tmp_path / "in", 200)
    workspace = Workspace(tmp_path / "ws")

    def take_away(done: int, total: int, text: str) -> None:
        if done >= 50 and source.exists():
            source.rename(tmp_path / "gone")

    found = workspace.harvest("d", [source], progress=take_away)
    assert 50 <= found.kept < 200 and found.skipped["unreadable"] > 0
    consistent(workspace.store("d"))
    (tmp_path / "gone").rename(source)
    assert workspace.harvest("d", [source]).kept == 200 - found.kept


# a program whose clock is an hour further back at each look at it
_BACKWARDS = """
import itertools, time
real, looks = time.time, itertools.count()
time.time = lambda: real() - 3600.0 * next(looks)
"""
_FORWARDS = """
import json, sys
from ddpm_core import cli
for order in json.loads(sys.argv[1]):
    status = cli.main(order)
    assert status == 0, order
"""


def test_a_clock_that_runs_backwards_costs_nothing(tmp_path: Path) -> None:
    source = random_pictures(tmp_path / "in", 44)
    straight, backwards = tmp_path / "straight", tmp_path / "backwards"
    orders: list[list[object]] = [
        ["harvest", "--dataset", "d", source],
        ["dataset", "reject", "d", 1],
        ["dataset", "reject", "d", 2],
        ["dataset", "undo", "d"],
        ["train", "--dataset", "d", "--model", "m", "--steps", 4, "--checkpoint-every", 2, *SMALL],
        ["models", "delete", "m"],
        ["models", "restore", "m"],
        ["train", "--model", "m", "--resume", "--steps", 6],
    ]
    for workspace, program in ((straight, _FORWARDS), (backwards, _BACKWARDS + _FORWARDS)):
        said = json.dumps([["--workspace", str(workspace), *map(str, order)] for order in orders])
        done = subprocess.run(
            [sys.executable, "-c", program, said], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    known = [Workspace(root).store("d").items() for root in (straight, backwards)]
    assert [item["status"] for item in known[0]] == [item["status"] for item in known[1]]
    assert known[1][0]["status"] == "rejected" and known[1][1]["status"] == "kept"
    weights = [(root / "models" / "m.safetensors").read_bytes() for root in (straight, backwards)]
    assert weights[0][-4000:] == weights[1][-4000:]
    for line in (backwards / "runs" / "m" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("seconds", 0) >= 0


def test_files_from_the_future_are_no_obstacle(tmp_path: Path) -> None:
    """The clock was set back after they were made."""
    source = random_pictures(tmp_path / "in", 44)
    line = CommandLine(tmp_path / "ws")
    line.run("harvest", "--dataset", "d", source)
    line.run("train", "--dataset", "d", "--model", "m", "--steps", 2, *SMALL)
    for path in (tmp_path).rglob("*"):
        os.utime(path, (4e9, 4e9))
    line.run("harvest", "--dataset", "d", source)
    assert line.run("dataset", "list")["datasets"][0]["kept"] == 44  # type: ignore[index]
    assert line.run("train", "--model", "m", "--resume", "--steps", 4)["steps"] == 4


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    """Its file stays; what holds is the open handle, which the system closes."""
    program = (
        "import os, signal, sys; from pathlib import Path; from ddpm_core.files import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]), 'busy'); lock.acquire(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None and holder.stdout.readline().strip() == b"held"
    with pytest.raises(UserError, match="busy"):
        FolderLock(tmp_path, "busy").acquire()
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".lock").exists()
    with FolderLock(tmp_path, "busy").held():
        pass


@pytest.mark.skipif(os.name == "nt", reason="whether a process lives cannot be asked simply there")
def test_what_another_machine_is_writing_stays(tmp_path: Path) -> None:
    """A workspace on a share: numbers of processes say nothing across machines."""
    workspace = tmp_path / "ws"
    Workspace(workspace)
    mine = f".{machine()}-{os.getpid()}-"
    name = temporary_beside(workspace / "x").name
    assert mine in name
    nobody = 2**22 + 3  # above the largest number that a process can have
    theirs = workspace / name.replace(mine, f".{'0' * 8}-{nobody}-")
    dead = workspace / name.replace(mine, f".{machine()}-{nobody}-")
    for path in (theirs, dead):
        path.write_text("half")
    Workspace(workspace)
    assert theirs.exists() and not dead.exists()


def test_two_processes_harvest_and_decide_in_one_dataset(tmp_path: Path) -> None:
    """All of both arrives, each picture once, and no decision is lost."""
    first, second = random_pictures(tmp_path / "a", 120, seed=1), random_pictures(tmp_path / "b", 120, seed=2)
    line = CommandLine(tmp_path / "ws")
    line.run("harvest", "--dataset", "d", random_pictures(tmp_path / "c", 20, seed=3))
    processes = [line.start("harvest", "--dataset", "d", folder) for folder in (first, second, first)]
    store, number = Workspace(tmp_path / "ws").store("d"), 0
    while any(process.poll() is None for process in processes):
        if number < 5:
            number += 1
            assert store.decide([number], "rejected", "user", "") == 1
        time.sleep(0.2)
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert number == 5
    items = store.items()
    kept = [item["sha256"] for item in items if item["status"] == "kept"]
    assert len(kept) == len(set(kept)) == 255
    assert {item["source"] for item in items} == {
        str(path) for folder in "abc" for path in (tmp_path / folder).iterdir()
    }
    consistent(store)


def test_names_that_some_disks_cannot_tell_apart(tmp_path: Path) -> None:
    line = CommandLine(tmp_path / "ws")
    line.run("harvest", "--dataset", "Straße", random_pictures(tmp_path / "in", 12))
    for twin in ("STRASSE", "straße"):
        assert "Straße" in str(line.run("harvest", "--dataset", twin, tmp_path / "in", code=2)["error"])
    line.run("train", "--dataset", "Straße", "--model", "Cat", "--steps", 1, *SMALL)
    said = line.run("train", "--dataset", "Straße", "--model", "cAT", "--steps", 1, *SMALL, code=2)["error"]
    assert "'Cat'" in str(said)


@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "aux.",
        "nul.txt",
        "COM1",
        "lpt9.x",
        ".",
        "..",
        "a/b",
        "a\\b",
        "x" * 81,
        "名" * 27,
        "a:b",
        " ",
        "a\nb",
        "-x",
    ],
)
def test_names_that_no_file_may_have(name: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    with pytest.raises(UserError, match="name"):
        workspace.harvest(name, [tmp_path])
    with pytest.raises(UserError, match="name"):
        workspace.run_folder(name)
    assert not list((tmp_path / "ws").glob("*/*"))
