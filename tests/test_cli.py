"""The command line as its users meet it: a program, its exit status, its JSON, its one clear sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, CommandLine, random_pictures
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm_core.screen import printable

SMALL = [
    "--preset",
    "tiny-32",
    "--size",
    "16",
    "--batch-size",
    "4",
    "--set",
    "block_out_channels=8,16,16",
    "--set",
    "norm_num_groups=4",
    "--set",
    "attention_head_dim=8",
]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A workspace with a dataset of 50 pictures and a model of 4 steps."""
    line = CommandLine(tmp_path_factory.mktemp("ready") / "ws")
    line.run("harvest", "--dataset", "d", random_pictures(line.workspace.parent / "in", 50))
    line.run("train", "--dataset", "d", "--model", "m", "--steps", 4, *SMALL)
    return line


def test_the_whole_way(ready: CommandLine, tmp_path: Path) -> None:
    ready = CommandLine(ready.workspace, apart=True)
    found = ready.run("sample", "--model", "m", "--count", 5, "--out", tmp_path / "out", "--steps", 6, "--seed", 3)
    files = [Path(f) for f in found["files"]]  # type: ignore[attr-defined]
    assert found["evaluations"] == 6 and len(files) == 5
    with Image.open(files[1]) as image:
        assert image.size == (16, 16)
        assert "Seed: 4" in image.info["parameters"] and "DDPM model: m" in image.info["parameters"]
    assert Path(str(found["grid"])).is_file()
    result = ready.run("evaluate", "--model", "m", "--dataset", "d", "--count", 20, "--steps", 4)
    assert result["kid_low"] <= result["kid"] <= result["kid_high"]  # type: ignore[operator]
    assert 0 <= result["memorised"] <= 1 and Path(str(result["neighbours"])).is_file()  # type: ignore[operator]
    exported = ready.run("export", "--model", "m", "--format", "diffusers", "--out", tmp_path / "diffusers")
    assert any(str(f).endswith("model_index.json") for f in exported["files"])  # type: ignore[attr-defined]
    assert [m["name"] for m in ready.run("models", "list")["models"]] == ["m"]  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_files(ready: CommandLine, tmp_path: Path) -> None:
    pictures = []
    for name, batch in (("a", 3), ("b", 1)):
        found = ready.run(
            "sample",
            "--model",
            "m",
            "--count",
            3,
            "--out",
            tmp_path / name,
            "--steps",
            5,
            "--seed",
            9,
            "--batch-size",
            batch,
        )
        pictures.append([torch.tensor(list(Image.open(f).getdata())) for f in found["files"]])  # type: ignore[attr-defined]
    for one, other in zip(*pictures):
        assert (one - other).abs().max() <= 1


