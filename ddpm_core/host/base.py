"""What the package asks of whoever runs it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image


class Host(Protocol):
    """The WebUI, or the standalone server."""

    name: str

    def workspace_folder(self) -> Path:
        """Where datasets, runs and trash live."""

    def models_folder(self) -> Path:
        """Where model files live."""

    def device(self) -> torch.device:
        """The device to compute on unless a person asks for another."""

    def image_folders(self) -> dict[str, Path]:
        """Folders of generated images to offer for harvesting, by label."""

    def folders_may_be_typed(self) -> bool:
        """Whether a person at the page may name any folder of this machine."""

    def gpu_slice(self) -> AbstractContextManager[object]:
        """The right to compute for one slice (about a quarter of a second), shared fairly with the host's own work."""

    def save_image(self, image: Image.Image, text: str, seed: int, number: int) -> Path:
        """Save a sampled picture with its generation text where this host keeps generated pictures."""

    def allows(self, request: Any) -> bool:
        """Whether an HTTP request (starlette) comes from someone who may use the page."""
