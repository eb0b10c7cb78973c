"""From folders of WebUI output to items: scan, skip what is no sample, check, copy. The sources are only ever read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import temporary_beside
from . import KEEP_SIZE, programs, ranking
from .checks import USUAL_SMALLEST, check_content, check_size
from .infotext import Infotext
from .own import OwnPictures, pixels_of
from .reading import Picture, Rejected, Skipped, decode, read_bytes, read_copy, sidecar_text
from .scanning import check_folder, scan, why_skipped
from .store import NewItem, Store
from .suspects import texture, thumbnail
from .wanted import Wanted

Progress = Callable[[int, int, str], None]


@dataclass
class HarvestResult:
    """Counts of one harvest. ``found`` are image files seen, ``skipped`` what is no sample by kind, ``added`` new items.

    ``mended``: items of before that are read better now (colours, prompts, checks). ``notes``: sentences for a person.
    """

    found: int = 0
    added: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    suspects: int = 0
    mended: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The summary that ``harvest --json`` prints."""
        return {**self.__dict__, "rejected": dict(self.rejected), "skipped": dict(self.skipped)}


def harvest(
    store: Store,
    folders: Sequence[Path],
    *,
    keep_size: int = KEEP_SIZE,
    avoid: Sequence[Path] = (),
    own: OwnPictures | None = None,
    wanted: Wanted | None = None,
    count_only: bool = False,
    stop: threading.Event | None = None,
    progress: Progress = lambda done, total, text: None,
) -> HarvestResult:
    """Add the pictures of ``folders`` (and below) to the dataset; files harvested before are passed over.

    ``avoid``: folders never entered (the workspace itself). ``own``: pictures sampled from our models, passed over.
    ``wanted``: what is not is passed over. ``count_only``: everything is read and judged, and nothing is stored. Raises
    UserError for a folder that is none.
    """
    began = time.monotonic()
    result = HarvestResult()
    roots = [check_folder(folder) for folder in folders]
    progress(0, 0, "Searching folders")
    todo, links = _listed(store, roots, {path.resolve() for path in avoid}, wanted, stop, result)
    workers = max(1, min(8, os.cpu_count() or 1))
    pending: deque[Future[tuple[NewItem | None, str]]] = deque()
    ready: list[NewItem] = []
    mended: list[NewItem] = []
    read = 0

    def flush() -> None:
        for item in ready if count_only else store.add(ready, mended):
            result.added += 1
            if item.reason:
                result.rejected[item.reason] += 1
                result.duplicates += item.reason == "duplicate"
            else:
                result.kept += 1
        ready.clear()

    def take() -> None:
        nonlocal read
        item, skipped = pending.popleft().result()
        read += 1
        if item is None:
            result.skipped[skipped] += 1
            result.found -= 1
        else:
            ready.append(item)
            if len(ready) >= 64:
                flush()
        progress(read, len(todo), "Harvesting")

    with ThreadPoolExecutor(workers, thread_name_prefix="ddpm-harvest") as pool:
        for root, path, status in todo:
            if stop is not None and stop.is_set():
                result.stopped = True
                break
            pending.append(
                pool.submit(examine, store, path, status, keep_size, own, wanted, root=root, keep=not count_only)
            )
            while len(pending) >= 4 * workers:  # in order, and never more than this in memory
                take()
        while pending:
            take()
        flush()
    progress(read, len(todo), "Looking for outliers")
    result.mended = len(mended)
    if not count_only:
        _settle(store, result)
    result.notes = _notes(roots, result, links, [item.off for item in mended if item.off])
    result.seconds = time.monotonic() - began
    return result


def _settle(store: Store, result: HarvestResult) -> None:
    """What can only be said of the whole dataset: which are equal, whether they are small ones, which are unusual."""
    if result.mended:
        store.settle_duplicates()
    if small := store.settle_sizes():
        moved = min(abs(small), result.rejected["too_small"] if small > 0 else result.kept)
        result.kept += moved if small > 0 else -moved
        result.rejected["too_small"] -= moved if small > 0 else -moved
        result.rejected += Counter()  # without those that are zero
    result.suspects = ranking.rank(store)


