"""Low-rank adapters (LoRA, Hu et al. 2022): what is added to a network's matrices, as products of two thin ones.

The twins lie in the space of weights: W + alpha / rank * up down. For a convolution that is exactly kohya's pair of convolutions (``down`` (rank,
in, k, k) with the stride and padding of the original, ``up`` (out, rank, 1, 1)), so files have the same shapes and names; and every kernel,
precision and export knows what to do with a plain weight. The product of two thin matrices costs a training step next to nothing, since it
has no images in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from .build import build
from .config import AdapterConfig, ModelConfig
from .network import Network

MOST_WEIGHT = 10.0  # of an adapter, either way
LOUDNESS = 2.0  # of a concept's embedding at first, over that of a base's words
_PARTS = ("down_blocks", "mid_block", "up_blocks")  # the first and the last layers stay as they are
WORDS = "conditions.tags.embedding"  # of a network
CONCEPT = "concept"  # the row that an adapter adds to it
_PREFIX = "lora_unet_"


def is_adapted(name: str, parameter: Tensor) -> bool:
    """Whether a parameter of a network has twins: the matrices and convolutions of its blocks."""
    return name.split(".", 1)[0] in _PARTS and name.endswith(".weight") and parameter.ndim >= 2


def key_of(name: str) -> str:
    """The name of a weight's twins in a file, as kohya's scripts write it."""
    return _PREFIX + name[: -len(".weight")].replace(".", "_")


class Factors(nn.Module):
    """The twins of a network, float32: ``down`` (rank, in, ...) and ``up`` (out, rank, ...) by the names of the weights they belong to, and the
    embedding of the concept (width,), if there is one. The twins add nothing at first."""

    def __init__(
        self, config: AdapterConfig, network: Network, device: torch.device | str, generator: torch.Generator
    ) -> None:
        """``network``: of the shapes of the base with the concept among its words; ``generator``: on the CPU."""
        super().__init__()
        self.config = config
        self.names = [name for name, parameter in network.named_parameters() if is_adapted(name, parameter)]
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        twins: dict[str, nn.Parameter] = {}
        for name in self.names:
            out, *rest = shapes[name]
            rank = min(config.rank, out, math.prod(rest))
            # as kaiming_uniform with a = sqrt(5)
            drawn = torch.empty((rank, *rest), device="cpu").uniform_(-1.0, 1.0, generator=generator)
            twins[f"{key_of(name)}.lora_down.weight"] = nn.Parameter((drawn / math.sqrt(math.prod(rest))).to(device))
            up = torch.zeros((out, rank, *(1 for _ in rest[1:])), device=device)
            twins[f"{key_of(name)}.lora_up.weight"] = nn.Parameter(up)
        if config.concept:
            # twice as loud as the base's words were at first: with zeros the network learnt the images and not the word, and alike it told them
            # apart less well (benchmarks/RESULTS.md)
            width = shapes[WORDS][1]
            drawn = torch.empty(width, device="cpu").uniform_(-1.0, 1.0, generator=generator)
            twins[CONCEPT] = nn.Parameter((LOUDNESS * math.sqrt(3.0) * drawn).to(device))
        self._places = {name: name.replace(".", "/") for name in twins}  # a module's parameters may have no dots
        for name, parameter in twins.items():
            self.register_parameter(self._places[name], parameter)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """All of them, by their names in a file."""
        own = dict(self.named_parameters())
        return {name: own[place] for name, place in self._places.items()}

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """``down`` and ``up`` of a weight."""
        tensors, key = self.tensors, key_of(name)
        return tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]


def product(down: Tensor, up: Tensor) -> Tensor:
    """up down, (out, in, ...), without alpha / rank."""
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One that can be added to a base: its configuration, its tensors by their names in a file, its name and that of its base, and the base's
    ``digest``."""

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    name: str
    base: str
    digest: str


def with_concept(config: ModelConfig, concept: str) -> ModelConfig:
    """A base's configuration with a word more, unless it has it."""
    if not concept or concept in config.tags:
        return config
    return dataclasses.replace(config, tags=(*config.tags, concept))


def widened(weights: Mapping[str, Tensor], before: ModelConfig, after: ModelConfig) -> dict[str, Tensor]:
    """A base's weights for a network that knows more words at the end, which mean nothing yet; of a base without words the layers behind the
    embeddings add nothing."""
    if after.tags == before.tags:
        return dict(weights)
    shapes = {name: parameter.shape for name, parameter in build(after, "meta").named_parameters()}
    found = {name: weights[name] if name in weights else torch.zeros(shape) for name, shape in shapes.items()}
    rows = torch.zeros(shapes[WORDS], dtype=torch.float32)
    if before.tags:
        rows[: len(before.tags)] = weights[WORDS]
    return {**found, WORDS: rows}


@torch.no_grad()
def merge(
    config: ModelConfig, weights: Mapping[str, Tensor], adapters: Sequence[tuple[Adapter, float]]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A base with adapters, each as strong as its weight says (its word as it is): the configuration with their words, and float32 weights. In any
    order; one of weight 0 changes nothing. UserError where one does not fit."""
    used = [(adapter, weight) for adapter, weight in adapters if weight != 0]
    after = config
    for adapter, weight in used:
        if not math.isfinite(weight) or abs(weight) > MOST_WEIGHT:
            raise UserError(
                f"The weight of the adapter {adapter.name} must be between {-MOST_WEIGHT:g} and {MOST_WEIGHT:g}; got {weight:g}."
            )
        after = with_concept(after, adapter.config.concept)
    found = {name: value.float() for name, value in widened(weights, config, after).items()}
    keys = {key_of(name): name for name, value in found.items() if is_adapted(name, value)}
    for adapter, weight in used:
        unfit = f"The adapter {adapter.name} does not fit this model; it belongs to {adapter.base}."
        for key, down in adapter.tensors.items():
            if not key.endswith(".lora_down.weight"):
                continue
            name = keys.get(key[: -len(".lora_down.weight")], "")
            up = adapter.tensors[f"{key[: -len('.lora_down.weight')]}.lora_up.weight"]
            # before the product of what may be forged
            if name not in found or (up.shape[0], *down.shape[1:]) != found[name].shape or up[0, 0].numel() != 1:
                raise UserError(unfit)
            found[name] = found[name] + weight * adapter.config.scale * product(down.float(), up.float())
        if adapter.config.concept:
            if adapter.tensors[CONCEPT].shape != found[WORDS].shape[1:]:
                raise UserError(unfit)
            place = after.tags.index(adapter.config.concept)
            rows = found[WORDS].clone()
            rows[place] += adapter.tensors[
                CONCEPT
            ].float()  # a word is a word, however little of what it means is added
            found[WORDS] = rows
    return after, found
