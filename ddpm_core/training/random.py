"""Randomness that depends only on (seed, step): resuming, splitting a batch, or another device changes nothing.

A host's generations call ``torch.manual_seed``; nothing here touches or reads the default generators.
"""

from __future__ import annotations

import torch
from torch import Tensor

# streams of random numbers, so that a new one does not shift the others
WEIGHTS, NOISE, DROPOUT, TIMES, TOLD, CROPS, LOW, KEPT = 11, 12, 13, 14, 15, 16, 17, 18

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers (SplitMix64, Steele et al. 2014, applied in turn)."""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A new generator on a device, seeded by the mixture of the numbers."""
    return torch.Generator(device=device).manual_seed(mix(*numbers))


class DataOrder:
    """Which images step k trains on: every epoch is a new permutation of all of them, none left out.

    Batches run on over the end of an epoch, so that 972 images and batches of 64 lose nothing.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self._epochs: dict[int, Tensor] = {}

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
            self._epochs[epoch] = torch.randperm(
                self.count, generator=generator("cpu", self.seed, 1, epoch), device="cpu"
            )
        return self._epochs[epoch]

    def batch(self, step: int) -> Tensor:
        """Indices (batch_size,) int64 on the CPU for the 0-based step."""
        position, needed, parts = step * self.batch_size, self.batch_size, []
        while needed:
            epoch, offset = divmod(position, self.count)
            part = self._permutation(epoch)[offset : offset + needed]
            parts.append(part)
            position += len(part)
            needed -= len(part)
        return torch.cat(parts)
