"""What every condition of a network can do besides its forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Condition(nn.Module):
    """``condition(values, dtype)``: values of N images to a shift (N, width) of the timestep's embedding, or to that and a
    ``text.Reading``; nothing told adds nothing."""

    def fit(self, values: Tensor) -> None:
        """Begin with what ``values`` say, a row for each distinct one, on the CPU; as it is, by default."""

    def loud(self) -> Sequence[nn.Parameter]:
        """Which parameters are zero where it begins by adding nothing: in a network that has learnt without it."""
        return ()

    @staticmethod
    def dropped(values: Tensor, generator: torch.Generator) -> Tensor:
        """What a training tells of a batch's values, (N, ...) to the same; ``generator`` on the CPU. All, by default."""
        return values
