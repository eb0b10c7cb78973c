"""The package as pip installs it: everything is in the wheel, and it runs in an empty environment outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, random_pictures

from ddpm_core import __version__, bundled

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of Unix")


def call(*command: object, folder: Path) -> str:
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(w) for w in command], cwd=folder, env=settings, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git would give, so that nothing of this folder leaks in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if names.returncode:
        pytest.skip("this is no checkout of git")
    for name in names.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, source, folder=target)
    return next(target.glob("*.whl"))


def test_the_wheel_has_everything(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "ddpm_core").rglob("*.py")}
    wanted |= {"ddpm_core/assets/portraits.zip", "ddpm_core/page/style.css"}
    wanted |= {str(path.relative_to(ROOT)) for path in bundled.FOLDER.iterdir()}
    for folder in ("javascript", "localizations"):
        wanted |= {f"ddpm_core/page/{path.relative_to(ROOT)}" for path in (ROOT / folder).iterdir()}
    assert wanted <= held, wanted - held
    others = {name.split("/")[0] for name in held - wanted}
    assert others == {f"sd_webui_ddpm-{__version__}.dist-info"}, "and nothing else"


def test_it_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, folder=tmp_path)
    # torch and gradio are those of this environment: downloading them takes minutes
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", folder=tmp_path).strip()
    (Path(site) / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    program = environment / "bin" / "ddpm"
    assert call(program, "--version", folder=tmp_path).strip() == __version__
    call(program, "harvest", "--dataset", "d", random_pictures(tmp_path / "in", 12), folder=tmp_path)
    assert (tmp_path / "workspace" / "datasets" / "d").is_dir()
    code = """
import ddpm_core, pathlib, sys
from ddpm_core.demo import unpack
from ddpm_core.host import server
assert pathlib.Path(ddpm_core.__file__).is_relative_to(sys.prefix), ddpm_core.__file__
assert sum(path.is_file() for path in unpack(pathlib.Path("portraits")).rglob("*")) > 900
assert len(server._ASSETS) == 1 + SCRIPTS and all(path.is_file() for path, _ in server._ASSETS.values())
""".replace("SCRIPTS", str(len(list((ROOT / "javascript").glob("*.js")))))
    call(python, "-c", code, folder=tmp_path)
