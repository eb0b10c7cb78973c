"""The host's settings and command line, read anew at each question."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import paths_internal, shared

# attributes that we give to generations of the host: those we ask for ourselves, what an axis of a plot sets, and
# whether one that makes no picture of the host's would have saved it
OURS, AXES, SAVES = "ddpm_collects", "ddpm_axes", "ddpm_saves"
AUTOMATIC, ALWAYS, NEVER = "automatic", "always", "never"  # when the host's model is put aside for a training


def option(name: str, default: Any) -> Any:
    """A setting of the host or of ours; ``default`` where the host has none of that name."""
    value = getattr(shared.opts, name, None)
    return default if value is None else value


def flag(name: str, default: Any = None) -> Any:
    """A command line argument of the host or of ours."""
    return getattr(shared.cmd_opts, name, default)


def every_folder_allowed() -> bool:
    """Whether who sees the page may name any folder of this machine: only where no one else can reach it."""
    return not flag("webui_is_non_local", True) and not flag("hide_ui_dir_config", False)


def data_path() -> Path:
    """The host's data folder."""
    return Path(paths_internal.data_path).absolute()


def models_path() -> Path:
    """The host's folder of models."""
    return Path(paths_internal.models_path).absolute()


def takes(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a function of the host has a parameter that older versions lack."""
    return parameter in inspect.signature(function).parameters
