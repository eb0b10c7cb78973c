"""A dataset's images for who asks: as a folder of files, and singly for a page."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..parsing import read_regular
from . import KEPT
from .packing import fit
from .reading import MAX_COPY_BYTES, read_copy
from .store import Store

_ENOUGH_BYTES, _ENOUGH_SECONDS = 4 * 2**20, 1.0  # of several images at once


def export(store: Store, target: Path) -> list[str]:
    """Copy the kept pictures, each with its prompt in a text file of the same name, into a folder."""
    items = [item for item in store.items(status=KEPT) if item["has_copy"]]
    try:
        target.mkdir(parents=True, exist_ok=True)
        names = {f"{item['id']:06d}{suffix}" for item in items for suffix in (".png", ".txt")}
        taken = sorted(names & {path.name for path in target.iterdir()})
        if taken:
            raise UserError(f"{target} already has a file {taken[0]}; choose an empty folder.")
        files = []
        for item in items:
            path, out = store.copy_path(item["sha256"]), target / f"{item['id']:06d}.png"
            if path.suffix == ".png":
                shutil.copyfile(path, out)
            else:
                read_copy(path).save(out, format="PNG")
            if item["prompt"]:
                out.with_suffix(".txt").write_text(item["prompt"], encoding="utf-8")
            files.append(str(out))
    except OSError as error:
        raise UserError(
            f"The images could not be written to {target} ({error.strerror}); make room or choose another folder."
        ) from None
    return files


def thumbnail(store: Store, item_id: int, size: tuple[int, int] | None, crop: str = "center") -> bytes:
    """An item's picture as stored (WebP or PNG), or (with ``size``, height and width) a PNG as the network sees it."""
    try:
        return _seen(store.copy_of(item_id), size, crop)
    except OSError:
        raise UserError(f"The copy of item {item_id} is missing or damaged.") from None


def thumbnails(store: Store, ids: Sequence[int], size: tuple[int, int] | None, crop: str = "center") -> list[bytes]:
    """Several items' pictures as :meth:`thumbnail` gives them, in order; ``b""`` for one that has none, or a damaged one.

    Ends early after 4 MiB or a second, at least one picture.
    """
    until = time.monotonic() + _ENOUGH_SECONDS
    copies = store.copies_of(ids)
    found: list[bytes] = []
    total = 0
    for item_id in ids:
        try:
            found.append(_seen(copies[item_id], size, crop))
        except (KeyError, OSError, UserError):
            found.append(b"")
        total += len(found[-1])
        if total >= _ENOUGH_BYTES or time.monotonic() > until:
            break
    return found


def _seen(copy: Path | str, size: tuple[int, int] | None, crop: str) -> bytes:
    """A stored picture as it is, or (with ``size``) a PNG as the network sees it; OSError for one that cannot be read."""
    if size is None:
        return read_regular(copy, MAX_COPY_BYTES)
    out = io.BytesIO()
    fit(read_copy(Path(copy)), size, crop).save(out, format="PNG", compress_level=1)
    return out.getvalue()
