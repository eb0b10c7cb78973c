"""Dataset sub-tab: harvest folders, collect what is generated, look through what came, keep or reject."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..collector import Rule
from ..errors import UserError
from ..requests import Collection, GenerationRequest
from ..service import Service
from . import ids
from .common import decimal, in_browser, live, not_in_defaults, note, said, whole

if TYPE_CHECKING:
    from ..dataset.wanted import Wanted

_INTRO = (
    "Collect images you generated, review them, and reject what the model should not learn. Your files are only read,"
    " never moved, changed or deleted."
)
_CANNOT_SEE = (
    "The checks reject broken, blank and duplicate images and noise, and list outliers first. A deformed hand needs your"
    " own eyes. Click an image to select it (Shift or Ctrl for several), move with the arrow keys, press X or double-click"
    " to reject or keep, Enter for the next page, Z to undo. Then open Train."
)
_NO_FOLDERS = (
    "No folder can be named here, since other machines can reach this page. Harvest on the machine itself, with ./standalone.sh "
    "harvest --dataset NAME FOLDER; the dataset then appears here."
)
_COLLECTING = (
    "While this is on, every image saved by txt2img and img2img is also added to the dataset, except grids, masks and"
    " intermediate images. It stays on until you turn it off."
)
_ASKING = (
    "The WebUI generates these images with its current checkpoint, one batch at a time between your own generations, "
    "each image with the next seed. If it is stopped or interrupted, you can resume it."
)

TITLE = "Dataset"


def build(service: Service) -> dict[str, Any]:
    """Build the sub-tab; returns the components that others update."""
    gr.HTML(note(_INTRO))
    with gr.Row():
        name = gr.Dropdown(
            label="Dataset",
            choices=[],
            value=None,
            allow_custom_value=True,
            elem_id=ids.DATASET_NAME,
            info="Choose one, or type a new name",
        )
    not_in_defaults(name)
    if service.host.generates:
        with gr.Tabs(elem_id="ddpm_ways"):
            with gr.Tab("From folders", elem_id="ddpm_way_folders"):
                _folders(service, name)
            with gr.Tab("Collect as I generate", elem_id="ddpm_way_collect"):
                _collecting(service, name)
            with gr.Tab("Generate and collect", elem_id="ddpm_way_ask"):
                _asking(service, name)
    else:
        _folders(service, name)
    live("review")
    gr.HTML(note(_CANNOT_SEE))
    with gr.Accordion("Words", open=False, elem_id=ids.WORDS):
        live("words")
    with gr.Accordion("Manage datasets", open=False, elem_id=ids.TRASH_DATASET):
        live("trash_dataset")
    return {"dataset": name}


def _folders(service: Service, name: Any) -> None:
    host = service.host
    offered = list(host.image_folders())
    if not offered and not host.folders_may_be_typed():
        gr.HTML(note(_NO_FOLDERS))
        live("harvest")
        return
    with gr.Row():
        folders = None
        if offered:
            folders = gr.Dropdown(
                label="WebUI folders",
                choices=offered,
                value=offered[:1],
                multiselect=True,
                elem_id="ddpm_dataset_offered",
            )
            not_in_defaults(folders)
        typed = gr.Textbox(
            label="Other folders",
            lines=1,
            max_lines=4,
            elem_id=ids.DATASET_FOLDERS,
            placeholder="A folder of images, including its subfolders; one folder per line",
            visible=host.folders_may_be_typed(),
        )
        not_in_defaults(typed)
        with gr.Column(scale=0, min_width=160):
            harvest = gr.Button("Harvest", variant="primary", elem_id=ids.HARVEST)
            stop = gr.Button("Stop", elem_id=ids.HARVEST_STOP)
    with gr.Accordion("Filters", open=False), gr.Row():
        since = gr.Textbox(label="From date", placeholder="2026-01-31", lines=1)
        until = gr.Textbox(label="To date", placeholder="2026-01-31", lines=1)
        words = gr.Textbox(label="Prompt contains", placeholder="portrait, woman", lines=1)
        checkpoint = gr.Textbox(label="Checkpoint", placeholder="part of its name, or its hash", lines=1)
        size = gr.Textbox(label="Size", placeholder="512x512", lines=1)
        count = gr.Button("Count matching images", elem_id=ids.HARVEST_COUNT)
    not_in_defaults(since, until, words, checkpoint, size)
    message = gr.HTML("", elem_id=ids.MESSAGE_DATASET)
    live("harvest")

    def asked(
        text: Any, first: Any, last: Any, prompt: Any, model: Any, wh: Any, *labels: Any
    ) -> tuple[list[str], Wanted]:
        from ..dataset.wanted import Wanted

        chosen = [line.strip() for line in str(text or "").splitlines() if line.strip()]
        for value in labels:
            chosen += [str(label) for label in value] if isinstance(value, list) else []
        return chosen, Wanted.parse(*(str(value or "") for value in (first, last, prompt, model, wh)))

    def start(dataset: Any, *values: Any) -> str:
        service.start_harvest(str(dataset or ""), *asked(*values))
        return ""

    def tell(dataset: Any, *values: Any) -> str:
        service.start_harvest("", *asked(*values), count_only=True)
        return ""

    inputs = [name, typed, since, until, words, checkpoint, size, *([folders] if folders is not None else [])]
    harvest.click(said(start), inputs=inputs, outputs=[message])
    count.click(said(tell), inputs=inputs, outputs=[message])
    stop.click(
        said(_ending(service, ("harvest", "count"), "Nothing is being harvested.")), inputs=[], outputs=[message]
    )


def _collecting(service: Service, name: Any) -> None:
    rule = service.collector.rule
    gr.HTML(note(_COLLECTING))
    with gr.Row():
        words = gr.Textbox(
            label="Prompt contains",
            value=rule.words,
            placeholder="comma-separated words (empty = all images)",
            lines=1,
            elem_id=ids.COLLECT_WORDS,
        )
        on = gr.Button("Collect into this dataset", variant="primary", elem_id=ids.COLLECT)
        off = gr.Button("Stop collecting", elem_id=ids.COLLECT_SET)
    not_in_defaults(words)
    message = gr.HTML("", elem_id=ids.MESSAGE_COLLECT)
    live("collecting")

    def switch_on(dataset: Any, text: Any) -> str:
        if not dataset:
            raise UserError("Choose a dataset above, or type a new name.")
        service.collector.set_rule(Rule(True, str(dataset), str(text or "")))
        return ""

    def switch_off() -> str:
        current = service.collector.rule
        service.collector.set_rule(Rule(False, current.dataset, current.words))
        return ""

    on.click(said(switch_on), inputs=[name, words], outputs=[message])
    off.click(said(switch_off), inputs=[], outputs=[message])


def _asking(service: Service, name: Any) -> None:
    known = service.host.generation_choices()
    gr.HTML(note(_ASKING))
    with gr.Row():
        prompt = gr.Textbox(label="Prompt (Stable Diffusion)", lines=2, elem_id=ids.ASK_PROMPT)
        negative = gr.Textbox(label="Negative prompt (Stable Diffusion)", lines=2, elem_id=ids.ASK_NEGATIVE)
    with gr.Row():
        each_line = gr.Checkbox(
            label="One prompt per line",
            value=False,
            info="The images are divided among the lines",
            elem_id=ids.ASK_LINES,
        )
        styles = gr.Dropdown(
            label="Styles", choices=known["styles"], value=[], multiselect=True, visible=bool(known["styles"])
        )
    with gr.Row():
        sampler = gr.Dropdown(
            label="Sampling method (Stable Diffusion)",
            choices=known["samplers"],
            value=next(iter(known["samplers"]), None),
        )
        scheduler = gr.Dropdown(
            label="Schedule type",
            choices=known["schedulers"],
            value=next(iter(known["schedulers"]), None),
            visible=bool(known["schedulers"]),
        )
        steps = gr.Slider(label="Sampling steps (Stable Diffusion)", minimum=1, maximum=150, step=1, value=20)
        scale = gr.Slider(label="CFG scale", minimum=1, maximum=30, step=0.5, value=7)
    with gr.Row():
        width = gr.Slider(label="Width", minimum=64, maximum=2048, step=8, value=512)
        height = gr.Slider(label="Height", minimum=64, maximum=2048, step=8, value=512)
        count = gr.Number(label="Number of images to collect", value=1000, precision=0, elem_id=ids.ASK_COUNT)
        batch = gr.Slider(label="Batch size", minimum=1, maximum=64, step=1, value=1)
        number = gr.Number(label="First seed (-1 = random)", value=-1, precision=0, elem_id=ids.ASK_SEED)
    with gr.Row():
        start = gr.Button("Generate and collect", variant="primary", elem_id=ids.ASK_START)
        stop = gr.Button("Stop generating", elem_id=ids.ASK_STOP)
        take = gr.Button("Copy settings from txt2img", elem_id=ids.ASK_TAKE_OVER)
    message = gr.HTML("", elem_id=ids.MESSAGE_ASK)
    live("collect")
    taken = [prompt, negative, sampler, scheduler, steps, scale, width, height]
    fields = [*taken, count, batch, number, each_line, styles]
    not_in_defaults(*fields)

    def begin(dataset: Any, *values: Any) -> str:
        if not dataset:
            raise UserError("Choose a dataset above, or type a new name.")
        (
            text,
            not_text,
            sampler_,
            scheduler_,
            steps_,
            scale_,
            width_,
            height_,
            count_,
            batch_,
            seed_,
            lines_,
            styles_,
        ) = values
        count_, batch_ = whole(count_, "Number of images"), whole(batch_, "Batch size")
        steps_, width_, height_ = whole(steps_, "Steps"), whole(width_, "Width"), whole(height_, "Height")
        request = GenerationRequest(
            str(text or ""),
            str(not_text or ""),
            str(sampler_ or ""),
            str(scheduler_ or ""),
            steps_,
            decimal(scale_, "CFG scale"),
            width_,
            height_,
            bool(lines_),
            [str(style) for style in styles_] if isinstance(styles_, list) else [],
        )
        wanted = Collection(request, count_, batch_, whole(seed_, "First seed", -1))
        service.start_collecting(str(dataset), wanted)
        return ""

    start.click(said(begin), inputs=[name, *fields], outputs=[message])
    stop.click(said(_ending(service, ("collect",), "Nothing is being generated.")), inputs=[], outputs=[message])
    take.click(None, inputs=taken, outputs=taken, **in_browser("(...values) => window.ddpmTakeOver(...values)"))


def _ending(service: Service, kinds: tuple[str, ...], nothing: str) -> Callable[[], str]:
    return lambda: "" if sum(service.stop(kind) for kind in kinds) else nothing
