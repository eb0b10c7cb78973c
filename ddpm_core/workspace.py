"""Where everything lives, and what can be done with it besides training and sampling: names, lists, deleting.

datasets/<name>/   runs/<name>/   models/<name>.safetensors   trash/
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import leftovers
from .dataset import KEEP_SIZE, KEPT, REJECTED
from .errors import UserError
from .files import FolderLock, below, sweep
from .names import check_name, check_no_twin, is_name
from .requests import OWN_UPSCALER
from .runs import FILE as RUN_FILE
from .runs import Run
from .trash import Trash

# what reads and writes is loaded when it is first needed: a host's start-up shall not wait for it
if TYPE_CHECKING:
    from .dataset.harvest import HarvestResult
    from .dataset.own import OwnPictures
    from .dataset.store import Store
    from .dataset.wanted import Wanted
    from .model.config import ModelConfig

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Header:
    """What lists need to know of a model's file; as it is here of one that cannot be read. ``size``: of the images that it makes, or, of an
    upscaler, takes when it is trained; ``written``: when, in seconds;
    ``digest``: of an adapter, that of the weights that it changes."""

    kind: str = "unet"
    size: tuple[int, ...] = ()
    dataset: str = ""
    upscaler: str = ""
    bundled: bool = False
    written: float = 0.0
    readable: bool = False
    digest: str = ""


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
        self._trash = Trash(self.root / "trash")
        self._sweep()
        self._own: OwnPictures | None = None
        self._stores: dict[str, Store] = {}
        self._guard = threading.Lock()
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}  # of their weights, by name
        self._headers: dict[str, tuple[tuple[int, int], _Header]] = {}  # of models, by name

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
        runs = below(self.root / "runs")
        for run in runs:
            if is_name(run.name):
                leftovers.clear(run)
        places = (*(self.root / part for part in ("", "datasets", "runs", "evaluations")), self.models_folder, *runs)
        parts = (run / part for run in runs for part in leftovers.RUN_PARTS)
        for folder in (*places, *(part for part in parts if not _is_link(part))):
            sweep(folder)
        self._trash.sweep()

    # -- datasets -----------------------------------------------------------------------------------------------------

    def dataset_names(self) -> list[str]:
        """Names of the datasets, sorted."""
        folders = below(self.root / "datasets")
        return sorted(
            (f.name for f in folders if is_name(f.name) and _is_there(f / "dataset.sqlite")), key=str.casefold
        )

    def dataset_folder(self, name: str) -> Path:
        """The folder of a dataset; UserError for a name that cannot be one."""
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
        from .dataset.harvest import harvest
        from .dataset.scanning import check_folder

        if not folders:
            raise UserError("Give at least one folder to harvest.")
        if not 16 <= keep_size <= 4096:
            raise UserError(f"The size of the copies must be between 16 and 4096 pixels; got {keep_size}.")
        for folder in folders:
            check_folder(folder)
        store = self.store(dataset, create=True)
        result = harvest(
            store,
            folders,
            keep_size=keep_size,
            avoid=[self.root, self.models_folder],
            own=self.own,
            wanted=wanted,
            stop=stop,
            progress=progress,
        )
        if not result.added and not store.counts()["items"]:
            self._drop_empty(dataset)
        return result

    def count(
        self,
        folders: list[Path],
        *,
        wanted: Wanted | None = None,
        stop: threading.Event | None = None,
        progress: Progress = lambda done, total, text: None,
    ) -> HarvestResult:
        """What harvesting folders into a new dataset would find, keep and skip."""
        from .dataset.harvest import harvest
        from .dataset.store import Store

        with tempfile.TemporaryDirectory(prefix="ddpm-count-") as folder:
            store = Store(Path(folder))
            try:
                avoid = [self.root, self.models_folder]
                return harvest(
                    store,
                    folders,
                    avoid=avoid,
                    own=self.own,
                    wanted=wanted,
                    count_only=True,
                    stop=stop,
                    progress=progress,
                )
            finally:
                store.close()

    def _drop_empty(self, name: str) -> None:
        """Remove a dataset that holds nothing, as a harvest that found nothing would leave behind."""
        folder = self.dataset_folder(name)
        names = {path.name for path in folder.iterdir()}
        if names - {"images", "packed", "dataset.sqlite", "dataset.sqlite-wal", "dataset.sqlite-shm"}:
            return  # a generate-and-collect waits here, or something of the person's
        with self._guard:
            known = self._stores.pop(name, None)
            if known is not None:
                known.close()
            shutil.rmtree(folder, ignore_errors=True)

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
        """Keep items; how many changed."""
        return self.store(name).decide(ids, KEPT)

    def reject(self, name: str, ids: list[int], reason: str = "user") -> int:
        """Reject items; how many changed."""
        return self.store(name).decide(ids, REJECTED, reason, "Rejected by hand.")

    def undo(self, name: str) -> int:
        """Undo the last decision in a dataset."""
        return len(self.store(name).undo())

    # -- runs and models ----------------------------------------------------------------------------------------------

    def run_folder(self, name: str) -> Path:
        """The folder of a run; UserError for a name that cannot be one."""
        return self.root / "runs" / check_name(name, "model")

    def run_names(self) -> list[str]:
        """Names of the runs, sorted."""
        return sorted(f.name for f in below(self.root / "runs") if is_name(f.name) and _is_there(f / RUN_FILE))

    def run(self, name: str) -> Run:
        """The record of a model's run; UserError where there is none or it is damaged."""
        return Run.read(self.run_folder(name))

    def checkpoint_steps(self, name: str) -> list[int]:
        """The steps of a run's checkpoints, newest first, readable or not; none where the run is not here."""
        from .training.checkpoints import CheckpointFolder

        paths = CheckpointFolder(self.run_folder(name) / "checkpoints").paths()
        return [int(path.stem.partition("-")[2]) for path in reversed(paths)]

    def newest_step(self, name: str) -> int:
        """The first of :meth:`checkpoint_steps`, or 0."""
        return next(iter(self.checkpoint_steps(name)), 0)

    def steps_reached(self, name: str) -> int:
        """How far a run can be gone on with: the step of its newest checkpoint that can be read."""
        from .training.checkpoints import CheckpointFolder

        return CheckpointFolder(self.run_folder(name) / "checkpoints").reached()

    def unfinished_runs(self) -> list[dict[str, Any]]:
        """Runs whose newest checkpoint lies before the step they were to reach, and that no one stopped on purpose."""
        found = []
        for name in self.run_names():
            try:
                run, step = self.run(name), self.newest_step(name)
            except UserError:
                continue
            if run.state != "finished" and step < run.steps:
                values = {"step": step, "steps": run.steps, "dataset": run.dataset, "state": run.state}
                found.append({"name": name, **values})
        return found

    def model_names(self, kind: str | None = None) -> list[str]:
        """Names of the models, sorted; those of a kind (``model.config.KINDS``): what cannot be read is taken for a *unet*."""
        found = [path for path in self.models_folder.glob("*.safetensors") if is_name(path.stem)]
        return sorted((p.stem for p in found if kind is None or self._header(p).kind == kind), key=str.casefold)

    def kind_of(self, name: str) -> str:
        """Of a model, or a file; "adapter" for one, and "unet" for what cannot be read."""
        return self._header(self.model_path(name)).kind

    def _header(self, path: Path) -> _Header:
        """Of a model's file, read anew only where that has changed: lists are asked for all the time."""
        from .model import adapter_file
        from .model import file as model_file

        try:
            status = path.stat()
            key = (status.st_mtime_ns, status.st_size)
            known = self._headers.get(path.stem)
            if known is None or known[0] != key:
                adapter = adapter_file.read_head(path)
                config, info = (adapter.model, adapter.info) if adapter is not None else model_file.read_config(path)
                about = model_file.known_of(info)
                factor = getattr(config.unet, "factor", 1)
                header = _Header(
                    config.kind if adapter is None else "adapter",
                    tuple(side // factor for side in config.image_size),
                    about.get("dataset", ""),
                    about.get("upscaler", ""),
                    info.get("bundled") is True,
                    status.st_mtime,
                    True,
                    "" if adapter is None else adapter.digest,
                )
                known = self._headers[path.stem] = (key, header)
        except (OSError, UserError):
            return _Header()
        return known[1]

    def newest_model(self) -> str | None:
        """The model that was written last, if there is one; one that came along only where there is no other."""

        def rank(name: str) -> tuple[bool, bool, float]:
            header = self._header(self.models_folder / f"{name}.safetensors")
            return header.readable, not header.bundled, header.written

        return max(self.model_names("unet"), key=rank, default=None)

    def upscalers(self) -> list[str]:
        """Those of ours as they stand in a list of upscalers."""
        return [OWN_UPSCALER + name for name in self.model_names("upscaler")]

    def upscaler_of(self, model: str) -> str | None:
        """The upscaler that goes with a model: the one that it names, or else the newest that learned from the same dataset and takes
        images of its size; None where there is none."""
        own = self._header(self.models_folder / f"{model}.safetensors")
        if own.kind != "unet":
            return None
        headers = {
            name: self._header(self.models_folder / f"{name}.safetensors") for name in self.model_names("upscaler")
        }
        if own.upscaler in headers:
            return own.upscaler
        fit = [name for name, one in headers.items() if one.dataset == own.dataset != "" and one.size == own.size]
        return max(fit, key=lambda name: headers[name].written, default=None)

    def encoder_of(self, dataset: str) -> str | None:
        """The newest image-text encoder that learned from a dataset; None where there is none."""
        headers = {
            name: self._header(self.models_folder / f"{name}.safetensors") for name in self.model_names("contrast")
        }
        fit = [name for name, one in headers.items() if one.dataset == dataset]
        return max(fit, key=lambda name: headers[name].written, default=None)

    def encoder_by(self, digest: str) -> str | None:
        """The image-text encoder with these weights, whatever it is called; None where it is not here."""
        names = self.model_names("contrast")
        return next((n for n in names if self._digest(self.models_folder / f"{n}.safetensors") == digest), None)

    def model_path(self, name: str) -> Path:
        """Path of a model given by name or as a file; UserError when there is none, listing those that are."""
        if name.lower().endswith(".safetensors"):
            return Path(name).expanduser()
        path = self.models_folder / f"{check_name(name, 'model')}.safetensors"
        if not path.is_file():
            known = ", ".join(self.model_names())
            raise UserError(f"There is no model {name!r}; " + (f"there are: {known}." if known else "train one first."))
        return path

    def adapter_path(self, name: str) -> Path:
        """Path of an adapter given by name; UserError when there is none, listing those that are."""
        path = self.models_folder / f"{check_name(name, 'model')}.safetensors"
        known = self.model_names("adapter")
        if name not in known:
            if path.is_file():
                raise UserError(f"{name} is a model and no adapter; choose it as the model.")
            raise UserError(
                f"There is no adapter {name!r}; "
                + (f"there are: {', '.join(known)}." if known else "train one first (Fine-tune).")
            )
        return path

    def adapters_of(self, model: str) -> list[str]:
        """Names of the adapters that belong to a model's weights, whatever it is called now."""
        adapters = {
            name: self._header(self.models_folder / f"{name}.safetensors") for name in self.model_names("adapter")
        }
        if not adapters or model not in self.model_names():
            return []
        digest = self._digest(self.models_folder / f"{model}.safetensors")
        return [name for name, header in adapters.items() if header.digest == digest]

    def _digest(self, path: Path) -> str:
        """Of a model's weights, read anew only where the file has changed; empty where it cannot be read."""
        from .model import adapter_file
        from .model import file as model_file

        try:
            status = path.stat()
            key = (status.st_mtime_ns, status.st_size)
            known = self._digests.get(path.stem)
            if known is None or known[0] != key:
                known = self._digests[path.stem] = (key, adapter_file.digest_of(model_file.load(path).weights))
        except (OSError, UserError):
            return ""
        return known[1]

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
        """What a model says of itself, and its size on disk; of an adapter also its base, its rank and alpha, and its word."""
        from .model import adapter_file
        from .model import file as model_file

        path = self.model_path(name)
        adapter = adapter_file.read_head(path)
        config, info = (adapter.model, adapter.info) if adapter is not None else model_file.read_config(path)
        own: dict[str, Any] = {"base": model_file.known_of(info).get("base")}
        if adapter is not None:
            own = {"base": adapter.base, **dataclasses.asdict(adapter.config)}
        return {
            "name": path.stem,
            "kind": config.kind if adapter is None else "adapter",
            **own,
            "tags": list(config.tags),
            "text": None if config.text is None else f"{config.text.reading}, {config.text.name}",
            "image": None if config.image is None else config.image.name,
            "upscaler": self.upscaler_of(path.stem) if path.parent == self.models_folder else None,
            "bundled": info.get("bundled") is True,
            "bytes": path.stat().st_size,
            "size": list(config.image_size),
            "config": config.to_json(),
            "info": info,
        }

    def model_config(self, name: str) -> ModelConfig:
        """The configuration of a model."""
        from .model import file as model_file

        return model_file.read_config(self.model_path(name))[0]

    # -- trash --------------------------------------------------------------------------------------------------------

    def delete_dataset(self, name: str) -> str:
        """Move a dataset to the trash."""
        name = check_name(name, "dataset")
        folder = self.store(name).folder
        self.forget(name)
        self._trash.put("dataset", name, [folder])
        return name

    def forget(self, name: str) -> None:
        """Let go of a dataset's file, before its folder moves."""
        with self._guard:
            store = self._stores.pop(name, None)
        if store is not None:
            store.close()

    @contextlib.contextmanager
    def run_at_rest(self, name: str) -> Iterator[None]:
        """While a model's files move: UserError where it is being trained."""
        run = self.run_folder(name)
        lock = FolderLock(run, f"The model {name!r} is being trained; stop that first.")
        with lock.held() if run.exists() else contextlib.nullcontext():
            if os.name == "nt":
                lock.release()  # there no folder can be moved of which a file is open
            yield

    def delete_model(self, name: str) -> str:
        """Move a model, its preview and its run to the trash."""
        name = check_name(name, "model")
        run = self.run_folder(name)
        lock = FolderLock(run, f"The model {name!r} is being trained; stop that first.")
        with lock.held() if run.exists() else contextlib.nullcontext():
            leftovers.clear_held(run, lock)
            # the run goes first: without it nobody goes on with what is just being moved
            parts = [path for path in self.model_parts(name) if path.exists() and not leftovers.is_leftover(path)]
            if not parts:
                known = ", ".join(self.model_names())
                raise UserError(f"There is no model {name!r}" + (f"; there are: {known}." if known else "."))
            if os.name == "nt":
                lock.release()  # there no folder can be moved of which a file is open
            try:
                self._trash.put("model", name, parts)
            except UserError as error:
                # Windows' disks and shares, wherever they are mounted, move no folder of which a file is open either
                cause = error.__context__
                if not isinstance(cause, OSError) or cause.errno not in (errno.EACCES, errno.EBUSY, errno.EPERM):
                    raise
                lock.release()
                self._trash.put("model", name, parts)
        return name

    def model_parts(self, name: str) -> list[Path]:
        """Run, model file and preview, where they are or would be."""
        files = (f"{name}.safetensors", f"{name}.preview.png")
        return [self.run_folder(name), *(self.models_folder / file for file in files)]

    def trash(self) -> list[dict[str, Any]]:
        """What lies in the trash, newest first; what says nothing sensible of itself is left out."""
        return self._trash.records()

    def restore_dataset(self, name: str) -> str:
        """Restore a deleted dataset; its name as it is now."""
        return self._take_out(self._trash.newest("dataset", check_name(name, "dataset")))

    def restore_model(self, name: str) -> str:
        """Restore a deleted model; its name as it is now."""
        return self._take_out(self._trash.newest("model", check_name(name, "model")))

    def restore(self, place: str) -> str:
        """Bring back one thing of :meth:`trash`, by its place."""
        return self._take_out(self._trash.at(place))

    def _take_out(self, record: dict[str, Any]) -> str:
        name: str = record["name"]
        if record["kind"] == "model":
            run = self.run_folder(name)
            leftovers.clear(run)
            if leftovers.is_leftover(run):  # somebody has just begun, and has no file yet
                raise UserError(f"A model {name!r} is being trained; stop that first, or wait for its end.")
            self._trash.take_out(record, self.model_parts(name))
        else:
            self._trash.take_out(record, [self.dataset_folder(name)])
        return name

    def empty_trash(self) -> int:
        """Delete for good what lies in the trash; how many things that were."""
        return self._trash.empty()


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
