"""What the package asks of whoever runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image

from ..collector import Rule

if TYPE_CHECKING:
    from ..model.text import TextEncoder
    from ..requests import Generated, GenerationRequest


class OutputPanel(Protocol):
    """Where generated pictures are shown, saved and sent on from."""

    outputs: list[Any]  # gradio components

    def number(self, index: int) -> int:
        """Which picture stands at an index of what is shown; below 0 where it is none of them."""

    def show(self) -> list[Any]:
        """Values for the outputs: the newest pictures."""


class Host(Protocol):
    """The WebUI, or the standalone server."""

    name: str
    generates: bool  # whether it can make pictures itself, so that they can be collected

    def workspace_folder(self) -> Path:
        """Where datasets, runs and trash live."""

    def models_folder(self) -> Path:
        """Where model files live."""

    def device(self) -> torch.device:
        """The device to compute on unless a person asks for another."""

    def image_folders(self) -> dict[str, Path]:
        """Folders of generated images to offer for harvesting, by label."""

    def folders_may_be_typed(self) -> bool:
        """Whether a person at the page may name folders of this machine; :meth:`typed_folder_allowed` says which."""

    def typed_folder_allowed(self, path: Path) -> bool:
        """Whether this typed folder may be read."""

    def gpu_slice(self) -> AbstractContextManager[object]:
        """The right to compute for one slice (about a quarter of a second), shared fairly with the host's own work."""

    def room_for(self, megabytes: Callable[[], float]) -> AbstractContextManager[object]:
        """Device memory for a training that needs so much; the host's own models are back when it is left."""

    def save_image(self, image: Image.Image, text: str, seed: int, number: int) -> Path | None:
        """Save a sampled picture with its generation text where this host keeps generated pictures, if it keeps them."""

    def upscalers(self) -> list[str]:
        """Names of what can enlarge pictures here, the plainest first."""

    def enlarge(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image | None:
        """The picture at that size (width, height), None if that was cut short. Called by whoever may compute."""

    def models_changed(self) -> None:
        """Models have come, gone or been renamed: what the host lists of them shall follow."""

    def text_encoder(self) -> TextEncoder:
        """The text encoder of the host's own Stable Diffusion, as it is now; UserError where there is none. Called, as what it
        returns, by whoever may compute."""

    def output_panel(self, pictures: Callable[[], list[tuple[Image.Image, str]]]) -> OutputPanel | None:
        """Build, in the page being built, the host's own panel for pictures and their texts; None where it has none."""

    def generate(self, request: GenerationRequest, seeds: list[int], stop: threading.Event) -> list[Generated]:
        """One batch of the host's own text-to-image; fewer pictures than seeds when it was interrupted."""

    def generation_choices(self) -> dict[str, list[str]]:
        """Names of the host's ``samplers``, ``schedulers`` (which older hosts do not have) and ``styles``."""

    def styled(self, prompt: str, negative: str, styles: Sequence[str]) -> tuple[str, str]:
        """Prompt and negative prompt with some of those ``styles``."""

    def collecting_rule(self) -> Rule:
        """How to collect until a person says otherwise."""

    def report_pictures(self, wanted: bool) -> None:
        """Whether the host is to tell the collector of each picture that it makes."""

    def preview_seconds(self) -> float:
        """Least time between two previews of a training."""

    def keep_checkpoints(self) -> int:
        """How many of the newest checkpoints of a run are kept, besides the best."""

    def page_allows(self, request: Any) -> bool:
        """Whether an HTTP request (starlette) comes from someone who may use the page."""

    def api_refusal(self, request: Any) -> tuple[int, dict[str, str]] | None:
        """None if the request may use the API, or else the status and headers of the refusal."""
