"""The models that come along: put into a workspace once, used and deleted like any other, never taken for a person's own."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import CommandLine
from PIL import Image

from ddpm_core import bundled, demo
from ddpm_core.errors import UserError
from ddpm_core.host.server import serve
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model import file as model_file
from ddpm_core.requests import SampleRequest
from ddpm_core.service import Service
from ddpm_core.workspace import Workspace


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(StandaloneHost(tmp_path / "ws"))


def test_they_are_small_and_whole() -> None:
    assert set(bundled.names()) == {bundled.BASE, bundled.UPSCALER}
    assert sum(path.stat().st_size for path in bundled.FOLDER.iterdir()) <= 12 * 2**20
    for name in bundled.names():
        model = model_file.load(bundled.FOLDER / f"{name}.safetensors")
        assert {value.dtype for value in model.weights.values()} == {torch.float16}
        assert model.info["bundled"] is True and "CC0" in model.info["description"]
        text = str(model.info)
        assert "/" not in text.replace("4x", ""), "no path of the machine that made it"


def test_a_server_offers_them_once(service: Service) -> None:
    workspace = service.workspace
    assert workspace.model_names() == bundled.names()
    shown = workspace.show_model(bundled.BASE)
    assert shown["bundled"] and shown["upscaler"] == bundled.UPSCALER and len(shown["tags"]) > 20
    service.delete("model", bundled.BASE)
    assert workspace.model_names() == [bundled.UPSCALER]
    again = Service(StandaloneHost(workspace.root)).workspace
    assert again.model_names() == [bundled.UPSCALER], "what was deleted stays away"
    assert again.restore_model(bundled.BASE) == bundled.BASE
    assert again.model_names() == bundled.names()
    (workspace.root / bundled.RECORD).write_text("{", encoding="utf-8")
    assert bundled.offer(again) == []


def test_the_command_line_alone_puts_nothing_there(tmp_path: Path) -> None:
    assert CommandLine(tmp_path / "ws").run("models", "list") == {"models": []}


def test_a_model_of_that_name_is_left_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    own = workspace.models_folder / f"{bundled.BASE}.safetensors"
    own.write_bytes(b"mine")
    bundled.offer(workspace)
    assert own.read_bytes() == b"mine"


def test_a_persons_own_model_comes_first(service: Service) -> None:
    workspace = service.workspace
    (workspace.models_folder / "foreign.safetensors").write_bytes(b"x" * 100)
    assert workspace.newest_model() == bundled.BASE, "nor one that cannot be read"
    base = model_file.load(workspace.model_path(bundled.BASE))
    model_file.save(workspace.models_folder / "mine.safetensors", base.config, base.weights, title="mine", info={})
    shutil.copy(bundled.FOLDER / f"{bundled.BASE}.safetensors", workspace.model_path(bundled.BASE))  # written later
    assert workspace.newest_model() == "mine"
    assert workspace.upscaler_of("mine") is None


def test_the_newest_upscaler_of_the_same_dataset_goes_with_a_model(service: Service) -> None:
    workspace = service.workspace
    for name in bundled.names():
        model = model_file.load(workspace.model_path(name))
        path = workspace.models_folder / f"my-{model.config.kind}.safetensors"
        model_file.save(path, model.config, model.weights, title=path.stem, info={"dataset": "faces"})
    assert workspace.upscaler_of("my-unet") == "my-upscaler"
    assert workspace.show_model("my-unet")["upscaler"] == "my-upscaler"
    assert workspace.upscaler_of("my-upscaler") is None


def test_they_make_portraits_at_once(service: Service) -> None:
    request = SampleRequest(
        bundled.BASE, 2, steps=6, seed=0, upscaler=f"DDPM: {bundled.UPSCALER}", upscaler_steps=3, prompt="dark skin"
    )
    job = service.start_sampling(request)
    assert job.finished.wait(60) and job.state == "done", job.error
    results = job.artifacts["results"]
    assert [result.image.size for result in results] == [(128, 128)] * 2
    assert "DDPM upscaler steps: 3" in results[0].text
    service.shutdown()


def test_an_image_unlike_all_that_was_learned_is_said_to_be(service: Service, few: Path, tmp_path: Path) -> None:
    portrait = Image.open(sorted(few.iterdir())[3]).convert("RGB")
    other = Image.radial_gradient("L").convert("RGB")
    said = {}
    for name, image in (("portrait", portrait), ("other", other)):
        job = service.start_sampling(SampleRequest(bundled.BASE, 1, steps=2, image=image, denoising_strength=0.5))
        assert job.finished.wait(60) and job.state == "done", job.error
        said[name] = " ".join(job.messages)
    assert "learned nothing like this image" in said["other"] and "learned nothing" not in said["portrait"]
    service.shutdown()


def test_the_demo_tells_its_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in small, through the jobs that the tab shows."""
    monkeypatch.setattr(demo, "GRID", 3)
    monkeypatch.setattr(demo, "EVALUATED", 16)
    monkeypatch.setattr(demo, "SKINS", demo.SKINS[:1])
    line = CommandLine(tmp_path / "ws")
    found = line.run("demo", "--headless", "--minutes", 0.05)
    assert found["harvest"]["added"] == 1000  # type: ignore[index]
    for part in ("bundled", "sample"):
        assert len(found[part]["files"]) == 3 and Path(found[part]["grid"]).exists()  # type: ignore[index]
        with Image.open(found[part]["files"][0]) as opened:  # type: ignore[index]
            assert opened.size == (128, 128)
    assert found["train"]["steps"] > 0 and found["upscaler"]["steps"] > 0  # type: ignore[index]
    assert Path(str(found["asked"])).exists() and Path(found["evaluate"]["neighbours"]).exists()  # type: ignore[index]
    shown = line.run("models", "show", demo.NAME)
    assert shown["upscaler"] == demo.UPSCALER and not shown["bundled"]


def test_a_chapter_that_fails_leaves_the_page_as_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    stop = threading.Event()

    def meanwhile(service: Service) -> None:
        stop.set()
        raise UserError("There is no room left.")

    found = serve(StandaloneHost(tmp_path / "ws"), "127.0.0.1", 0, stop, said.append, meanwhile=meanwhile)
    assert found["stopped"] and said[-1] == "There is no room left."
