"""A real WebUI, started and driven by the tests: its process, its log, its API, and a probe inside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from browser import Page
from checkpoint import make_checkpoint
from conftest import ROOT
from PIL import Image

WEBUI_DIR = os.environ.get("WEBUI_DIR", "")
WEBUI_PYTHON = os.environ.get("WEBUI_PYTHON", "")
NAME = "sd-webui-ddpm"
PROBE = Path(__file__).parent / "data" / "probe.py"
# what the host needs to run without the network and without a card, whichever it is
OPTIONS = {"show_progress_type": "Approx cheap", "live_previews_enable": False, "samples_format": "png"}


def family() -> str:
    root = Path(WEBUI_DIR)
    if (root / "ldm_patched").is_dir():
        return "reforge"
    if not (root / "backend").is_dir():
        return "a1111"
    arguments = (root / "backend" / "args.py").read_text(encoding="utf-8")
    return "forge" if '"--always-cpu"' in arguments else "neo"


def options() -> dict[str, Any]:
    """A data folder's settings; Neo asks whoever starts it on those of another version to press Enter."""
    return {**OPTIONS, **({"VERSION_UID": "PY313"} if family() == "neo" else {})}


def vocabulary() -> Path:
    asked = [WEBUI_PYTHON, "-c", "import clip, pathlib; print(pathlib.Path(clip.__file__).parent)"]
    folder = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return Path(folder) / "bpe_simple_vocab_16e6.txt.gz"


def copy_extension(target: Path) -> None:
    """What an installation by git brings: the tracked files (and new ones that are not ignored)."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def outputs(data: Path) -> Path:
    return data / ("output" if family() == "neo" else "outputs")


class WebUI:
    """One data folder of a WebUI, and the process that serves it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log_path = data / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.seconds_to_start = 0.0
        data.mkdir(parents=True, exist_ok=True)
        (data / "config.json").write_text(json.dumps(options()), encoding="utf-8")
        kind = "tiny" if family() == "a1111" else "full"
        made = make_checkpoint(data.parent / "checkpoint" / "models", kind, vocabulary() if kind == "tiny" else Path())
        for file in made.parent.iterdir():  # linked: two gigabytes need not be written for each data folder
            target = data / "models" / "Stable-diffusion" / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.link(file, target)

    @property
    def outputs(self) -> Path:
        return outputs(self.data)

    @property
    def extension(self) -> Path:
        return self.data / "extensions" / NAME

    def install(self) -> None:
        copy_extension(self.extension)
        # as after any start but the first one
        subprocess.run([WEBUI_PYTHON, "-m", "compileall", "-q", str(self.extension)], check=True)

    def install_probe(self) -> None:
        target = self.data / "extensions" / "ddpm-probe" / "scripts" / "zz_probe.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROBE, target)

    def install_neighbour(self) -> None:
        target = self.data / "extensions" / "a-neighbour" / "scripts" / "neighbour.py"  # loaded before ours
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROBE.parent / "neighbour.py", target)

    # -- the process ----------------------------------------------------------------------------------------------

    def start(self, *more: str, api: bool = True, wait: float = 240.0) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = ["--skip-prepare-environment", "--skip-torch-cuda-test"]
        arguments += ["--data-dir", str(self.data), "--port", str(self.port)]
        arguments += ["--api"] if api else []
        if family() == "neo":
            arguments += ["--cpu"]
        else:
            arguments += ["--use-cpu", "all", "--no-half", "--precision", "full"]
            arguments += [] if family() == "a1111" else ["--always-cpu"]
        arguments += ["--gradio-allowed-path", WEBUI_DIR] if family() in ("forge", "neo") else []
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_WAIT_POLICY": "PASSIVE",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONUNBUFFERED": "1",
        }
        began = time.monotonic()
        log = open(self.log_path, "wb")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [WEBUI_PYTHON, "launch.py", *arguments, *more],
            cwd=WEBUI_DIR,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        end = time.monotonic() + wait
        while "Startup time:" not in self.log():  # a request before that kills the host
            dead = self.process.poll() is not None or "Exception in thread" in self.log()
            if dead or time.monotonic() > end:
                raise AssertionError(f"the host did not start:\n{self.log()[-4000:]}")
            time.sleep(0.2)
        self._wait_for_port(end)
        self.seconds_to_start = time.monotonic() - began

    def _wait_for_port(self, end: float) -> None:
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the host says that it has started, but does not listen")

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def kill(self) -> None:
        """As a power cut would: no callback runs."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    # -- requests -------------------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or bytes), headers of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path.lstrip("/"), data=data, method=method)
        request.add_header("Content-Type", "application/json")
        for key, value in (headers or {}).items():
            request.add_header(key, value)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                raw, status, sent = answer.read(), answer.status, answer.headers
        except urllib.error.HTTPError as error:
            raw, status, sent = error.read(), error.code, error.headers
        try:
            return status, json.loads(raw), dict(sent)
        except ValueError:
            return status, raw, dict(sent)

    def get(self, path: str) -> Any:
        status, found, _ = self.ask(path)
        assert status == 200, (path, status, found)
        return found

    def post(self, path: str, body: Any) -> Any:
        status, found, _ = self.ask(path, body)
        assert status == 200, (path, status, found)
        return found

    def txt2img(self, **values: Any) -> dict[str, Any]:
        body = {"prompt": "a portrait of a cat", "seed": 5, "steps": 2, "width": 64, "height": 64, **values}
        return self.post("sdapi/v1/txt2img", {"sampler_name": "Euler", "save_images": True, **body})

    def wait_for(self, condition: Any, what: str, seconds: float = 120.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come within {seconds:.0f} s:\n{self.log()[-3000:]}")

    def status(self) -> Any:
        return self.get("ddpm/v1/status")

    def job_done(self, number: int, seconds: float = 300.0) -> Any:
        done = ("done", "failed", "stopped")
        path = f"ddpm/v1/jobs/{number}"
        return self.wait_for(lambda: (j := self.get(path))["state"] in done and j, f"the end of job {number}", seconds)

    def counts(self, dataset: str) -> Any:
        return next((d for d in self.get("ddpm/v1/datasets")["datasets"] if d["name"] == dataset), None)


def picture(answer: dict[str, Any], index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][index])))


def same_bytes(answer: dict[str, Any]) -> str:
    """What must be equal in two answers to the same seeded request: all bytes of the first picture.

    On Forge and reForge its pixels: they hide the text in the alpha channel, and the rest of that channel is random.
    """
    if family() == "a1111":
        return str(answer["images"][0])
    return hashlib.sha256(picture(answer).convert("RGB").tobytes()).hexdigest()


def base64_of(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def plain_lines(log: str) -> set[str]:
    """A log's lines without what differs from start to start."""
    found = set()
    for line in re.split(r"[\r\n]+", log):
        line = re.sub(r"0x[0-9a-f]+|\d+", "#", re.sub(r"/\S+|\S+\.safetensors", "PATH", line)).strip()
        if line and not line.startswith("Startup time") and "it/s" not in line and "s/it" not in line:
            found.add(re.sub(r"\(.*\)", "", line).strip())
    return found


