"""From folders of WebUI output to items: scan, skip what is no sample, check, copy. The sources are only ever read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from ..files import temporary_beside
from . import KEEP_SIZE, infotext
from .checks import check_content
from .own import OwnPictures
from .reading import EXTENSIONS, Picture, Rejected, Skipped, decode, read_bytes, sidecar_text
from .store import NewItem, Store
from .suspects import thumbnail
from .wanted import Wanted

# what the WebUI writes beside its samples
_GRID_NAME = re.compile(r"^((grid|xyz_grid|prompt_matrix|xy_grid)-\d+|grid$)", re.IGNORECASE)
_GRID_FOLDER = re.compile(r"^(txt2img|img2img|extras)?-?grids$", re.IGNORECASE)
_MASK_NAME = re.compile(r"-mask(-composite)?$", re.IGNORECASE)
_BEFORE_NAME = re.compile(r"-(before-[\w-]+|init-image|ad-(before|preview)[\w-]*)$", re.IGNORECASE)

Progress = Callable[[int, int, str], None]


@dataclass
class HarvestResult:
    """Counts of one harvest. ``found`` are image files seen, ``skipped`` what is no sample by kind, ``added`` new items."""

    found: int = 0
    added: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    suspects: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "rejected": dict(self.rejected), "skipped": dict(self.skipped)}


def harvest(
    store: Store,
    folders: Sequence[Path],
    *,
    keep_size: int = KEEP_SIZE,
    avoid: Sequence[Path] = (),
    own: OwnPictures | None = None,
    wanted: Wanted | None = None,
    stop: threading.Event | None = None,
    progress: Progress = lambda done, total, text: None,
) -> HarvestResult:
    """Add the pictures of ``folders`` (and below) to the dataset; files harvested before are passed over.

    ``avoid``: folders never entered (the workspace itself). ``own``: pictures sampled from our models, passed over.
    ``wanted``: what is not is passed over. Raises UserError for a folder that is none.
    """
    began = time.monotonic()
    result = HarvestResult()
    roots = [check_folder(folder) for folder in folders]
    avoided = {path.resolve() for path in avoid}
    workers = max(1, min(8, os.cpu_count() or 1))
    pending: deque[Future[tuple[NewItem | None, str]]] = deque()
    ready: list[NewItem] = []

    def flush() -> None:
        for item in store.add(ready):
            result.added += 1
            if item.reason:
                result.rejected[item.reason] += 1
                result.duplicates += item.reason == "duplicate"
            else:
                result.kept += 1
        ready.clear()

    def take() -> None:
        item, skipped = pending.popleft().result()
        if item is None:
            result.skipped[skipped] += 1
            result.found -= 1
        else:
            ready.append(item)
            if len(ready) >= 64:
                flush()
        progress(result.added + len(ready), result.found, "Harvesting")

    with ThreadPoolExecutor(workers, thread_name_prefix="ddpm-harvest") as pool:
        for root in roots:
            for path, skipped in scan(root, avoided):
                if stop is not None and stop.is_set():
                    result.stopped = True
                    break
                if skipped:
                    result.skipped[skipped] += 1
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
                pending.append(pool.submit(examine, store, path, status, keep_size, own, wanted, root=root))
                while len(pending) >= 4 * workers:  # in order, and never more than this in memory
                    take()
        while pending:
            take()
        flush()
    progress(result.found, result.found, "Looking for the unusual")
    result.suspects = store.rank_suspects()
    result.seconds = time.monotonic() - began
    return result


def check_folder(folder: Path) -> Path:
    """The resolved folder, or UserError with what is wrong with it."""
    try:
        resolved = folder.expanduser().resolve()
        if not resolved.exists():
            raise UserError(f"The folder {folder} does not exist; check the spelling.")
        if not resolved.is_dir():
            raise UserError(f"{folder} is a file, not a folder; give the folder that holds it.")
        if not os.access(resolved, os.R_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        os.scandir(resolved).close()
    except (OSError, RuntimeError, ValueError) as error:  # the last: no file has such a name
        raise UserError(f"The folder {folder} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return resolved


def scan(root: Path, avoid: set[Path]) -> Iterator[tuple[Path, str]]:
    """Every image path below ``root`` in order of name, with why it is skipped or an empty string."""
    folders = [root]
    while folders:
        folder = folders.pop()
        if folder in avoid:
            continue
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            yield folder, "unreadable"
            continue
        below: list[Path] = []
        for entry in entries:
            path = Path(entry.path)
            if not _is_text(entry.name):
                if path.suffix.lower() in EXTENSIONS:
                    yield path, "unreadable_name"
                continue
            is_image = path.suffix.lower() in EXTENSIONS
            if entry.is_symlink():
                why = _link_problem(path, root)
                if is_image or (why and path.is_dir()):
                    yield path, why
            elif entry.is_dir():
                if is_image:
                    yield path, "not_a_file"
                below.append(path)
            elif path.suffix.lower() == ".tmp":
                yield path, "temporary"
            elif is_image:
                yield path, _skip_reason(path) if entry.is_file() else "not_a_file"
        folders += reversed(below)


def _is_text(name: str) -> bool:
    """Whether a file name is valid text; on Linux it can be any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _link_problem(path: Path, root: Path) -> str:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "broken_link"
    if not target.is_relative_to(root):
        return "link_outside"
    return "not_a_file" if not target.is_file() else ""


