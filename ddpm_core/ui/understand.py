"""Understand sub-tab: diffusion explained by the person's own model. Drawn by javascript/ddpm_understand.js and a file for each page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..service import Service

TITLE = "Understand"


def build(service: Service) -> dict[str, Any]:
    """Build the place that the page draws in."""
    # not empty, as places that say nothing are hidden: what is drawn in a hidden one would not know that its tab is open
    gr.HTML('<div class="ddpm-live" data-ddpm="understand"><br></div>')
    return {}
