"""The course of a training: slices, metrics, held-out loss, previews, checkpoints, health, ending."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UserError, is_out_of_memory
from ..evaluation.neighbours import nearest
from ..model.diffusion import uint8_to_model
from ..model.network import Network
from ..model.values import Values
from .checkpoints import CheckpointFolder
from .copying import COPYING, CopyWatch
from .heldout import MOST_IMAGES, loss_by_band, pair_loss
from .metrics import Metrics
from .previews import Held, preview
from .trainer import Trainer
from .tuning import KeepWatch

SLICE_SECONDS = 0.25
LINE_SECONDS = 1.0
_MOST_ROLLBACKS = 6
# held-out loss and previews take at most this share of the time, however slow the device
_WATCH_SHARE = 0.03
_EARLY_SECONDS, _EARLY_SHARE = 180.0, 0.1  # who has just begun wants to see that it learns
_PROMPT_SECONDS = 10.0  # a stop waits for a last look if it takes no longer


@dataclass
class Limits:
    """When to end: after ``steps`` in all, or ``minutes`` of this session, whichever comes first; with ``before_copying`` also where the
    training is about to copy its images."""

    steps: int
    minutes: float | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 60.0
    before_copying: bool = False
    copies: bool = False  # whether an earlier session has found that it is about to


@dataclass
class Outlets:
    """Where a training's news goes. All are called from the training's own thread."""

    gpu_slice: Callable[[], AbstractContextManager[object]]
    stop: threading.Event
    progress: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]
    preview: Callable[[int, Tensor], None]  # step, uint8 (N, C, H, W)
    checkpoint_saved: Callable[[], None]
    preview_seconds: Callable[[], float] = lambda: 10.0  # between previews, at the least


class TrainingLoop:
    """Runs a trainer until its limits or a stop; everything worth keeping is on disk when :meth:`run` returns."""

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: CheckpointFolder,
        metrics: Metrics,
        held: Held,
        limits: Limits,
        outlets: Outlets,
        spent_seconds: float = 0.0,
    ) -> None:
        self.trainer = trainer
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.held = held
        self.limits = limits
        self.out = outlets
        self.spent = spent_seconds  # in earlier sessions of this run
        self.heldout_loss: float | None = None
        self.heldout_step: int | None = None
        self._told: dict[str, Any] = {}  # the last line of progress
        self.loss: float | None = None
        self.images_per_second = 0.0
        self._rollbacks = 0
        self._blind = False
        # pieces of images can be no copies, and an adapter's new images are not those that are held out
        whole = trainer.task.whole_images and trainer.tuning is None
        self._copying = CopyWatch(limits.copies) if whole else None
        self._keeping: KeepWatch | None = None

    def run(self) -> dict[str, Any]:
        """Train until a limit or a stop; the summary of it."""
        trainer = self.trainer
        self._began = began = time.monotonic()
        first_step = trainer.step
        if trainer.tuning is not None and len(self.held.images):
            self._look(self._watch_keeping)
        if self.limits.before_copying and self._copies():
            self._warn_of_copying()
        if not self.checkpoints.paths():
            self._save()  # step 0: there is always something good to go back to
        saved = line_at = time.monotonic()
        next_watch = time.monotonic() + 5.0
        pending_loss, pending_steps, pending_seconds, cost = 0.0, 0, 0.0, 0.0
        while trainer.step < self.limits.steps and not self._over() and not self.out.stop.is_set():
            if self.limits.before_copying and self._copies():
                break
            with self.out.gpu_slice():
                result = trainer.run_slice(self._until_next_stop(), SLICE_SECONDS)
            if not result.finite:
                self._roll_back("The loss or a gradient was not finite")
                pending_loss, pending_steps, pending_seconds = 0.0, 0, 0.0
                continue
            pending_loss += result.loss * result.steps
            pending_steps += result.steps
            pending_seconds += result.seconds
            now = time.monotonic()
            if now - line_at >= LINE_SECONDS or trainer.step >= self.limits.steps:
                self._line(pending_loss / pending_steps, pending_steps, pending_seconds)
                pending_loss, pending_steps, pending_seconds, line_at = 0.0, 0, 0.0, now
            if now >= next_watch:
                cost = self._look()
                share = _EARLY_SHARE if now - began < _EARLY_SECONDS else _WATCH_SHARE
                next_watch = time.monotonic() + max(self.out.preview_seconds(), cost / share)
            every = self.limits.checkpoint_every
            if (every and trainer.step % every == 0) or now - saved >= self.limits.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        if pending_steps:
            self._line(pending_loss / pending_steps, pending_steps, pending_seconds)
        if not self.out.stop.is_set() or (trainer.step > first_step and cost <= _PROMPT_SECONDS):
            self._look()
            if self._told:
                now_known = {"heldout_loss": self.heldout_loss, "heldout_step": self.heldout_step}
                self.out.progress({**self._told, **now_known})
        self._save()
        return {
            "steps": trainer.step,
            "images_seen": trainer.step * trainer.settings.batch_size,
            "images_per_second": round(self.images_per_second, 2),
            "loss": self.loss,
            "heldout_loss": self.heldout_loss,
            "seconds": round(self.spent + time.monotonic() - began, 3),
            "stopped": self.out.stop.is_set(),
            "ended": self._ending(),
            "copies": self._copies(),
            **self._kept(),
            "total": self.limits.steps,
            "steps_now": trainer.step - first_step,
        }

    def _kept(self) -> dict[str, Any]:
        """Of an adapter: how much more its network errs on the base's own images than the base does, relatively."""
        if self._keeping is None or self.heldout_loss is None:
            return {}
        before = self._keeping.before
        return {"base_loss": round(before, 6), "forgotten": round(self.heldout_loss / before - 1.0, 4)}

    def _ending(self) -> str:
        """What ended the run: ``stop``, ``copying``, ``forgetting``, ``steps`` or ``time``."""
        if self.out.stop.is_set():
            return "stop"
        if self.limits.before_copying and self._copies() and self.trainer.step < self.limits.steps:
            return self._watch_over.ending if self._watch_over is not None else COPYING
        return "steps" if self.trainer.step >= self.limits.steps else "time"

    @property
    def _watch_over(self) -> CopyWatch | KeepWatch | None:
        return self._copying or self._keeping

    def _copies(self) -> bool:
        return self._watch_over is not None and self._watch_over.begun

    def _over(self) -> bool:
        return self.limits.minutes is not None and time.monotonic() - self._began >= 60 * self.limits.minutes

    def _until_next_stop(self) -> int:
        step = self.trainer.step
        remaining = self.limits.steps - step
        every = self.limits.checkpoint_every
        return min(remaining, every - step % every) if every else remaining

    def _line(self, loss: float, steps: int, seconds: float) -> None:
        trainer = self.trainer
        self.loss = loss
        speed = steps * trainer.settings.batch_size / max(seconds, 1e-9)
        self.images_per_second = speed if not self.images_per_second else 0.8 * self.images_per_second + 0.2 * speed
        elapsed = time.monotonic() - self._began
        # time left from the whole pace, pauses for previews and the host's generations included
        done_now = max(trainer.step - getattr(self, "_first", trainer.step - steps), 1)
        self._first = getattr(self, "_first", trainer.step - steps)
        left = elapsed / done_now * (self.limits.steps - trainer.step)
        if self.limits.minutes is not None:
            left = min(left, 60 * self.limits.minutes - elapsed)
        values = {
            "step": trainer.step,
            "loss": round(loss, 6),
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.spent + elapsed, 2),
            "learning_rate": trainer.settings.learning_rate_at(trainer.step) * trainer.lr_scale,
        }
        self.metrics.write("train", **values)
        self._told = {
            **values,
            "steps": self.limits.steps,
            "seconds_left": max(0.0, round(left, 1)),
            "heldout_loss": self.heldout_loss,
            "heldout_step": self.heldout_step,
            "done": trainer.step,
            "total": self.limits.steps,
        }
        self.out.progress(self._told)

    def _watch_keeping(self) -> float:
        """What an adapter is compared with: its base's loss on the base's own images."""
        began, tuning = time.monotonic(), self.trainer.tuning
        with self.out.gpu_slice():
            base = self.trainer.base_network()
        before = self._look_at(base, self.held.images, self.held.told)
        if tuning is not None and math.isfinite(_mean(before)):
            self._keeping = KeepWatch(_mean(before), self.limits.copies, tuning.settings.preserve > 0)
        return time.monotonic() - began

    def _look(self, watch: Callable[[], float] | None = None) -> float:
        """:meth:`_watch` (or ``watch``), unless the memory does not suffice for it: a training goes on without seeing."""
        began = time.monotonic()
        try:
            return (watch or self._watch)()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if not self._blind:
            self.out.say("There is not enough memory for a preview now; training continues without it.")
        self._blind = True
        return time.monotonic() - began

    def _watch(self) -> float:
        """Held-out loss and preview; how long they took."""
        began = time.monotonic()
        trainer = self.trainer
        count = min(max(len(self.held.images), 32), MOST_IMAGES)
        some, words = trainer.batches.some(count), trainer.batches.some_told(count)
        network = trainer.ema
        seen = self._look_at(network, some, words)
        values: dict[str, Any] = {"step": trainer.step}
        if math.isfinite(_mean(seen)):
            values.update(seen_bands=_rounded(seen), seen_loss=round(_mean(seen), 6))
        if len(self.held.images):
            held = self._look_at(network, self.held.images, self.held.told)
            self.heldout_loss = self.heldout_step = None
            if math.isfinite(_mean(held)):  # in fp16 an average may overflow on a picture that is not trained on
                self.heldout_loss = round(_mean(held), 6)
                self.heldout_step = trainer.step
                values.update(bands=_rounded(held), heldout_loss=self.heldout_loss)
            if self._copying is not None and self._copying.look(seen, held, len(self.held.images)):
                self._warn_of_copying()
        self.metrics.write("heldout", **values)
        shown = preview(trainer, self.held, self.out.gpu_slice)
        self.out.preview(trainer.step, shown)
        if self._keeping is not None and self.heldout_loss is not None:
            new = trainer.batches.some(MOST_IMAGES)
            copied = 0.0
            if trainer.task.whole_images and len(new) > 1:
                copied = float(nearest(uint8_to_model(shown[: len(shown) // 2]), new).memorised.float().mean())
            if self._keeping.look(self.heldout_loss, copied):
                self._warn_of_copying()
        return time.monotonic() - began

    def _look_at(self, network: Network, images: Tensor, told: Mapping[str, Values]) -> dict[str, float]:
        """The loss of images by band."""
        trainer = self.trainer
        if trainer.task.whole_batches:
            return pair_loss(network, images, told["tags"], dtype=trainer.dtype, gpu_slice=self.out.gpu_slice)
        return loss_by_band(
            network,
            trainer.diffusion,
            images,
            kind=trainer.settings.loss,
            dtype=trainer.dtype,
            gpu_slice=self.out.gpu_slice,
            told=told,
            task=trainer.task,
        )

    def _warn_of_copying(self) -> None:
        does = "Training stops here." if self.limits.before_copying else "Training goes on, as you asked it to."
        assert self._watch_over is not None
        text = f"{self._watch_over.sentence} {does}"
        self.metrics.write("note", step=self.trainer.step, text=text)
        self.out.say(text)

    def _save(self) -> None:
        trainer = self.trainer
        with self.out.gpu_slice():
            tensors = trainer.state_tensors()
        numbers = {
            **trainer.state_numbers(),
            "seconds": self.spent + time.monotonic() - self._began,
            "heldout_loss": self.heldout_loss,
            "precision": trainer.precision,
        }
        try:
            self.checkpoints.save(tensors, numbers)
        except ValueError as error:
            self._roll_back(str(error))
            return
        self.out.checkpoint_saved()

    def _roll_back(self, why: str) -> None:
        checkpoint = self.checkpoints.load_newest()
        self._rollbacks += 1
        if checkpoint is None or self._rollbacks > _MOST_ROLLBACKS:
            raise UserError(
                f"Training diverged {self._rollbacks} times ({why}); the last good checkpoint is kept. Start again with a "
                "lower learning rate."
            )
        scale = self.trainer.lr_scale * 0.5
        with self.out.gpu_slice():
            self.trainer.load_state(checkpoint.tensors, {**checkpoint.numbers, "lr_scale": scale})
        self.heldout_loss = self.heldout_step = None  # of the course that is abandoned
        text = f"{why}: back to step {self.trainer.step} with the learning rate at {scale:g} of its value."
        self.metrics.write("note", step=self.trainer.step, text=text)
        self.out.say(text)


def _mean(bands: dict[str, float]) -> float:
    return sum(bands.values()) / len(bands)


def _rounded(bands: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in bands.items()}
