"""Odd entries in a workspace, as archives, other users or forgers leave them: what asks for everything goes on without them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import random_pictures
from PIL import Image
from test_formats import ONE_MODEL, unpacked

from ddpm_core.dataset import handing_out
from ddpm_core.dataset.packing import pack
from ddpm_core.dataset.store import Store
from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model import file as model_file
from ddpm_core.names import check_name
from ddpm_core.operations.context import Context
from ddpm_core.operations.training import train
from ddpm_core.requests import TrainRequest
from ddpm_core.service import Service
from ddpm_core.workspace import Workspace

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="no plain links and pipes on Windows"),
    pytest.mark.timeout(60),  # what waits for a pipe waits for ever
]
SLOW_NAME = "a" + "\u0301\u0327" * 200_000  # to normalise it would take most of a minute


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A workspace with a dataset d of 24 and a model m."""
    unpacked(ONE_MODEL, tmp_path / "ws")
    found = Service(StandaloneHost(tmp_path / "ws"))
    try:
        yield found
    finally:
        found.shutdown()


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def everything(service: Service) -> dict[str, object]:
    """What a page and the API ask for of a whole workspace."""
    service.watch.forget_status()
    service.watch.curves("m")
    service.workspace.list_datasets()
    service.workspace.list_models()
    return dict(json.loads(service.watch.status_text()))


@pytest.mark.parametrize("make", [pipe, endless])
@pytest.mark.parametrize(
    "place",
    [
        "runs/x/run.json",
        "runs/m/metrics.jsonl",
        "runs/m/checkpoints/step-999999999.safetensors",
        "trash/x/trash.json",
        "datasets/d/generating.json",
        "datasets/e/dataset.sqlite",
        "collecting.json",
        "models/x.safetensors",
    ],
)
def test_what_is_no_file_is_never_waited_for(make: Callable[[Path], None], place: str, service: Service) -> None:
    make(service.workspace.root / place)
    found = everything(service)
    assert {"d"} <= set(found["datasets"]) and {"m"} <= set(found["models"])  # type: ignore[call-overload]
    service.collector.wants("a prompt")


@pytest.mark.parametrize("make", [pipe, endless])
def test_a_copy_or_packed_file_that_is_none_gets_a_sentence(make: Callable[[Path], None], service: Service) -> None:
    store = service.workspace.store("d")
    packed = pack(store, (16, 16), "center").path
    make(packed)
    with pytest.raises(UserError, match="missing or damaged"):
        pack(store, (16, 16), "center")
    make(store.copy_path(store.items()[0]["sha256"]))
    for size in (None, (32, 32)):
        with pytest.raises(UserError, match=r"missing or damaged|is a link"):
            handing_out.thumbnail(service.workspace.store("d"), store.items()[0]["id"], size)


def test_names_that_take_long_or_are_no_text(service: Service) -> None:
    root = service.workspace.root
    record = {"kind": "model", "name": SLOW_NAME, "when": 1.0, "paths": ["/x/m.safetensors"]}
    run = json.loads((root / "runs" / "m" / "run.json").read_text())
    for place, values in (("trash/x/trash.json", record), ("runs/x/run.json", {**run, "dataset": SLOW_NAME})):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(json.dumps(values))
    (root / "trash" / "x" / "0").write_bytes(b"")
    odd = os.fsencode(root / "trash") + b"/\xff\xfe"
    shutil.copytree(root / "trash" / "x", os.fsdecode(odd))
    (Path(os.fsdecode(odd)) / "trash.json").write_text(json.dumps({**record, "name": "m"}))
    began = time.monotonic()
    everything(service)
    with pytest.raises(UserError, match="too long"):
        check_name(SLOW_NAME, "model")
    assert time.monotonic() - began < 5


def test_one_dataset_that_cannot_be_opened_hides_no_other(service: Service) -> None:
    (service.workspace.root / "datasets" / "broken").mkdir()
    (service.workspace.root / "datasets" / "broken" / "dataset.sqlite").write_bytes(b"x" * 5000)
    listed = {entry["name"]: entry for entry in service.workspace.list_datasets()}
    assert listed["d"]["items"] == 24 and "damaged" in listed["broken"]["error"]


def test_folders_of_somebody_elses_hide_no_others() -> None:
    """One start with sudo, or in a container, leaves such."""
    place = Path(tempfile.mkdtemp())
    try:
        unpacked(ONE_MODEL, place / "ws")
        for folder in ("runs/x", "datasets/x", "trash/x"):
            (place / "ws" / folder).mkdir()
            (place / "ws" / folder).chmod(0)
        place.chmod(0o755)
        was = os.geteuid()
        if was == 0:
            for path in place.rglob("*"):
                if path.name != "x":
                    os.chown(path, 65534, -1)
            os.seteuid(65534)
        try:
            workspace = Workspace(place / "ws")
            assert workspace.dataset_names() == ["d"] and workspace.run_names() == ["m"]
            assert workspace.trash() == [] and workspace.unfinished_runs() is not None
        finally:
            os.seteuid(was)
    finally:
        for folder in ("runs/x", "datasets/x", "trash/x"):
            (place / "ws" / folder).chmod(0o755)
        shutil.rmtree(place)


def journal_that_names(victim: str, pages: int) -> bytes:
    """A rollback journal as SQLite leaves it when several databases are changed at once, with the super-journal's name."""
    magic = bytes.fromhex("d9d505f920a163d7")
    head = (magic + struct.pack(">IIIII", 0, 12345, pages, 512, 4096)).ljust(512, b"\0")
    name = victim.encode()
    return head + struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + magic


