"""What a step is given, drawn outside of it: pictures, conditions, timesteps, noise, dropout. All a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.diffusion import uint8_to_model
from ..model.network import DropoutSource
from ..model.values import Values, dense, drawn
from .pictures import open_pictures, to_device
from .random import DROPOUT, NOISE, TIMES, TOLD, DataOrder, generator, mix
from .settings import TrainSettings
from .tasks import Task


@dataclass(frozen=True)
class Batch:
    """``x0`` (N, C, H, W) float32 in [-1, 1]; ``times`` (N,) int64; ``noise`` of the task's shape, x0's as a rule; ``told``: values of conditions, each (N, ...),
    among them "flip", which are mirrored."""

    x0: Tensor
    times: Tensor
    noise: Tensor
    told: Mapping[str, Tensor]

    def beside(self, other: Batch) -> Batch:
        """Both, this one first."""
        told = {name: torch.cat([values, other.told[name]]) for name, values in self.told.items()}
        pairs = ((self.x0, other.x0), (self.times, other.times), (self.noise, other.noise))
        x0, times, noise = (torch.cat(pair) for pair in pairs)
        return Batch(x0, times, noise, told)


class Batches:
    """One process's ``part`` of each step's batch."""

    def __init__(
        self,
        settings: TrainSettings,
        timesteps: int,
        images: Tensor,
        rows: Tensor,
        part: slice,
        device: torch.device,
        told: Mapping[str, Values],
        task: Task,
        dropped: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]],
    ) -> None:
        """``images`` uint8 (N, C, H, W) on the CPU, perhaps memory-mapped; ``rows``: indices of those to train on; ``told``: values
        of conditions for each of ``images``, on the CPU, and how a batch of them is thinned out (``dropped``)."""
        self._settings, self._timesteps, self._part, self._device = settings, timesteps, part, device
        self._order = DataOrder(len(rows), settings.batch_size, settings.seed)
        self.pictures = open_pictures(settings.pictures, images, rows, self._indices, device)
        self._images, self._rows = images, rows
        self._told = {name: values[rows] for name, values in told.items()}
        self._noise = torch.Generator(device=device)
        self._task, self._dropped = task, dropped

    def _indices(self, step: int) -> Tensor:
        return self._order.batch(step)[self._part]

    def draw(self, step: int) -> Batch:
        """The batch of a 0-based step, on the device."""
        settings = self._settings
        batch = settings.batch_size
        cpu = generator("cpu", settings.seed, TIMES, step)
        flips = torch.rand(batch, generator=cpu, device="cpu") < settings.flip_probability
        # one timestep from each of `batch` equal strata: less variance than independent draws, the same mean
        strata = torch.randperm(batch, generator=cpu, device="cpu") + torch.rand(batch, generator=cpu, device="cpu")
        times = (strata / batch * self._timesteps).long().clamp_(max=self._timesteps - 1)
        flips, times = (to_device(values[self._part], self._device) for values in (flips, times))
        x0 = uint8_to_model(self.pictures.batch(step))
        x0 = torch.where(flips[:, None, None, None], x0.flip(3), x0)
        shape = self._task.shape(x0)
        x0, own = self._task.prepare(x0, batch, self._part, settings.seed, step)
        self._noise.manual_seed(mix(settings.seed, NOISE, step))
        noise = torch.randn((batch, *shape), generator=self._noise, device=self._device)[self._part]
        return Batch(x0, times, noise, {**own, **self._words(step), "flip": flips})

    def _words(self, step: int) -> dict[str, Tensor]:
        found = {}
        for number, (name, values) in enumerate(self._told.items()):
            random = generator("cpu", self._settings.seed, TOLD, step, number)
            chosen = self._dropped[name](drawn(values[self._order.batch(step)], random), random)
            found[name] = to_device(chosen[self._part], self._device)
        return found

    def some(self, count: int) -> Tensor:
        """The first pictures that are trained on, uint8 (at most ``count``, C, H, W), on the CPU."""
        return self._images[self._rows[:count]]

    def some_told(self, count: int) -> dict[str, Tensor]:
        """What there is to tell of :meth:`some`."""
        return {name: dense(values[:count]) for name, values in self._told.items()}

    def close(self) -> None:
        """End the reading ahead and free the images."""
        self.pictures.close()
        self._images = torch.empty(0)


class Dropout:
    """Where a network's dropout masks come from: a generator, or for our kernels seeds in a tensor that stays where it is."""

    def __init__(self, seed: int, rank: int | None, seeds_for: int, device: torch.device) -> None:
        """``rank`` among several processes; ``seeds_for``: number of blocks that take seeds, 0 for a generator."""
        self._numbers = (seed, DROPOUT)
        self._rank, self._device = () if rank is None else (rank,), device
        self._generator = torch.Generator(device=device)
        self._seeds = torch.zeros((seeds_for, 4), dtype=torch.int32, device=device) if seeds_for else None

    @property
    def source(self) -> DropoutSource:
        """What the network takes as ``dropout_source``."""
        return self._generator if self._seeds is None else self._seeds

    def prepare(self, step: int) -> None:
        """Set the source for a 0-based step."""
        numbers = (*self._numbers, step, *self._rank)
        if self._seeds is None:
            self._generator.manual_seed(mix(*numbers))
            return
        shape, most = tuple(self._seeds.shape), 2**31
        drawn = torch.randint(-most, most, shape, generator=generator("cpu", *numbers), device="cpu")
        self._seeds.copy_(to_device(drawn.int(), self._device), non_blocking=True)
