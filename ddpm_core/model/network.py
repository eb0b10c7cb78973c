"""What a training, a sampling and a file need of a network, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import DropoutSource, ResBlock
from .condition import Make
from .layers import Init, linear
from .text import Reading
from .told import Condition
from .ways import Ways


class Network(nn.Module):
    """``net(x, t, dropout_source, told)``: x (N, C, H, W) in the compute dtype, t (N,) in 0..T-1, ``told``: values of conditions by name,
    each (N, ...); those that are missing add nothing. Returns what is predicted, (N, C, H, W) in the dtype of ``x``.

    Dropout is applied if and only if ``dropout_source`` is given: a generator on the device of ``x``, or seeds (``blocks``, 4) int32 there for
    fused kernels. There is no train/eval mode.
    """

    ways: Ways
    blocks: int  # residual ones

    def __init__(
        self,
        config: Any,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        *,
        draw: bool = True,
        ways: Ways | None = None,
        conditions: Mapping[str, Make] | None = None,
    ) -> None:
        """``generator``: a CPU generator for the initial weights (default: a new one with seed 0), unless ``draw`` is False:
        then they are not drawn at all, for weights that are loaded next. ``ways``: which kernels, PyTorch's by default.
        ``conditions``: what it can be told, by name (``condition.py``)."""
        super().__init__()
        if generator is None:
            generator = torch.Generator(device="cpu").manual_seed(0)
        init = Init(device, generator, draw=draw, ways=ways)
        self.config = config
        width = self.make(init)
        self.ways = init.ways
        found = self._residual_blocks()
        for place, block in enumerate(found):
            block.place = place
        self.blocks = len(found)
        # last, so that the weights before them are drawn alike with and without
        self.conditions = nn.ModuleDict({name: make(init, width) for name, make in (conditions or {}).items()})

    def make(self, init: Init) -> int:
        """Make the layers, by ``self.config``; the width of the timestep's embedding."""
        raise NotImplementedError

    def condition(self, name: str) -> Condition:
        """One of its conditions."""
        found: Any = self.conditions[name]
        return found  # type: ignore[no-any-return]

    def _residual_blocks(self) -> list[ResBlock]:
        return [module for module in self.modules() if isinstance(module, ResBlock)]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def can_be_told(self) -> tuple[str, ...]:
        """Names of what it can be told, in order."""
        return tuple(self.conditions)

    def rehearsed(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """A number that depends on all its weights, as a step's loss does: for measuring one. ``x`` noised, of ``ModelConfig.denoised``."""
        return self(x, timesteps, told=told).float().square().mean()  # type: ignore[no-any-return]

    def listen(self, temb: Tensor, told: Mapping[str, Tensor] | None) -> tuple[Tensor, list[Reading]]:
        """The timestep's embedding (N, width) shifted by what is told, and what attention layers shall read."""
        readings: list[Reading] = []
        for name, values in (told or {}).items():
            found: Any = self.conditions[name](values, temb.dtype)
            shift = found
            if isinstance(found, tuple):
                shift, reading = found
                readings.append(reading)
            temb = temb + shift
        return temb, readings

    def shifts(self, temb: Tensor) -> Sequence[Tensor]:
        """For each block, its projection of the embedding plus its first convolution's bias, (N, channels), by one product; none without
        fused kernels."""
        if not self.ways.fused:
            return ()
        blocks = self._residual_blocks()
        weight = torch.cat([block.time_emb_proj.weight for block in blocks]).to(temb.dtype)
        bias = torch.cat([block.time_emb_proj.bias for block in blocks])
        bias = (bias + torch.cat([block.conv1.bias for block in blocks])).to(temb.dtype)
        sizes = [len(block.conv1.bias) for block in blocks]
        return torch.split(linear(temb, weight, bias, fused=True), sizes, dim=1)

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy weights by name into the existing parameters; a missing, foreign or misshapen tensor raises KeyError or ValueError."""
        parameters = dict(self.named_parameters())
        if set(parameters) != set(tensors):
            odd = sorted(set(parameters) ^ set(tensors))[0]
            raise KeyError(odd)
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name}: {tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])


__all__ = ["DropoutSource", "Network"]
