"""Keeps weights, average, moments and gradients in one flat tensor each, so that an update is a few kernels instead of hundreds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import update_kernels as kernels
from .muon import MOMENTUM, orthogonalised, scale_of
from .settings import TrainSettings
from .state import Moments, Trainable

# for Muon's batches of products
_STREAMS = 4


class Flat:
    """A flat tensor with room for each of several tensors: ``view(i)`` has the shape and strides of the i-th."""

    def __init__(self, like: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._like = [(tuple(p.shape), p.stride(), p.numel()) for p in like]
        # multiples of 16 elements, so that kernels can load 16 bytes at a time
        self.starts, end = [], 0
        for _, _, count in self._like:
            self.starts.append(end)
            end += -(-count // 16) * 16
        self.starts.append(end)
        self.values = torch.zeros(end, device=device, dtype=dtype)

    def view(self, i: int) -> Tensor:
        """The i-th tensor."""
        shape, stride, _ = self._like[i]
        return torch.as_strided(self.values, shape, stride, self.starts[i])

    def views(self) -> list[Tensor]:
        """All tensors, in order."""
        return [self.view(i) for i in range(len(self._like))]

    def take(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move parameters in here: copy their values, then make them views."""
        for i, parameter in enumerate(parameters):
            place = self.view(i)
            place.copy_(parameter.detach())
            parameter.data = place


