"""One training: networks, batches, steps, state. Knows no file and no clock but the slice's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, is_out_of_memory
from ..model.build import build, network_of
from ..model.condition import conditions_of
from ..model.diffusion import Diffusion
from ..model.network import Network
from ..model.values import Values, distinct
from . import how as hows
from . import precision
from .batches import Batches, Dropout
from .how import How
from .muon import is_hidden
from .random import KEPT, WEIGHTS, generator, mix
from .settings import RunConfig
from .state import Trainable, Trainables
from .step import Step
from .tasks import task_of
from .team import Team
from .tuning import Preserving, Tuning, Twins

_MOST_FITTED = 4096  # texts by which a whitening is found

Say = Callable[[str], None]


@dataclass(frozen=True)
class SliceResult:
    """What a slice of steps did. ``loss`` is the mean unweighted loss of its images; ``finite`` whether all was well."""

    steps: int
    loss: float
    seconds: float
    finite: bool


def unthinned(values: Tensor, generator: torch.Generator) -> Tensor:
    """All words, for a task that leaves some out by itself."""
    return values


class Trainer:
    """Trains a U-Net on uint8 images (N, C, H, W), held on the device or streamed to it.

    ``step`` counts finished steps. All randomness is a function of (seed, step), so the state is weights, average,
    optimizer moments, step and learning-rate scale, nothing else. With a ``team`` this process does its part of each
    batch; the leader's :meth:`run_slice` and :meth:`load_state` take the followers along.
    """

    def __init__(
        self,
        config: RunConfig,
        images: Tensor,
        device: torch.device | str,
        say: Say = lambda text: None,
        rows: Tensor | None = None,
        team: Team | None = None,
        how: How | None = None,
        told: Mapping[str, Values] | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """``images`` on the CPU, perhaps memory-mapped; ``rows``: indices of those to train on, all by default; ``how`` a step is
        computed, the fastest way that works by default; ``told``: values of the model's conditions for each of ``images``; ``tuning``: where
        an adapter is trained instead of the network."""
        told = dict(told or {})
        if set(told) != set(conditions_of(config.model)) or any(len(values) != len(images) for values in told.values()):
            raise ValueError("what is told does not fit the model or the images")
        self.config, self.say, self.team, self.tuning = config, say, team, tuning
        self.device = torch.device(device)
        self.settings = settings = config.train
        self.precision = precision.choose(settings.precision, self.device)
        self.dtype = precision.DTYPES[self.precision]
        if how is None:
            # upscalers, adapters and the annotated model have not been measured on a GPU yet
            measured = team is None and config.model.kind == "unet" and tuning is None and not config.model.is_annotated
            how = hows.fastest(self.device, self.precision) if measured else hows.plain(self.device)
        if how.network.fused:
            say("Preparing GPU kernels for this network; the first time this takes up to a minute.")
        unet, seed = config.model.unet, settings.seed
        self.net, self._average = (
            build(
                config.model,
                self.device,
                generator("cpu", seed, WEIGHTS),
                ways=how.network,
                augmented=net_itself and tuning is None,
            )
            for net_itself in (True, False)
        )
        for net in (self.net, self._average):
            for name, values in told.items() if tuning is None else ():
                net.condition(name).fit(distinct(values, _MOST_FITTED))
        self._twins = None if tuning is None else Twins(config.model, tuning, self.net, self._average, seed)
        for parameter in self._average.parameters():
            parameter.requires_grad_(False)
        self.state = self._register() if self._twins is None else self._twins.register()
        self.diffusion = Diffusion(config.model.diffusion, self.device)
        rows = torch.arange(len(images)) if rows is None else rows
        self.task = task_of(config.model)
        kept = 0 if tuning is None else tuning.kept(settings.batch_size)
        dropped = {name: unthinned if self.task.thins else self.net.condition(name).dropped for name in told}
        own = dropped if self._twins is None else {**dropped, **self._twins.dropped(dropped)}
        self.batches = self._batches(images, rows, told, own, settings.batch_size - kept, settings.seed)
        self.kept: Batches | None = None
        self.preserving: Preserving | None = None
        if tuning is not None and tuning.prior is not None and kept:
            prior = tuning.prior
            self.kept = self._batches(
                prior.images, prior.train_rows, prior.told, dropped, kept, mix(settings.seed, KEPT)
            )
            new = settings.batch_size - kept
            self.preserving = Preserving(config.model, tuning, self.device, self.dtype, self._mine(new), new)
        seeds = self.net.blocks if how.network.fused and unet.dropout else 0
        self.dropout = Dropout(seed, None if team is None else team.rank, seeds, self.device)
        self.work = Step(
            self.net,
            self.state,
            self.task.objective(self.diffusion, settings, self.dtype, self.preserving),
            settings,
            self.precision,
            how,
            team,
            self.dropout.source,
            say,
            (*self.net.can_be_told, *self.task.told),
            None if self._twins is None else self._twins.adapted,
            self.preserving,
        )
        self.step = 0
        self.lr_scale = 1.0
        self.seconds_per_step = 0.0

    def _batches(
        self,
        images: Tensor,
        rows: Tensor,
        told: Mapping[str, Values],
        dropped: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]],
        count: int,
        seed: int,
    ) -> Batches:
        settings = dataclasses.replace(self.settings, batch_size=count, seed=seed)
        part = slice(0, count) if self.team is None else self.team.part(count)
        timesteps = self.config.model.diffusion.timesteps
        return Batches(settings, timesteps, images, rows, part, self.device, told, self.task, dropped)

    def _mine(self, count: int) -> int:
        """How many of so many images of a batch this process has."""
        part = slice(0, count) if self.team is None else self.team.part(count)
        return int(part.stop - part.start)

    @property
    def ema(self) -> Network:
        """The network with the averaged weights."""
        if self._twins is not None:
            self._twins.average.take_weights()
        return self._average

    def base_network(self) -> Network:
        """Of an adapter: the network as it was before."""
        assert self.tuning is not None
        if self.preserving is not None:
            return self.preserving.network
        return network_of(self.config.model, dict(self.tuning.base), self.device)

    def averaged(self) -> dict[str, Tensor]:
        """What a model's file holds: the averaged weights, or an adapter's averaged twins."""
        return dict(self._average.named_parameters()) if self._twins is None else self._twins.averaged()

    def _register(self) -> Trainables:
        found = Trainables()
        muon = self.settings.optimizer == "muon"
        averages = dict(self._average.named_parameters())
        for name, parameter in self.net.named_parameters():
            if name in averages:
                hidden = muon and is_hidden(name, parameter)
                found.add(Trainable(name, f"net.{name}", parameter, averages[name], f"ema.{name}", hidden))
            else:  # of an augmentation, which no model knows
                own = name.split(".", 2)[2]
                found.add(Trainable(own, own, parameter))
        return found

    @property
    def pieces(self) -> int:
        """Into how many parts a batch is divided for want of memory."""
        return self.work.pieces

    @pieces.setter
    def pieces(self, value: int) -> None:
        self.work.pieces = value

    # -- steps ------------------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        """One step, without waiting for the device."""
        batch = self.batches.draw(self.step)
        if self.kept is not None:
            batch = batch.beside(self.kept.draw(self.step))
        self.dropout.prepare(self.step)
        rate = self.settings.learning_rate_at(self.step) * self.lr_scale
        self.work.set_numbers(rate, 1.0 - self.settings.ema_decay_at(self.step))
        self.work(batch)
        self.step += 1

    def run_slice(self, max_steps: int, seconds: float) -> SliceResult:
        """Train for about ``seconds`` (at least one step, at most ``max_steps``), ending in a synchronisation.

        Out of memory is met by splitting the batch further and doing the step again, which changes nothing else.
        """
        guess = int(seconds / self.seconds_per_step) if self.seconds_per_step else 1
        steps = max(1, min(max_steps, guess))
        if self.team is not None:
            self.team.announce_steps(steps)
        return self.run_steps(steps)

    def run_steps(self, steps: int) -> SliceResult:
        """Exactly so many steps, ending in a synchronisation."""
        self.work.sums.zero_()
        began = time.perf_counter()
        with nullcontext() if self.team is None else self.team.reaching():
            for _ in range(steps):
                self._step_splitting()
            sums = self.work.sums.clone()
            if self.team is not None:
                self.team.sum(sums)
            loss, bad = sums.tolist()  # the slice's one device-to-host copy
        elapsed = time.perf_counter() - began
        self.seconds_per_step = elapsed / steps
        return SliceResult(steps, loss / steps, elapsed, bad == 0)

    def _step_splitting(self) -> None:
        while True:
            try:
                return self.train_step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.pieces >= self.settings.batch_size:
                    raise
                if self.task.whole_batches:
                    raise UserError(
                        "There is not enough memory to compare the images of a batch with each other; use a smaller --batch-size. "
                        "What was saved is intact."
                    ) from None
                if self.team is not None:  # the others are in the middle of this step
                    raise UserError(
                        "A process ran out of memory; use a smaller --batch-size or more processes. What was saved is intact."
                    ) from None
            self.work.undo()
            self.pieces = min(self.pieces * 2, self.settings.batch_size)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(
                f"Out of memory: continuing with the same batch of {self.settings.batch_size} in {self.pieces} pieces."
            )

    # -- state ------------------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly, by name, on the CPU and contiguous (copies)."""
        return self.state.tensors(self.work.optimizer)

    def empty_state(self, with_moments: bool) -> dict[str, Tensor]:
        """Tensors of the shapes of :meth:`state_tensors`, to be filled."""
        return self.state.empty(with_moments)

    def state_numbers(self) -> dict[str, Any]:
        """The numbers beside :meth:`state_tensors`."""
        return {"step": self.step, "lr_scale": self.lr_scale, "pieces": self.pieces, **self.work.scale_numbers()}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of :meth:`state_tensors` and :meth:`state_numbers`; KeyError or ValueError where they do not fit."""
        self.take_state(tensors, numbers)
        if self.team is not None:
            self.team.share_state(self)

    def take_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """:meth:`load_state` for this process alone."""
        step, lr_scale, pieces = int(numbers["step"]), float(numbers["lr_scale"]), int(numbers["pieces"])
        if not (0 <= step < 2**53 and 0.0 < lr_scale <= 1.0 and 1 <= pieces <= self.settings.batch_size):
            raise ValueError("its step, learning rate or pieces cannot be")
        self.work.put_moments(self.state.load(tensors))
        self.work.put_scale(numbers)
        self.step, self.lr_scale, self.pieces = step, lr_scale, pieces

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin a new run from the weights of a model."""
        # words that are new to it must not disturb what it knows
        loud = {id(one) for name in self.net.conditions for one in self.net.condition(name).loud()}
        own = {
            n: torch.zeros_like(p) if id(p) in loud else p
            for n, p in self.net.named_parameters()
            if n.startswith("conditions.") and n not in weights
        }
        self.net.load_tensors({**weights, **own})
        self._average.load_tensors({**weights, **{n: own[n] for n, _ in self._average.named_parameters() if n in own}})
        if self.team is not None:
            self.team.share_state(self)

    def free(self) -> None:
        """Give the device's memory back."""
        self.work.free()
        self.state.free()
        if self._twins is not None:  # of which the networks are no part of the state
            self._twins.free()
        self.batches.close()
        if self.kept is not None:
            self.kept.close()
        if self.preserving is not None:
            self.preserving.free()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
