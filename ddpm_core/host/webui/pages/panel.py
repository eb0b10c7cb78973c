"""The host's own output panel, for our tab: gallery, save, zip, send to img2img, inpaint and extras."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from modules import images, infotext_utils, ui_common
from PIL import Image

from ....operations.pictures import enlarge_plainly
from ....ui.common import in_browser
from ..facts import option
from ..naming import sample_folder

_LEAST_SIDE = 512  # of what is sent on: the host takes over the size of what it is sent, and its sliders begin at 64
_MULTIPLE = 8
_TABNAME = "ddpm"
# a moment later, when the page has marked the picture as selected
_INDEX = "async (info, _) => { await new Promise(r => setTimeout(r, 100)); return [info, selected_gallery_index()]; }"


class WebUIPanel:
    """Built in the page being built; fulfils ``host.base.OutputPanel``."""

    def __init__(self, pictures: Callable[[], list[tuple[Image.Image, str]]]) -> None:
        self._pictures = pictures
        bindings = infotext_utils.registered_param_bindings
        known = len(bindings)
        panel = ui_common.create_output_panel(_TABNAME, sample_folder())
        for binding in bindings[known:]:
            self._send_enlarged(binding, panel.gallery)
        self.outputs = [panel.gallery, panel.generation_info, panel.infotext]
        info, text = panel.generation_info, panel.infotext
        if gr.__version__.startswith("3."):
            panel.gallery.select(_selected, inputs=[info], outputs=[text], show_progress=False)
        else:  # whose event refuses pictures that lie in the host's folders; the host's own function knows the index
            panel.gallery.select(_show, inputs=[info, info], outputs=[text], show_progress=False, js=_INDEX)

    def _send_enlarged(self, binding: Any, gallery: Any) -> None:
        """Let a button of the panel send an enlarged copy: it fills a hidden picture, and presses what sends that."""
        visible, target = binding.paste_button, binding.tabname
        copy = gr.Image(visible=False, type="pil", elem_id=f"{_TABNAME}_copy_for_{target}")
        press = f"{_TABNAME}_paste_to_{target}"
        binding.paste_button = gr.Button("Send the copy", elem_id=press, elem_classes=["ddpm-hidden"])
        binding.source_image_component = copy
        visible.click(
            _enlarged,
            inputs=[gallery],
            outputs=[copy],
            show_progress=False,
            **in_browser("extract_image_from_gallery"),
        ).success(None, **in_browser(f"() => document.getElementById('{press}').click()"))

    def number(self, index: int) -> int:
        """Which picture stands at an index of the gallery; -1 for the grid before them."""
        return index - (len(self._pictures()) > 1 and bool(option("return_grid", True)))

    def show(self) -> list[Any]:
        """Show images in the host's own output panel."""
        found = self._pictures()
        _make_temporary_folder()
        first_image = 0
        if self.number(0) < 0:  # a grid first, as the host does: it opens the first one large
            found = [(images.image_grid([image for image, _ in found], rows=None), found[0][1]), *found]
            first_image = 1
        texts = [text for _, text in found]
        seeds = [infotext_utils.parse_generation_parameters(text, []).get("Seed", -1) for text in texts]
        first = found[0][0] if found else None
        info = {  # what the panel's Save buttons read
            "prompt": "",
            "all_prompts": [""] * len(found),
            "negative_prompt": "",
            "all_negative_prompts": [""] * len(found),
            "seed": seeds[0] if seeds else -1,
            "all_seeds": seeds,
            "index_of_first_image": first_image,
            "infotexts": texts,
            "width": first.width if first else 0,
            "height": first.height if first else 0,
            "sampler_name": "",
            "cfg_scale": 0,
            "steps": 0,
            "batch_size": 1,
            "styles": [],
            "job_timestamp": "",
            "sd_model_name": "",
            "sd_model_hash": "",
            "clip_skip": 1,
            "denoising_strength": None,
        }
        shown = ui_common.plaintext_to_html(texts[0]) if texts else ""
        return [[image for image, _ in found], json.dumps(info), shown]


def _make_temporary_folder() -> None:
    """Where the host puts what its gallery is given: Forge Neo names one that it makes only when it is changed."""
    named = str(option("temp_dir", ""))
    if named:
        Path(named).mkdir(parents=True, exist_ok=True)


def _selected(info: Any, event: gr.SelectData) -> Any:
    return _show(info, event.index)


def _show(info: Any, index: Any) -> Any:
    """The text of a picture of those that this page shows; another page, or a job, may have made newer ones."""
    try:
        position = int(index)
        return ui_common.plaintext_to_html(json.loads(info)["infotexts"][position]) if position >= 0 else gr.update()
    except (TypeError, ValueError, KeyError, IndexError):
        return gr.update()


def _enlarged(chosen: Any) -> Any:
    image = infotext_utils.image_from_url_text(chosen)
    if image is None:  # none is shown: the host sends nothing then
        return None
    image = image.convert("RGB")
    short = min(image.size)
    if short >= _LEAST_SIDE:
        return image
    size = tuple(round(side * _LEAST_SIDE / short / _MULTIPLE) * _MULTIPLE for side in image.size)
    return enlarge_plainly(image, (size[0], size[1]), "Lanczos")
