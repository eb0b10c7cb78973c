"""The whole tab: its sub-tabs in the order of the work."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .. import bundled
from ..requests import NATIVE
from ..service import Service
from . import dataset, generate, ids, train, understand
from .common import choices, existing, not_in_defaults
from .generate import adapter_list

# a module has a TITLE, and build(service) that returns what the lists below are drawn in, by name
PAGES = {"dataset": dataset, "train": train, "generate": generate, "understand": understand}


def build_tab(service: Service) -> None:
    """Build the tab inside the current ``gr.Blocks``."""
    built: dict[str, dict[str, Any]] = {}
    with gr.Column(elem_id=ids.TAB):
        with gr.Tabs(elem_id="ddpm_tabs"):
            for name, page in PAGES.items():
                with gr.Tab(page.TITLE, elem_id=f"ddpm_tab_{name}"):
                    built[name] = page.build(service)
        in_dataset, in_train, in_generate = built["dataset"], built["train"], built["generate"]
        # the last job that this page has taken a dataset from; on the page, for gradio keeps a state of every page for ever
        harvested = gr.Number(value=0, visible=False, show_label=False)
        finished = gr.Number(
            value=0, visible=False, show_label=False
        )  # and the last training that it has taken a model from
        not_in_defaults(harvested, finished)
        refresh = gr.Button("Refresh", elem_id=ids.REFRESH, elem_classes=["ddpm-hidden"])

    def lists(*current: Any) -> Any:
        datasets, models = service.workspace.dataset_names(), service.workspace.model_names("unet")

        data, data_train, init, base, trained, model, against, upscaler, _, seen, ended = current
        job = service.jobs.latest("train")
        first = datasets[0] if datasets else None
        newest = next(
            (j for j in service.jobs.all() if j.kind in ("harvest", "collect") and j.subject in datasets), None
        )
        # who has just trained a model wants that, and no longer the one that came along
        done = next((j for j in service.jobs.all() if j.kind == "train" and j.state == "done"), None)
        was_done = ended if isinstance(ended, (int, float)) else 0
        if done is not None and done.id > was_done and model in bundled.names() and done.subject in models:
            model = None
        before = seen if isinstance(seen, (int, float)) else 0
        fresh = newest if newest is not None and newest.id > before else None
        return (
            choices(datasets, data, first),
            # what was just harvested is what a person wants to train on
            gr.update(choices=datasets, value=fresh.subject) if fresh else choices(datasets, data_train, first),
            choices(["", *models], init, None),
            choices(["", *models, *service.workspace.model_names("upscaler")], base, None),
            choices(service.workspace.model_names(), trained, job.subject if job else None),
            existing(models, model, service.workspace.newest_model()),
            existing(datasets, against, first),
            existing([NATIVE, *service.upscalers()], upscaler, NATIVE),
            adapter_list(service, model),
            newest.id if newest is not None else 0,
            done.id if done is not None else 0,
        )

    drawn = [
        in_dataset["dataset"],
        in_train["dataset"],
        in_train["init_from"],
        in_train["base"],
        in_train["model"],
        in_generate["model"],
        in_generate["dataset"],
        in_generate["upscaler"],
        in_generate["adapter"],
        harvested,
        finished,
    ]

    def chosen(name: Any) -> Any:
        """The dataset of the Dataset tab is the one to train on, once it is there."""
        return gr.update(value=name) if name in service.workspace.dataset_names() else gr.update()

    in_dataset["dataset"].change(
        chosen, inputs=[in_dataset["dataset"]], outputs=[in_train["dataset"]], show_progress=False
    )
    refresh.click(lists, inputs=drawn, outputs=drawn)
