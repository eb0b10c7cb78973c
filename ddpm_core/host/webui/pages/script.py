"""Our scripts: the accordion, which is part of each generation and costs nothing while it is closed; and our model alone."""

from __future__ import annotations

from typing import Any

from modules import scripts

from .. import register


class DDPMScript(scripts.Script):  # type: ignore[misc]
    """Adds samples of a model to each generation of the host."""

    def title(self) -> str:
        return "DDPM"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        from .axes import add_axes
        from .controls import Accordion

        add_axes(register.service)  # before the plot's own ui(), with a page or without
        accordion = Accordion(register.service, self.elem_id, "img2img" if is_img2img else "txt2img")
        self.infotext_fields = accordion.paste_fields()
        return accordion.values

    def before_process(self, p: Any, *args: Any) -> None:
        register.before_generation(p)

    def process_batch(self, p: Any, *args: Any, **batch: Any) -> None:
        if batch.get("batch_number") == 0:
            register.generation_begins(p, args)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        register.generation_ended(p, processed, args)


class DDPMAloneScript(scripts.Script):  # type: ignore[misc]
    """Samples a model instead of Stable Diffusion."""

    def title(self) -> str:
        return "DDPM alone"

    def show(self, is_img2img: bool) -> bool:
        return not is_img2img

    def ui(self, is_img2img: bool) -> list[Any]:
        from .controls import Controls

        return Controls(register.service, self.elem_id, count=False).values

    def run(self, p: Any, *args: Any) -> Any:
        from .alone import generate

        return generate(register.service(), p, args)
