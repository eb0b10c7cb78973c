"""Mixed precision with float32 weights of which the network is handed a copy in the compute dtype, all at once.

The layers cast what they are given by themselves (``model/layers.py``): two small kernels for each weight and its gradient in
every step, hundreds in all, which a GPU waits for. Cast all together they are a few, with the very same numbers.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class CastCopy:
    """A copy of a network whose parameters have another dtype; the network's own stay what the optimizer changes."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.network = copy.deepcopy(network)
        for parameter in self.network.parameters():
            parameter.data = parameter.data.to(dtype)
        self._own: list[Tensor] = list(network.parameters())
        self._cast: list[Tensor] = list(self.network.parameters())

    def copy_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The copy of one of the network's parameters."""
        copies = dict(zip(map(id, self._own), self.network.parameters()))
        return copies[id(parameter)]

    @torch.no_grad()
    def take_weights(self) -> None:
        """Give the copy the network's weights as they are now."""
        torch._foreach_copy_(self._cast, self._own)

    @torch.no_grad()
    def hand_gradients_over(self) -> None:
        """Add the copy's gradients to the network's, in float32, and forget them."""
        found = [(own, cast.grad) for own, cast in zip(self._own, self._cast) if cast.grad is not None]
        first = [(own, gradient) for own, gradient in found if own.grad is None]
        more = [(own.grad, gradient) for own, gradient in found if own.grad is not None]
        if first:
            totals = [torch.empty_like(own) for own, _ in first]
            torch._foreach_copy_(totals, [gradient for _, gradient in first])
            for (own, _), total in zip(first, totals):
                own.grad = total
        if more:
            torch._foreach_add_([total for total, _ in more], [gradient for _, gradient in more])
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Drop the copy's gradients."""
        for parameter in self._cast:
            parameter.grad = None

    def free(self) -> None:
        """Give the device's memory back."""
        self.forget_gradients()
        for parameter in self._cast:
            parameter.data = torch.empty(0)
