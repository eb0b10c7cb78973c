"""How long a training will take and how much memory, from one small step of the real network."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.build import build
from ..model.condition import examples
from . import precision
from .mixed import CastCopy
from .settings import RunConfig

# what a GPU holds of a batch at the most (convolutions' room to work in, gradients on their way, dropout's masks) over what autograd
# saves of it: 1.2 to 1.65 for the presets of 64 and 128 pixels on an H200
_BEYOND = 1.65
_USUAL_WORDS = 64


@dataclass(frozen=True)
class Estimate:
    """``megabytes``: weights, average, optimizer, gradients, and what backpropagation holds of a whole batch."""

    seconds_per_step: float
    megabytes: float
    parameters: int


def estimate(config: RunConfig, device: torch.device, most_seconds: float = 3.0) -> Estimate:
    """Measure forward and backward on a few images, and count the bytes that autograd saves for them."""
    model = config.model
    if model.kind == "contrast" and not model.tags:  # before its dataset is looked at
        model = dataclasses.replace(model, tags=tuple(f"word {number}" for number in range(_USUAL_WORDS)))
    net: Any = build(model, device)
    dtype = precision.DTYPES[precision.choose(config.train.precision, device)]
    small = min(4, config.train.batch_size)
    # our own generator: a host's seeded generation may be running beside this
    numbers = torch.Generator(device="cpu").manual_seed(0)
    told = {name: values.to(device) for name, values in examples(model, small).items()}
    x = torch.randn((small, *model.denoised), generator=numbers, device="cpu").to(device, dtype)
    t = torch.zeros(small, dtype=torch.long, device=device)
    if dtype != torch.float32:  # as the trainer does
        net = CastCopy(net, dtype).network
    saved: dict[int, int] = {}
    parameters = list(net.parameters())
    weights = {parameter.data_ptr() for parameter in parameters}  # which are there once, for however many pictures

    def remember(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = net.rehearsed(x, t, told)
    torch.autograd.grad(loss, parameters)
    began = time.perf_counter()
    times: list[float] = []
    while not times or (time.perf_counter() - began < most_seconds and len(times) < 5):
        start = time.perf_counter()
        grads = torch.autograd.grad(net.rehearsed(x, t, told), parameters)
        float(grads[0].sum())  # waits for the device
        times.append(time.perf_counter() - start)
    count = sum(p.numel() for p in parameters)
    per_image = sum(saved.values()) / small
    seconds = sorted(times)[len(times) // 2] / small * config.train.batch_size
    # weights, average, gradients, two moments; in mixed precision the cast copy of the weights, too
    each = 20 if dtype == torch.float32 else 22
    return Estimate(seconds, (count * each + _BEYOND * per_image * config.train.batch_size) / 2**20, count)
