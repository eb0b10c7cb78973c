"""The whole tab: its sub-tabs in the order of the work."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..service import Service
from . import dataset, generate, ids, train
from .common import choices, existing


def build_tab(service: Service) -> None:
    """Build the tab inside the current ``gr.Blocks``."""
    with gr.Column(elem_id=ids.TAB):
        with gr.Tabs(elem_id="ddpm_tabs"):
            with gr.Tab("Dataset", elem_id="ddpm_tab_dataset"):
                in_dataset = dataset.build(service)
            with gr.Tab("Train", elem_id="ddpm_tab_train"):
                in_train = train.build(service)
            with gr.Tab("Generate", elem_id="ddpm_tab_generate"):
                in_generate = generate.build(service)
        refresh = gr.Button("Refresh lists", elem_id=ids.REFRESH, elem_classes=["ddpm-hidden"])

    def lists(*current: Any) -> Any:
        datasets, models = service.workspace.dataset_names(), service.workspace.model_names()

        data, data_train, init, trained, model, against = current
        job = service.jobs.latest("train")
        first = datasets[0] if datasets else None
        return (
            choices(datasets, data, first),
            choices(datasets, data_train, first),
            choices(["", *models], init, None),
            choices(models, trained, job.subject if job else None),
            existing(models, model, service.newest_model()),
            existing(datasets, against, first),
        )

    drawn = [
        in_dataset["dataset"],
        in_train["dataset"],
        in_train["init_from"],
        in_train["model"],
        in_generate["model"],
        in_generate["dataset"],
    ]
    refresh.click(lists, inputs=drawn, outputs=drawn)