# -- what several tests do -----------------------------------------------------------------------------------------------

SMALL = {
    "block_out_channels": "32,64",
    "attention_levels": "false,true",
    "layers_per_block": "1",
    "attention_head_dim": "64",
}


def train(host: WebUI, model: str, steps: int = 40, **more: Any) -> int:
    running = host.status()["jobs"].get("train")
    if running and running["state"] in ("queued", "running"):  # what an earlier test that failed has left
        host.post("ddpm/v1/stop", {"kind": "train"})
        host.job_done(running["id"])
    body = {"model": model, "dataset": "all", "preset": "tiny-32", "steps": steps, "batch_size": 8, "precision": "fp32"}
    return int(host.post("ddpm/v1/train", {**body, "settings": SMALL, **more})["job"])


def begun(host: WebUI, job: int, steps: int = 1) -> None:
    """Wait until a job has done so many steps; at once when it has failed."""

    def there() -> bool:
        found = host.get(f"ddpm/v1/jobs/{job}")
        assert found["state"] != "failed", found["error"]
        return bool(found["progress"].get("done", 0) >= steps)

    host.wait_for(there, f"step {steps} of job {job}")


def inpaint(host: WebUI, made: dict[str, Any], mask: Image.Image, **more: Any) -> None:
    pictures = {"init_images": [base64_of(picture(made))], "mask": base64_of(mask), "prompt": "portrait of a cat"}
    settings = {"steps": 2, "width": 64, "height": 64, "save_images": True, "sampler_name": "Euler"}
    host.post("sdapi/v1/img2img", {**pictures, **settings, **more})


def open_tab(page: Page, theme: str = "light") -> None:
    page.driver.get(f"{page.url}?__theme={theme}")
    page.wait(lambda: page.js("return document.querySelector('#ddpm_tab') !== null"), "our tab", 120)
    press = (
        "const b = [...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === 'DDPM');"
        "if (b) b.click(); return Boolean(b)"
    )
    page.wait(lambda: page.js(press) and page.all("#ddpm_tab"), "our tab to open")
    page.wait(
        lambda: page.js("return Boolean(document.querySelector('#ddpm_tab [data-ddpm=review]').childElementCount)"),
        "life",
    )


def reload_ui(host: WebUI, page: Page) -> None:
    starts, restarts = host.log().count("Startup time:"), host.log().count("Restarting UI")
    page.driver.get(host.url)
    press = (
        "const a = [...document.querySelectorAll('footer a, a, button')].find(x => x.textContent.trim() === 'Reload UI'"
        " || x.id === 'settings_restart_gradio'); if (a) a.click(); return Boolean(a)"
    )
    page.wait(lambda: page.js("return document.querySelectorAll('#tabs button').length > 4"), "the host's page", 120)
    time.sleep(3)  # the host hangs in closing while a page is still loading, with us or without
    page.wait(lambda: page.js(press), "Reload UI", 120)
    host.wait_for(lambda: host.log().count("Restarting UI") > restarts, "the host to take note", 60)
    page.driver.get("about:blank")  # the host's page asks whether it is back, and an early question kills the host
    host.wait_for(lambda: host.log().count("Startup time:") > starts, "the reload", 180)
