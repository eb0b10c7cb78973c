"""Our part in each of the host's generations; without a control, and costing nothing where there is nothing to do."""

from __future__ import annotations

from typing import Any

from modules import scripts

from . import register


class DDPMScript(scripts.Script):  # type: ignore[misc]
    def title(self) -> str:
        return "DDPM"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def before_process(self, p: Any, *args: Any) -> None:
        register.before_generation(p)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        register.generation_ended(p, processed)
