"""Where a step's pictures come from: held whole on the device, or read ahead from the memory-mapped file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

HOLDING = ("auto", "device", "stream")
_MOST_SHARE = 0.25  # of the device's free memory, for pictures: the rest is the network's
_MOST_ON_CPU = 2 * 2**30  # beyond, the system's file cache holds them better than a copy of ours
_AHEAD = 4  # steps


class Pictures(Protocol):
    """``batch(step)``: that step's pictures, uint8 (N, C, H, W) on the device, in the order of its indices."""

    def batch(self, step: int) -> Tensor:
        """Images of a 0-based step."""

    def close(self) -> None:
        """Free the images."""


class OnDevice:
    """All pictures in the device's memory; a batch is one gather there."""

    def __init__(self, images: Tensor, rows: Tensor, indices: Callable[[int], Tensor], device: torch.device) -> None:
        self.images = images.index_select(0, rows).to(device)
        self._indices = indices
        self._device = device

    def batch(self, step: int) -> Tensor:
        """Images of a 0-based step."""
        return self.images.index_select(0, to_device(self._indices(step), self._device))

    def close(self) -> None:
        """Free the images."""
        self.images = torch.empty(0)


class Streamed:
    """Pictures stay in the file: a thread gathers the next steps' batches, into pinned memory where that is faster.

    Which pictures a step has is known beforehand, so what was asked for ahead is what will be wanted, unless the step
    is set anew (resuming, rolling back); then it begins anew.
    """

    def __init__(self, images: Tensor, rows: Tensor, indices: Callable[[int], Tensor], device: torch.device) -> None:
        self._images, self._rows, self._indices, self._device = images, rows, indices, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ddpm-pictures")
        self._coming: dict[int, Future[Tensor]] = {}

    def batch(self, step: int) -> Tensor:
        """Images of a 0-based step; asks for the next ones."""
        for stale in [s for s in self._coming if not step <= s < step + _AHEAD]:
            self._coming.pop(stale).cancel()
        for wanted in range(step, step + _AHEAD):
            if wanted not in self._coming:
                self._coming[wanted] = self._pool.submit(self._gather, self._indices(wanted))
        return self._coming.pop(step).result().to(self._device, non_blocking=True)

    def _gather(self, indices: Tensor) -> Tensor:
        found = self._images.index_select(0, self._rows.index_select(0, indices))
        return found.pin_memory() if self._device.type == "cuda" else found

    def close(self) -> None:
        """End the thread and free the images."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
        self._images = torch.empty(0)


def fits(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes of pictures should be held on the device."""
    if device.type == "cuda":
        return size <= _MOST_SHARE * torch.cuda.mem_get_info(device)[0]
    return size <= _MOST_ON_CPU


def size_of(images: Tensor, count: int) -> int:
    """Bytes of ``count`` of the pictures."""
    return count * images[:1].numel()


def open_pictures(
    how: str, images: Tensor, rows: Tensor, indices: Callable[[int], Tensor], device: torch.device
) -> OnDevice | Streamed:
    """``images`` (N, C, H, W) uint8 on the CPU, perhaps memory-mapped; ``rows`` those to train on; ``indices(step)``
    which of the rows a step has. ``how``: one of HOLDING."""
    hold = fits(size_of(images, len(rows)), device) if how == "auto" else how == "device"
    return (OnDevice if hold else Streamed)(images, rows, indices, device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on the device, without waiting for the device."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
