"""Several processes at one training, begun by the real torchrun on gloo: the result of one process, and clean ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, CommandLine, random_pictures
from safetensors.torch import load_file

from ddpm_core.training.checkpoints import CheckpointFolder

SETTINGS = ["block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8", "dropout=0"]
OPTIONS = ["--preset", "tiny-32", "--size", "16", "--batch-size", "9", "--precision", "fp32"]
OPTIONS += [word for setting in [*SETTINGS, "flip_probability=0.5"] for word in ("--set", setting)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes is tried on Linux only")


def torchrun(workspaces: Path, processes: int, *arguments: object) -> subprocess.Popen[str]:
    """``workspaces`` may hold {rank}: a workspace for each process, as on several machines."""
    program = (
        "import os, sys\n"
        "from ddpm_core.cli import main\n"
        "sys.exit(main(['--workspace', sys.argv[1].format(rank=os.environ['RANK']), *sys.argv[2:]]))\n"
    )
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
        *("--no-python", sys.executable, "-c", program, str(workspaces), *map(str, arguments)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def ours(err: str) -> list[str]:
    """Our own sentences; torchrun adds a report of its own when a process fails."""
    return [line for line in err.splitlines() if line.startswith("ddpm: ")]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harvested")
    CommandLine(folder / "ws").run("harvest", "--dataset", "d", random_pictures(folder / "in", 50))
    return folder / "ws"


def workspace(harvested: Path, target: Path) -> CommandLine:
    shutil.copytree(harvested, target)
    return CommandLine(target)


def end(line: CommandLine, steps: int) -> dict[str, torch.Tensor]:
    return load_file(line.workspace / "runs" / "m" / "checkpoints" / f"step-{steps:09d}.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.long)])
def test_two_processes_and_other_numbers_after_give_the_result_of_one(
    harvested: Path, tmp_path: Path, optimizer: str
) -> None:
    """12 steps by one; 6 by two, 3 by three, 3 by one. Nine pictures a step: the parts are unequal."""
    one, many = workspace(harvested, tmp_path / "one"), workspace(harvested, tmp_path / "many")
    options = [*OPTIONS, "--set", f"optimizer={optimizer}"]
    one.run("train", "--dataset", "d", "--model", "m", "--steps", 12, *options)
    run = ("train", "--dataset", "d", "--model", "m", "--steps", 6, *options, "--json")
    status, out, err = finish(torchrun(many.workspace, 2, *run))
    assert status == 0, err
    assert out.count('"steps": 6') == 1 and len(out.strip().splitlines()) == 1, out
    status, _, err = finish(torchrun(many.workspace, 3, "train", "--model", "m", "--steps", 9, "--resume"))
    assert status == 0, err
    many.run("train", "--model", "m", "--steps", 12, "--resume")
    a, b = end(one, 12), end(many, 12)
    assert a.keys() == b.keys()
    # Adam's first steps make a unit of any gradient, however small: weights are compared by what they moved
    for name in a:
        if name.startswith(("net.", "ema.")):
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4, msg=name)


def test_processes_with_other_pictures_refuse(harvested: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        workspace(harvested, tmp_path / f"ws{rank}")
    CommandLine(tmp_path / "ws1").run("dataset", "reject", "d", "3")
    run = ("train", "--dataset", "d", "--model", "m", "--steps", 6, *OPTIONS)
    status, _, err = finish(torchrun(tmp_path / "ws{rank}", 2, *run))
    assert status != 0
    assert any("has changed" in line for line in err.splitlines()), err
    assert ours(err) and all("Process 1 has other images than process 0" in line for line in ours(err)), err
    assert not (tmp_path / "ws0" / "runs" / "m" / "run.json").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--dataset", "nowhere"), "There is no dataset 'nowhere'"),
        (("--dataset", "d", "--batch-size", "1"), "cannot be shared by 2 processes"),
    ],
)
def test_bad_input_is_said_once(harvested: Path, tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    line = workspace(harvested, tmp_path / "ws")
    run = ("train", "--model", "m", "--steps", 6, "--preset", "tiny-32", "--size", 16, *options)
    status, _, err = finish(torchrun(line.workspace, 2, *run))
    assert status != 0
    assert len(ours(err)) == 1 and sentence in ours(err)[0], err


def test_when_a_process_dies_the_others_stop_and_the_checkpoint_is_good(harvested: Path, tmp_path: Path) -> None:
    line = workspace(harvested, tmp_path / "ws")
    run = ("train", "--dataset", "d", "--model", "m", "--steps", 100_000, "--checkpoint-every", 5, *OPTIONS)
    process = torchrun(line.workspace, 2, *run)
    folder = CheckpointFolder(line.workspace / "runs" / "m" / "checkpoints")
    began = time.monotonic()
    while not any(path.name > "step-000000004" for path in folder.paths()):
        assert process.poll() is None and time.monotonic() - began < 120
        time.sleep(0.05)
    os.kill(member(process.pid, rank=1), signal.SIGKILL)
    died = time.monotonic()
    status, _, err = finish(process)
    assert status != 0 and time.monotonic() - died < 20  # torchrun itself would wait half a minute for one that hangs
    assert len(ours(err)) == 1 and "gone or cannot be reached" in ours(err)[0], err
    newest = folder.load_newest()
    assert newest is not None and newest.numbers["step"] >= 5
    further = int(newest.numbers["step"]) + 3
    assert line.run("train", "--model", "m", "--steps", further, "--resume")["steps"] == further


def member(parent: int, rank: int) -> int:
    """The process id of that rank among the children of torchrun."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "status").read_text()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and b"RANK=%d" % rank in environment:
            return int(folder.name)
    raise AssertionError("no such process")
