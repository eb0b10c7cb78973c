"""Values of a condition for each image: a tensor, or a table of which images share the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """``table`` (U, ...) in any float type, and for each image its rows, ``index`` (N, V) int64: a prompt's tokens are large, and many
    images have the same. Of an image's V rows the first says all that is known of it; a training takes one of them at random. Taking
    rows of it takes those images."""

    table: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Shared:
        return Shared(self.table, self.index[rows])

    def at(self, variant: Tensor | int) -> Tensor:
        """A float32 row for each image: its ``variant``, one for all or (N,) int64."""
        index = self.index[:, variant] if isinstance(variant, int) else self.index.gather(1, variant[:, None])[:, 0]
        return self.table[index].float()


Values = Tensor | Shared


def dense(values: Values) -> Tensor:
    """A float32 row for each image."""
    return values.at(0) if isinstance(values, Shared) else values


def drawn(values: Values, generator: torch.Generator) -> Tensor:
    """As :func:`dense`, with any of an image's rows."""
    if not isinstance(values, Shared):
        return values
    return values.at(torch.randint(values.index.shape[1], (len(values),), generator=generator, device="cpu"))


def distinct(values: Values, most: int) -> Tensor:
    """Rows as they are stored, each once where that is known; of more than ``most`` so many, evenly spread."""
    shared = isinstance(values, Shared)
    rows = torch.unique(values.index) if shared else torch.arange(len(values))
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
    return values.table[rows] if isinstance(values, Shared) else values[rows]


def digest_of(values: Values) -> bytes:
    """All bytes of it, to be compared."""
    parts = (values.table, values.index) if isinstance(values, Shared) else (values,)
    return b"".join(part.contiguous().numpy().tobytes() for part in parts)
