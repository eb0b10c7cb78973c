"""What somebody has put into a harvested folder or a workspace leads nowhere else: links, and records that name other files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA, random_pictures
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file

from ddpm_core.dataset import handing_out
from ddpm_core.dataset.packing import pack
from ddpm_core.dataset.wanted import Wanted
from ddpm_core.errors import UserError
from ddpm_core.files import temporary_beside
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.names import check_name
from ddpm_core.operations.context import Context
from ddpm_core.operations.training import train
from ddpm_core.requests import TrainRequest
from ddpm_core.service import Service
from ddpm_core.ui.common import said
from ddpm_core.workspace import Workspace

SECRET = "a secret that no answer may hold"
needs_links = pytest.mark.skipif(os.name == "nt", reason="no plain links on Windows")


@pytest.fixture
def service(tmp_path: Path) -> Any:
    found = Service(StandaloneHost(tmp_path / "ws"))
    yield found
    found.shutdown()


@needs_links
def test_a_text_beside_a_picture_that_is_a_link_is_nobodys_prompt(service: Service, tmp_path: Path) -> None:
    source = random_pictures(tmp_path / "in", 3)
    first, second, third = sorted(source.iterdir())
    (tmp_path / "secret").write_text(SECRET)
    first.with_suffix(".txt").symlink_to(tmp_path / "secret")
    second.with_suffix(".txt").write_text("a prompt of its own")
    third.with_suffix(".txt").symlink_to(second.with_suffix(".txt"))  # within the folder, as pictures may be
    service.workspace.harvest("d", [source])
    prompts = [item["prompt"] for item in service.workspace.store("d").items()]
    assert prompts == ["", "a prompt of its own", "a prompt of its own"]


@needs_links
def test_a_copy_or_a_preview_that_is_a_link_is_not_handed_out(service: Service, tmp_path: Path) -> None:
    service.workspace.harvest("d", [random_pictures(tmp_path / "in", 2)])
    (tmp_path / "secret").write_text(SECRET)
    store = service.workspace.store("d")
    copy = store.copy_path(store.items()[0]["sha256"])
    copy.unlink()
    copy.symlink_to(tmp_path / "secret")
    for size in (None, (32, 32)):
        with pytest.raises(UserError, match="is a link"):
            handing_out.thumbnail(service.workspace.store("d"), 1, size)
        found = handing_out.thumbnails(service.workspace.store("d"), [1, 2], size)
        assert not found[0] and found[1]
    with pytest.raises(UserError, match="is a link"):
        handing_out.export(service.workspace.store("d"), tmp_path / "out")
    previews = tmp_path / "ws" / "runs" / "m" / "previews"
    previews.mkdir(parents=True)
    (previews / "step-000000001.png").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="no such preview"):
        service.watch.preview_path("m", 1)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_no_picture_starts_a_program(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called: harvested, or in the place of a copy."""
    script = (DATA.parent / "faults" / "regressions" / "image" / "postscript").read_bytes()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # as if never asked for
    source = random_pictures(tmp_path / "in", 2)
    (source / "script.png").write_bytes(script)
    service.workspace.harvest("d", [source])
    store = service.workspace.store("d")
    assert store.counts() == {"items": 3, "kept": 2, "rejected": {"undecodable": 1}}
    for item in store.items(status="kept"):
        store.copy_path(item["sha256"]).write_bytes(script)
    with pytest.raises(UserError, match="missing or damaged"):
        handing_out.thumbnail(service.workspace.store("d"), 1, (32, 32))
    with pytest.raises(UserError, match="missing or damaged"):
        pack(store, (16, 16), "center")
    with pytest.raises(UserError, match="could not be written"):
        handing_out.export(service.workspace.store("d"), tmp_path / "out")
    assert not (tmp_path / "started").exists()
    with contextlib.suppress(Exception), Image.open(io.BytesIO(script)) as image:
        image.load()
    assert (tmp_path / "started").exists()  # the stand-in would have been started


