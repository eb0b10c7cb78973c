"""Shared parts of the tests. Nothing here needs a host, a network or a GPU."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# as where people run it: the programs and hosts that are started here need not compile it anew each time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled portraits, unpacked: an output folder as the WebUI leaves it."""
    folder = tmp_path_factory.mktemp("portraits")
    with zipfile.ZipFile(ROOT / "ddpm_core" / "assets" / "portraits.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def ghosts() -> dict[str, str]:
    """Which of the bundled portraits are ghosts, and their kind."""
    lines = (DATA / "ghosts.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


@pytest.fixture(scope="session")
def few(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty good portraits in a folder of their own."""
    target = tmp_path_factory.mktemp("few")
    bad = {line.split("\t")[0] for line in (DATA / "ghosts.tsv").read_text(encoding="utf-8").splitlines()}
    good = [p for p in sorted((portraits / "txt2img-images").glob("*/*")) if str(p.relative_to(portraits)) not in bad]
    for path in good[:60]:
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    yield CommandLine(tmp_path / "ws")


class CommandLine:
    """``python -m ddpm_core`` on a workspace of its own: what it answers with --json.

    Called in this process, since a program of its own takes seconds to start; as such a program where ``apart``.
    """

    def __init__(self, workspace: Path, apart: bool = False) -> None:
        self.workspace = workspace
        self.apart = apart

    def start(self, *arguments: object, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ddpm_core", "--workspace", str(self.workspace), *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]

    def run(self, *arguments: object, code: int = 0) -> dict[str, object]:
        """Run with --json; the last line of stdout. Fails unless the exit status is ``code``; no traceback is ever shown."""
        if self.apart:
            process = self.start(*arguments, "--json")
            out, err = process.communicate(timeout=300)
            status = process.returncode
        else:
            status, out, err = self._here(*arguments, "--json")
        assert status == code, err
        assert "Traceback" not in err, err
        answer = json.loads(out.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        if code == 2:
            assert err.count("ddpm: ") == 1, err
        return answer

    def _here(self, *arguments: object) -> tuple[int, str, str]:
        from ddpm_core import cli

        out, err = io.StringIO(), io.StringIO()
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handlers = {number: signal.getsignal(number) for number in numbers}
        folder = Path.cwd()
        os.chdir(ROOT)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = cli.main(["--workspace", str(self.workspace), *map(str, arguments)])
        finally:
            os.chdir(folder)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return status, out.getvalue(), err.getvalue()


def random_pictures(folder: Path, count: int, side: int = 48, seed: int = 0) -> Path:
    """Smooth random pictures that pass the checks."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:05d}-{i}.png")
    return folder


def tiny_training_images(count: int = 24, side: int = 16, seed: int = 0) -> torch.Tensor:
    """uint8 (N, 3, side, side), smooth."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 4, 4), generator=generator)
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


def serve(python: Path, workspace: Path) -> tuple[subprocess.Popen[str], str]:
    log = workspace.parent / "server.log"
    workspace.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [str(python), "-m", "ddpm_core", "--workspace", str(workspace), "serve", "--port", "0"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=open(log, "w"),  # noqa: SIM115 - closed with the process
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    end = time.monotonic() + 90
    while time.monotonic() < end:
        match = re.search(r"http://\S+", log.read_text())
        if match:
            return process, match[0]
        if process.poll() is not None:
            break
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the server did not start: {log.read_text()}")
