"""What a training that never began leaves behind, and the trash beside trainings: no name is taken by nothing, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_pictures
from test_formats import ONE_MODEL, unpacked

import ddpm_core.operations.training as training
from ddpm_core import trash
from ddpm_core.errors import UserError
from ddpm_core.files import FolderLock
from ddpm_core.operations.context import Context
from ddpm_core.operations.training import train
from ddpm_core.requests import TrainRequest
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.workspace import Workspace

CPU = torch.device("cpu")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """With a dataset d of 24 and a model m of 6 steps."""
    unpacked(ONE_MODEL, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def test_a_training_that_cannot_begin_takes_no_name(workspace: Workspace) -> None:
    workspace.delete_model("m")
    with pytest.raises(UserError, match="There is no dataset"):
        train(workspace, TrainRequest("m", "nowhere", preset="tiny-32"), Context(CPU))
    if os.name != "nt":
        assert not (workspace.root / "runs" / "m").exists()
    assert workspace.restore_model("m") == "m"
    assert workspace.model_names() == ["m"] and workspace.newest_step("m") == 6


def test_the_lock_of_a_killed_beginning_takes_no_name(workspace: Workspace) -> None:
    workspace.delete_model("m")
    run = workspace.root / "runs" / "m"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".lock").touch()
    with pytest.raises(UserError, match="There is no model"):
        workspace.delete_model("m")
    (run / "checkpoints").mkdir(parents=True)
    (run / ".lock").touch()
    assert workspace.restore_model("m") == "m" and workspace.model_names() == ["m"]
    (workspace.root / "runs" / "x").mkdir()
    (workspace.root / "runs" / "x" / ".lock").touch()
    Workspace(workspace.root)
    assert not (workspace.root / "runs" / "x").exists()


def test_nothing_is_restored_under_a_training_that_begins(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.root / "runs" / "m").rename(workspace.root / "elsewhere")  # a model file alone, as somebody gave it
    model = workspace.models_folder / "m.safetensors"
    content = model.read_bytes()
    workspace.delete_model("m")
    real, refused = training.pack, []

    def pack(*values: Any, **options: Any) -> Any:
        with pytest.raises(UserError, match="is being trained"):
            workspace.restore_model("m")
        refused.append(1)
        model.write_bytes(content)  # by hand nothing is refused
        return real(*values, **options)

    monkeypatch.setattr(training, "pack", pack)
    request = TrainRequest("m", "d", preset="tiny-32", size=16, batch_size=4, steps=1)
    with pytest.raises(UserError, match="made meanwhile"):
        train(workspace, request, Context(CPU))
    assert refused and model.read_bytes() == content and not (workspace.root / "runs" / "m").exists()


@pytest.mark.skipif(os.name == "nt", reason="there the lock is let go of before the folder is moved")
def test_a_model_is_not_trained_further_while_it_is_moved(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, tried = trash.move, []

    def move(source: Path, target: Path) -> None:
        if not tried:
            tried.append(source.name)
            with pytest.raises(UserError, match="being trained by another"):
                train(workspace, TrainRequest("m", resume=True, steps=9), Context(CPU))
        plain(source, target)

    monkeypatch.setattr(trash, "move", move)
    workspace.delete_model("m")
    assert tried == ["m"], "the run goes first"
    monkeypatch.undo()
    workspace.restore_model("m")
    assert train(workspace, TrainRequest("m", resume=True, steps=9), Context(CPU))["steps"] == 9


@pytest.mark.skipif(os.name == "nt", reason="there the lock is let go of before the folder is moved")
def test_where_no_folder_with_an_open_file_can_be_moved_a_model_is_deleted_all_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on shares and on Windows' disks that Linux has mounted."""
    plain = trash.move

    def move(source: Path, target: Path) -> None:
        if source.parent.name == "runs":
            try:
                FolderLock(source, "open").acquire()
            except UserError:
                raise PermissionError(errno.EACCES, "Permission denied") from None
        plain(source, target)

    monkeypatch.setattr(trash, "move", move)
    workspace.delete_model("m")
    assert workspace.model_names() == workspace.run_names() == [] and len(workspace.trash()) == 1
    assert workspace.restore_model("m") == "m" and workspace.newest_step("m") == 6


