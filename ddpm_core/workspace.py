"""Where everything lives, and what can be done with it besides training and sampling: names, lists, trash.

datasets/<name>/   runs/<name>/   models/<name>.safetensors   trash/
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dataset import KEEP_SIZE, KEPT, REJECTED
from .errors import UserError
from .files import FolderLock, is_alive, machine, sweep, temporary_beside, write_json
from .names import check_name, check_no_twin, is_name
from .parsing import parse_json, read_json, read_regular
from .text import legible

# what reads and writes is loaded when it is first needed: a host's start-up shall not wait for it
if TYPE_CHECKING:
    from .dataset.harvest import HarvestResult
    from .dataset.own import OwnPictures
    from .dataset.store import Store
    from .dataset.wanted import Wanted
    from .model.config import ModelConfig

Progress = Callable[[int, int, str], None]
_RUN_PARTS = ("checkpoints", "previews")


class Workspace:
    """One folder on disk with all datasets, runs and models. Any number of threads and processes may share it."""

    def __init__(self, root: Path, models: Path | None = None) -> None:
        self.root = root.expanduser().absolute()
        self.models_folder = (models or self.root / "models").expanduser().absolute()
        try:
            for folder in (self.root / "datasets", self.root / "runs", self.root / "trash", self.models_folder):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The workspace {self.root} cannot be written ({error.strerror}); choose another with --workspace or "
                "DDPM_WORKSPACE, in the WebUI in Settings, DDPM, or with --ddpm-workspace where that is empty."
            ) from None
        self._sweep()
        self._own: OwnPictures | None = None
        self._stores: dict[str, Store] = {}
        self._guard = threading.Lock()

    @property
    def own(self) -> OwnPictures:
        """The pictures sampled from our models, which no dataset takes."""
        from .dataset.own import OwnPictures

        with self._guard:
            if self._own is None:
                self._own = OwnPictures(self.root / "own-pictures.txt")
            return self._own

    def _sweep(self) -> None:
        """Clear away what was being written when a process was cut off; datasets do so when they are opened."""
        runs = _below(self.root / "runs")
        for run in runs:
            if is_name(run.name) and _is_leftover(run):
                _clear(run)
        places = (*(self.root / part for part in ("", "datasets", "runs", "evaluations")), self.models_folder, *runs)
        parts = (run / part for run in runs for part in _RUN_PARTS)
        for folder in (*places, *(part for part in parts if not _is_link(part))):
            sweep(folder)
        for place in _below(self.root / "trash"):
            # begun and never filled, or restored and never removed
            sweep(place)
            if not _in_use(place):
                _remove_empty(place)

    # -- datasets -----------------------------------------------------------------------------------------------------

    def dataset_names(self) -> list[str]:
        folders = _below(self.root / "datasets")
        return sorted(
            (f.name for f in folders if is_name(f.name) and _is_there(f / "dataset.sqlite")), key=str.casefold
        )

    def dataset_folder(self, name: str) -> Path:
        return self.root / "datasets" / check_name(name, "dataset")

    def store(self, name: str, create: bool = False) -> Store:
        """The dataset of that name; unless ``create``, UserError when there is none."""
        folder = self.dataset_folder(name)
        name = folder.name
        if not create and not _is_there(folder / "dataset.sqlite"):
            known = ", ".join(self.dataset_names())
            raise UserError(
                f"There is no dataset {name!r}; " + (f"there are: {known}." if known else "harvest a folder first.")
            )
        if create and name not in (names := self.dataset_names()):
            check_no_twin(name, names, "dataset")
        from .dataset.store import Store

        with self._guard:
            known_store = self._stores.get(name)
            if known_store is not None and not known_store.is_current():
                known_store.close()
                known_store = None
            if known_store is None:
                known_store = self._stores[name] = Store(folder)
            return known_store

    def list_datasets(self) -> list[dict[str, Any]]:
        """Every dataset with its counts; those that cannot be opened with their error."""
        found: list[dict[str, Any]] = []
        for name in self.dataset_names():
            try:
                found.append({"name": name, **self.store(name).counts()})
            except UserError as error:
                found.append({"name": name, "error": str(error)})
        return found

    def harvest(
        self,
        dataset: str,
        folders: list[Path],
        *,
        keep_size: int = KEEP_SIZE,
        wanted: Wanted | None = None,
        stop: threading.Event | None = None,
        progress: Progress = lambda done, total, text: None,
    ) -> HarvestResult:
        """Add the pictures of folders to a dataset, which is made if need be."""
        from .dataset.harvest import check_folder, harvest

        if not folders:
            raise UserError("Give at least one folder to harvest.")
        if not 16 <= keep_size <= 4096:
            raise UserError(f"The size of the copies must be between 16 and 4096 pixels; got {keep_size}.")
        for folder in folders:
            check_folder(folder)
        return harvest(
            self.store(dataset, create=True),
            folders,
            keep_size=keep_size,
            avoid=[self.root, self.models_folder],
            own=self.own,
            wanted=wanted,
            stop=stop,
            progress=progress,
        )

    def show_dataset(
        self, name: str, *, status: str | None = None, suspects: bool = False, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Items of a dataset; ``suspects`` lists the kept ones, most unusual first."""
        if status not in (None, KEPT, REJECTED):
            raise UserError(f"There is no status {status!r}; choose kept or rejected.")
        if suspects:
            status = status or KEPT
        return self.store(name).items(status=status, by_suspicion=suspects, offset=offset, limit=limit)

    def keep(self, name: str, ids: list[int]) -> int:
        return self.store(name).decide(ids, KEPT)

    def reject(self, name: str, ids: list[int], reason: str = "user") -> int:
        return self.store(name).decide(ids, REJECTED, reason, "Rejected by hand.")

    def undo(self, name: str) -> int:
        return len(self.store(name).undo())

    def export_dataset(self, name: str, target: Path) -> list[str]:
        """Copy the kept pictures, each with its prompt in a text file of the same name, into a folder."""
        from .dataset.reading import read_copy

        store = self.store(name)
        items = [item for item in store.items(status=KEPT) if item["has_copy"]]
        try:
            target.mkdir(parents=True, exist_ok=True)
            files = []
            for item in items:
                path, out = store.copy_path(item["sha256"]), target / f"{item['id']:06d}.png"
                if path.suffix == ".png":
                    shutil.copyfile(path, out)
                else:
                    read_copy(path).save(out, format="PNG")
                if item["prompt"]:
                    out.with_suffix(".txt").write_text(item["prompt"], encoding="utf-8")
                files.append(str(out))
        except OSError as error:
            raise UserError(
                f"The pictures could not be written to {target} ({error.strerror}); make room or choose another folder."
            ) from None
        return files

    def thumbnail(self, name: str, item_id: int, size: tuple[int, int] | None, crop: str = "center") -> bytes:
        """An item's picture as stored (WebP or PNG), or (with ``size``, height and width) a PNG as the network sees it."""
        from .dataset.packing import fit
        from .dataset.reading import MAX_COPY_BYTES, read_copy

        store = self.store(name)
        try:
            path = store.copy_of(item_id)
            if size is None:
                return read_regular(path, MAX_COPY_BYTES)
            out = io.BytesIO()
            fit(read_copy(path), size, crop).save(out, format="PNG", compress_level=1)
            return out.getvalue()
        except OSError:
            raise UserError(f"The copy of item {item_id} is missing or damaged.") from None

    # -- runs and models ----------------------------------------------------------------------------------------------

    def run_folder(self, name: str) -> Path:
        return self.root / "runs" / check_name(name, "model")

    def run_names(self) -> list[str]:
        return sorted(f.name for f in _below(self.root / "runs") if is_name(f.name) and _is_there(f / "run.json"))

    def run_info(self, name: str) -> dict[str, Any]:
        """The run's description with the step of its newest checkpoint."""
        from .training.checkpoints import CheckpointFolder

        folder = self.run_folder(name)
        info = read_json(folder / "run.json", "run description")
        if not _is_run(info):
            raise UserError(
                f"The run description {folder / 'run.json'} is damaged; delete the model, or restore that file."
            )
        paths = CheckpointFolder(folder / "checkpoints").paths()
        return {**info, "step": int(paths[-1].stem.split("-")[1]) if paths else 0}

    def unfinished_runs(self) -> list[dict[str, Any]]:
        """Runs whose newest checkpoint lies before the step they were to reach, and that no one stopped on purpose."""
        found = []
        for name in self.run_names():
            try:
                info = self.run_info(name)
            except UserError:
                continue
            if info.get("state") != "finished" and info["step"] < info.get("steps", 0):
                found.append(
                    {
                        "name": name,
                        "step": info["step"],
                        "steps": info["steps"],
                        "dataset": info.get("dataset"),
                        "state": info.get("state"),
                    }
                )
        return found

    def model_names(self) -> list[str]:
        return sorted((p.stem for p in self.models_folder.glob("*.safetensors") if is_name(p.stem)), key=str.casefold)

    def model_path(self, name: str) -> Path:
        """Path of a model given by name or as a file; UserError when there is none, listing those that are."""
        if name.lower().endswith(".safetensors"):
            return Path(name).expanduser()
        path = self.models_folder / f"{check_name(name, 'model')}.safetensors"
        if not path.is_file():
            known = ", ".join(self.model_names())
            raise UserError(f"There is no model {name!r}; " + (f"there are: {known}." if known else "train one first."))
        return path

    def list_models(self) -> list[dict[str, Any]]:
        """Every readable model with what it says of itself; unreadable ones with their error."""
        found = []
        for name in self.model_names():
            try:
                found.append(self.show_model(name))
            except UserError as error:
                found.append({"name": name, "error": str(error)})
        return found

    def show_model(self, name: str) -> dict[str, Any]:
        from .model import file as model_file

        path = self.model_path(name)
        config, info = model_file.read_config(path)
        return {
            "name": path.stem,
            "bytes": path.stat().st_size,
            "size": list(config.unet.image_size),
            "config": config.to_json(),
            "info": info,
        }

    def model_config(self, name: str) -> ModelConfig:
        from .model import file as model_file

        return model_file.read_config(self.model_path(name))[0]

    # -- trash --------------------------------------------------------------------------------------------------------

    def delete_dataset(self, name: str) -> str:
        """Move a dataset to the trash."""
        name = check_name(name, "dataset")
        store = self.store(name)
        with self._guard:
            self._stores.pop(name, None)
        store.close()
        self._to_trash("dataset", name, [store.folder])
        return name

    def restore_dataset(self, name: str) -> str:
        return self._from_trash("dataset", check_name(name, "dataset"))

    def delete_model(self, name: str) -> str:
        """Move a model, its preview and its run to the trash."""
        name = check_name(name, "model")
        run = self.run_folder(name)
        lock = FolderLock(run, f"The model {name!r} is being trained; stop that first.")
        with lock.held() if run.exists() else contextlib.nullcontext():
            clear_leftover(run, lock)
            # the run goes first: without it nobody goes on with what is just being moved
            parts = [path for path in (run, *self.model_parts(name)) if path.exists() and not _is_leftover(path)]
            if not parts:
                known = ", ".join(self.model_names())
                raise UserError(f"There is no model {name!r}" + (f"; there are: {known}." if known else "."))
            if os.name == "nt":
                lock.release()  # there no folder can be moved of which a file is open
            self._to_trash("model", name, parts)
        return name

    def restore_model(self, name: str) -> str:
        return self._from_trash("model", check_name(name, "model"))

    def model_parts(self, name: str) -> list[Path]:
        return [self.models_folder / f"{name}.safetensors", self.models_folder / f"{name}.preview.png"]

    def _to_trash(self, kind: str, name: str, paths: list[Path]) -> None:
        place = (
            self.root
            / "trash"
            / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{machine()}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}"
        )
        record = {"kind": kind, "name": name, "when": time.time(), "paths": [str(path) for path in paths]}
        write_json(
            place / "trash.json", record
        )  # first, so that nothing ever lies there without a word of where it was
        try:
            _move_all(name, [(path, place / f"{number}") for number, path in enumerate(paths)])
        except UserError:
            _remove_empty(place)
            raise

    def trash(self) -> list[dict[str, Any]]:
        """What lies in the trash, newest first; what says nothing sensible of itself is left out."""
        found = []
        for place in _below(self.root / "trash"):
            try:
                record = parse_json(read_regular(place / "trash.json"))
                kind, name, when = record["kind"], record["name"], float(record["when"])
                names = [Path(str(path)).name for path in record["paths"]]
            except (OSError, ValueError, KeyError, TypeError, OverflowError):
                continue
            if not math.isfinite(when) or place.name != legible(place.name):
                continue
            if kind in ("dataset", "model") and isinstance(name, str) and is_name(name) and _parts(place):
                found.append({"kind": kind, "name": name, "when": when, "names": names, "place": place.name})
        return sorted(found, key=lambda record: -record["when"])

    def empty_trash(self) -> int:
        """Delete for good what lies in the trash; how many things that were."""
        places = [place for place in _below(self.root / "trash") if place.is_dir() and not place.is_symlink()]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        left = [place for place in places if place.exists()]
        if left:
            raise UserError(
                f"{len(left)} of {len(places)} things in the trash could not be deleted; close what uses them, or "
                "check the permissions, and try again."
            )
        return len(places)

    def restore(self, place: str) -> str:
        """Bring back one thing of :meth:`trash`, by its place."""
        for record in self.trash():
            if record["place"] == place:
                return self._from_trash(record["kind"], record["name"], place)
        raise UserError("That is not in the trash any more.")

    def _from_trash(self, kind: str, name: str, place_name: str | None = None) -> str:
        for record in self.trash():
            if (record["kind"], record["name"]) != (kind, name) or place_name not in (None, record["place"]):
                continue
            # where such things belong now, not where the record says: the workspace may have been moved, or tampered with
            belongs = [self.dataset_folder(name)]
            if kind == "model":
                belongs = [*self.model_parts(name), self.run_folder(name)]
            by_name = {path.name: path for path in belongs}
            if not set(record["names"]) <= set(by_name):
                raise UserError(f"The record of {name} in the trash is damaged; its parts lie in {record['place']}.")
            if kind == "model":
                run = self.run_folder(name)
                _clear(run)
                if _is_leftover(run):  # somebody has just begun, and has no file yet
                    raise UserError(f"A model {name!r} is being trained; stop that first, or wait for its end.")
            place = self.root / "trash" / record["place"]
            # those that are there: moving them may have been cut off, here or there
            parts = [
                (place / f"{number}", by_name[part])
                for number, part in enumerate(record["names"])
                if (place / f"{number}").exists()
            ]
            taken = next((path for _, path in parts if path.exists()), None)
            if taken is not None:
                raise UserError(
                    f"{name} cannot be restored: there is another {kind} of that name now; delete or rename it first."
                )
            _move_all(name, parts)
            _remove_empty(place)
            return name
        there = ", ".join(record["name"] for record in self.trash() if record["kind"] == kind)
        raise UserError(f"There is no {kind} {name!r} in the trash" + (f"; there are: {there}." if there else "."))


