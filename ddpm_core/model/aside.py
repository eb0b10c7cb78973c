"""Second CUDA streams for what the chain of layers need not wait for.

Nothing in a backward pass needs the gradient of a weight, but in one stream the next layer's gradient waits for it. Many of
these kernels are too small to fill a GPU (sums for biases, weight gradients at 8x8), so the streams overlap. Likewise a
block's shortcut overlaps with its convolutions, forward and backward: autograd runs a gradient in its forward pass's stream
and orders the streams.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_now = threading.local()


# measured on an H200: benchmarks/RESULTS.md
BRANCHES = True


class Aside:
    """A stream for gradients, one for branches, and what their kernels still read. Without CUDA the work runs where it is.

    Gradients made aside must reach their parameters without another kernel, as when autograd stores the first gradient of a
    parameter in its own memory format; and nothing may read them before :meth:`join`.
    """

    # bytes of inputs kept alive until the next join: as many as would be free again without a second stream
    MOST_HELD = 2**30

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._branch: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._branch = torch.cuda.Stream(device) if BRANCHES else None  # type: ignore[no-untyped-call]
        self._device = device
        self._held: list[Tensor] = []
        self._bytes = 0

    @contextmanager
    def run(self, *inputs: Tensor) -> Iterator[None]:
        """Run the body on the second stream, after all that is queued so far. ``inputs``: the tensors it reads."""
        if self._stream is None:
            yield
            return
        if self._bytes > self.MOST_HELD:
            self.join()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        # the allocator would give their memory to the first stream's next kernels
        self._held += inputs
        self._bytes += sum(value.numel() * value.element_size() for value in inputs)

    def join(self) -> None:
        """Let the current stream wait for the second one."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._held, self._bytes = [], 0

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Run the body on the stream for branches. What it reads must live until :meth:`merge`."""
        if self._branch is None:
            yield
            return
        self._branch.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._branch):
            yield

    def merge(self) -> None:
        """Let the current stream wait for the branch."""
        if self._branch is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._branch)


@contextmanager
def using(aside: Aside | None) -> Iterator[None]:
    """Backward passes of what is computed in the body make their gradients of parameters ``aside``."""
    before = current()
    _now.aside = aside
    try:
        yield
    finally:
        _now.aside = before


def current() -> Aside | None:
    """The one in use in this thread; a forward pass keeps it for its backward pass, which autograd runs in another thread."""
    return getattr(_now, "aside", None)


@contextmanager
def run(aside: Aside | None, *inputs: Tensor) -> Iterator[None]:
    """``aside.run``, or just the body."""
    if aside is None:
        yield
        return
    with aside.run(*inputs):
        yield


@contextmanager
def branch() -> Iterator[None]:
    """The current one's ``branch``, or just the body."""
    aside = current()
    if aside is None:
        yield
        return
    with aside.branch():
        yield


def merge() -> None:
    """The current one's ``merge``, if there is one."""
    aside = current()
    if aside is not None:
        aside.merge()
