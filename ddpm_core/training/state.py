"""Every trained tensor, registered once: how it is saved, loaded, averaged and updated follows from that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# what optimizers keep for a parameter: AdamW the first three, Muon the last
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")
Moments = dict[nn.Parameter, dict[str, Tensor]]


@dataclass(frozen=True)
class Trainable:
    """A trained float32 tensor.

    ``name`` is that of its moments in checkpoints, ``saved`` its own. ``average``: its running average, if it has one, saved as
    ``average_saved``. ``hidden``: whether Muon updates it.
    """

    name: str
    saved: str
    parameter: nn.Parameter
    average: nn.Parameter | None = None
    average_saved: str = ""
    hidden: bool = False


class Trainables:
    """All trained tensors of a training, in the order in which they were added."""

    def __init__(self) -> None:
        self._all: list[Trainable] = []

    def __iter__(self) -> Iterator[Trainable]:
        return iter(self._all)

    def add(self, trainable: Trainable) -> None:
        """Register a trained tensor."""
        self._all.append(trainable)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in order."""
        return [one.parameter for one in self._all]

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Averages, and the parameters that they follow."""
        pairs = [(one.average, one.parameter) for one in self._all if one.average is not None]
        return [average for average, _ in pairs], [parameter for _, parameter in pairs]

    def _saved(self) -> dict[str, nn.Parameter]:
        found = {one.saved: one.parameter for one in self._all}
        found.update({one.average_saved: one.average for one in self._all if one.average is not None})
        return found

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Parameters, averages and moments by their names in a checkpoint: contiguous copies on the CPU."""
        found: dict[str, Tensor] = {name: value.detach() for name, value in self._saved().items()}
        for one in self._all:
            for key, value in optimizer.state.get(one.parameter, {}).items():
                found[f"optimizer.{key}.{one.name}"] = value
        return {name: value.to("cpu", copy=True).contiguous() for name, value in found.items()}

    def empty(self, with_moments: bool) -> dict[str, Tensor]:
        """Zeros of the names and shapes of :meth:`tensors`."""
        found = {name: torch.zeros(value.shape) for name, value in self._saved().items()}
        for one in self._all if with_moments else []:
            for key in MOMENTS[3:] if one.hidden else MOMENTS[:3]:
                found[f"optimizer.{key}.{one.name}"] = torch.zeros(_shape(key, one.parameter))
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> Moments:
        """Copy parameters and averages in place; returns the moments in ``tensors``, for the optimizer.

        KeyError for a name that is missing or foreign, ValueError for another shape or kind; nothing has changed then.
        """
        targets = self._saved()
        odd = sorted(set(targets) ^ {name for name in tensors if not name.startswith("optimizer.")})
        if odd:
            raise KeyError(odd[0])
        found = {name: _fitting(tensors, name, target.shape) for name, target in targets.items()}
        moments: Moments = {}
        for one in self._all:
            places = {key: f"optimizer.{key}.{one.name}" for key in MOMENTS}
            moments[one.parameter] = {
                key: _fitting(tensors, place, _shape(key, one.parameter))
                for key, place in places.items()
                if place in tensors
            }
        for name, target in targets.items():
            target.copy_(found[name])
        return moments

    def free(self) -> None:
        """Free the memory of parameters and averages."""
        for parameter in self._saved().values():
            parameter.data = torch.empty(0)
            parameter.grad = None


def _shape(key: str, parameter: Tensor) -> torch.Size:
    return torch.Size() if key == "step" else parameter.shape


def _fitting(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    found = tensors[name]
    if found.shape != shape or not found.is_floating_point():
        raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, not of shape {list(shape)}")
    return found


def put_moments(optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Replace all moments of an optimizer of PyTorch's, or of one that keeps them as those do (``Muon``)."""
    optimizer.state.clear()
    for parameter, values in moments.items():
        for key, value in values.items():
            if key == "step":
                device = parameter.device if optimizer.defaults.get("fused") else "cpu"
                ready = value.to(device, copy=True)
            else:
                ready = torch.empty_like(parameter).copy_(value)  # in the parameter's memory format
            optimizer.state[parameter][key] = ready
