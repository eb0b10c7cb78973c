"""Fine-tuning by an adapter: weights that are a base's plus the adapter's, and images on which the network shall answer as its base does.

Prior preservation without images of a class (Ruiz et al. 2023, section 4.2, by the answers instead of samples): beside the new images each batch
has images of the base's own kind, and what the network shall say of them is what the base says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..model.build import network_of
from ..model.config import ModelConfig
from ..model.lora import CONCEPT, WORDS, Factors, product
from ..model.network import Network
from ..model.values import Values
from .copying import COPYING
from .random import WEIGHTS, generator
from .settings import AdapterSettings
from .state import Trainable, Trainables


@dataclass(frozen=True)
class Prior:
    """Images of a base's own kind, uint8 (N, C, H, W), and what there is to tell of each; ``held`` (N,) bool: which the network is judged by instead
    of trained on."""

    images: Tensor
    held: Tensor
    told: Mapping[str, Values] = field(default_factory=dict)

    @property
    def train_rows(self) -> Tensor:
        """Indices of those that a training sees."""
        return (~self.held).nonzero()[:, 0]

    @property
    def held_rows(self) -> Tensor:
        """Indices of the others."""
        return self.held.nonzero()[:, 0]


@dataclass(frozen=True)
class Tuning:
    """What a fine-tuning has beside its images: its settings, the base's weights (for the network with the concept among its words), and images of the
    base's kind, if there are any."""

    settings: AdapterSettings
    base: Mapping[str, Tensor]
    prior: Prior | None = None

    def kept(self, batch: int) -> int:
        """How many images of a batch are the base's own."""
        return batch // 2 if self.settings.preserve > 0 and self.prior is not None else 0


FORGOTTEN = 0.02  # of the loss on the base's own images, more than which an adapter shall not cost
FORGETTING = "forgetting"  # why a training ended
_LOOKS = 2  # in a row: a single one may err
_COPIED = 0.5  # of a look's samples


class KeepWatch:
    """Asked after each look at an adapter's training; :attr:`begun` once it begins to forget what its base can, or to copy the new images."""

    def __init__(self, before: float, begun: bool = False, preserving: bool = True) -> None:
        """``before``: the base's loss on its own images; ``preserving``: whether it shall not forget."""
        self.before, self.begun = before, begun
        self.sentence, self.ending = (
            "It had begun to forget what its base knows, or to copy the new images.",
            FORGETTING,
        )
        self._forgets = self._copies = 0
        self._preserving = preserving

    def look(self, held: float, copied: float) -> bool:
        """The loss on the base's own images, and the share of the samples that are copies of new ones; True at the look at which it begins."""
        forgets = self._preserving and held > (1.0 + FORGOTTEN) * self.before
        self._forgets = self._forgets + 1 if forgets else 0
        self._copies = self._copies + 1 if copied >= _COPIED else 0
        if self.begun or max(self._forgets, self._copies) < _LOOKS:
            return False
        self.begun = True
        if self._forgets >= _LOOKS:
            rise = 100 * (held / self.before - 1)
            self.sentence = f"It begins to forget: its error on the base's own images is {rise:.1f} % above the base's."
        else:
            self.sentence, self.ending = "It begins to copy: half of its samples are one of the new images.", COPYING
        return True


class Adapted:
    """Keeps the weights of a network at those of a base plus those of an adapter's twins."""

    def __init__(self, network: Network, base: Mapping[str, Tensor], factors: Factors, place: int | None) -> None:
        """``base``: on the network's device; ``place`` of the concept among the words."""
        self._factors, self._place, self._network = factors, place, network
        own = dict(network.named_parameters())
        self._adapted = [(own[name], base[name], *factors.pair(name)) for name in factors.names]
        self._words: tuple[Tensor, Tensor] | None = (own[WORDS], base[WORDS]) if place is not None else None
        moving = {id(parameter) for parameter, *_ in self._adapted} | {id(one) for one in (self._words or ())[:1]}
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(base[name])
                parameter.requires_grad_(id(parameter) in moving)
        self._moving = [parameter for parameter in own.values() if id(parameter) in moving]

    @torch.no_grad()
    def take_weights(self) -> None:
        """Give the network the base's weights plus what the twins add as they are now."""
        scale = self._factors.config.scale
        for parameter, base, down, up in self._adapted:
            parameter.copy_(product(down, up)).mul_(scale).add_(base)
        if self._words is not None and self._place is not None:
            rows, known = self._words
            rows[self._place] = known[self._place] + self._factors.tensors[CONCEPT]

    @torch.no_grad()
    def hand_gradients_over(self) -> None:
        """Give the twins the gradients that the network's weights have, and drop those."""
        scale = self._factors.config.scale
        for parameter, _, down, up in self._adapted:
            if parameter.grad is not None:
                whole, thin = parameter.grad.flatten(1), down.flatten(1)
                up.grad = (scale * (whole @ thin.t())).view(up.shape)
                down.grad = (scale * (up.flatten(1).t() @ whole)).view(down.shape)
        if self._words is not None and self._place is not None:
            gradient = self._words[0].grad
            self._factors.tensors[CONCEPT].grad = None if gradient is None else gradient[self._place].clone()
        self.forget_gradients()

    def free(self) -> None:
        """Give the device's memory back."""
        self._adapted, self._words, self._moving = [], None, []
        _free(self._network)

    def forget_gradients(self) -> None:
        """Drop the gradients of the network's weights."""
        for parameter in self._moving:
            parameter.grad = None