def _listed(
    store: Store,
    roots: Sequence[Path],
    avoided: set[Path],
    wanted: Wanted | None,
    stop: threading.Event | None,
    result: HarvestResult,
) -> tuple[list[tuple[Path, Path, os.stat_result]], set[Path]]:
    """What is to be read, each with its root; counts the rest in ``result``. And where links lead that are not followed."""
    todo: list[tuple[Path, Path, os.stat_result]] = []
    seen: set[Path] = set()  # one folder may lie in another
    links: set[Path] = set()
    for root in roots:
        for path, skipped in scan(root, avoided):
            if stop is not None and stop.is_set():
                result.stopped = True
                return [], links
            if path in seen:
                continue
            seen.add(path)
            if skipped:
                result.skipped[skipped] += 1
                if skipped == "link_outside" and len(links) < 100:
                    target = path.resolve()
                    links.add(target if target.is_dir() else target.parent)
                continue
            try:
                status = path.stat()
            except OSError:
                result.skipped["unreadable"] += 1
                continue
            result.found += 1
            if store.knows(str(path), status.st_size, status.st_mtime_ns):
                continue
            if wanted is not None and not wanted.date_fits(status.st_mtime):
                result.found -= 1
                result.skipped["filtered"] += 1
                continue
            todo.append((root, path, status))
    return todo, links


def _notes(roots: Sequence[Path], result: HarvestResult, links: set[Path], off: Sequence[float]) -> list[str]:
    notes = []
    if not result.found and not result.stopped:
        places = ", ".join(str(root) for root in roots)
        notes.append(f"No images found in {places}. Check the folder, or pick another.")
    if links:
        places = ", ".join(sorted(map(str, links))[:3])
        notes.append(
            f"Links that lead out of the folder are not followed ({result.skipped['link_outside']} of them). "
            f"Harvest the folder they lead to: {places}."
        )
    if result.rejected["too_small"]:
        notes.append(
            f"Images smaller than {USUAL_SMALLEST} px were rejected ({result.rejected['too_small']} of them). "
            "To train at their size, keep them in the review."
        )
    if off:
        notes.append(
            f"The colours of images harvested with an older version were off ({len(off)} of them, by "
            f"{sum(off) / len(off):.1f} of 255 on average). They are converted to sRGB now; train on to use that."
        )
    return notes


def examine(
    store: Store,
    path: Path,
    status: os.stat_result,
    keep_size: int = KEEP_SIZE,
    own: OwnPictures | None = None,
    wanted: Wanted | None = None,
    text: str = "",
    root: Path | None = None,
    keep: bool = True,
) -> tuple[NewItem | None, str]:
    """Read, check and copy one file: the item to store, or None and why it is skipped.

    ``root``: the folder being harvested. ``keep``: whether a copy is made.
    """
    try:
        data = read_bytes(path)
    except Skipped as skip:
        return None, str(skip)
    except Rejected as why:
        return NewItem(
            str(path), status.st_size, status.st_mtime_ns, f"unread:{path}", reason=why.reason, message=why.message
        ), ""
    base = NewItem(str(path), status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest())
    return judge(
        store,
        base,
        data,
        lambda: sidecar_text(path, root or path.parent.resolve()) or text,
        keep_size,
        own,
        wanted,
        keep,
    )


