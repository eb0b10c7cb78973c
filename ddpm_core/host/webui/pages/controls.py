"""The controls of our scripts in txt2img and img2img."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.ui_components import FormRow, InputAccordion, ToolButton

from ....errors import UserError
from ....options import WEIGHTS
from ....requests import NATIVE
from ....sampling import DEFAULT_SAMPLER, SAMPLERS
from ....sampling.guidance import DEFAULT_SCALE
from ....service import Service
from ..upscaling import upscalers
from .sampling import NEWEST

_REFRESH = "\U0001f504"


class Controls:
    """Built in the page being built. ``values`` are in the order that :meth:`sampling.Choice.read` takes them."""

    def __init__(self, service: Callable[[], Service], elem_id: Callable[[str], str], count: bool) -> None:
        self._service = service
        names = self._names()
        with FormRow():
            self.model = gr.Dropdown(
                label="DDPM model",
                choices=[NEWEST, *names],
                value=NEWEST,
                elem_id=elem_id("model"),
            )
            refresh = ToolButton(_REFRESH, elem_id=elem_id("refresh"), tooltip="Refresh")
            self.count = gr.Slider(
                label="DDPM images per generation",
                minimum=1,
                maximum=64,
                step=1,
                value=1,
                visible=count,
                elem_id=elem_id("count"),
            )
        with FormRow():
            self.sampler = gr.Dropdown(
                label="DDPM sampling method",
                choices=[sampler.label for sampler in SAMPLERS.values()],
                value=SAMPLERS[DEFAULT_SAMPLER].label,
                elem_id=elem_id("sampler"),
            )
            self.steps = gr.Slider(
                label="DDPM sampling steps",
                minimum=1,
                maximum=1000,
                step=1,
                value=SAMPLERS[DEFAULT_SAMPLER].default_steps,
                elem_id=elem_id("steps"),
            )
        with FormRow():
            self.seed = gr.Number(
                label="DDPM seed (-1 = same as the generation)", value=-1, precision=0, elem_id=elem_id("seed")
            )
            self.upscaler = gr.Dropdown(
                label="Resize to image size with",
                choices=[NATIVE, *self._upscalers()],
                value="Lanczos",
                elem_id=elem_id("upscaler"),
            )
            self.weights = gr.Radio(
                label="DDPM weights", choices=list(WEIGHTS), value="ema", elem_id=elem_id("weights")
            )
        self.scale = gr.Slider(
            label="DDPM CFG scale",
            minimum=1,
            maximum=30,
            step=0.5,
            value=DEFAULT_SCALE,
            elem_id=elem_id("cfg_scale"),
        )
        self.model.do_not_save_to_config = True  # which models there are changes
        refresh.click(self.refreshed, inputs=[self.model], outputs=[self.model], show_progress=False)
        self.sampler.input(_default_steps, inputs=[self.sampler], outputs=[self.steps], show_progress=False)

    @property
    def values(self) -> list[Any]:
        """The widgets in the order of a script's arguments."""
        return [self.model, self.count, self.sampler, self.steps, self.seed, self.upscaler, self.weights, self.scale]

    def _upscalers(self) -> list[str]:
        try:
            return self._service().upscalers()
        except UserError:
            return upscalers()

    def _names(self) -> list[str]:
        try:
            return self._service().workspace.model_names("unet")
        except UserError:  # the tab says it
            return []

    def refreshed(self, current: Any) -> Any:
        """The dropdown with the models that there are now; what was chosen stays, if it is still there."""
        names = self._names()
        chosen = current if current in names else NEWEST
        return gr.update(choices=[NEWEST, *names], value=chosen)

    def picked(self, name: Any) -> Any:
        """The dropdown on the model of a card."""
        names = self._names()
        if name not in names:
            text = f"There is no model {name!r} here; another one is chosen."
            gr.Warning(text if gr.__version__.startswith("3.") else html.escape(text))  # from 4 on it takes markup
            return gr.update(choices=[NEWEST, *names])
        return gr.update(choices=[NEWEST, *names], value=name)

    def paste_fields(self) -> list[tuple[Any, Callable[[dict[str, Any]], Any]]]:
        """Component and what it takes from a pasted generation text; None leaves it as it is."""
        labels = {sampler.name: sampler.label for sampler in SAMPLERS.values()}

        def model(text: dict[str, Any]) -> Any:
            return self.picked(text["DDPM model"]) if "DDPM model" in text else None

        def upscaler(text: dict[str, Any]) -> Any:
            return text.get("DDPM upscaler", NATIVE) if "DDPM model" in text else None

        return [
            (self.model, model),
            (self.sampler, lambda text: labels.get(text.get("DDPM sampler", ""))),
            (self.steps, lambda text: text.get("DDPM steps")),
            (self.seed, lambda text: -1 if "DDPM model" in text else None),  # the host's seed takes the text's
            (self.upscaler, upscaler),
            (self.weights, lambda text: text.get("DDPM weights")),
            (self.scale, lambda text: text.get("CFG scale") if "DDPM model" in text else None),
        ]


class Accordion:
    """The controls in an accordion that is open when they count, as the host's own (Refiner, Hires. fix)."""

    def __init__(self, service: Callable[[], Service], elem_id: Callable[[str], str], tabname: str) -> None:
        with InputAccordion(False, label="DDPM", elem_id=elem_id("enable")) as self.enabled:
            self.controls = controls = Controls(service, elem_id, count=True)
            # a card is clicked: the page writes the model's name here and presses the button
            name = gr.Textbox(label="Model of the card", elem_id=f"{tabname}_ddpm_card", elem_classes=["ddpm-hidden"])
            pick = gr.Button("Take the card", elem_id=f"{tabname}_ddpm_card_take", elem_classes=["ddpm-hidden"])
        name.do_not_save_to_config = True
        pick.click(
            lambda value: (True, controls.picked(value)),
            inputs=[name],
            outputs=[self.enabled, controls.model],
            show_progress=False,
        )
        # models trained since the page was loaded
        self.enabled.change(controls.refreshed, inputs=[controls.model], outputs=[controls.model], show_progress=False)

    @property
    def values(self) -> list[Any]:
        """The widgets in the order of a script's arguments."""
        return [self.enabled, *self.controls.values]

    def paste_fields(self) -> list[tuple[Any, Callable[[dict[str, Any]], Any]]]:
        """Widgets and the keys of the generation text that fill them."""
        return [
            (self.enabled, lambda text: True if "DDPM model" in text else None),
            *self.controls.paste_fields(),
        ]


def _default_steps(label: Any) -> Any:
    found = next((s for s in SAMPLERS.values() if s.label == label), None)
    return gr.update(value=found.default_steps) if found else gr.update()