def test_where_an_open_file_cannot_leave_its_folder_nothing_is_left_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which keeps it under another name until it is closed."""
    lock, plain, kept = FolderLock(tmp_path / "run", "busy"), Path.unlink, tmp_path / "run" / ".nfs0001"
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: self.rename(kept))
    with lock.held():
        assert lock.file is not None
        close = lock.file.close

        def closing() -> None:
            close()
            plain(kept)

        monkeypatch.setattr(lock.file, "close", closing)
        lock.remove()
        assert (os.name == "nt") == (not kept.exists())
    assert os.name == "nt" or not (tmp_path / "run").exists()


def test_a_run_has_the_steps_of_its_newest_checkpoint_that_can_be_read(workspace: Workspace) -> None:
    folder = CheckpointFolder(workspace.root / "runs" / "m" / "checkpoints", lambda: 3)
    newest = folder.load_newest()
    assert newest is not None
    damaged = folder.save(newest.tensors, {**newest.numbers, "step": 8})
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert train(workspace, TrainRequest("m", resume=True, steps=8), Context(CPU))["steps"] == 8
    with pytest.raises(UserError, match="already has 8 steps"):
        train(workspace, TrainRequest("m", resume=True, steps=7), Context(CPU))


def test_many_threads_lock_a_folder_whose_lock_is_removed(tmp_path: Path) -> None:
    """Never two at once, whoever removes what others are just opening."""
    inside, most, done = [0], [0], [0]

    def work() -> None:
        for _ in range(200):
            lock = FolderLock(tmp_path / "run", "busy")
            try:
                lock.acquire()
            except UserError:
                continue
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            done[0] += 1
            inside[0] -= 1
            lock.remove()
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done[0] > 200 and most[0] == 1


def test_a_run_lengthened_by_minutes_has_the_rest_of_them_after_a_kill(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(workspace.root / "runs" / "m" / "checkpoints")
    newest = folder.load_newest()
    assert newest is not None
    folder.save(newest.tensors, {**newest.numbers, "seconds": 1800.0})
    limits: list[Any] = []

    class Recorder(training.TrainingLoop):
        def run(self) -> dict[str, Any]:
            limits.append(self.limits)
            raise RuntimeError("killed")

    monkeypatch.setattr(training, "TrainingLoop", Recorder)
    for request in (TrainRequest("m", resume=True, minutes=5.0), TrainRequest("m", resume=True)):
        with pytest.raises(RuntimeError, match="killed"):
            train(workspace, request, Context(CPU))
    assert [limit.minutes for limit in limits] == [5.0, pytest.approx(5.0)]
    assert json.loads((workspace.root / "runs" / "m" / "run.json").read_text())["minutes"] == pytest.approx(35.0)


def test_memory_that_runs_out_while_a_picture_is_read_is_no_verdict_on_it(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from ddpm_core.dataset import reading
    from ddpm_core.dataset.harvest import add_picture

    source = random_pictures(tmp_path / "in", 6, side=64, seed=5)
    real, calls = reading.upright_rgb, []

    def starved(*values: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        if len(calls) == 2:
            raise OSError("out of memory when reading image file")
        return real(*values)

    monkeypatch.setattr(reading, "upright_rgb", starved)
    first = workspace.harvest("new", [source])
    assert first.kept == 4 and first.skipped["no_memory"] == 2 and not first.rejected
    assert workspace.harvest("new", [source]).kept == 2

    def refuse(*values: Any, **named: Any) -> None:
        raise ValueError("encoding error 1")

    more = random_pictures(tmp_path / "more", 1, side=64, seed=6)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", refuse)
        with pytest.raises(MemoryError):
            workspace.harvest("new", [more])
    assert not list(workspace.root.rglob("*.tmp"))
    assert workspace.harvest("new", [more]).kept == 1
    calls.clear()
    with pytest.raises(MemoryError):  # of a picture that is on no disk somebody has to hear
        add_picture(workspace.store("new"), Image.effect_noise((64, 64), 90), "", "unsaved:1")
