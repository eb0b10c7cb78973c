"""Collect as I generate: what the host has just saved goes into a dataset, a moment later, by a worker of its own.

The host's thread only compares words and puts a path into a bounded queue; reading, checking and copying happen here.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import UserError, mendable
from .files import write_json
from .names import check_name
from .parsing import read_json, read_record
from .workspace import Workspace

_FILE = "collecting.json"
_MOST_WORDS = 1000  # characters
_MOST_WAITING = 2000
_MOST_PICTURES = 64  # in memory: pictures that are on no disk
_RANK_AFTER_SECONDS = 4.0
_log = logging.getLogger("ddpm_core")


@dataclass(frozen=True)
class Rule:
    """Whether to collect, into which dataset, and which words (comma-separated) the prompt must all contain."""

    enabled: bool = False
    dataset: str = ""
    words: str = ""


@dataclass(frozen=True)
class _Offer:
    rule: Rule
    path: Path | None
    picture: Image.Image | None
    text: str
    when: float


class Collector:
    """One server's collecting. The rule is kept in the workspace, so it is the same after a restart."""

    def __init__(
        self,
        workspace: Callable[[], Workspace],
        default: Callable[[], Rule] = Rule,
        report: Callable[[bool], None] = lambda wanted: None,
    ) -> None:
        self._workspace = workspace
        self._default = default
        self._report = report
        self._waiting: queue.Queue[_Offer | None] = queue.Queue(_MOST_WAITING)
        self._pictures = 0
        self._ranked: dict[str, tuple[float, float]] = {}  # dataset: when it was ranked, how long that took
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self.own_rule: Rule | None = None
        self.collected = self.rejected = self.passed = self.overflow = 0
        self.error = ""

    # -- the rule -----------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> Rule:
        """The rule in force, read once; the host's default where none was set."""
        if self.own_rule is None:
            path = self._workspace().root / _FILE
            if not path.exists():
                return self._default()  # a setting of the host: not kept, so that a change counts at once
            self.own_rule = Rule()
            with contextlib.suppress(UserError, ValueError):
                rule = read_record(Rule, read_json(path, "rule of collecting"))
                self.own_rule = rule if len(rule.words) <= _MOST_WORDS else Rule()
        return self.own_rule

    def set_rule(self, rule: Rule) -> None:
        """Collect by this rule from now on. UserError for a dataset's name that cannot be one."""
        if len(rule.words) > _MOST_WORDS:
            raise UserError(f"The words of a prompt to collect by can have at most {_MOST_WORDS} characters.")
        if rule.enabled or rule.dataset:
            check_name(rule.dataset, "dataset")
        write_json(self._workspace().root / _FILE, asdict(rule))
        self.own_rule = rule
        self.error = ""
        self._report(rule.enabled)

    def forget_rule(self) -> None:
        """Read the rule anew: the workspace has changed."""
        self.own_rule = None

    # -- in the host's thread: quick ----------------------------------------------------------------------------------

    def wants(self, prompt: str) -> bool:
        """Whether an image of this prompt is to be collected."""
        rule = self.rule
        if not rule.enabled or not rule.dataset:
            return False
        from .dataset.wanted import words_of

        words = words_of(rule.words)
        return not words or all(word in prompt.casefold() for word in words)

    def offer_file(self, path: Path, text: str = "") -> None:
        """``text``: the generation text, for files that do not hold it."""
        self._offer(_Offer(self.rule, path, None, text, time.time()))

    def offer_picture(self, image: Image.Image, text: str) -> None:
        """Collect an image that has no file, with its generation text; counted as overflow where too many wait."""
        with self._guard:
            if self._pictures >= _MOST_PICTURES:
                self.overflow += 1
                return
            self._pictures += 1
        self._offer(_Offer(self.rule, None, image.copy(), text, time.time()))

    def _offer(self, offer: _Offer) -> None:
        try:
            self._waiting.put_nowait(offer)
        except queue.Full:
            self.overflow += 1
            if offer.picture is not None:
                with self._guard:
                    self._pictures -= 1
            return
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="ddpm-collect", daemon=True)
                self._thread.start()

    # -- in our own thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        unranked: set[str] = set()
        while True:
            try:
                offer = self._waiting.get(timeout=_RANK_AFTER_SECONDS if unranked else None)
            except queue.Empty:
                self._rank(unranked)
                continue
            if offer is None:
                self._rank(unranked, closing=True)
                return
            try:
                self._take(offer)
                unranked.add(offer.rule.dataset)
            except UserError as error:
                self.error = str(error)
            except Exception as error:
                _log.exception("collecting a picture failed")
                said = f"An image could not be collected ({type(error).__name__}: {error})."
                self.error = mendable(error) or said
            finally:
                if offer.picture is not None:
                    with self._guard:
                        self._pictures -= 1
                self._waiting.task_done()

    def _take(self, offer: _Offer) -> None:
        from .dataset.harvest import add_file, add_picture

        workspace = self._workspace()
        store = workspace.store(offer.rule.dataset, create=True)
        if offer.path is not None:
            item = add_file(store, saved_path(offer.path, offer.when), workspace.own, offer.text)
        else:
            assert offer.picture is not None
            item = add_picture(store, offer.picture, offer.text, f"unsaved:{offer.when:.6f}", workspace.own)
        if item is None:
            self.passed += 1
        elif item.reason:
            self.rejected += 1
        else:
            self.collected += 1

    def _rank(self, datasets: set[str], closing: bool = False) -> None:
        """Rank what came, at most so often that it takes a fiftieth of the time: it reads the whole dataset."""
        for name in list(datasets):
            rested, last_cost = self._ranked.get(name, (0.0, 0.0))
            began = time.monotonic()
            if not closing and began - rested < 50 * last_cost:
                continue
            datasets.discard(name)
            from .dataset import ranking

            try:
                ranking.rank(self._workspace().store(name))
            except UserError as error:
                self.error = str(error)
            except Exception as error:
                _log.exception("ranking the collected pictures failed")
                said = f"The collected images could not be ranked ({type(error).__name__}: {error})."
                self.error = mendable(error) or said
            ended = time.monotonic()
            self._ranked[name] = (ended, ended - began)

    def wait(self) -> None:
        """Until everything offered has been taken."""
        self._waiting.join()

    def close(self) -> None:
        """End the thread; what waits is still collected."""
        with self._guard:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join(10)

    def status(self) -> dict[str, Any]:
        """Counts since the start, and the last error."""
        return {
            **asdict(self.rule),
            "collected": self.collected,
            "rejected": self.rejected,
            "passed": self.passed,
            "overflow": self.overflow,
            "waiting": self._waiting.qsize(),
            "error": self.error,
        }


def saved_path(path: Path, when: float) -> Path:
    """Where the host really saved a picture that it said lies at ``path``.

    With *Add number suffix* A1111 writes ``name-1.png`` when ``name.png`` exists and still says ``name.png``.
    """
    numbered = [p for p in path.parent.glob(f"{_escaped(path.stem)}-*{path.suffix}") if _is_number(p, path)]
    if not numbered:
        return path

    def age(candidate: Path) -> float:
        with contextlib.suppress(OSError):
            return abs(candidate.stat().st_mtime - when)
        return float("inf")

    return min([path, *numbered], key=age)


def _is_number(candidate: Path, path: Path) -> bool:
    return candidate.stem[len(path.stem) + 1 :].isdigit()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
