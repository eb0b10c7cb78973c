"""A model and adapters made one: a new model that needs neither."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..files import replace_with
from ..model import file as model_file
from ..names import check_name
from ..workspace import Workspace
from .configuring import check_free
from .context import Context
from .loading import Adapters, load_weights, with_adapters


def merge_adapters(workspace: Workspace, model: str, adapters: Adapters, name: str, context: Context) -> Path:
    """Write the model ``name``: ``model`` with adapters merged in. Returns its path; UserError where the name is taken or one does not fit."""
    name = check_name(name, "model")
    check_free(workspace, name)
    if not adapters:
        raise UserError("Say which adapters to merge (--adapter NAME or NAME:WEIGHT).")
    path = workspace.models_folder / f"{name}.safetensors"
    write_merged(workspace, model, adapters, path, context)
    return path


def write_merged(workspace: Workspace, model: str, adapters: Adapters, path: Path, context: Context) -> None:
    """Write ``model`` with adapters merged in to a file."""
    config, weights, title = load_weights(workspace, model, "ema", None)
    info = model_file.read_config(workspace.model_path(model))[1]
    known = model_file.known_of(info)
    config, weights = with_adapters(workspace, title, config, weights, adapters, context)
    about: dict[str, Any] = {
        **{
            key: known[key]
            for key in ("steps", "images_seen", "images", "crop", "dataset", "fingerprint")
            if key in known
        },
        "base": title,
        "adapters": [f"{one}:{weight:g}" for one, weight in adapters],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "version": __version__,
    }
    replace_with(path, lambda temporary: model_file.save(temporary, config, weights, title=path.stem, info=about))