def test_real_images_evaluate_better_than_noise(ready: CommandLine, tmp_path: Path) -> None:
    real = ready.run("evaluate", "--images", ready.workspace.parent / "in", "--dataset", "d")
    noise = tmp_path / "noise"
    noise.mkdir()
    for i in range(50):
        pixels = torch.randint(
            0, 256, (48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
        ).numpy()
        Image.fromarray(pixels).save(noise / f"{i}.png")
    bad = ready.run("evaluate", "--images", noise, "--dataset", "d")
    assert real["kid_high"] < bad["kid_low"]  # type: ignore[operator]
    assert real["memorised"] > 0.8  # type: ignore[operator] - all but the held-out ones are training pictures


def test_more_steps_on_a_finished_run_and_a_new_run_from_its_weights(ready: CommandLine) -> None:
    assert ready.run("train", "--model", "m", "--resume", "--steps", 6)["steps"] == 6
    new = ready.run(
        "train",
        "--dataset",
        "d",
        "--model",
        "child",
        "--init-from",
        "m",
        "--steps",
        1,
        "--batch-size",
        4,
        "--lr",
        "1e-7",
    )
    assert new["steps"] == 1
    parent, child = (load_file(ready.workspace / "models" / f"{n}.safetensors") for n in ("m", "child"))
    assert all(torch.allclose(parent[k], child[k], atol=1e-4) for k in parent)


def test_fewer_steps_than_a_run_has_leave_it_as_it_was_planned(ready: CommandLine) -> None:
    record = ready.workspace / "runs" / "m" / "run.json"
    before = record.read_bytes()
    assert "already has" in str(ready.run("train", "--model", "m", "--resume", "--steps", 1, code=2)["error"])
    assert record.read_bytes() == before


def test_review_delete_restore_export(ready: CommandLine, tmp_path: Path) -> None:
    items = ready.run("dataset", "show", "d", "--suspects")["items"]
    assert [i["suspicion"] for i in items] == sorted((i["suspicion"] for i in items), reverse=True)  # type: ignore[attr-defined]
    assert ready.run("dataset", "reject", "d", 1, 2)["changed"] == 2
    assert ready.run("dataset", "reject", "d", 1)["changed"] == 0
    assert len(ready.run("dataset", "show", "d", "--status", "rejected")["items"]) == 2  # type: ignore[arg-type]
    assert ready.run("dataset", "keep", "d", 1)["changed"] == 1
    assert ready.run("dataset", "undo", "d")["changed"] == 1
    assert ready.run("dataset", "undo", "d")["changed"] == 2
    assert ready.run("dataset", "export", "d", tmp_path / "x")["changed"] == 50
    exported = {path.suffix for path in (tmp_path / "x").iterdir()}
    assert exported <= {".png", ".txt"} and ".png" in exported  # whatever the copies are
    ready.run("dataset", "delete", "d")
    assert ready.run("dataset", "list")["datasets"] == []
    ready.run("dataset", "restore", "d")
    ready.run("models", "delete", "m")
    ready.run("models", "show", "m", code=2)
    ready.run("models", "restore", "m")
    assert ready.run("models", "show", "m")["name"] == "m"


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["train", "--dataset", "nope", "--model", "x"], "there are: d"),
        (["train", "--dataset", "d", "--model", "m"], "--resume"),
        (
            ["train", "--dataset", "d", "--model", "x", "--preset", "huge"],
            "tiny-32, portrait-64, article-64, annotated-28, detail-128",
        ),
        (["train", "--dataset", "d", "--model", "x", "--preset", "tiny-32", "--size", "30"], "multiples of 4"),
        (["train", "--dataset", "d", "--model", "x", "--preset", "tiny-32", "--set", "nonsense=1"], "the settings are"),
        (["train", "--dataset", "d", "--model", "x", "--device", "cuda:7"], "not in this machine"),
        (["train", "--dataset", "d", "--model", "x", "--steps", "0"], "at least 1"),
        (["train", "--dataset", "d", "--model", "x", "--resume"], "no run"),
        (["train", "--dataset", "d", "--model", "../x"], "cannot be the name"),
        (["train", "--dataset", "d", "--model", "CON"], "cannot be the name"),
        (
            ["train", "--dataset", "d", "--model", "x", "--precision", "fp16", "--preset", "tiny-32"],
            "cannot train in fp16",
        ),
        (["sample", "--model", "nope", "--out", "o"], "there are: "),
        (["sample", "--model", "m", "--out", "o", "--sampler", "euler"], "dpmpp_2m, ddim, unipc, ddpm"),
        (["sample", "--model", "m", "--out", "o", "--steps", "1001"], "between 1 and 1000"),
        (["sample", "--model", "m", "--out", "o", "--count", "0"], "at least 1"),
        (["sample", "--model", "missing.safetensors", "--out", "o"], "no model file"),
        (["harvest", "--dataset", "e", "/does/not/exist"], "does not exist"),
        (["harvest", "--dataset", "e", "pyproject.toml"], "is a file"),
        (["dataset", "show", "nope"], "there are: d"),
        (["dataset", "reject", "d", "99999"], "no item 99999"),
        (["evaluate", "--dataset", "d"], "--model or --images"),
        (["frobnicate"], "frobnicate"),
        (["train", "--model"], "expected one argument"),
    ],
)
def test_bad_input_gets_one_clear_sentence(arguments: list[str], word: str, ready: CommandLine) -> None:
    assert word in str(ready.run(*arguments, code=2)["error"])


@pytest.mark.parametrize(
    "arguments",
    [["sample", "--model", "nope", "--out", "o"], ["dataset", "show", "nope"], ["frobnicate"]],
    ids=lambda arguments: str(arguments[0]),
)
def test_the_program_answers_bad_input_as_its_function_does(arguments: list[str], ready: CommandLine) -> None:
    apart = CommandLine(ready.workspace, apart=True)
    assert apart.run(*arguments, code=2) == ready.run(*arguments, code=2)


def test_broken_model_files_get_one_clear_sentence(ready: CommandLine, tmp_path: Path) -> None:
    whole = (ready.workspace / "models" / "m.safetensors").read_bytes()
    cut, other = tmp_path / "cut.safetensors", tmp_path / "other.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    save_file({"weight": torch.zeros(3)}, other)
    assert "damaged or cut off" in str(ready.run("sample", "--model", cut, "--out", tmp_path / "o", code=2)["error"])
    assert "another kind" in str(ready.run("sample", "--model", other, "--out", tmp_path / "o", code=2)["error"])


