"""What a server offers: the workspace's operations as background jobs; what pages draw of them is ``watch``'s.

The tab and the HTTP routes are two doors to this one object; neither holds state of its own.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from . import bundled
from .collector import Collector
from .errors import UserError
from .files import as_pasted
from .finding import Finding
from .host.base import Host
from .jobs import GENERATING, TRAINING, Job, Jobs
from .names import check_name
from .operations.context import Context
from .options import check
from .requests import COLLECTION_STATE, Collection, Edit, Enlarging, Interpolation, Prompt, SampleRequest, TrainRequest
from .results import Emerging, Result, Save, keep
from .watch import Watch
from .workspace import Workspace

if TYPE_CHECKING:
    from .dataset.wanted import Wanted
    from .operations.sampling import Sampled
    from .sampling.generate import SampleSettings
    from .understand.desk import Desk

_POLITE_SECONDS = 0.02  # between two looks of a training that lets a sampling go first
_SAMPLE_BATCH = 64
_SAMPLE_BATCH_CPU = 8  # as quick there, and an interrupt loses less
_MOST_MADE = 4096  # of which the best are kept
_MOST_PIXELS = 2**28  # of one sampling, held in memory until all are saved: 1 GiB


class Service:
    """One server's workspace, host and jobs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.jobs = Jobs()
        self._guard = threading.Lock()
        self._workspace: Workspace | None = None
        self.collector = Collector(lambda: self.workspace, host.collecting_rule, host.report_pictures)
        self.watch = Watch(host, self.jobs, self.collector, lambda: self.workspace)
        self.finding = Finding(self.jobs, self.watch, lambda: self.workspace)
        self._desk: Desk | None = None

    @property
    def workspace(self) -> Workspace:
        """The workspace that the host names now; it changes with the host's setting, unless that cannot be written."""
        folders = (
            self.host.workspace_folder().expanduser().absolute(),
            self.host.models_folder().expanduser().absolute(),
        )
        with self._guard:
            current = self._workspace
            if current is None or (current.root, current.models_folder) != folders:
                self._workspace = Workspace(*folders)
                bundled.offer(self._workspace)
                if current is not None:
                    self.collector.forget_rule()
            assert self._workspace is not None
            return self._workspace

    def upscalers(self) -> list[str]:
        """What samples can be enlarged by: ours, then the host's."""
        return [*self.workspace.upscalers(), *self.host.upscalers()]

    def context_of(self, job: Job) -> Context:
        """The context of a job's operation."""
        from .operations.encoding import encoders

        host = self.host

        def enlarge(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image | None:
            with host.gpu_slice():
                return host.enlarge(image, size, upscaler)

        return Context(
            host.device(),
            self._after_samplings(job) if job.kind == "train" else host.gpu_slice,
            job.stop,
            job.report,
            job.say,
            host.preview_seconds,
            host.keep_checkpoints,
            host.room_for,
            enlarge,
            not host.generates,
            host.text_encoder,
            encoders(lambda: self.workspace),
            lambda: self.jobs.closed,
        )

    def _after_samplings(self, training: Job) -> Callable[[], AbstractContextManager[object]]:
        """A training's turns at the device: a person who samples waits in front of the screen, and goes first."""

        def waiting() -> bool:
            jobs = [job for job in self.jobs.all() if job.kind == "sample" and job.state == "running"]
            return any(not job.stop.is_set() for job in jobs)

        def turn() -> AbstractContextManager[object]:
            while waiting() and not training.stop.wait(_POLITE_SECONDS):
                pass
            return self.host.gpu_slice()

        return turn

    def shutdown(self) -> None:
        """Stop every job with its work saved, and take what was still to be collected."""
        self.jobs.shutdown()
        self.collector.close()
        if self._desk is not None:
            self._desk.release()

    def understand(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a page of the Understand tab asks for."""
        from .understand.answers import answer
        from .understand.desk import Desk

        with self._guard:
            desk = self._desk = self._desk or Desk(self.host, lambda: self.workspace)
        return answer(desk, values)

    # -- starting ---------------------------------------------------------------------------------------------------------

    def start_harvest(
        self, dataset: str, folders: list[str], wanted: Wanted | None = None, count_only: bool = False
    ) -> Job:
        """Harvest offered folders (by label) or typed ones, where the host allows typing.

        ``count_only``: say what would come of it, for whatever dataset, and store nothing.
        """
        offered = self.host.image_folders()
        chosen: list[Path] = []
        for folder in folders:
            if folder in offered:
                if not offered[folder].exists():
                    raise UserError(f"There are no {folder} images yet: generate some first.")
                chosen.append(offered[folder])
            elif self.host.typed_folder_allowed(as_pasted(folder)):
                chosen.append(as_pasted(folder))
            else:
                raise UserError(
                    f"The folder {folder} is not one of the WebUI's output folders; others can be typed only where the "
                    "WebUI is not reachable from other machines, or named at its start with --ddpm-allow-folder."
                )
        if not chosen:
            raise UserError("Choose or type at least one folder.")
        from .dataset.scanning import check_folder

        for path in chosen:
            check_folder(path)
        workspace = self.workspace
        if count_only:

            def count(job: Job) -> dict[str, Any]:
                return workspace.count(
                    chosen, wanted=wanted, stop=job.stop, progress=self.context_of(job).progress
                ).to_json()

            return self.jobs.start("count", "Counting", count)
        dataset = check_name(dataset, "dataset")

        def work(job: Job) -> dict[str, Any]:
            context = self.context_of(job)
            return workspace.harvest(dataset, chosen, wanted=wanted, stop=job.stop, progress=context.progress).to_json()

        return self.jobs.start("harvest", f"Harvesting into {dataset}", work, subject=dataset, dataset=dataset)

    def start_collecting(self, dataset: str, wanted: Collection | None) -> Job:
        """Have the host generate pictures and collect them; None goes on with what was left unfinished."""
        if not self.host.generates:
            raise UserError("There is no Stable Diffusion here to generate with; harvest folders instead.")
        dataset = check_name(dataset, "dataset")
        workspace = self.workspace
        left = Collection.unfinished(workspace.dataset_folder(dataset))
        if wanted is not None:
            wanted.check()
            if left is not None and not self._failed_collecting(dataset):
                raise UserError(
                    f"{left.total - left.done} images are still to be generated for {dataset}: resume or discard them first."
                )
        elif left is None:
            raise UserError(f"Nothing is left to be generated for {dataset}.")
        if any(job.kind == "collect" and not job.finished.is_set() for job in self.jobs.all()):
            raise UserError("Images are being generated already; stop that first or wait for its end.")

        def work(job: Job) -> dict[str, Any]:
            from .operations.collecting import collect

            return collect(workspace, dataset, wanted, self.host.generate, self.context_of(job))

        return self.jobs.start(
            "collect", f"Generating for {dataset}", work, GENERATING, subject=dataset, dataset=dataset
        )

    def _failed_collecting(self, dataset: str) -> bool:
        """Whether the last generate-and-collect for a dataset failed: what is left of it blocks no other."""
        last = next((job for job in self.jobs.all() if job.kind == "collect" and job.subject == dataset), None)
        return last is not None and last.state == "failed"

    def give_up_collecting(self, dataset: str) -> bool:
        """Forget what was still to be generated for a dataset; what it has stays."""
        if any(job.kind == "collect" and not job.finished.is_set() for job in self.jobs.all()):
            raise UserError("Images are being generated; stop that first.")
        path = self.workspace.dataset_folder(dataset) / COLLECTION_STATE
        there = path.exists()
        path.unlink(missing_ok=True)
        return there

    def start_training(self, request: TrainRequest) -> Job:
        """Train or resume in the background; UserError where it cannot begin."""
        from .operations.configuring import check_free

        request = dataclasses.replace(request, model=check_name(request.model, "model"))
        request.check_limits()
        self._check_source(request)
        workspace = self.workspace
        same = [
            j for j in self.jobs.all() if j.kind == "train" and j.subject == request.model and not j.finished.is_set()
        ]
        if same:
            waits = "waits to be trained" if same[0].state == "queued" else "is being trained"
            raise UserError(f"{request.model} {waits} already; stop that first, or choose another name.")
        if not request.resume:
            check_free(workspace, request.model)
        if request.resume and request.steps is not None and request.model in workspace.run_names():
            reached = workspace.steps_reached(request.model)
            if reached >= request.steps:  # the page has a number there, and would see a training that ends at once
                raise UserError(
                    f"{request.model} already has {reached} steps: set Steps above that to train it further, or to 0 to go "
                    "on by minutes alone."
                )

        def work(job: Job) -> dict[str, Any]:
            from .operations.training import train

            try:
                summary = train(workspace, request, self.context_of(job))
            finally:
                self.host.models_changed()
            return {**summary, "model": summary["name"]}  # a page is told no path of this machine

        dataset = request.dataset
        if dataset is None and request.model in workspace.run_names():
            dataset = workspace.run(request.model).dataset
        title, dataset = f"Training {request.model}", check_name(dataset, "dataset") if dataset else ""
        return self.jobs.start("train", title, work, TRAINING, subject=request.model, dataset=dataset)

    def _check_source(self, request: TrainRequest) -> None:
        for source in (request.init_from, request.base):
            if source and source not in self.workspace.model_names():  # a page may not point at files
                raise UserError(f"There is no model {source!r} to start from.")

    def _check_sampling(
        self, model: str, count: int, enlarging: Enlarging | None, edit: Edit | None = None, best_of: int = 1
    ) -> None:
        if not 1 <= count <= 1024:
            raise UserError(f"The number of images must be between 1 and 1024; got {count}.")
        if count * best_of > _MOST_MADE:
            raise UserError(
                f"The best {count} of {best_of} each are {count * best_of} images: make at most {_MOST_MADE} at a time."
            )
        if model not in self.workspace.model_names():  # names only: a page may not point at files
            raise UserError(f"There is no model {model!r}; train one first, or choose one from the list.")
        if enlarging is not None and enlarging.upscaler not in self.upscalers():
            raise UserError(f"There is no upscaler {enlarging.upscaler!r}; choose one of those in the list.")
        height, width = self.workspace.model_config(model).image_size
        width, height = enlarging.target(width, height) if enlarging is not None else (width, height)
        if edit is not None and edit.mask is not None:  # a result is as large as what was given
            width, height = max(width, edit.image.width), max(height, edit.image.height)
        if count * width * height > _MOST_PIXELS:
            most = _MOST_PIXELS // (width * height)
            raise UserError(
                f"That is too much to hold at once: make at most {most} images of {width}x{height} at a time."
            )

    def start_sampling(self, request: SampleRequest) -> Job:
        """Sample in the background; UserError where it cannot begin."""
        from .operations.editing import prepared
        from .operations.sampling import settings_of

        model, count, enlarging = request.model, request.count, request.enlarging
        settings, prompts = settings_of(request), [request.asked]
        check(request, ["best_of"])
        edit = prepared(request.edit) if request.edit is not None else None
        like = [request.variation_of] if request.variation_of is not None else []
        self._check_sampling(model, count, enlarging, edit, request.best_of)
        workspace = self.workspace

        def work(job: Job) -> dict[str, Any]:
            from .operations.sampling import sample

            emerging = Emerging(job, count * request.best_of, self.host.gpu_slice)
            found = sample(
                workspace,
                model,
                count,
                settings,
                self.context_of(job),
                batch_size=self._batch_size(),
                weights=request.weights,
                step=request.checkpoint_step,
                enlarging=enlarging,
                prompts=prompts,
                edit=edit,
                best_of=request.best_of,
                like=like,
                emerging=emerging,
            )
            return self._made(workspace, job, found, emerging.frames)

        return self._start_making(model, work)

    def start_interpolation(self, request: SampleRequest, between: Interpolation) -> Job:
        """Frames between two samples, in the background; UserError where it cannot begin. Of the request only ``INTERPOLATED`` and
        the seed count."""
        from .operations.sampling import settings_of
        from .sampling.generate import seed_of

        check(between)
        settings = settings_of(request)
        seeds = (settings.seed, seed_of(between.to_seed))
        last = Prompt(between.to_prompt, request.negative_prompt) if between.to_prompt.strip() else request.asked
        model, prompts = request.model, (request.asked, last)
        self._check_sampling(model, between.frames, None)
        workspace = self.workspace

        def work(job: Job) -> dict[str, Any]:
            from .operations.interpolating import interpolate

            found = interpolate(
                workspace,
                model,
                seeds,
                between.frames,
                settings,
                self.context_of(job),
                prompts=prompts,
                loop=between.loop,
                batch_size=self._batch_size(),
                weights=request.weights,
                step=request.checkpoint_step,
                emerging=Emerging(job, between.frames, self.host.gpu_slice),
            )
            frames = [one[None] for one in found.images]
            made = self._made(workspace, job, found, frames if between.loop else [*frames, *frames[-2:0:-1]])
            return {**made, "between": True}

        return self._start_making(model, work)

    def _batch_size(self) -> int:
        return _SAMPLE_BATCH if self.host.device().type != "cpu" else _SAMPLE_BATCH_CPU

    def _start_making(self, model: str, work: Callable[[Job], dict[str, Any]]) -> Job:
        """Queue a job that makes images; of those before it only the newest keeps its own at hand, the others' are on disk."""
        makers = [job for job in self.jobs.all() if job.kind == "sample"]
        for old in [job for job in makers if job.finished.is_set()][1:]:
            old.artifacts = {}
        return self.jobs.start("sample", f"Generating with {model}", work, subject=model)

    def _made(self, workspace: Workspace, job: Job, found: Sampled, frames: list[Tensor]) -> dict[str, Any]:
        """Hold what a job has made, save it, and say how it went. ``frames`` of its animation."""
        results: list[Result] = []
        job.artifacts["results"] = results  # at once: where saving fails, the pictures made are not lost
        job.artifacts["frames"] = frames
        failure = keep(workspace, found, self.host.save_image, results)
        if failure is not None:
            raise failure
        return {
            "count": len(results),
            "seconds": round(found.seconds, 2),
            "evaluations": found.evaluations,
            "model": job.subject,
        }

    def sample_within(
        self,
        model: str,
        count: int,
        settings: SampleSettings,
        *,
        weights: str,
        enlarging: Enlarging | None,
        prompts: Sequence[Prompt],
        batch_size: int,
        stop: threading.Event,
        edit: Edit | None = None,
        emerging: Callable[[int, int, Tensor], None],
        report: Callable[[dict[str, Any]], None],
        save: Save,
    ) -> tuple[list[Result], UserError | None]:
        """Sample at once, inside a generation of the host, which has the device: no job, and no turn of our own. ``prompts``: one for
        each picture, or for all.

        The pictures, and what went wrong in saving them.
        """
        from .operations.encoding import encoders
        from .operations.sampling import sample

        self._check_sampling(model, count, enlarging, edit)
        workspace = self.workspace
        context = Context(
            self.host.device(),
            stop=stop,
            report=report,
            enlarge=self.host.enlarge,
            text_encoder=self.host.text_encoder,
            image_encoder=encoders(lambda: workspace),
        )
        found = sample(
            workspace,
            model,
            count,
            settings,
            context,
            batch_size=batch_size,
            weights=weights,
            enlarging=enlarging,
            prompts=prompts,
            edit=edit,
            emerging=emerging,
        )
        results: list[Result] = []
        return results, keep(workspace, found, save, results)

    def start_evaluation(self, model: str, dataset: str, count: int) -> Job:
        """Evaluate a model in the background."""
        if model not in self.workspace.model_names():
            raise UserError(f"There is no model {model!r}; train one first, or choose one from the list.")
        workspace = self.workspace

        def work(job: Job) -> dict[str, Any]:
            from .operations.evaluation import evaluate
            from .operations.texts import encoder_of

            config, context = workspace.model_config(model), self.context_of(job)
            if config.kind == "upscaler":
                from .operations.faithfulness import evaluate_upscaler

                judged = evaluate_upscaler(workspace, dataset, context, model=model)
                job.artifacts["picture"] = Path(judged.pop("picture"))
                return judged
            if config.kind == "contrast":
                from .operations.retrieval import evaluate_encoder

                return evaluate_encoder(workspace, dataset, context, model=model)
            worded = bool(config.tags) or config.image is not None
            if config.text is not None:
                try:
                    encoder_of(config.text, context)
                    worded = True
                except UserError as error:  # the rest can be judged all the same
                    job.say(str(error))
            result = evaluate(workspace, dataset, context, model=model, count=count, prompts=worded)
            job.artifacts["picture"] = Path(result.pop("neighbours"))
            return result

        return self.jobs.start("evaluate", f"Evaluating {model}", work, subject=model, dataset=dataset)

    def delete(self, kind: str, name: str) -> None:
        """Move a dataset or a model to the trash, unless it is in use."""
        name = check_name(name, kind)
        self._check_at_rest(kind, name)
        if kind == "dataset":
            self.workspace.delete_dataset(name)
        else:
            self.workspace.delete_model(name)
            self.host.models_changed()

    def _check_at_rest(self, kind: str, name: str) -> None:
        """UserError for a dataset or a model that a job is about, or that is collected into."""
        at_work = [job for job in self.jobs.all() if not job.finished.is_set()]
        if kind == "dataset":
            if any(job.dataset == name for job in at_work):
                raise UserError(f"The dataset {name!r} is being used; stop that first.")
            rule = self.collector.rule
            if rule.dataset == name and (rule.enabled or self.collector.status()["waiting"]):
                raise UserError(f"What you generate is collected into {name!r}; stop collecting first.")
        elif kind == "model":
            if any(job.kind in ("train", "sample", "evaluate") and job.subject == name for job in at_work):
                raise UserError(f"The model {name!r} is being used; stop that first.")
        else:
            raise UserError("Choose a dataset or a model.")

    def rename(self, kind: str, name: str, new: str) -> str:
        """Give a dataset or a model another name, unless it is in use."""
        from . import renaming

        self._check_at_rest(kind, check_name(name, kind))
        if kind == "dataset":
            return renaming.rename_dataset(self.workspace, name, new)
        found = renaming.rename_model(self.workspace, name, new)
        self.host.models_changed()
        return found

    def restore(self, place: str) -> str:
        """Bring back one thing from the trash, by its place; its name as it is now."""
        name = self.workspace.restore(place)
        self.host.models_changed()
        return name

    def merge(self, into: str, datasets: list[str]) -> dict[str, Any]:
        """Add other datasets to one."""
        from . import renaming

        return renaming.merge_datasets(self.workspace, into, datasets)

    def export(self, model: str) -> Path:
        """A zip file of a model as diffusers opens it, for whoever asked to delete."""
        from .model import export, file

        if model not in self.workspace.model_names():
            raise UserError(f"There is no model {model!r}; choose one from the list.")
        loaded = file.load(self.workspace.model_path(model))
        handle, name = tempfile.mkstemp(prefix="ddpm-export-", suffix=".zip")
        os.close(handle)
        path = Path(name)
        try:
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for part in export.to_diffusers(loaded, Path(folder) / model):
                    archive.write(part, Path(model) / part.relative_to(Path(folder) / model))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def stop(self, kind: str) -> bool:
        """Ask the running job of a kind to stop with its work saved; trainings that wait go on waiting."""
        unfinished = [job for job in self.jobs.all() if job.kind == kind and not job.finished.is_set()]
        running = [job for job in unfinished if job.state == "running"]
        for job in running if kind == "train" and running else unfinished:
            job.stop.set()
        return bool(unfinished)

    def cancel(self, number: int) -> bool:
        """Take back a job that waits for its turn; whether it still did."""
        job = self.jobs.get(number)
        return job is not None and job.cancel()

    def estimate(self, request: TrainRequest) -> dict[str, Any]:
        """Time and memory of a training before it starts, measured on one small step."""
        from .operations.configuring import configure, expectations
        from .training.estimate import estimate

        request.check_limits()
        self._check_source(request)
        config, steps = configure(self.workspace, request, self.host.device())
        count = self.workspace.store(request.dataset).counts()["kept"] if request.dataset else 0
        with self.host.gpu_slice():
            measured = estimate(config, self.host.device())
        if request.minutes is not None:  # whichever comes first ends it
            steps = max(1, min(steps, round(60 * request.minutes / measured.seconds_per_step)))
        minutes = steps * measured.seconds_per_step / 60
        return {
            "minutes": minutes,
            "megabytes": measured.megabytes,
            "parameters": measured.parameters,
            "seconds_per_step": measured.seconds_per_step,
            "steps": steps,
            "images": count,
            "warnings": expectations(count) if count and config.tuning is None else [],
        }
