"""The models that come along, so that there is something to generate with before one's own is trained.

They lie in the package (``benchmarks.bundled`` makes them) and are put into a workspace once, as models like any other: to use, fine-tune
from, rename and delete. What was deleted stays away.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from .errors import UserError
from .files import replace_with, write_json
from .parsing import read_json
from .workspace import Workspace

FOLDER = Path(__file__).resolve().parent / "assets" / "models"
BASE, UPSCALER = "bundled-portraits", "bundled-portraits-4x"
RECORD = "bundled.json"  # in a workspace: the names that it has had
_log = logging.getLogger("ddpm_core")


def names() -> list[str]:
    """Names of the models that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def offer(workspace: Workspace) -> list[str]:
    """Put those into a workspace that it has not had yet; their names. A disk that has no room for them is no reason to fail."""
    record = workspace.root / RECORD
    try:
        had = _had(record)
        new = [name for name in names() if name not in had]
        for name in new:
            if any(part.exists() for part in workspace.model_parts(name)):
                continue  # the person's own, or that of another workspace with the same models
            for source in (FOLDER / f"{name}.safetensors", FOLDER / f"{name}.preview.png"):
                if source.is_file():
                    replace_with(
                        workspace.models_folder / source.name,
                        lambda temporary, source=source: shutil.copyfile(source, temporary),
                    )
        if new:
            write_json(record, {"names": sorted({*had, *new})})
        return new
    except (OSError, UserError) as error:
        _log.warning("the bundled models could not be put into the workspace: %s", error)
        return []


def _had(record: Path) -> set[str]:
    if not record.exists():
        return set()
    try:
        found = read_json(record, "list of bundled models")
        return {str(name) for name in found["names"]}
    except (UserError, KeyError, TypeError):
        return set(names())  # damaged: better none than those again that were deleted