class FlatUpdate(torch.optim.Optimizer):
    """AdamW, or Muon for hidden matrices, and the average of the weights, by our own kernels on flat tensors.

    ``computed``: for each trainable the copy in the compute dtype that gets the gradients, or the parameter itself. All of them,
    and the averages, are moved into flat tensors. ``rate`` and
    ``taken``: 0-d tensors on the device, the learning rate and the weight of the new values in the average. The state holds
    what torch's AdamW holds ("step", "exp_avg", "exp_avg_sq"), or "momentum" for hidden parameters.
    """

    def __init__(
        self,
        trainables: Sequence[Trainable],
        computed: Sequence[nn.Parameter],
        settings: TrainSettings,
        rate: Tensor,
        taken: Tensor,
        aside: bool = False,
    ) -> None:
        """``aside``: Muon's products on several streams."""
        parameters = [one.parameter for one in trainables]
        device, self._settings = parameters[0].device, settings
        # equal shapes side by side: they form a batch without copying
        keys = [(len(one.parameter), one.parameter[0].numel()) if one.hidden else (0, 0) for one in trainables]
        order = sorted(range(len(parameters)), key=lambda i: keys[i])
        self.parameters = [parameters[i] for i in order]
        self._computed = [computed[i] for i in order]
        self._keys = [keys[i] for i in order]
        self._plain = sum(key == (0, 0) for key in self._keys)
        super().__init__(self.parameters, {"lr": rate})
        self._rate, self._taken = rate, taken
        like = [p.detach() for p in self.parameters]
        dtype = self._computed[0].dtype
        self._weights, self._average, self._first = (Flat(like, device, torch.float32) for _ in range(3))
        self._gradients = Flat(like, device, dtype)
        self._weights.take(self.parameters)
        for i, place in enumerate(self._average.views()):
            average = trainables[order[i]].average
            if average is not None:
                place.copy_(average.detach())
                average.data = place
        self._cast: Flat | None = None
        if self._computed[0] is not self.parameters[0]:
            self._cast = Flat(like, device, dtype)
            self._cast.take(self._computed)
        border = self._weights.starts[self._plain]
        self._second = Flat(like[: self._plain], device, torch.float32)
        self._steps = torch.zeros(len(self._weights.values) - border, device=device, dtype=dtype)
        self._step = torch.zeros((), device=device)
        self._border = border
        self._streams: list[torch.cuda.Stream] = []
        if aside and device.type == "cuda" and dtype == torch.bfloat16 and border < len(self._weights.values):
            self._streams = [torch.cuda.Stream(device) for _ in range(_STREAMS)]  # type: ignore[no-untyped-call]
        for i, parameter in enumerate(self.parameters):
            if i < self._plain:
                moments = {"exp_avg": self._first.view(i), "exp_avg_sq": self._second.view(i)}
                self.state[parameter] = {"step": self._step, **moments}
            else:
                self.state[parameter] = {"momentum": self._first.view(i)}

    @torch.no_grad()
    def put_moments(self, moments: Moments) -> None:
        """Replace all moments in place; those of another optimizer are left out."""
        for values in (self._first.values, self._second.values, self._step):
            values.zero_()
        for parameter, found in moments.items():
            for key, value in found.items():
                if key in self.state[parameter]:
                    self.state[parameter][key].copy_(value)

    @torch.no_grad()
    def take_weights(self) -> None:
        """Copy the current weights to the compute-dtype copies."""
        if self._cast is not None:
            self._cast.values.copy_(self._weights.values)

    @torch.no_grad()
    def update(self, *, handed_over: bool = False) -> Tensor:
        """Clip the gradients, update weights and average, and drop the gradients. Returns their norm before clipping (0-d).

        ``handed_over``: the gradients are on the float32 parameters, not on the compute-dtype copies.
        """
        settings = self._settings
        sources = self.parameters if handed_over else self._computed
        # a parameter that was not used in the forward pass has no gradient
        found = [(place, p.grad) for place, p in zip(self._gradients.views(), sources) if p.grad is not None]
        torch._foreach_copy_([place for place, _ in found], [gradient for _, gradient in found])
        for parameter in (*self.parameters, *self._computed):
            parameter.grad = None
        flat = self._gradients.values
        norm: Tensor = torch.linalg.vector_norm(flat, dtype=torch.float32)
        clip = (settings.gradient_clip / (norm + 1e-6)).clamp(max=1.0)
        self._step += 1
        border = self._border
        weights, average, first = self._weights.values, self._average.values, self._first.values
        if len(self._steps):
            kernels.take_momentum(flat[border:], first[border:], self._steps, clip, MOMENTUM)
            self._orthogonalise()
        kernels.adamw(
            weights[:border], flat[:border], first[:border], self._second.values, average[:border], clip=clip, rate=self._rate,
            taken=self._taken, step=self._step, beta1=settings.beta1, beta2=settings.beta2,
            decay=settings.weight_decay, eps=1e-8,
        )  # fmt: skip
        if len(self._steps):
            for stream in self._streams:
                torch.cuda.current_stream(stream.device).wait_stream(stream)
            kernels.move(weights[border:], self._steps, average[border:], rate=self._rate, taken=self._taken, decay=0.0)
        return norm

    def _orthogonalise(self) -> None:
        """Turn ``_steps`` into Muon's updates. The caller waits for the streams: a batch alone does not fill a GPU."""
        shapes = list(self._batches())
        batches = [self._steps[at : at + c * h * w].view(c, h, w) for (h, w), at, c in shapes]
        scales = [self._settings.muon_ratio * scale_of(h, w) for (h, w), _, _ in shapes]
        if not self._streams:
            torch._foreach_copy_(batches, orthogonalised(batches, scales))
            return
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        # a batch's products, and about as much again as their launches take: 2e9 multiply-adds
        work = [c * min(h, w) ** 2 * (2 * max(h, w) + min(h, w)) + 2e9 for (h, w), _, c in shapes]
        busy = [0.0] * len(self._streams)
        for i in sorted(range(len(batches)), key=lambda i: -work[i]):
            idlest = busy.index(min(busy))
            busy[idlest] += work[i]
            with torch.cuda.stream(self._streams[idlest]):
                batches[i].copy_(orthogonalised(batches[i : i + 1], scales[i : i + 1])[0])

    def _batches(self) -> Iterable[tuple[tuple[int, int], int, int]]:
        """Shape, offset into ``_steps`` and count of each batch of equal matrices; padded ones come alone."""
        i = self._plain
        while i < len(self._keys):
            height, width = key = self._keys[i]
            count = 1
            while height * width % 16 == 0 and i + count < len(self._keys) and self._keys[i + count] == key:
                count += 1
            yield key, self._weights.starts[i] - self._border, count
            i += count

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """As :meth:`update`."""
        self.update()

    def free(self) -> None:
        """Free the device memory."""
        for flat in (self._weights, self._average, self._first, self._second, self._gradients, self._cast):
            if flat is not None:
                flat.values = torch.empty(0)
        self._steps = torch.empty(0)