def _skip_reason(path: Path) -> str:
    stem = path.stem
    if stem.startswith("."):
        return "temporary"
    if _GRID_NAME.match(stem) or _GRID_FOLDER.match(path.parent.name) or _GRID_FOLDER.match(path.parent.parent.name):
        return "grid"
    if _MASK_NAME.search(stem):
        return "mask"
    if _BEFORE_NAME.search(stem):
        return "intermediate"
    return ""


def examine(
    store: Store,
    path: Path,
    status: os.stat_result,
    keep_size: int = KEEP_SIZE,
    own: OwnPictures | None = None,
    wanted: Wanted | None = None,
    text: str = "",
    root: Path | None = None,
) -> tuple[NewItem | None, str]:
    """Read, check and copy one file: the item to store, or None and why it is skipped. ``root``: the folder being harvested."""
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
        store, base, data, lambda: sidecar_text(path, root or path.parent.resolve()) or text, keep_size, own, wanted
    )


def judge(
    store: Store,
    base: NewItem,
    data: bytes,
    more_text: Callable[[], str] = str,
    keep_size: int = KEEP_SIZE,
    own: OwnPictures | None = None,
    wanted: Wanted | None = None,
) -> tuple[NewItem | None, str]:
    """Check and copy one image file's bytes; ``more_text`` is asked where the file holds no generation text."""
    if own is not None and own.holds(base.sha256):
        return None, "own"
    try:
        picture = decode(data, keep_size)
    except Rejected as why:
        return NewItem(**{**base.__dict__, "reason": why.reason, "message": why.message}), ""
    except MemoryError:  # no verdict: it is looked at again when the folder is harvested again
        return None, "no_memory"
    info = infotext.parse(picture.text or more_text())
    if info.is_ours or (own is not None and own.holds(base.sha256, picture.image)):
        return None, "own"
    if wanted is not None and not wanted.fits(info, picture.width, picture.height):
        return None, "filtered"
    reason, message = "", ""
    try:
        check_content(picture.image)
    except Rejected as why:
        reason, message = why.reason, why.message
    write_copy(store.copy_path(base.sha256), picture)
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
            "thumb": thumbnail(picture.image),
            "has_copy": True,
        }
    ), ""


def add_file(store: Store, path: Path, own: OwnPictures | None = None, text: str = "") -> NewItem | None:
    """Add one saved picture at once; None where it is known, no sample, ours, or gone.

    ``text``: its generation text, where neither the file nor one beside it holds it.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    if _skip_reason(path) or store.knows(str(path), status.st_size, status.st_mtime_ns):
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


def write_copy(target: Path, picture: Picture) -> None:
    """Write the lossless copy under a temporary name and rename it, so that no half copy is ever found."""
    temporary = temporary_beside(target.parents[1] / target.name)  # all in one folder, where a sweep finds them
    try:
        if target.exists() and target.stat().st_size:  # an empty one is what a power loss leaves
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
            f"A picture could not be written to {target.parent} ({error.strerror or error}); "
            "make room or check the permissions and harvest again, what is done stays."
        ) from None
