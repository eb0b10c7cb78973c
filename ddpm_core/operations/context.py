"""What an operation needs from whoever runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from .pictures import Enlarge, enlarge_plainly

if TYPE_CHECKING:  # a server that starts need not wait for these
    from PIL import Image

    from ..dataset.tags import Vocabulary
    from ..dataset.vectors import Sight
    from ..model.config import ImageConfig
    from ..model.text import TextEncoder
    from ..sampling.generate import SampleSettings

Say = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]
GpuSlice = Callable[[], AbstractContextManager[object]]


def no_text_encoder() -> TextEncoder:
    """Where there is none: UserError says so."""
    raise UserError(
        "There is no text encoder here: models that read prompts by one are trained and used in the WebUI; alone, train with tags."
    )


def no_image_encoder(wanted: ImageConfig, context: Context) -> ImageEncoder:
    """Where there is no workspace to look for one."""
    raise UserError(f"The image-text encoder {wanted.name} is not here.")


class ImageEncoder(Protocol):
    """What an operation needs of an image-text encoder (``encoding.Encoder``)."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that it knows."""

    @property
    def sight(self) -> Sight:
        """By which it sees a dataset's images."""

    def embed_image(self, image: Image.Image) -> Tensor:
        """Any image to (D,) of unit length."""

    def draw(self, words: Tensor, unwanted: Tensor, settings: SampleSettings) -> Tensor:
        """Vectors (N, D) of unit length of images that show ``words`` and not ``unwanted``, (N, K) each."""


@dataclass
class Context:
    """What an operation needs from whoever runs it: device, turn at the GPU, a stop event, and ears."""

    device: torch.device
    gpu_slice: GpuSlice = nullcontext
    stop: threading.Event = field(default_factory=threading.Event)
    report: Report = lambda values: None
    say: Say = lambda text: None
    # a host's settings, asked anew each time so that a change counts at once
    preview_seconds: Callable[[], float] = lambda: 10.0
    keep_checkpoints: Callable[[], int] = lambda: 2
    # memory for a training of so many megabytes: the host may put its own models aside meanwhile
    room_for: Callable[[Callable[[], float]], AbstractContextManager[object]] = lambda megabytes: nullcontext()
    enlarge: Enlarge = enlarge_plainly  # a host has upscalers of its own
    # whether nobody else uses the device: training may then compile kernels and keep its memory between slices
    alone: bool = True
    text_encoder: Callable[[], TextEncoder] = no_text_encoder  # of the host's Stable Diffusion
    image_encoder: Callable[[ImageConfig, Context], ImageEncoder] = no_image_encoder  # of the workspace
    leaving: Callable[[], bool] = lambda: False  # whether a stop is that of the whole program

    def progress(self, done: int, total: int, text: str) -> None:
        """Report that ``done`` of ``total`` are done."""
        self.report({"done": done, "total": total, "text": text})