@pytest.mark.parametrize("absolute", [True, False])
def test_a_forged_journal_deletes_no_file(absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "config.json"
    victim.write_text("the WebUI's")
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "ws")
    workspace.store("d", create=True).close()
    file = tmp_path / "ws" / "datasets" / "d" / "dataset.sqlite"
    journal = journal_that_names(str(victim) if absolute else victim.name, file.stat().st_size // 4096)
    file.with_name("dataset.sqlite-journal").write_bytes(journal)
    with pytest.raises(UserError, match="none of ours"):
        Workspace(tmp_path / "ws").store("d")
    assert victim.exists()
    file.with_name("dataset.sqlite-journal").unlink()
    assert Workspace(tmp_path / "ws").store("d").counts()["items"] == 0


def test_links_within_a_dataset_or_a_run_are_not_followed(service: Service, tmp_path: Path) -> None:
    root, elsewhere = service.workspace.root, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "note").write_text("of somebody else's")
    other = Store(elsewhere / "dataset")
    other.close()
    database = elsewhere / "dataset" / "dataset.sqlite"
    before = database.read_bytes()
    (root / "datasets" / "e").mkdir()
    (root / "datasets" / "e" / "dataset.sqlite").symlink_to(database)
    with pytest.raises(UserError, match="is a link"):
        service.workspace.store("e")
    assert database.read_bytes() == before

    store = service.workspace.store("d")
    copy = store.copy_path(store.items()[0]["sha256"])
    shutil.move(copy.parent, elsewhere / "copies")
    copy.parent.symlink_to(elsewhere / "copies")
    with pytest.raises(UserError, match="behind one"):
        handing_out.thumbnail(service.workspace.store("d"), store.items()[0]["id"], None)
    others = [item for item in store.items() if store.folder / "images" / item["sha256"][:2] != copy.parent]
    ids = [others[0]["id"], store.items()[0]["id"], others[-1]["id"]]
    found = handing_out.thumbnails(service.workspace.store("d"), ids, None)
    assert [bool(picture) for picture in found] == [True, False, True]
    copy.parent.unlink()
    shutil.move(elsewhere / "copies", copy.parent)

    run = root / "runs" / "m"
    for part in ("previews", "checkpoints", "metrics.jsonl"):
        here = run / part
        if not here.exists():
            here.mkdir()
        shutil.move(here, elsewhere / part)
        here.symlink_to(elsewhere / part)
        contents = sorted(path.name for path in elsewhere.rglob("*"))
        with pytest.raises(UserError, match="is a link"):
            train(service.workspace, TrainRequest("m", resume=True, steps=99), Context(torch.device("cpu")))
        assert sorted(path.name for path in elsewhere.rglob("*")) == contents
        if part == "previews":
            (elsewhere / part / "step-000000001.png").write_bytes(b"x")
            with pytest.raises(UserError, match="no such preview"):
                service.watch.preview_path("m", 1)
        here.unlink()
        shutil.move(elsewhere / part, here)


def test_a_picture_in_the_place_of_a_copy_cannot_fill_the_memory(service: Service) -> None:
    store = service.workspace.store("d")
    copy = store.copy_path(store.items()[0]["sha256"])
    with open(copy, "wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    for size in (None, (32, 32)):
        with pytest.raises(UserError, match="missing or damaged"):
            handing_out.thumbnail(service.workspace.store("d"), store.items()[0]["id"], size)


def test_more_pictures_than_the_memory_can_hold_are_refused_at_once(service: Service) -> None:
    from ddpm_core.requests import SampleRequest

    with pytest.raises(UserError, match="too much to hold at once"):
        service.start_sampling(SampleRequest("m", 1024, steps=1, upscaler="Lanczos", size=(4096, 4096)))


def test_of_a_models_own_words_only_the_known_are_shown() -> None:
    forged = {"images": "<img src=x onerror=alert(1)>", "steps": 7, "ssmd_cover_images": "[]", "crop": ["top"]}
    assert model_file.known_of(forged) == {"steps": 7}


def test_a_forged_list_of_steps_is_no_obstacle_to_going_on(service: Service) -> None:
    metrics = service.workspace.root / "runs" / "m" / "metrics.jsonl"
    with open(metrics, "a") as file:
        file.write(
            '{"kind": "train", "step": "x"}\n{"kind": "heldout", "step": null}\n{"kind": "heldout", "step": 1}\n'
        )
    done = train(service.workspace, TrainRequest("m", resume=True, steps=6), Context(torch.device("cpu")))
    assert done["steps"] == 6
    bands = service.watch.curves("m")["bands"]
    assert bands is None or isinstance(bands["seen_bands"], dict)


def test_an_empty_copy_is_made_again_by_harvesting_again(tmp_path: Path) -> None:
    """As a power loss leaves it, which may take what was written last."""
    source = random_pictures(tmp_path / "in", 3)
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [source])
    store = workspace.store("d")
    copy = store.copy_path(store.items()[0]["sha256"])
    with Image.open(copy) as image:
        pixels = image.convert("RGB").tobytes()
    for spoil in (lambda: copy.write_bytes(b""), copy.unlink):
        spoil()
        found = workspace.harvest("d", [source])
        assert found.added == 0 and store.counts()["kept"] == 3
        with Image.open(copy) as image:
            assert image.convert("RGB").tobytes() == pixels
    shutil.rmtree(tmp_path / "ws" / "datasets" / "d")  # and where the row was lost, too
    fresh = Workspace(tmp_path / "ws")
    fresh.store("d", create=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(b"")
    fresh.harvest("d", [source])
    assert copy.stat().st_size