def _below(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where somebody has removed it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_there(path: Path) -> bool:
    """Whether a file is there and can be asked about: a folder of somebody else's must not hide all others."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return True  # nobody of ours goes there


def _is_leftover(run: Path) -> bool:
    """Whether a run's folder holds nothing but its lock: a training ended, or was refused, before it had begun."""
    try:
        return all(path.name == ".lock" or (path.name in _RUN_PARTS and not _below(path)) for path in run.iterdir())
    except OSError:
        return False


def clear_leftover(run: Path, lock: FolderLock) -> None:
    """Remove the folder of a run that never began; ``lock`` is held."""
    if _is_leftover(run):
        for part in _RUN_PARTS:
            with contextlib.suppress(OSError):
                (run / part).rmdir()
        lock.remove()


def _clear(run: Path) -> None:
    """:func:`clear_leftover`, unless somebody has just begun there."""
    if not _is_leftover(run):
        return
    lock = FolderLock(run, "")
    with contextlib.suppress(UserError), lock.held():
        clear_leftover(run, lock)
    if os.name == "nt" and _is_leftover(run):  # where what is open, also by somebody else, cannot be removed
        with contextlib.suppress(OSError):
            (run / ".lock").unlink(missing_ok=True)
            run.rmdir()


def _is_run(info: Any) -> bool:
    """Whether a parsed run.json has what every run has, of the right kinds."""
    texts, numbers = ("dataset", "fingerprint", "state"), ("format", "images", "steps")
    if not isinstance(info, dict) or not isinstance(info.get("config"), dict):
        return False
    if not all(isinstance(info.get(key), str) for key in texts) or not is_name(info["dataset"]):
        return False
    if not re.fullmatch(r"[0-9a-f]{64}", info["fingerprint"]):  # files are named by it
        return False
    if not all(isinstance(info.get(key), int) and abs(info[key]) < 2**53 for key in numbers):
        return False
    minutes, source = info.get("minutes"), info.get("init_from")
    if not isinstance(minutes, (int, float, type(None))) or not abs(minutes or 0) < 2**53:
        return False
    return source is None or isinstance(source, str)


def _remove_empty(place: Path) -> None:
    """Remove a place in the trash that holds nothing but the word of what it was for; one with anything else stays."""
    with contextlib.suppress(OSError):
        if {path.name for path in place.iterdir()} <= {"trash.json"}:
            (place / "trash.json").unlink(missing_ok=True)
            place.rmdir()


def _parts(place: Path) -> list[Path]:
    """What lies at a place in the trash, besides the word of what it is."""
    return [path for path in _below(place) if path.name.isdigit()]


def _in_use(place: Path) -> bool:
    """Whether someone may just be filling or emptying it."""
    where, number = (["", "", *place.name.split("-")])[-3:-1]
    try:
        if time.time() - place.stat().st_mtime > 60.0:
            return False
    except OSError:
        return True
    if where != machine() or not number.isdecimal():
        return True  # of another machine, whose processes we cannot see
    return int(number) == os.getpid() or is_alive(int(number))


def _move(source: Path, target: Path) -> None:
    """Rename; only to another file system is copied, and what was copied from goes last and may stay behind."""
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV and getattr(error, "winerror", None) != 17:  # ERROR_NOT_SAME_DEVICE
            raise
    part = temporary_beside(target)  # cut off, it counts for nothing
    try:
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, part)
        part.rename(target)
    except BaseException:
        _remove(part)
        raise
    _remove(source)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move_all(name: str, moves: list[tuple[Path, Path]]) -> None:
    """Move every pair or, when one fails, none; UserError then."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(source, target)
            done.append((source, target))
    except OSError as error:
        for source, target in reversed(done):
            _move(target, source)
        raise UserError(
            f"{name} could not be moved ({error.strerror or error}); close what uses it, make room, and try again."
        ) from None
