"""The WebUI as a host of this package."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modules import devices
from modules.call_queue import queue_lock
from PIL import Image

from ...collector import Rule
from ..base import Host
from . import doors
from .facts import data_path, every_folder_allowed, flag, models_path, option
from .memory import ModelMemory

if TYPE_CHECKING:
    from ...model.text import TextEncoder
    from ...requests import Generated, GenerationRequest
    from ..base import OutputPanel

# between two slices: the queue hands over an event, not the lock, and one who takes it at once starves who waits
_PAUSE_SECONDS = 0.002


class WebUIHost(Host):
    """AUTOMATIC1111, reForge or Forge; fulfils ``host.base.Host``."""

    name = "webui"
    generates = True

    def __init__(
        self, listen: Callable[[], None], attend: Callable[[], None], models_changed: Callable[[], None]
    ) -> None:
        self.memory = ModelMemory(self.device)
        self._listen = listen
        self._attend = attend
        self._models_changed = models_changed

    def workspace_folder(self) -> Path:
        chosen = str(option("ddpm_workspace", "")).strip() or str(flag("ddpm_workspace", ""))
        return Path(chosen).expanduser() if chosen else data_path() / "ddpm"

    def models_folder(self) -> Path:
        return models_path() / "DDPM"

    def device(self) -> torch.device:
        if "all" in (flag("use_cpu") or []) or flag("always_cpu", False):
            return torch.device("cpu")
        return torch.device(devices.get_optimal_device())

    def image_folders(self) -> dict[str, Path]:
        everything = str(option("outdir_samples", ""))
        kinds = {
            "txt2img": "outdir_txt2img_samples",
            "img2img": "outdir_img2img_samples",
            "extras": "outdir_extras_samples",
        }
        folders = {"all images": everything} if everything else {kind: option(key, "") for kind, key in kinds.items()}
        folders["saved"] = option("outdir_save", "")
        return {label: Path(folder).absolute() for label, folder in folders.items() if folder}

    def folders_may_be_typed(self) -> bool:
        return every_folder_allowed() or bool(flag("ddpm_allow_folder"))

    def typed_folder_allowed(self, path: Path) -> bool:
        if every_folder_allowed():
            return True
        try:
            resolved = path.expanduser().resolve()
            allowed = [Path(folder).expanduser().resolve() for folder in flag("ddpm_allow_folder") or []]
        except (OSError, RuntimeError, ValueError):
            return False
        return any(resolved.is_relative_to(folder) for folder in allowed)

    def gpu_slice(self) -> AbstractContextManager[None]:
        return self._slice()

    @contextmanager
    def _slice(self) -> Iterator[None]:
        with queue_lock:
            self.memory.before_slice()
            yield
            if self.device().type == "cuda":
                torch.cuda.synchronize(self.device())  # what was asked for is done when the next one has its turn
        time.sleep(_PAUSE_SECONDS)

    def room_for(self, megabytes: Callable[[], float]) -> AbstractContextManager[None]:
        self._attend()
        return self.memory.room_for(megabytes)

    def save_image(self, image: Image.Image, text: str, seed: int, number: int) -> Path | None:
        from .naming import save_image

        with queue_lock:  # the host numbers its files under it
            return save_image(image, text, seed)

    def upscalers(self) -> list[str]:
        from .upscaling import upscalers

        return upscalers()

    def enlarge(self, image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image | None:
        from .upscaling import enlarge

        return enlarge(image, size, upscaler)

    def models_changed(self) -> None:
        self._models_changed()

    def text_encoder(self) -> TextEncoder:
        from .encoder import WebUITextEncoder

        return WebUITextEncoder(self.memory.before_generation)

    def output_panel(self, pictures: Callable[[], list[tuple[Image.Image, str]]]) -> OutputPanel:
        from .pages.panel import WebUIPanel

        return WebUIPanel(pictures)

    def generate(self, request: GenerationRequest, seeds: list[int], stop: threading.Event) -> list[Generated]:
        from .generation import generate

        self._attend()
        return generate(request, seeds, stop, self.memory.before_generation)

    def generation_choices(self) -> dict[str, list[str]]:
        from .choices import generation_choices

        return generation_choices()

    def styled(self, prompt: str, negative: str, styles: Sequence[str]) -> tuple[str, str]:
        from .choices import styled

        return styled(prompt, negative, styles)

    def collecting_rule(self) -> Rule:
        return Rule(bool(option("ddpm_collect", False)), str(option("ddpm_collect_dataset", "collected")))

    def report_pictures(self, wanted: bool) -> None:
        if wanted:
            self._listen()

    def preview_seconds(self) -> float:
        return float(option("ddpm_preview_seconds", 10))

    def keep_checkpoints(self) -> int:
        return int(option("ddpm_checkpoints", 2))

    def page_allows(self, request: Any) -> bool:
        return doors.page_allows(request)

    def api_refusal(self, request: Any) -> tuple[int, dict[str, str]] | None:
        return doors.api_refusal(request)
