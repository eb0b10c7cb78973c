"""standalone.sh as people start it: through a link, by sh, from odd folders, with its Python gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ddpm_core import __version__

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")


@pytest.fixture()
def checkout(tmp_path: Path) -> Path:
    """A checkout in a folder with spaces and other letters, its environment set up: this very one."""
    root = tmp_path / "mein Ordner 数据 (1)"
    root.mkdir()
    for name in ("standalone.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "ddpm_core").symlink_to(ROOT / "ddpm_core")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (root / ".venv" / "bin" / "python").chmod(0o755)
    (root / ".venv" / ".ready").touch()
    return root


def run(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    settings = {**os.environ, **environment}
    return subprocess.run(words, cwd=folder, env=settings, text=True, capture_output=True, timeout=120)


def test_it_starts_however_it_is_called(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ddpm").symlink_to(checkout / "standalone.sh")
    (elsewhere / "again").symlink_to("ddpm")
    shells = [shell for shell in ("sh", "bash", "dash") if shutil.which(shell)]
    calls = [[checkout / "standalone.sh"], [elsewhere / "ddpm"], [elsewhere / "again"], ["./ddpm"], ["sh", "again"]]
    calls += [[shell, checkout / "standalone.sh"] for shell in shells]
    for call in calls:
        done = run(*call, "--version", folder=elsewhere)
        assert (done.returncode, done.stdout.strip()) == (0, __version__), (call, done.stderr)
        assert "Setting up" not in done.stderr
    found = run("ddpm", "--version", folder=tmp_path, PATH=f"{elsewhere}{os.pathsep}{os.environ['PATH']}")
    assert found.stdout.strip() == __version__, found.stderr
    assert sorted(path.name for path in elsewhere.iterdir()) == ["again", "ddpm"], (
        "no second environment beside the link"
    )


def test_an_environment_whose_python_is_gone_is_set_up_again(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to(tmp_path / "removed" / "python3.9")
    # stands in for the Python of the system: it makes the environment, whose pip then has nothing to do
    base, calls = tmp_path / "base", tmp_path / "calls"
    base.write_text(
        f"""#!/bin/sh
echo "$@" >> "{calls}"
if [ "$2" = venv ]; then
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
elif [ "$2" = ddpm_core ]; then
    exec "{sys.executable}" "$@"
fi
"""
    )
    base.chmod(0o755)
    done = run("sh", "standalone.sh", "--version", folder=checkout, PYTHON=str(base))
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr
    assert "The Python of .venv is gone; setting it up again." in done.stderr
    assert "torch==" in calls.read_text() and (checkout / ".venv" / ".ready").exists()
    assert "Setting up" not in run("sh", "standalone.sh", "--version", folder=checkout).stderr


def test_without_a_python_that_fits_it_names_those_that_do(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "readlink", "rm", "touch"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done = run("sh", "standalone.sh", "--version", folder=checkout, PATH=str(tools))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("ddpm: Python 3.10, 3.11, 3.12, 3.13 or 3.14 is needed;")
    assert not (checkout / ".venv").exists()