class Preserving:
    """Of a batch whose last images, from ``first`` on, are the base's own: what the network shall answer there is what the base answers."""

    def __init__(
        self,
        config: ModelConfig,
        tuning: Tuning,
        device: torch.device,
        dtype: torch.dtype,
        first: int,
        new: int,
    ) -> None:
        """``first``: of this process's part of the batch; ``new``: images of the whole batch that are not the base's."""
        self.network = network_of(config, dict(tuning.base), device)
        for parameter in self.network.parameters():
            parameter.data = parameter.data.to(dtype)
        self.weight, self.first, self.new = tuning.settings.preserve, first, new

    def free(self) -> None:
        """Give the device's memory back."""
        _free(self.network)

    def own(self, count: int, start: int) -> int:
        """How many of ``count`` images from ``start`` on are new ones."""
        return max(0, min(count, self.first - start))

    @torch.no_grad()
    def __call__(
        self, target: Tensor, noisy: Tensor, times: Tensor, told: Mapping[str, Tensor], start: int
    ) -> tuple[Tensor, Tensor]:
        """Targets (n, C, H, W) of a part of the batch that begins with its image ``start``, and how much each counts, (n,)."""
        own = self.own(len(target), start)
        shares = torch.ones(len(target), device=target.device)
        if own == len(target):
            return target, shares
        values = {name: value[own:] for name, value in told.items()}
        answer = self.network(noisy[own:], times[own:], None, values)
        shares[own:] = self.weight
        return torch.cat([target[:own], answer.to(target.dtype)]), shares


class Twins:
    """An adapter in training: its twins, their running averages, and two networks whose weights follow from them."""

    def __init__(self, model: ModelConfig, tuning: Tuning, network: Network, average: Network, seed: int) -> None:
        concept, device = tuning.settings.adapter.concept, network.device
        base = {name: value.to(device, torch.float32) for name, value in tuning.base.items()}
        self._place = model.tags.index(concept) if concept else None
        self._twins, self._averages = (
            Factors(tuning.settings.adapter, one, device, generator("cpu", seed, WEIGHTS)) for one in (network, average)
        )
        for parameter in self._averages.parameters():
            parameter.requires_grad_(False)
        self.adapted = Adapted(network, base, self._twins, self._place)
        self.average = Adapted(average, base, self._averages, self._place)

    def register(self) -> Trainables:
        """All that is trained."""
        found, averages = Trainables(), self._averages.tensors
        for name, parameter in self._twins.tensors.items():
            found.add(Trainable(name, f"net.{name}", parameter, averages[name], f"ema.{name}"))
        return found

    def free(self) -> None:
        """Give the device's memory back."""
        self.adapted.free()
        self.average.free()

    def averaged(self) -> dict[str, Tensor]:
        """The averages, by their names in a file."""
        return dict(self._averages.tensors)

    def dropped(
        self, dropped: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]]
    ) -> dict[str, Callable[[Tensor, torch.Generator], Tensor]]:
        """How words of the new images are left out: never the concept."""
        return {"tags": concept_told(dropped["tags"], self._place)} if "tags" in dropped else {}


def _free(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data = torch.empty(0)
        parameter.grad = None


def concept_told(
    dropped: Callable[[Tensor, torch.Generator], Tensor], place: int | None
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """How words are left out in a training, but never the concept's: what the new images show shall come by that word alone."""
    if place is None:
        return dropped

    def thinned(values: Tensor, generator: torch.Generator) -> Tensor:
        found = dropped(values, generator).clone()
        found[:, place] = values[:, place]
        return found

    return thinned
