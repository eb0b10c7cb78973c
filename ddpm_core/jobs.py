"""Background work of a server: lanes for training, for the host's generating, for short jobs, each doing one at a time.

The state lives here; pages only draw it. A job is a function ``work(job)`` that reports to the job and returns a
JSON-able result; it ends early when ``job.stop`` is set.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .errors import Stopped, UserError, mendable

TRAINING, GENERATING, SHORT = "training", "generating", "short"
_REMEMBERED = 50
_MOST_WAITING = 100  # in a lane; each waiting sampling holds a request, and its pictures when they are made
_log = logging.getLogger("ddpm_core")


def _nothing(job: Job) -> Any:
    """The work of a job that is over."""


class Job:
    """One piece of work: queued, running, then done, failed or stopped."""

    def __init__(
        self, number: int, kind: str, title: str, lane: str, work: Callable[[Job], Any], subject: str, dataset: str = ""
    ) -> None:
        self.id = number
        self.kind = kind
        self.title = title
        self.subject = subject  # the model or dataset that it is about
        self.dataset = dataset  # that it reads or writes
        self.lane = lane
        self.stop = threading.Event()
        self.finished = threading.Event()
        self.state = "queued"
        self.progress: dict[str, Any] = {}
        self.messages: list[str] = []
        self.result: Any = None
        self.error = ""
        self.artifacts: dict[str, Any] = {}  # live things for the page that are no JSON, such as the emerging picture
        self.began = 0.0
        self.ended = 0.0
        self._turn = threading.Lock()  # beginning, or being cancelled before
        self._work = work

    def report(self, values: dict[str, Any]) -> None:
        """Replace the progress: ``done``, ``total``, ``text`` and whatever the kind adds."""
        self.progress = dict(values)

    def say(self, text: str) -> None:
        """Add a message that the page shows."""
        self.messages = [*self.messages[-19:], text]

    def to_json(self) -> dict[str, Any]:
        """What a page is told of the job."""
        progress = self.progress
        done, total = progress.get("done", 0), progress.get("total", 0)
        elapsed = (self.ended or time.monotonic()) - self.began if self.began else 0.0
        left = progress.get("seconds_left")
        if left is None and self.state == "running" and done and total:
            left = elapsed / done * (total - done)
        return {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "subject": self.subject,
            "lane": self.lane,
            "state": self.state,
            "progress": progress,
            "fraction": min(1.0, done / total) if total else 0.0,
            "elapsed": round(elapsed, 1),
            "seconds_left": None if left is None else round(left, 1),
            "messages": self.messages,
            "result": self.result,
            "error": self.error,
            "stopping": self.stop.is_set() and self.state == "running",
        }

    def cancel(self) -> bool:
        """Take a job back that still waits; whether it did. One that runs goes on."""
        with self._turn:
            if self.state != "queued":
                return False
            self.stop.set()
            self.state = "stopped"
        self._work = _nothing  # which may hold images
        self.finished.set()
        return True

    def run(self) -> None:
        """Do the work, unless it was cancelled."""
        with self._turn:
            if self.state != "queued":  # cancelled
                return
            self.state = "stopped" if self.stop.is_set() else "running"
            self.began = time.monotonic()
        if self.stop.is_set():
            self.began, self.state = 0.0, "stopped"
            self._work = _nothing
            self.finished.set()
            return
        try:
            self.result = self._work(self)
            outcome = "stopped" if self.stop.is_set() else "done"
        except Stopped as error:
            self.say(str(error))
            outcome = "stopped"
        except UserError as error:
            self.error, outcome = str(error), "failed"
        except Exception as error:
            # the sentence for the person, the traceback for the log
            _log.exception("%s failed", self.title)
            said = f"{self.title} failed: {type(error).__name__}: {error}"
            self.error, outcome = mendable(error) or said, "failed"
        self._work = _nothing
        self.ended = time.monotonic()
        self.state = outcome
        self.finished.set()


class Jobs:
    """The lanes. Threads start with the first job of a lane and end with :meth:`shutdown`."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._queues: dict[str, queue.Queue[Job | None]] = {
            lane: queue.Queue() for lane in (TRAINING, GENERATING, SHORT)
        }
        self._threads: dict[str, threading.Thread] = {}
        self.closed = False  # whether it was shut down

    def start(
        self,
        kind: str,
        title: str,
        work: Callable[[Job], Any],
        lane: str = SHORT,
        subject: str = "",
        dataset: str = "",
    ) -> Job:
        """Queue a job; it runs when those of its lane before it have ended."""
        with self._lock:
            if self.closed:
                raise UserError("The server is stopping.")
            if sum(j.lane == lane and not j.finished.is_set() for j in self._jobs.values()) >= _MOST_WAITING:
                raise UserError(f"{_MOST_WAITING} jobs are waiting already; try again when some are done.")
            job = Job(next(self._numbers), kind, title, lane, work, subject, dataset)
            self._jobs[job.id] = job
            for old in [j for j in self._jobs.values() if j.finished.is_set()][:-_REMEMBERED]:
                del self._jobs[old.id]
            if lane not in self._threads:
                self._threads[lane] = threading.Thread(
                    target=self._serve, args=(lane,), name=f"ddpm-{lane}", daemon=True
                )
                self._threads[lane].start()
        self._queues[lane].put(job)
        return job

    def _serve(self, lane: str) -> None:
        while True:
            job = self._queues[lane].get()
            if job is None:
                return
            job.run()

    def get(self, number: int) -> Job | None:
        """A job by its number, or None."""
        with self._lock:
            return self._jobs.get(number)

    def all(self) -> list[Job]:
        """Jobs, newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def latest(self, kind: str) -> Job | None:
        """The running job of a kind, or else its newest."""
        jobs = [job for job in self.all() if job.kind == kind]
        return next((job for job in jobs if job.state == "running"), jobs[0] if jobs else None)

    def shutdown(self, timeout: float = 30.0) -> None:
        """Ask every job to stop, wait until their work is saved, end the threads."""
        with self._lock:
            self.closed = True
            jobs, threads = list(self._jobs.values()), dict(self._threads)
        for job in jobs:
            job.stop.set()
        for lane in threads:
            self._queues[lane].put(None)
        deadline = time.monotonic() + timeout
        for thread in threads.values():
            thread.join(max(0.1, deadline - time.monotonic()))
