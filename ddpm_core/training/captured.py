"""Captures a training step as a CUDA graph and replays it: one launch instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# eager runs before capturing: libraries choose algorithms and allocate workspaces, the optimizer allocates its moments
_WARM_UP = 3


class CapturedStep:
    """Runs ``work(*inputs)`` eagerly a few times, then captures it and replays the graph from then on.

    ``work`` returns nothing and changes tensors in place. It must keep every tensor that outlives a call at its address, never
    read from the device, and take every number that changes from a tensor. Inputs are copied into static buffers before each
    replay. If capturing fails, ``tidy`` undoes what the failed attempt left behind, ``say`` reports it once, and ``work`` runs
    eagerly for good.
    """

    def __init__(
        self,
        work: Callable[..., None],
        device: torch.device,
        say: Callable[[str], None],
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        self.work, self._device, self._say, self._tidy = work, device, say, tidy
        self.inputs: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.runs = 0
        # warm up on the stream that will be captured: cuBLAS and cuDNN keep workspaces for each stream
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.failed = False

    @property
    def captured(self) -> bool:
        """Whether there is a graph."""
        return self.graph is not None

    def drop(self) -> None:
        """Free the graph and its memory. The next calls warm up and capture again, with tensors wherever they are then."""
        self.graph, self.inputs, self.runs = None, [], 0

    def __call__(self, *inputs: Tensor) -> None:
        if self.graph is None and self.runs >= _WARM_UP and not self.failed:
            self._capture(inputs)
        if self.graph is not None:
            for static, new in zip(self.inputs, inputs):
                static.copy_(new, non_blocking=True)
            self.graph.replay()
        elif self._stream is None or self.failed:
            self.work(*inputs)
        else:
            present = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(present)
            with torch.cuda.stream(self._stream):
                self.work(*inputs)
            present.wait_stream(self._stream)
            self.runs += 1

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # the graph gets memory of its own: give it what the eager runs cached
        static = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # a host's other threads use the device meanwhile, which a "global" capture would forbid them
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self.work(*static)
        except RuntimeError as error:
            self.failed = True
            self._tidy()
            torch.cuda.synchronize(self._device)
            reason = (str(error).strip().splitlines() or ["unknown"])[0][:200]
            self._say(f"CUDA graph capture failed ({reason}). Training continues without it, more slowly.")
            return
        self.graph, self.inputs = graph, static
