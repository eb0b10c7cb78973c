"""Packing: pictures at training resolution, which are held out, and the file they lie in."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, random_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm_core import bundled
from ddpm_core.dataset.harvest import harvest
from ddpm_core.dataset.packing import fit, holdout, load, pack
from ddpm_core.dataset.store import NewItem, Store
from ddpm_core.errors import Stopped, UserError
from ddpm_core.files import replace_with
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.requests import TrainRequest
from ddpm_core.service import Service


def test_pictures_are_never_squashed() -> None:
    """A circle in a wide picture stays round, and the anchors cut where they say."""
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    ball = 255 * (np.hypot(x - 100, y - 50) < 40)
    image = Image.fromarray(np.repeat(ball[:, :, None], 3, 2).astype(np.uint8))
    for crop in ("center", "pad"):
        small = np.asarray(fit(image, (64, 64), crop))[:, :, 0] > 127
        assert abs(int(small.any(0).sum()) - int(small.any(1).sum())) <= 1
    tall = image.rotate(90, expand=True)
    assert (
        np.asarray(fit(tall, (64, 64), "top"))[:20].max() == 0
        and np.asarray(fit(tall, (64, 64), "center"))[:20].max() == 255
    )


def test_shrinking_does_not_alias() -> None:
    x, _ = np.meshgrid(np.arange(256), np.arange(256))
    stripes = Image.fromarray(np.repeat((255 * (x % 2))[:, :, None], 3, 2).astype(np.uint8))
    assert np.asarray(fit(stripes, (32, 32), "center")).std() < 3


@given(st.lists(st.binary(min_size=4, max_size=4), min_size=40, max_size=300, unique=True))
@settings(max_examples=30, deadline=None)
def test_a_picture_never_crosses_to_the_held_out_side(shas: list[bytes]) -> None:
    names = sorted(hashlib.sha256(s).hexdigest() for s in shas)
    whole = dict(zip(names, holdout(names)))
    fewer = names[: max(40, len(names) // 2)]
    part = dict(zip(fewer, holdout(fewer)))
    assert any(whole.values()) and any(part.values())
    if sum(part.values()) > 1:  # a set of 40 without one by chance takes its first
        assert all(whole[name] == held for name, held in part.items())


def test_packing_is_made_once_and_holds_the_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "d")
    harvest(store, [random_pictures(tmp_path / "in", 45)])
    store.decide([4], "rejected", "user", "")
    packed = pack(store, (16, 16), "center")
    assert packed.images.shape == (44, 3, 16, 16) and packed.images.dtype == torch.uint8
    assert 4 not in packed.ids and len(packed.train) + len(packed.held) == 44 and len(packed.held) > 0
    written = packed.path.stat().st_mtime_ns
    assert pack(store, (16, 16), "center").path.stat().st_mtime_ns == written
    packed.path.write_bytes(packed.path.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"):
        load(packed.path)


PACK = """
import sys, torch
from pathlib import Path
from ddpm_core.dataset.packing import pack
from ddpm_core.dataset.store import Store
store = Store(Path(sys.argv[1]))
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
pack(store, (32, 32), "center")
before = peak()
pack(store, (256, 256), "center")
packed = peak()
seen = torch.ones(2 * 10**8, dtype=torch.uint8)
print(round(packed - before), round(peak() - packed))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_packing_writes_what_the_library_would_and_holds_no_dataset_in_memory(tmp_path: Path) -> None:
    store = Store(tmp_path / "d")
    harvest(store, [random_pictures(tmp_path / "in", 4)])
    shas = [item["sha256"] for item in store.items()]
    more = [hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(596)]
    for number, sha in enumerate(more):
        copy = store.copy_path(shas[number % 4])
        linked = store.copy_path(sha).with_suffix(copy.suffix)
        linked.parent.mkdir(exist_ok=True)
        os.link(copy, linked)
    store.add(
        [NewItem(f"/x/{sha}.png", 1, 1, sha, 48, 48, "", thumb=bytes(24 * 24 * 3), has_copy=True) for sha in more]
    )
    store.close()
    # in a process of its own, whose peak nothing has raised before (what getrusage says is passed on to children)
    child = subprocess.run(
        [sys.executable, "-c", PACK, store.folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    store = Store(store.folder)
    packed = pack(store, (256, 256), "center")
    megabytes = packed.images.numel() / 1e6
    held, seen = map(float, child.stdout.split())
    assert seen > 150 and held < megabytes * 0.4, f"{held:.0f} MB held for {megabytes:.0f} MB"
    found = load_file(packed.path)
    kept = store.kept()
    for row in (0, 1, 127, 128, 599):
        with Image.open(store.copy_path(kept[row][1])) as image:
            wanted = np.asarray(fit(image.convert("RGB"), (256, 256), "center")).transpose(2, 0, 1)
        assert np.array_equal(found["images"][row].numpy(), wanted)
    assert found["ids"].tolist() == packed.ids == [item.id for item in kept]
    assert found["held_out"].tolist() == packed.held_out == holdout([item.sha256 for item in kept])
    save_file(found, tmp_path / "again", metadata={"fingerprint": packed.fingerprint})
    again = load(tmp_path / "again")
    assert torch.equal(again.images, packed.images) and again.fingerprint == packed.fingerprint


def test_a_dataset_without_kept_pictures_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "d")
    harvest(store, [random_pictures(tmp_path / "in", 2)])
    store.decide([1, 2], "rejected", "user", "")
    with pytest.raises(UserError, match="No image is kept"):
        pack(store, (16, 16), "center")


def test_a_stop_ends_packing_and_leaves_nothing_half(tmp_path: Path) -> None:
    store = Store(tmp_path / "d")
    harvest(store, [random_pictures(tmp_path / "in", 140)])
    stop = threading.Event()
    with pytest.raises(Stopped, match="being packed"):
        pack(store, (16, 16), "center", lambda done, total, text: stop.set(), stop)
    assert not list((store.folder / "packed").iterdir())
    assert len(pack(store, (16, 16), "center", stop=threading.Event()).ids) == 140


def test_a_training_stopped_before_its_first_step_is_no_failure_and_takes_no_name(tmp_path: Path) -> None:
    service = Service(StandaloneHost(tmp_path / "ws"))
    try:
        service.start_harvest("d", [str(random_pictures(tmp_path / "in", 10))]).finished.wait(60)
        request = TrainRequest("m", "d", preset="tiny-32", steps=1000)
        job = service.start_training(request)
        while not job.began:
            time.sleep(0.0005)
        service.stop("train")
        assert job.finished.wait(60)
        assert (job.state, job.error) == ("stopped", "") and job.messages[-1].startswith("Stopped")
        assert service.workspace.model_names() == bundled.names() and not service.workspace.run_names()
    finally:
        service.shutdown()


def test_what_fails_while_writing_is_the_disks_only_where_the_disk_refused(tmp_path: Path) -> None:
    """A file stays as it was, nothing half lies beside it, and a sentence about the disk is about the disk."""
    target = tmp_path / "x.json"
    target.write_text("before")

    def unable(path: Path) -> None:
        path.write_text("half")
        raise MemoryError

    with pytest.raises(MemoryError):
        replace_with(target, unable)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "before")]
    if Path("/dev/full").exists():
        with pytest.raises(UserError, match=r"No space left on device.*make room"):
            replace_with(target, lambda path: path.symlink_to("/dev/full") or path.write_text("more"))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "before")]
