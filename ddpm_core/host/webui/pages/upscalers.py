"""Our upscalers among the WebUI's: in Extras, hires fix, SD upscale, and wherever an upscaler is chosen by name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from modules import shared
from modules.upscaler import Upscaler, UpscalerData
from PIL import Image

from ....errors import UserError
from ....requests import MOST_PIXELS, OWN_UPSCALER

if TYPE_CHECKING:
    from ....service import Service

_log = logging.getLogger("ddpm_core")


class _Interrupted(threading.Event):
    """Set while the WebUI is interrupted or skips."""

    def is_set(self) -> bool:
        return bool(shared.state.interrupted or shared.state.skipped)


class UpscalerDDPM(Upscaler):  # type: ignore[misc]
    """Found by the WebUI among the classes of its ``Upscaler``; it makes one whenever it lists what it can enlarge with."""

    service: Callable[[], Service] | None = None  # set when the extension is loaded

    def __init__(self, dirname: str | None = None) -> None:
        self.name = "DDPM"
        super().__init__(False)
        self.scalers = []
        if UpscalerDDPM.service is None:
            return
        try:
            workspace = UpscalerDDPM.service().workspace
            for entry in workspace.upscalers():
                path = workspace.model_path(entry[len(OWN_UPSCALER) :])
                factor = int(getattr(workspace.model_config(path.stem).unet, "factor", 4))
                self.scalers.append(UpscalerData(entry, str(path), self, factor))
        except UserError as error:  # the host's other upscalers shall be there all the same
            _log.error("%s", error)

    def load_model(self, path: str) -> None:
        """What the WebUI's own classes have; ours loads when it is used."""

    def do_upscale(self, img: Image.Image, selected_model: str) -> Image.Image:
        """The image, as many times larger as the upscaler makes it; as it is where a person interrupts."""
        from ....operations.context import Context
        from ....operations.upscaling import Upscaler as Load
        from ....sampling.upscale import UpscaleSettings

        assert UpscalerDDPM.service is not None
        held, name = UpscalerDDPM.service(), Path(selected_model).stem
        # called within the host's turn at the device, so without one of our own; loaded anew each time, which takes less than an image
        # and leaves the host its memory
        upscaler = Load(held.workspace, name, Context(held.host.device(), stop=_Interrupted()))
        size = (img.width * upscaler.factor, img.height * upscaler.factor)
        if max(size) > MOST_PIXELS:
            raise UserError(
                f"The DDPM upscaler {name} makes images of at most {MOST_PIXELS} pixels on a side; choose a smaller image or "
                "factor."
            )
        found = upscaler.enlarge(img, size, 0, UpscaleSettings())
        return img if found is None else found


def list_anew() -> None:
    """Put our upscalers, as they are now, among those that the WebUI lists; the others stay."""
    others = [one for one in shared.sd_upscalers if not isinstance(one.scaler, UpscalerDDPM)]
    ours = UpscalerDDPM().scalers
    # where the host itself sorts them in: behind those that it has without a file
    first = next((i for i, one in enumerate(others) if one.name.lower() > "ddpm" and one.data_path), len(others))
    shared.sd_upscalers = [*others[:first], *ours, *others[first:]]