def judge(
    store: Store,
    base: NewItem,
    data: bytes,
    more_text: Callable[[], str] = str,
    keep_size: int = KEEP_SIZE,
    own: OwnPictures | None = None,
    wanted: Wanted | None = None,
    keep: bool = True,
) -> tuple[NewItem | None, str]:
    """Check and copy one image file's bytes; ``more_text`` is asked where the file holds no generation text."""
    if own is not None and own.holds(base.sha256):
        return None, "own"
    old = _outdated_copy(store, base.sha256)
    try:
        picture = decode(data, min(old.size) if old is not None else keep_size)
    except Rejected as why:
        return NewItem(**{**base.__dict__, "reason": why.reason, "message": why.message}), ""
    except MemoryError:  # no verdict: it is looked at again when the folder is harvested again
        return None, "no_memory"
    info = programs.read(picture.texts)
    if info == Infotext():
        info = programs.of_text(more_text())
    if info.is_ours or (own is not None and own.holds(base.sha256, picture.image)):
        return None, "own"
    if wanted is not None and not wanted.fits(info, picture.width, picture.height):
        return None, "filtered"
    reason, message = "", ""
    try:
        check_content(picture.image)
        check_size(picture.width, picture.height)  # last: a dataset of small pictures takes this verdict back
    except Rejected as why:
        reason, message = why.reason, why.message
    thumb = thumbnail(picture.image)
    off = _how_far_off(old, picture.image, store.outdated_thumb(base.sha256), thumb) if old is not None else 0.0
    if keep:
        write_copy(store.copy_path(base.sha256), picture, replace=off > 0)
    return NewItem(
        **{
            **base.__dict__,
            "width": picture.width,
            "height": picture.height,
            "prompt": info.prompt,
            "negative_prompt": info.negative_prompt,
            "settings": info.settings,
            "reason": reason,
            "message": message,
            "thumb": thumb,
            "has_copy": True,
            "pixels": f"{picture.width}x{picture.height} {pixels_of(picture.image)}",
            "texture": texture(picture.image),
            "off": off,
        }
    ), ""


def _outdated_copy(store: Store, sha256: str) -> Image.Image | None:
    """The copy of a file that an older version has read, if there is one."""
    if store.outdated_thumb(sha256) is None:
        return None
    try:
        return read_copy(store.copy_path(sha256))
    except OSError:  # gone or damaged: it is made again
        return None


def _how_far_off(old: Image.Image, new: Image.Image, old_thumb: bytes | None, thumb: bytes) -> float:
    """How far a copy that an older version has made is off, 0..255.

    A harvest may have been killed when it had just replaced the copy: then the thumbnail still tells.
    """
    off = _difference(old, new)
    if not off and old_thumb and len(old_thumb) == len(thumb):
        of_thumbs = np.frombuffer(old_thumb, np.uint8).astype(np.int16) - np.frombuffer(thumb, np.uint8)
        off = float(np.abs(of_thumbs).mean())
    return off


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two RGB pictures, 0..255."""
    other = other if other.size == one.size else other.resize(one.size)
    return float(np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16)).mean())


def add_file(store: Store, path: Path, own: OwnPictures | None = None, text: str = "") -> NewItem | None:
    """Add one saved picture at once; None where it is known, no sample, ours, or gone.

    ``text``: its generation text, where neither the file nor one beside it holds it.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    if why_skipped(path) or store.knows(str(path), status.st_size, status.st_mtime_ns):
        return None
    return _added(store, *examine(store, path, status, own=own, text=text))


def add_picture(
    store: Store, image: Image.Image, text: str, source: str, own: OwnPictures | None = None
) -> NewItem | None:
    """Add a picture that is on no disk, with its generation text; ``source`` says where it came from."""
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    data = out.getvalue()
    base = NewItem(source, len(data), 0, hashlib.sha256(data).hexdigest())
    return _added(store, *judge(store, base, data, lambda: text, own=own))


def _added(store: Store, item: NewItem | None, why: str) -> NewItem | None:
    if why == "no_memory":  # nobody would look at it again
        raise MemoryError
    return next(iter(store.add([item])), None) if item is not None else None


def write_copy(target: Path, picture: Picture, replace: bool = False) -> None:
    """Write the lossless copy under a temporary name and rename it, so that no half copy is ever found."""
    temporary = temporary_beside(target.parents[1] / target.name)  # all in one folder, where a sweep finds them
    try:
        if not replace and target.exists() and target.stat().st_size:  # an empty one is what a power loss leaves
            return
        target.parent.mkdir(exist_ok=True)
        # each at its fastest, for pictures: lossless WebP, or PNG by run lengths alone
        if target.suffix == ".webp":
            picture.image.save(temporary, format="WEBP", lossless=True, quality=0, method=0)
        else:
            picture.image.save(temporary, format="PNG", compress_type=zlib.Z_RLE)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, ValueError) and "encoding error 1" in str(error):  # VP8_ENC_ERROR_OUT_OF_MEMORY
            raise MemoryError(str(error)) from None
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"An image could not be written to {target.parent} ({error.strerror or error}); "
            "make room or check the permissions and harvest again, what is done is kept."
        ) from None
