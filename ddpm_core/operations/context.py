"""What an operation needs from whoever runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]
GpuSlice = Callable[[], AbstractContextManager[object]]


@dataclass
class Context:
    """What an operation needs from whoever runs it: device, turn at the GPU, a stop event, and ears."""

    device: torch.device
    gpu_slice: GpuSlice = nullcontext
    stop: threading.Event = field(default_factory=threading.Event)
    report: Report = lambda values: None
    say: Say = lambda text: None

    def progress(self, done: int, total: int, text: str) -> None:
        self.report({"done": done, "total": total, "text": text})
