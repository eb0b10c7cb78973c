"""Searches of a server: the newest index is kept open, and a large dataset is looked at in the background first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .errors import UserError
from .jobs import Job, Jobs
from .operations.context import Context
from .watch import Watch
from .workspace import Workspace

if TYPE_CHECKING:
    from .operations.searching import Index

_AT_ONCE = 300  # new images that a question waits for
_MOST_SHOWN = 10_000


@dataclass(frozen=True)
class Found:
    """Ids in order, with scores, and of misfits the word; words of the question that the encoder does not know."""

    ids: list[int]
    scores: list[float]
    words: list[str]
    unknown: list[str]


class Finding:
    """Searches of one service's workspace, one at a time, on the CPU: a question takes milliseconds, and holds no memory of a GPU."""

    def __init__(self, jobs: Jobs, watch: Watch, workspace: Callable[[], Workspace]) -> None:
        self._jobs, self._watch, self._workspace = jobs, watch, workspace
        self._turn = threading.Lock()
        self._key: tuple[Any, ...] = ()
        self._index: Index | None = None
        self._asked: tuple[Any, ...] = ()
        self._found: Found | None = None

    def page(
        self,
        dataset: str,
        *,
        text: str = "",
        like: int | None = None,
        misfits: bool = False,
        page: int = 0,
        size: int = 60,
    ) -> dict[str, Any]:
        """A page of what is found, as ``Watch.items`` answers, with scores; or how far a look at new images has come ("preparing")."""
        if not 1 <= size <= 200 or not 0 <= page < 10**9:
            raise UserError("A page holds 1 to 200 items, and its number is not negative.")
        workspace = self._workspace()
        looking = self._looking(dataset)
        if looking is not None:
            return {"preparing": looking.to_json()}
        with self._turn:
            index = self._open(workspace, dataset)
            if index is None:
                return {"preparing": self._look(workspace, dataset).to_json()}
            asked = (self._key, text, like, misfits)
            if asked != self._asked or self._found is None:
                self._found, self._asked = self._ask(index, text, like, misfits), asked
            found, encoder = self._found, index.encoder
        part = slice(page * size, (page + 1) * size)
        shown = self._watch.described(dataset, found.ids[part])
        more = {
            one: {"score": round(score, 4), **({"word": word} if word else {})}
            for one, score, word in zip(found.ids[part], found.scores[part], found.words[part])
        }
        return {
            "items": [{**item, **more[item["id"]]} for item in shown],
            "total": len(found.ids),
            "page": page,
            "counts": workspace.store(dataset).counts(),
            "encoder": encoder.name if encoder is not None else None,
            "unknown": found.unknown,
        }

    def by_image(self, dataset: str, image: Image.Image, count: int) -> list[tuple[int, float]]:
        """Items like any image, with their likeness; UserError while new images are looked at."""
        workspace = self._workspace()
        with self._turn:
            index = None if self._looking(dataset) else self._open(workspace, dataset)
            if index is None:
                if not self._looking(dataset):
                    self._look(workspace, dataset)
                raise UserError("New images of this dataset are being looked at; search again in a moment.")
            return index.best(index.by_image(image), count)

    def _ask(self, index: Index, text: str, like: int | None, misfits: bool) -> Found:
        if misfits:
            rows = index.misfits()[:_MOST_SHOWN]
            return Found(
                [one for one, _, _ in rows], [score for _, score, _ in rows], [word for _, _, word in rows], []
            )
        unknown: list[tuple[str, str]] = []
        if like is not None:
            fits = index.by_item(like)
        elif text.strip():
            fits, unknown = index.by_words(text)
        else:
            raise UserError("Write words to search for.")
        best = index.best(fits, _MOST_SHOWN)
        return Found(
            [one for one, _ in best], [score for _, score in best], [""] * len(best), [word for word, _ in unknown]
        )

    def _open(self, workspace: Workspace, dataset: str) -> Index | None:
        """The index of a dataset as it is now; None where many images are new to it."""
        from .dataset.vectors import missing
        from .operations.encoding import open_encoder
        from .operations.searching import indexed, sight_of

        store, name = workspace.store(dataset), workspace.encoder_of(dataset)
        file = (workspace.models_folder / f"{name}.safetensors").stat().st_mtime_ns if name else 0
        key = (store.folder, name, file, store.changes())
        if key != self._key or self._index is None:
            self._index = None
            context = Context(torch.device("cpu"))
            encoder = open_encoder(workspace, name, context) if name else None
            sight = sight_of(encoder)
            if missing(store, sight) > _AT_ONCE:
                return None
            self._index, self._key = indexed(store, encoder, sight, context), key
        return self._index

    def _looking(self, dataset: str) -> Job | None:
        jobs = [job for job in self._jobs.all() if job.kind == "search" and not job.finished.is_set()]
        return next((job for job in jobs if job.dataset == dataset), None)

    def _look(self, workspace: Workspace, dataset: str) -> Job:
        def work(job: Job) -> dict[str, Any]:
            from .operations.searching import index_of

            context = Context(torch.device("cpu"), stop=job.stop, report=job.report, say=job.say)
            return {"images": len(index_of(workspace, dataset, context).ids)}

        return self._jobs.start("search", f"Looking at the images of {dataset}", work, subject=dataset, dataset=dataset)
