"""Dataset sub-tab: harvest folders, look through what came, keep or reject."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..service import Service
from . import ids
from .common import live, note, said

_INTRO = (
    "Collect the pictures you generated, look through them, and throw out what the model should not learn. Your own files are only "
    "read: nothing is moved, changed or deleted."
)
_CANNOT_SEE = (
    "The checks find broken, blank, noisy and repeated pictures, and put unusual ones first. They cannot see a deformed hand or "
    "a third arm: that takes your eyes. Arrow keys move, X rejects or keeps, Enter turns the page, Z takes the last step back."
)


def build(service: Service) -> dict[str, Any]:
    """Build the sub-tab; returns the components that others update."""
    gr.HTML(note(_INTRO))
    offered = list(service.host.image_folders())
    with gr.Row():
        name = gr.Dropdown(
            label="Dataset",
            choices=[],
            value=None,
            allow_custom_value=True,
            elem_id=ids.DATASET_NAME,
            info="Choose one, or type the name of a new one",
        )
        if offered:
            folders = gr.Dropdown(
                label="Folders", choices=offered, value=offered[:1], multiselect=True, elem_id="ddpm_dataset_offered"
            )
        typed = gr.Textbox(
            label="Folders to harvest",
            lines=1,
            max_lines=4,
            elem_id=ids.DATASET_FOLDERS,
            placeholder="A folder of images, with all below it; several on lines of their own",
            visible=service.host.folders_may_be_typed(),
        )
        with gr.Column(scale=0, min_width=160):
            harvest = gr.Button("Harvest", variant="primary", elem_id=ids.HARVEST)
            stop = gr.Button("Stop", elem_id=ids.HARVEST_STOP)
    message = gr.HTML("", elem_id=ids.MESSAGE_DATASET)
    live("harvest")
    live("review")
    gr.HTML(note(_CANNOT_SEE))

    def start(dataset: Any, text: Any, *labels: Any) -> str:
        chosen = [line.strip() for line in str(text or "").splitlines() if line.strip()]
        for value in labels:
            chosen += value or []
        service.start_harvest(str(dataset or ""), chosen)
        return ""

    def end() -> str:
        return "" if service.stop("harvest") else "Nothing is being harvested."

    inputs = [name, typed, *([folders] if offered else [])]
    harvest.click(said(start), inputs=inputs, outputs=[message])
    stop.click(said(end), inputs=[], outputs=[message])
    return {"dataset": name}