def test_a_run_goes_on_with_nothing_from_outside_the_workspace(tmp_path: Path) -> None:
    """Its record names packed pictures, and a model to begin with: by what they are, never by where they lie."""
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [random_pictures(tmp_path / "in", 8)])
    context = Context(torch.device("cpu"))
    request = TrainRequest("m", "d", preset="tiny-32", size=16, batch_size=4, steps=1, precision="fp32")
    train(workspace, request, context)
    again = TrainRequest("m", resume=True, steps=2)
    run = tmp_path / "ws" / "runs" / "m"
    info = json.loads((run / "run.json").read_text())
    elsewhere = tmp_path / "elsewhere-16x16-center.safetensors"
    pictures = {
        "images": torch.zeros((8, 3, 16, 16), dtype=torch.uint8),
        "ids": torch.arange(8),
        "held_out": torch.zeros(8).bool(),
    }
    save_file(pictures, elsewhere, metadata={"fingerprint": "f"})
    for place in (str(tmp_path / "elsewhere"), "../../../../elsewhere"):
        (run / "run.json").write_text(json.dumps({**info, "fingerprint": place}))
        with pytest.raises(UserError, match="damaged"):
            train(workspace, again, context)
    shutil.move(tmp_path / "ws" / "models" / "m.safetensors", tmp_path / "m.safetensors")
    shutil.rmtree(run / "checkpoints")
    (run / "run.json").write_text(json.dumps({**info, "init_from": str(tmp_path / "m.safetensors")}))
    with pytest.raises(UserError, match="its initial weights are a file"):
        train(workspace, again, context)


def test_text_that_no_file_can_hold_is_made_legible() -> None:
    done: list[Any] = []

    def act(*values: Any) -> str:
        done.append(values)
        return ""

    said(act)("a \ud800 word", 1, None)
    assert done == [("a ? word", 1, None)]


@pytest.mark.parametrize("name", ["m.safetensors", "x.SafeTensors"])
def test_a_name_is_never_a_file(name: str) -> None:
    with pytest.raises(UserError, match=r"\.safetensors"):
        check_name(name, "model")


def test_days_and_folders_that_no_disk_has_get_a_sentence(service: Service) -> None:
    for since, until in (("", "9999-12-31"), ("0001-01-01", "")):
        with pytest.raises(UserError, match="give a day"):
            Wanted.parse(since, until)
    for folder in ("\x00", "a\x00b", "\ud800"):
        with pytest.raises(UserError, match=r"cannot be read|does not exist"):
            service.start_harvest("d", [folder])


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_moving_to_the_trash_on_another_disk_leaves_no_stray(tmp_path: Path) -> None:
    """Models may lie on another disk than the trash: there they are copied, and what a kill leaves of that is swept."""
    elsewhere = Path("/dev/shm") / f"ddpm-{os.getpid()}"
    try:
        workspace = Workspace(tmp_path / "ws", models=elsewhere / "models")
        assert elsewhere.stat().st_dev != tmp_path.stat().st_dev
        (workspace.models_folder / "m.safetensors").write_bytes(b"x" * 1000)
        workspace.delete_model("m")
        assert not list(workspace.models_folder.iterdir())
        workspace.restore_model("m")
        assert (workspace.models_folder / "m.safetensors").read_bytes() == b"x" * 1000
        assert not list((tmp_path / "ws" / "trash").iterdir())
        own = temporary_beside(workspace.models_folder / "m.safetensors").name
        dead = own.replace(f"-{os.getpid()}-", f"-{2**22 + 3}-")  # no process has such a number
        places = [workspace.models_folder, *(tmp_path / "ws" / part for part in ("datasets", "runs", "evaluations"))]
        for place in places:
            (place / dead).mkdir(parents=True)
            (place / dead / "half").write_text("half")
        Workspace(tmp_path / "ws", models=elsewhere / "models")
        assert not [place for place in places if (place / dead).exists()]
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)
