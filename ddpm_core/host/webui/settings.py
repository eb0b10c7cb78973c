"""Our section in the host's settings. Each is read anew when it is needed, so that a change counts at once."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
from modules import shared
from modules.options import OptionInfo

from .facts import ALWAYS, AUTOMATIC, NEVER, every_folder_allowed

SECTION = ("ddpm", "DDPM")


def add_settings(collecting_changed: Callable[[], object]) -> None:
    """``collecting_changed`` is called when a person has changed whether to collect."""
    options = {
        "ddpm_workspace": OptionInfo(
            "",
            "Folder for datasets and runs",
            component_args={"visible": every_folder_allowed()},  # the host lets no one change what is not visible
            onchange=collecting_changed,  # another workspace has another rule
            section=SECTION,
            restrict_api=True,
        ).info("empty = ddpm in the WebUI's data folder; the old folder keeps its content"),
        "ddpm_collect": OptionInfo(
            False,
            "Collect as I generate",
            onchange=collecting_changed,
            section=SECTION,
        ).info("once you have used the tab's buttons for this, they take precedence"),
        "ddpm_collect_dataset": OptionInfo("collected", "Dataset to collect into", section=SECTION),
        "ddpm_memory": OptionInfo(
            AUTOMATIC,
            "Unload Stable Diffusion while training",
            gr.Radio,
            {"choices": [AUTOMATIC, ALWAYS, NEVER]},
            section=SECTION,
        ).info("automatic = when the training would not fit beside it; back before the next generation"),
        "ddpm_preview_seconds": OptionInfo(
            10,
            "Seconds between previews",
            gr.Slider,
            {"minimum": 5, "maximum": 600, "step": 5},
            section=SECTION,
        ),
        "ddpm_checkpoints": OptionInfo(
            2,
            "Checkpoints to keep",
            gr.Slider,
            {"minimum": 1, "maximum": 20, "step": 1},
            section=SECTION,
        ).info("the best one is always kept as well"),
    }
    for key, info in options.items():
        shared.opts.add_option(key, info)