def test_small_and_empty_folders(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.run("harvest", "--dataset", "none", tmp_path / "empty")["found"] == 0
    assert "no dataset" in str(cli.run("train", "--dataset", "none", "--model", "x", code=2)["error"])
    cli.run("harvest", "--dataset", "three", random_pictures(tmp_path / "in", 3))
    process = cli.start("train", "--dataset", "three", "--model", "x", "--steps", 2, *SMALL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Only 3 images" in err and "copy" in err
    cli.run("dataset", "reject", "three", 1, 2, 3)
    assert "No image is kept" in str(cli.run("train", "--dataset", "three", "--model", "y", code=2)["error"])


@pytest.mark.parametrize("form", ['"{}"', "'{}'", "file://{}", "file://localhost{}"])
def test_a_pasted_path_is_understood(form: str, cli: CommandLine, tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "with space", 2)
    text = folder.as_posix().replace(" ", "%20") if form.startswith("file") else str(folder)
    if os.name == "nt" and form.startswith("file"):
        text = "/" + text
    assert cli.run("harvest", "--dataset", "d", form.format(text))["kept"] == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows always knows a home")
def test_a_home_that_is_not_there_is_said(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "def none(self): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.expanduser = none\n"
        "from ddpm_core.cli import main\n"
        "sys.exit(main(['dataset', 'list']))"
    )
    environment = {**os.environ, "DDPM_WORKSPACE": "~/x"}
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 2 and "give the whole path" in found.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stopped_training_exits_3_with_its_work_saved(name: str, ready: CommandLine) -> None:
    """SIGHUP: the terminal was closed."""
    number, name = getattr(signal, name), f"stopped-{name}"
    process = ready.start(
        *("train", "--dataset", "d", "--model", name, "--steps", 100000, *SMALL, "--json"),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup these tests, too, would ignore SIGHUP
    )
    metrics = ready.workspace / "runs" / name / "metrics.jsonl"
    while process.poll() is None and not metrics.exists():
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "Traceback" not in err
    steps = json.loads(out.strip().splitlines()[-1])["steps"]
    assert steps > 0
    assert ready.run("train", "--model", name, "--resume", "--steps", steps + 2)["steps"] == steps + 2


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_two_processes_on_one_model(ready: CommandLine) -> None:
    process = ready.start("train", "--dataset", "d", "--model", "busy", "--steps", 100000, *SMALL)
    metrics = ready.workspace / "runs" / "busy" / "metrics.jsonl"
    while process.poll() is None and not metrics.exists():
        time.sleep(0.02)
    assert "another process" in str(ready.run("train", "--model", "busy", "--resume", code=2)["error"])
    assert "being trained" in str(ready.run("models", "delete", "busy", code=2)["error"])
    # the rest of the workspace is not held up
    assert ready.run("harvest", "--dataset", "beside", ready.workspace.parent / "in")["kept"] == 50
    process.terminate()
    process.communicate(timeout=60)


def test_an_unwritable_workspace_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the workspace should be")
    assert "cannot be written" in str(CommandLine(blocked / "ws").run("dataset", "list", code=2)["error"])


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs the right to mount a small tmpfs"
)
def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        line = CommandLine(place / "ws", apart=True)  # this process would keep its files open
        line.run("harvest", "--dataset", "d", random_pictures(tmp_path / "in", 20))
        line.run("train", "--dataset", "d", "--model", "m", "--steps", 2, *SMALL)
        with open(place / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        message = str(line.run("train", "--model", "m", "--resume", "--steps", 8, code=2)["error"])
        assert "make room" in message
        (place / "filler").unlink()
        assert line.run("train", "--model", "m", "--resume", "--steps", 8)["steps"] == 8
    finally:
        subprocess.run(["umount", place], check=False)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs the right to mount a small tmpfs"
)
def test_a_read_only_workspace_can_be_sampled_from_and_says_what_it_cannot(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        line = CommandLine(place / "ws", apart=True)  # this process would keep its files open
        line.run("harvest", "--dataset", "d", random_pictures(tmp_path / "in", 20))
        line.run("train", "--dataset", "d", "--model", "m", "--steps", 2, *SMALL)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for arguments in (
            ["train", "--model", "m", "--resume", "--steps", 4],
            ["harvest", "--dataset", "d", tmp_path / "in"],
            ["harvest", "--dataset", "new", tmp_path / "in"],
            ["dataset", "reject", "d", 1],
        ):
            assert "cannot be" in str(line.run(*arguments, code=2)["error"])
        assert (
            len(line.run("sample", "--model", "m", "--count", 1, "--steps", 2, "--out", tmp_path / "o")["files"]) == 1
        )  # type: ignore[arg-type]
    finally:
        subprocess.run(["umount", place], check=False)


def test_a_run_cut_off_before_its_first_checkpoint_still_starts_from_the_given_weights(ready: CommandLine) -> None:
    ready.run(
        "train",
        "--dataset",
        "d",
        "--model",
        "young",
        "--init-from",
        "m",
        "--steps",
        1,
        "--batch-size",
        4,
        "--lr",
        "1e-7",
    )
    folder = ready.workspace / "runs" / "young"
    for path in [*(folder / "checkpoints").iterdir(), ready.workspace / "models" / "young.safetensors"]:
        path.unlink()  # as a kill would leave it
    ready.run("train", "--model", "young", "--resume", "--steps", 1)
    parent, child = (load_file(ready.workspace / "models" / f"{n}.safetensors") for n in ("m", "young"))
    assert all(torch.allclose(parent[k], child[k], atol=1e-4) for k in parent)


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ddpm_core", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("harvest", "dataset", "train", "sample", "evaluate", "export", "models", "serve", "demo"):
        assert name in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize("how", ["| head -1 >&3", "2>/dev/full", "2>&-", "<&- 2>&-"])
def test_progress_that_nobody_reads_ends_nothing(how: str, ready: CommandLine) -> None:
    """A reader that goes away after a line, a full disk under the log, and streams that were closed from the beginning."""
    name = f"unread-{abs(hash(how)) % 10**6}"
    command = [sys.executable, "-m", "ddpm_core", "--workspace", str(ready.workspace), "train", "--dataset", "d"]
    words = " ".join(shlex.quote(word) for word in [*command, "--model", name, "--steps", "40", *SMALL, "--json"])
    # the answer goes to 3; what the program itself ended with is told there, too
    line = f"{{ {words} 2>&1 >&3; echo $? >&3; }} {how}" if how.startswith("|") else f"{words} {how} >&3; echo $? >&3"
    done = subprocess.run(["bash", "-c", f"{{ {line}; }} 3>&1"], cwd=ROOT, text=True, capture_output=True, timeout=120)
    answer, status = [text for text in done.stdout.splitlines() if text.startswith("{") or text.isdigit()][-2:]
    assert status == "0" and json.loads(answer)["steps"] == 40, done.stdout + done.stderr
    assert (ready.workspace / "models" / f"{name}.safetensors").is_file()


@pytest.mark.skipif(os.name == "nt", reason="modes of Unix")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_mode_of_the_umask(mask: int, mode: int, ready: CommandLine, tmp_path: Path) -> None:
    """Also those that safetensors writes, which makes them for their owner alone."""
    before = os.umask(mask)
    try:
        name = f"mode-{mode:o}"
        ready.run("train", "--dataset", "d", "--model", name, "--steps", 2, *SMALL)
        ready.run("export", "--model", name, "--format", "diffusers", "--out", tmp_path / "out")
    finally:
        os.umask(before)
    run = ready.workspace / "runs" / name
    made = [ready.workspace / "models" / f"{name}.safetensors", *run.rglob("*"), *(tmp_path / "out").rglob("*")]
    files = [path for path in made if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".jsonl", ".png"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files if path.stat().st_mode & 0o777 != mode} == {}


def test_nothing_of_the_persons_is_overwritten(ready: CommandLine, tmp_path: Path) -> None:
    """Samples and grids are numbered on; a dataset is exported into no folder that has files of its names."""
    out = tmp_path / "out"
    out.mkdir()
    mine = {"grid.png": b"my grid", "00000-0.png": b"mine", "00007-1.png": b"mine, too", "notes.txt": b"notes"}
    for name, content in mine.items():
        (out / name).write_bytes(content)
    grids, files = [], []
    for _ in range(2):
        found = ready.run("sample", "--model", "m", "--count", 2, "--steps", 2, "--out", out)
        grids.append(Path(str(found["grid"])).name)
        files += [Path(path).name for path in found["files"]]  # type: ignore[attr-defined]
    assert files == ["00008-0.png", "00009-1.png", "00010-0.png", "00011-1.png"]
    assert grids == ["grid-0001.png", "grid-0002.png"]
    assert all((out / name).read_bytes() == content for name, content in mine.items())
    (out / "000001.png").write_bytes(b"mine")
    assert "already has a file 000001.png; choose an empty folder" in str(
        ready.run("dataset", "export", "d", out, code=2)["error"]
    )
    assert (out / "000001.png").read_bytes() == b"mine" and not (out / "000002.png").exists()


def test_control_characters_are_shown_and_not_obeyed(cli: CommandLine, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    (tmp_path / "in").mkdir()
    text = PngInfo()
    text.add_text("parameters", "red \x1b[31mhair\x07, 青\nSteps: 20, Sampler: Euler, Seed: 1")
    Image.new("RGB", (600, 600), (200, 80, 30)).save(tmp_path / "in" / "a.png", pnginfo=text)
    cli.run("harvest", "--dataset", "odd", tmp_path / "in")
    shown = cli.start("dataset", "show", "odd")
    out, err = shown.communicate(timeout=60)
    assert shown.returncode == 0, err
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert printable("a\x1b[2Jb\n青\x07") == "a\\x1b[2Jb\n青\\x07"
