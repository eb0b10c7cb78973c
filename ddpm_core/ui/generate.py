"""Generate sub-tab: sample from a model, see the pictures emerge, look at them."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from ..errors import UserError
from ..options import fields_of
from ..requests import MOST_FACTOR, NATIVE, OWN_UPSCALER, Interpolation, SampleRequest
from ..results import Result
from ..sampling import DEFAULT_SAMPLER, SAMPLERS
from ..service import Service
from . import ids
from .common import (
    decimal,
    failure,
    in_browser,
    in_rows,
    live,
    not_in_defaults,
    said,
    start_image,
    value_of,
    whole,
    widget,
)
from .common import seed as seed_from

_NEWEST = "newest"
_SOME_VARIATION = 0.2
_LABELS = {s.label: s.name for s in SAMPLERS.values()}

TITLE = "Generate"
_LIKE = (
    "A model that was trained to be told what its images are like (Prompts: image) makes others like an image that you drop here, "
    "without a prompt."
)
_EDITING = "Drop an image here or take a result: Generate starts from it. Draw on it to change only that part."


class Panel:
    """Pictures and their texts, where the host has no panel of its own; fulfils ``host.base.OutputPanel``."""

    def __init__(self, pictures: Callable[[], list[tuple[Image.Image, str]]]) -> None:
        self._pictures = pictures
        gallery = gr.Gallery(
            label="Output", show_label=False, elem_id=ids.GALLERY, columns=4, object_fit="contain", preview=False
        )
        text = gr.HTML("", elem_id=ids.TEXT)
        self.outputs = [gallery, text]
        gallery.select(self._selected, inputs=None, outputs=[text])

    def number(self, index: int) -> int:
        """Which result stands at an index of the gallery."""
        return index

    def show(self) -> list[Any]:
        """Show images with their texts."""
        found = self._pictures()
        return [[_visible(image) for image, _ in found], _text(found[0][1]) if found else ""]

    def _selected(self, event: gr.SelectData) -> str:
        found = self._pictures()
        index = event.index if isinstance(event.index, int) else 0
        return _text(found[index][1]) if 0 <= index < len(found) else ""


def build(service: Service) -> dict[str, Any]:
    """Build the Generate page; returns the widgets that other pages fill."""

    def pictures() -> list[tuple[Image.Image, str]]:
        job = service.jobs.latest("sample")
        found: list[Result] = job.artifacts.get("results", []) if job else []
        return [(result.image, result.text) for result in found]

    fields = fields_of(SampleRequest)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            with gr.Row():
                model = gr.Dropdown(label="Model", choices=[], value=None, allow_custom_value=True, elem_id=ids.MODEL)
                step = gr.Dropdown(label="Training step", choices=[_NEWEST], value=_NEWEST, elem_id=ids.CHECKPOINT)
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="What the images shall show, in words that the model knows",
                lines=2,
                elem_id=ids.PROMPT,
            )
            negative = gr.Textbox(label="Negative prompt", lines=1, elem_id=ids.NEGATIVE)
            live("model_words")
            adapter = gr.Dropdown(
                label="Add an adapter to the prompt", choices=[""], value="", visible=False, elem_id=ids.ADAPTER
            )
            known = service.host.generation_choices()["styles"]
            styles = gr.Dropdown(label="Styles", choices=known, value=[], multiselect=True, visible=bool(known))
            scale = widget(fields["cfg_scale"], elem_id=ids.CFG_SCALE)
            with gr.Row():
                sampler = gr.Dropdown(
                    label="Sampling method",
                    choices=list(_LABELS),
                    value=SAMPLERS[DEFAULT_SAMPLER].label,
                    elem_id=ids.SAMPLER,
                )
                steps = gr.Slider(
                    label="Sampling steps",
                    minimum=1,
                    maximum=1000,
                    step=1,
                    value=SAMPLERS[DEFAULT_SAMPLER].default_steps,
                    elem_id=ids.STEPS,
                )
            with gr.Row():
                count = gr.Slider(label="Number of images", minimum=1, maximum=100, step=1, value=16, elem_id=ids.COUNT)
                seed = gr.Number(label="Seed (-1 = random)", value=-1, precision=0, elem_id=ids.SEED)
            with gr.Accordion("More sampling settings", open=False):
                more = [
                    field
                    for field in fields.values()
                    if field.option.label and not field.option.group and field.name != "cfg_scale"
                ]
                widgets = [widget(field, **({"elem_id": ids.ETA} if field.name == "eta" else {})) for field in more]
            with gr.Row():
                upscaler = gr.Dropdown(
                    label="Upscaler",
                    choices=[NATIVE, *service.upscalers()],
                    value=NATIVE,
                    elem_id=ids.UPSCALER,
                )
                factor = gr.Slider(
                    label="Scale by",
                    minimum=1,
                    maximum=MOST_FACTOR,
                    step=0.5,
                    value=4,
                    visible=False,
                    elem_id=ids.FACTOR,
                )
            with gr.Accordion("Edit an image", open=False, elem_id="ddpm_edit") as edit:
                gr.HTML(
                    f'<div class="ddpm-note">{_EDITING}</div>',
                )
                edited = start_image(label="Start image", elem_id=ids.EDITED, height=240)
                live("mask")
                drawn = gr.Textbox("", show_label=False, elem_id=ids.MASK, elem_classes=["ddpm-hidden"])
                with gr.Row():
                    edit_last = gr.Button("Use the selected result", elem_id="ddpm_edit_last")
                    edit_none = gr.Button("Remove the image", elem_id="ddpm_edit_none")
                editing = [field for field in fields.values() if field.option.group == "edit"]
                edit_widgets = in_rows(editing)
            with gr.Accordion("Variations", open=False, elem_id="ddpm_variations"):
                vary = gr.Button("Vary the selected result", elem_id="ddpm_vary")
                varying = [field for field in fields.values() if field.option.group == "variation"]
                vary_widgets = in_rows(varying)
                gr.HTML(f'<div class="ddpm-note">{_LIKE}</div>')
                like = start_image(label="Image to make others like", elem_id="ddpm_like", height=160)
                with gr.Row():
                    like_last = gr.Button("More like the selected result", elem_id="ddpm_like_last")
                    like_none = gr.Button("Remove this image", elem_id="ddpm_like_none")
            with gr.Accordion("Interpolate", open=False, elem_id="ddpm_interpolate"):
                going = list(fields_of(Interpolation).values())
                going_widgets = in_rows(going)
                interpolate = gr.Button("Generate what lies between", elem_id="ddpm_interpolate_start")
            with gr.Accordion("Learned or memorised?", open=False):
                against = gr.Dropdown(label="Compare with dataset", choices=[], value=None, allow_custom_value=True)
                with gr.Row():
                    evaluate = gr.Button("Evaluate", elem_id="ddpm_evaluate")
                    evaluate_upscaler = gr.Button(
                        "Evaluate the upscaler", visible=False, elem_id="ddpm_evaluate_upscaler"
                    )
                live("evaluate")
            with gr.Accordion("Manage models", open=False, elem_id=ids.TRASH_MODEL):
                live("trash_model")
        with gr.Column(scale=1, min_width=320, elem_id=ids.RESULTS):
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", elem_id=ids.GENERATE)
                interrupt = gr.Button("Interrupt", elem_id=ids.INTERRUPT)
                skip = gr.Button("Skip", elem_id=ids.SKIP)
            message = gr.HTML("", elem_id=ids.MESSAGE_GENERATE)
            live("sample")
            panel = service.host.output_panel(pictures) or Panel(pictures)
            live("animation")
    not_in_defaults(model, against, step, prompt, negative, scale, styles, adapter)
    edit_item = gr.Button("Edit this image", elem_id=ids.EDIT_ITEM, elem_classes=["ddpm-hidden"])
    show = gr.Button("Show results", elem_id=ids.SHOW_RESULTS, elem_classes=["ddpm-hidden"])

    def begin(*values: Any) -> str:
        service.start_sampling(asked_for(values))
        return ""

    def begin_between(*values: Any) -> str:
        here = len(values) - len(going)
        between = {field.name: value_of(field, value) for field, value in zip(going, values[here:])}
        service.start_interpolation(asked_for(values[:here]), Interpolation(**between))
        return ""

    def asked_for(values: Sequence[Any]) -> SampleRequest:
        (
            name,
            label,
            calls,
            total,
            number,
            enlarge,
            times,
            checkpoint,
            text,
            not_text,
            strictly,
            looks,
            given,
            painted,
            alike,
            *others,
        ) = values
        if not name:
            raise UserError("Choose a model first: train one in the Train tab.")
        asked, unwanted = service.host.styled(
            str(text or ""), str(not_text or ""), [str(look) for look in looks] if isinstance(looks, list) else []
        )
        enlarged = None if enlarge in (None, NATIVE) else str(enlarge)
        from ..operations.editing import decoded_image, mask_of

        image = given if isinstance(given, Image.Image) else None
        mask = decoded_image(str(painted or ""), mask_of, "mask") if image is not None else None
        return SampleRequest(
            model=str(name),
            count=whole(total, "Number of images", 1),
            sampler=_LABELS.get(str(label), str(label)),
            steps=whole(calls, "Steps", 1),
            seed=seed_from(number),
            checkpoint_step=None if checkpoint in (None, "", _NEWEST) else whole(checkpoint, "Training step"),
            upscaler=enlarged,
            factor=decimal(times, "Scale by", 1.0) if enlarged else 1.0,
            prompt=asked,
            negative_prompt=unwanted,
            cfg_scale=value_of(fields["cfg_scale"], strictly),
            image=image,
            mask=mask,
            variation_of=alike if isinstance(alike, Image.Image) else None,
            **{field.name: value_of(field, value) for field, value in zip((*more, *editing, *varying), others)},
        )

    def end() -> str:
        return "" if service.stop("sample") else "Nothing is being generated."

    def compare(name: Any, dataset: Any) -> str:
        if not name or not dataset:
            raise UserError("Choose a model and a dataset to compare with.")
        service.start_evaluation(str(name), str(dataset), 256)
        return ""

    def compare_upscaler(entry: Any, dataset: Any) -> str:
        if not dataset:
            raise UserError("Choose a dataset to compare with.")
        service.start_evaluation(str(entry)[len(OWN_UPSCALER) :], str(dataset), 0)
        return ""

    def of_upscaler(entry: Any) -> Any:
        """What belongs to the chosen upscaler: its factor; whether it is one of ours, which can be judged."""
        return gr.update(visible=entry not in (None, NATIVE)), gr.update(visible=str(entry).startswith(OWN_UPSCALER))

    def default_steps(label: Any) -> Any:
        name = _LABELS.get(str(label))
        return gr.update(value=SAMPLERS[name].default_steps) if name else gr.update()

    def of_model(name: Any, entry: Any) -> Any:
        """What belongs to the chosen model: its checkpoints, the dataset that it learned from, its upscaler."""
        name = str(name or "")
        if name not in service.workspace.model_names():
            return gr.update(choices=[_NEWEST], value=_NEWEST), gr.update(), gr.update(), adapter_list(service, name)
        try:
            own = service.workspace.show_model(name)["info"].get("dataset")
            kept = [str(number) for number in service.workspace.checkpoint_steps(name) if number]
        except UserError:  # said when it is used
            own, kept = None, []
        names = service.workspace.dataset_names()
        upscaled = service.workspace.upscaler_of(name)
        # a person's own choice among the host's stays
        if entry not in (None, NATIVE) and not str(entry).startswith(OWN_UPSCALER):
            enlarging = gr.update()
        else:
            entries = [NATIVE, *service.upscalers()]
            enlarging = gr.update(choices=entries, value=OWN_UPSCALER + upscaled if upscaled else NATIVE)
        return (
            gr.update(choices=[_NEWEST, *kept], value=_NEWEST),
            gr.update(value=own) if own in names else gr.update(),
            enlarging,
            adapter_list(service, name),
        )

    def add_adapter(name: Any, text: Any) -> Any:
        """What calls an adapter, at the end of the prompt; and the list as it was."""
        if not name:
            return gr.update(), gr.update()
        try:
            word = service.workspace.show_model(str(name)).get("concept") or ""
        except UserError:  # deleted meanwhile
            return gr.update(), gr.update(value="")
        parts = [str(text or "").strip(), f"<ddpm:{name}:1>", word]
        return gr.update(value=" ".join(part for part in parts if part)), gr.update(value="")

    def selected(index: Any, shown: Any) -> Result:
        """The result at an index of the gallery, which shows those of a job; the first where none is selected."""
        job = service.jobs.get(int(shown)) if isinstance(shown, (int, float)) else None
        found: list[Result] = job.artifacts.get("results", []) if job else []
        if not found:
            raise UserError("There is no result yet: generate first.")
        number = panel.number(int(index) if isinstance(index, (int, float)) else 0)
        return found[min(max(number, 0), len(found) - 1)]

    def take(index: Any, shown: Any) -> Any:
        try:
            return gr.update(value=selected(index, shown).image), ""
        except UserError as error:
            return gr.update(), failure(str(error))

    def take_item(dataset: Any, number: Any) -> Any:
        from ..dataset.reading import read_copy

        try:
            store = service.workspace.store(str(dataset))
            return gr.update(value=read_copy(store.copy_of(int(number)))), gr.update(open=True), ""
        except (UserError, OSError) as error:
            gone = "That image is not in the dataset any more."
            return gr.update(), gr.update(), failure(str(error) if isinstance(error, UserError) else gone)

    def between(index: Any, shown: Any) -> Any:
        try:
            found = selected(index, shown)
        except UserError as error:
            return gr.update(), gr.update(), failure(str(error))
        return found.seed, _SOME_VARIATION, ""

    chosen = [
        *(
            model,
            sampler,
            steps,
            count,
            seed,
            upscaler,
            factor,
            step,
            prompt,
            negative,
            scale,
            styles,
            edited,
            drawn,
            like,
        ),
        *(*widgets, *edit_widgets, *vary_widgets),
    ]
    at = {
        "inputs": [seed, seed],
        "show_progress": False,
        **in_browser("() => [window.ddpm.selected(), window.ddpm.shown()]"),
    }  # instead of the seed
    edit_last.click(take, outputs=[edited, message], **at)
    edit_item.click(
        take_item,
        inputs=[prompt, seed],
        outputs=[edited, edit, message],
        show_progress=False,
        **in_browser("() => window.ddpm.picked"),
    )
    edit_none.click(lambda: gr.update(value=None), inputs=[], outputs=[edited], show_progress=False)
    like_last.click(take, outputs=[like, message], **at)
    like_none.click(lambda: gr.update(value=None), inputs=[], outputs=[like], show_progress=False)
    strength = vary_widgets[[field.name for field in varying].index("variation_strength")]
    vary.click(between, outputs=[seed, strength, message], **at)
    outputs = [step, against, upscaler, adapter]
    model.change(of_model, inputs=[model, upscaler], outputs=outputs, show_progress=False)
    adapter.change(add_adapter, inputs=[adapter, prompt], outputs=[prompt, adapter], show_progress=False)
    generate.click(said(begin), inputs=chosen, outputs=[message])
    interpolate.click(said(begin_between), inputs=[*chosen, *going_widgets], outputs=[message])
    interrupt.click(said(end), inputs=[], outputs=[message])
    skip.click(said(end), inputs=[], outputs=[message])
    evaluate.click(said(compare), inputs=[model, against], outputs=[message])
    show.click(panel.show, inputs=[], outputs=panel.outputs)
    evaluate_upscaler.click(said(compare_upscaler), inputs=[upscaler, against], outputs=[message])
    upscaler.change(of_upscaler, inputs=[upscaler], outputs=[factor, evaluate_upscaler], show_progress=False)
    sampler.change(default_steps, inputs=[sampler], outputs=[steps])
    return {"model": model, "dataset": against, "upscaler": upscaler, "adapter": adapter}


def adapter_list(service: Service, model: Any) -> Any:
    """The adapters of a model as the list that is not there without any."""
    names = service.workspace.adapters_of(str(model or ""))
    return gr.update(choices=["", *names], visible=bool(names))


def _visible(image: Image.Image) -> Image.Image:
    """Small pictures four times as large: a gallery shows them at their own size."""
    small = max(image.size) <= 128
    return image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST) if small else image


def _text(text: str) -> str:
    return f'<div class="ddpm-infotext">{html.escape(text)}</div>'
