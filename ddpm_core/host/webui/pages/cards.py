"""Our models and adapters as a page of the host's extra-networks cards: a click takes the model for *alongside*, or writes the adapter into the
prompt."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modules import shared, ui_extra_networks

from ....errors import UserError
from ....model import adapter_file
from ....model import file as model_file
from ....service import Service

_log = logging.getLogger("ddpm_core")


class ModelCards(ui_extra_networks.ExtraNetworksPage):  # type: ignore[misc]
    """What the host asks a page for; an item's keys are the host's."""

    def __init__(self, service: Callable[[], Service]) -> None:
        super().__init__("DDPM")
        self._service = service

    def refresh(self) -> None:
        """Read the models anew."""
        pass  # the workspace is read at each listing

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any] | None:
        """One card, or None for an unknown model."""
        try:
            workspace = self._service().workspace
            if name not in workspace.model_names():  # asked for by a page: names only, it may not point at files
                return None
            path = workspace.model_path(name)
            adapter = adapter_file.read_head(path)
            config, info = (adapter.model, adapter.info) if adapter is not None else model_file.read_config(path)
            if config.kind != "unet" and adapter is None:
                return None
        except Exception as error:  # the host lists all its cards, Loras too, or none
            if not isinstance(error, UserError):
                _log.exception("the card of a model could not be made")
            return None
        stem = str(path.with_suffix(""))
        height, width = config.image_size
        # someone else's file may say anything: the host shows descriptions as HTML if told to, and acts on some metadata
        known = model_file.known_of(info)
        seen = f"{width}x{height}, {known.get('images', '?')} images, {known.get('steps', '?')} steps"
        seen += (
            f", {len(config.tags)} words"
            if config.tags
            else ", prompts by a text encoder"
            if config.text is not None
            else ", no words"
        )
        metadata = {"size": f"{width}x{height}", **known, "config": config.to_json()}
        own: dict[str, Any] = {
            "onclick": html.escape(f"return window.ddpm.takeCard(this, {json.dumps(name)})"),
            "prompt": json.dumps(""),
        }
        if adapter is not None:
            seen = f"adapter of {adapter.base}, {known.get('images', '?')} images, {known.get('steps', '?')} steps"
            word = f" {adapter.config.concept}" if adapter.config.concept else ""
            # as the host's Lora cards: an expression that the host's own click puts into the prompt
            parts = (json.dumps(f"<ddpm:{name}:"), "opts.extra_networks_default_multiplier", json.dumps(f">{word}"))
            own = {"prompt": " + ".join(parts)}
        return {
            "name": name,
            "filename": str(path),
            "shorthash": "",
            "preview": self.find_preview(stem),
            "description": self.find_description(stem) or seen,
            "search_terms": [self.search_terms_from_path(str(path)), f"{width}x{height}"],
            **own,
            "local_preview": f"{stem}.preview.{shared.opts.samples_format}",
            "metadata": metadata,
            "sort_keys": {"default": index, **self.get_sort_keys(str(path))},
        }

    def list_items(self) -> Iterator[dict[str, Any]]:
        """All cards."""
        try:
            workspace = self._service().workspace
            names = [*workspace.model_names("unet"), *workspace.model_names("adapter")]
        except UserError:  # the tab says it
            return
        for index, name in enumerate(names):
            item = self.create_item(name, index)
            if item is not None:
                yield item

    def allowed_directories_for_previews(self) -> list[str]:
        """Folders that previews may be shown from."""
        try:
            return [str(Path(self._service().workspace.models_folder))]
        except UserError:
            return []


def add_page(service: Callable[[], Service]) -> None:
    """Register the page; the host has dropped all pages before it builds its own anew."""
    ui_extra_networks.register_page(ModelCards(service))
