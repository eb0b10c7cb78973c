"""The host for people without the WebUI, for tests, and for headless machines: a folder and a local server."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, PngImagePlugin

from ..collector import Rule
from ..errors import UserError
from ..files import next_number
from .base import Host
from .devices import best_device

if TYPE_CHECKING:
    from ..model.text import TextEncoder
    from ..requests import Generated, GenerationRequest

_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


class StandaloneHost(Host):
    """Everything below one folder; the device is ours alone."""

    name = "standalone"
    generates = False

    def __init__(self, workspace: Path | None = None, image_folders: dict[str, Path] | None = None) -> None:
        chosen = workspace or os.environ.get("DDPM_WORKSPACE") or "workspace"
        try:
            self._root = Path(chosen).expanduser().absolute()
        except RuntimeError:  # a system user has none
            raise UserError(
                f"The workspace {chosen} begins with ~, and this user has no home; give the whole path."
            ) from None
        self._folders = image_folders or {}
        self.local = True  # whether only this machine can reach the page
        self.proxied = False  # whether a proxy stands before it, and says what it was asked for

    def workspace_folder(self) -> Path:
        return self._root

    def models_folder(self) -> Path:
        return self._root / "models"

    def device(self) -> torch.device:
        return best_device()

    def image_folders(self) -> dict[str, Path]:
        return dict(self._folders)

    def folders_may_be_typed(self) -> bool:
        return self.local

    def typed_folder_allowed(self, path: Path) -> bool:
        return self.local

    def gpu_slice(self) -> AbstractContextManager[object]:
        return nullcontext()

    def room_for(self, megabytes: Callable[[], float]) -> AbstractContextManager[object]:
        return nullcontext()

    def models_changed(self) -> None:
        """As ``Host``: nothing here remembers them."""

    def upscalers(self) -> list[str]:
        from ..operations.pictures import FILTERS

        return list(FILTERS)

    def enlarge(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
        from ..operations.pictures import enlarge_plainly

        return enlarge_plainly(image, size, upscaler)

    def text_encoder(self) -> TextEncoder:
        from ..operations.context import no_text_encoder

        return no_text_encoder()

    def output_panel(self, pictures: Callable[[], list[tuple[Image.Image, str]]]) -> None:
        return None

    def generate(self, request: GenerationRequest, seeds: list[int], stop: threading.Event) -> list[Generated]:
        raise UserError(
            "There is no Stable Diffusion here; install this as an extension of the WebUI to generate with it."
        )

    def generation_choices(self) -> dict[str, list[str]]:
        return {"samplers": [], "schedulers": [], "styles": []}

    def styled(self, prompt: str, negative: str, styles: Sequence[str]) -> tuple[str, str]:
        return prompt, negative

    def collecting_rule(self) -> Rule:
        return Rule()

    def report_pictures(self, wanted: bool) -> None:
        pass  # nothing is generated here

    def preview_seconds(self) -> float:
        return 10.0

    def keep_checkpoints(self) -> int:
        return 2

    def save_image(self, image: Image.Image, text: str, seed: int, number: int) -> Path:
        folder = self._root / "outputs" / time.strftime("%Y-%m-%d")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{next_number(folder, NUMBERED):05d}-{seed}.png"
            save_png(image, path, text)
        except OSError as error:
            raise UserError(
                f"The image could not be saved to {folder} ({error.strerror or error}); make room and try again."
            ) from None
        return path

    def page_allows(self, request: Any) -> bool:
        # a local page is asked for by a local name; another name is a web site that had itself resolved to this machine
        match = _HOST.fullmatch(str(request.headers.get("host", "")).lower())
        return not self.local or (match is not None and (match[1] or match[2]) in _LOCAL_NAMES)

    def api_refusal(self, request: Any) -> tuple[int, dict[str, str]] | None:
        return None if self.page_allows(request) else (403, {})


# names of a sample's file (number and seed), and of further grids beside grid.png
NUMBERED = r"(\d{5,})-\d+\.png"
GRIDS = r"grid-(\d{4,})\.png"
# [IPv6] or a name, each perhaps with a port
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::\d+)?")


def save_png(image: Image.Image, path: Path, text: str) -> None:
    """Write a PNG with its generation text where the WebUI looks for it."""
    chunk = PngImagePlugin.PngInfo()
    if text:
        chunk.add_text("parameters", text)
    image.save(path, format="PNG", pnginfo=chunk)
