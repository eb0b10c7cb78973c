"""What open pages ask for again and again: the live state of one server, cheap also where fifty look on."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .collector import Collector
from .errors import UserError
from .host.base import Host
from .jobs import Job, Jobs
from .operations.pictures import enlarged, make_grid, png
from .requests import Collection
from .workspace import Workspace

if TYPE_CHECKING:
    from .dataset.store import Store
    from .dataset.views import Views
    from .training.metrics import MetricsFollower

_CURVE_POINTS = 400
_STATUS_SECONDS = (
    0.2  # it is worked out anew at the earliest; a fifth of what pages are asked to wait where that is longer
)
_POLLS_A_SECOND = 12.5  # of all pages together; each costs a training some half a millisecond of one core
_LONGEST_WAIT = 4000
_MOST_PAGES = 1000
_MOST_PROMPT = 300  # characters of one in the status, which every page is sent


class Watch:
    """Answers for pages, of one service's jobs, collector and workspace (which may become another)."""

    def __init__(self, host: Host, jobs: Jobs, collector: Collector, workspace: Callable[[], Workspace]) -> None:
        self._host, self._jobs, self._collector, self._workspace = host, jobs, collector, workspace
        self._guard = threading.Lock()
        self._followed: MetricsFollower | None = None
        self._views: weakref.WeakKeyDictionary[Store, Views] = weakref.WeakKeyDictionary()
        self._status_guard = threading.Lock()
        self._status: tuple[float, list[tuple[int, str]], str] = (
            0.0,
            [],
            "",
        )  # until when it holds, of which jobs, as JSON
        self._pages: dict[str, float] = {}  # when each asked last

    def status(self) -> dict[str, Any]:
        """The whole status."""
        busy = {(job.kind, job.subject) for job in self._jobs.all() if not job.finished.is_set()}
        workspace = self._workspace()
        datasets = workspace.dataset_names()
        return {
            "jobs": {
                kind: job.to_json()
                for kind in ("harvest", "count", "collect", "train", "sample", "evaluate")
                if (job := self._jobs.latest(kind))
            },
            "waiting": [
                {"job": job.id, "kind": job.kind, "subject": job.subject}
                for job in reversed(self._jobs.all())
                if job.kind == "train" and job.state == "queued" and not job.stop.is_set()
            ],
            "datasets": datasets,
            "models": workspace.model_names("unet"),
            "upscalers": workspace.upscalers(),
            "adapters": workspace.model_names("adapter"),
            "encoders": {name: encoder for name in datasets if (encoder := workspace.encoder_of(name))},
            "unfinished": [run for run in workspace.unfinished_runs() if ("train", run["name"]) not in busy],
            "uncollected": [
                {"dataset": name, "done": left.done, "total": left.total, "prompt": left.request.prompt[:_MOST_PROMPT]}
                for name in datasets
                if ("collect", name) not in busy and (left := Collection.unfinished(workspace.dataset_folder(name)))
            ],
            "collecting": self._collector.status(),
            "trash": workspace.trash(),
            "device": str(self._host.device()),
        }

    def fresh_status(self, page: str = "") -> str | None:
        """As ``status_text``, where it needs neither work nor waiting, else ``None``."""
        if not self._status_guard.acquire(blocking=False):
            return None
        try:
            self._note(page)
            return self._status[2] if self._is_fresh(self._job_states()) else None
        finally:
            self._status_guard.release()

    def status_text(self, page: str = "") -> str:
        """The status as JSON: worked out a few times a second, however many pages ask, and anew where a job began or ended.

        ``page``: which page asks. ``wait`` in the answer: milliseconds before it should ask again, more where many ask.
        """
        with self._status_guard:
            jobs = self._job_states()
            self._note(page)
            if not self._is_fresh(jobs):
                recent = time.monotonic() - 2 * _LONGEST_WAIT / 1000
                self._pages = {page: asked for page, asked in self._pages.items() if asked > recent}
                wait = min(_LONGEST_WAIT, round(1000 * len(self._pages) / _POLLS_A_SECOND))
                text = json.dumps({**self.status(), "wait": wait}, ensure_ascii=False, allow_nan=False)
                self._status = (time.monotonic() + max(_STATUS_SECONDS, wait / 5000), jobs, text)
            return self._status[2]

    def _job_states(self) -> list[tuple[int, str]]:
        return [(job.id, job.state) for job in self._jobs.all()]

    def _is_fresh(self, jobs: list[tuple[int, str]]) -> bool:
        until, of, text = self._status
        return bool(text) and of == jobs and time.monotonic() <= until

    def _note(self, page: str) -> None:
        if len(self._pages) < _MOST_PAGES:
            self._pages[page] = time.monotonic()

    def forget_status(self) -> None:
        """Something was changed that is no job: who asks next shall see it."""
        with self._status_guard:
            self._status = (0.0, [], "")

    def items(self, dataset: str, view: str, page: int, size: int, search: str = "") -> dict[str, Any]:
        """One page of the review: ``view`` is unusual, twins, all, kept or rejected."""
        from .dataset.views import Views

        store = self._workspace().store(dataset)
        with self._guard:
            views = self._views.setdefault(store, Views())
        items, total, counts = views.page(store, view, page, size, search)
        return {"items": [_described(item) for item in items], "total": total, "page": page, "counts": counts}

    def described(self, dataset: str, ids: list[int]) -> list[dict[str, Any]]:
        """These items as :meth:`items` shows them, in order, without those that are gone."""
        found = {item["id"]: item for item in self._workspace().store(dataset).items(ids=ids)}
        return [_described(found[one]) for one in ids if one in found]

    def curves(self, model: str) -> dict[str, Any]:
        """The run's metrics for drawing: thinned training loss, held-out loss, notes, and the steps of its previews."""
        from .training.metrics import MetricsFollower

        folder = self._workspace().run_folder(model)
        path = folder / "metrics.jsonl"
        followed = self._followed
        if followed is None or followed.path != path:
            followed = self._followed = MetricsFollower(path)  # pages look at one training at a time, as a rule
        lines = [line for line in followed.lines() if _is_number(line.get("step"))]
        train = [line for line in lines if line.get("kind") == "train" and _is_number(line.get("loss"))]
        stride = max(1, len(train) // _CURVE_POINTS)
        watched = [line for line in lines if line.get("kind") == "heldout"]
        in_bands = [line for line in watched if isinstance(line.get("seen_bands"), dict)]
        here = (folder / "previews").is_dir() and not (folder / "previews").is_symlink()
        previews = sorted((folder / "previews").glob("step-*.png")) if here else []
        steps = [int(match[1]) for path in previews if (match := re.match(r"step-(\d+)$", path.stem))]
        return {
            "model": model,
            "train": [[line["step"], line["loss"]] for line in train[stride - 1 :: stride]],
            "heldout": [
                [line["step"], line["heldout_loss"]] for line in watched if _is_number(line.get("heldout_loss"))
            ],
            "seen": [[line["step"], line["seen_loss"]] for line in watched if _is_number(line.get("seen_loss"))],
            "bands": in_bands[-1] if in_bands and _is_plain(in_bands[-1]) else None,
            "notes": [str(line.get("text", "")) for line in lines if line.get("kind") == "note"][-5:],
            "previews": steps,
        }

    def preview_path(self, model: str, step: int) -> Path:
        """The file of a preview; UserError where there is none."""
        path = self._workspace().run_folder(model) / "previews" / f"step-{step:09d}.png"
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():  # a link could lead anywhere
            raise UserError("There is no such preview.")
        return path

    def emerging_png(self, job: Job) -> bytes:
        """The picture as it emerges, enlarged, as a PNG."""
        if "emerging" not in job.artifacts:
            raise UserError("There is no image yet.")
        return png(enlarged(make_grid(job.artifacts["emerging"][1], columns=4, gap=1), 384))

    def animation(self, job: Job) -> bytes:
        """The denoising of the first pictures as an animated WebP."""
        frames: list[Tensor] = job.artifacts.get("frames", [])
        if not frames:
            raise UserError("There is no animation of this job.")
        pictures = [enlarged(make_grid(f, columns=3, gap=1), 384) for f in frames]
        out = io.BytesIO()
        durations = [max(40, 2500 // len(pictures))] * (len(pictures) - 1) + [2000]
        pictures[0].save(
            out, format="WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=85
        )
        return out.getvalue()


_SHOWN = (
    "id",
    "status",
    "reason",
    "message",
    "suspicion",
    "twin_group",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "has_copy",
)


def _described(item: dict[str, Any]) -> dict[str, Any]:
    """What a page is told of an item."""
    return {
        **{key: item[key] for key in _SHOWN},
        "version": f"{item['sha256'][:12]}-{item['revision']}",
        "file": os.path.basename(item["source"]),  # noqa: PTH119 - sixty Paths take a third of all this
    }


def _is_number(value: Any) -> bool:
    """A number that JSON has, too; a file that someone has changed may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_plain(line: dict[str, Any]) -> bool:
    values = [*line.values(), *(v for part in line.values() if isinstance(part, dict) for v in part.values())]
    return all(_is_number(value) or isinstance(value, (str, dict, bool)) for value in values)
