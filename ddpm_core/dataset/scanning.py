"""Which files of a folder are images, and which of those are no samples: grids, masks, thumbnails, what lies in a bin.

Folders are only listed here; a file is opened only where its name has no ending.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..parsing import open_regular

# also with what websites and shells hang onto an ending: .jpg_large, .jpg!d, .png~
_ENDING = re.compile(
    r"\.(?:a?png|jpe?g|jpe|jfif|pjpe?g|pjp|webp|gif|bmp|dib|avif)(?:[_:@!~-][^./]{0,20})?$", re.IGNORECASE
)
# images of kinds that are not read: counted by kind, so that nobody wonders where they are
_UNSUPPORTED = re.compile(
    r"\.(tiff?|heic|heif|jxl|jp2|j2k|jpx|tga|psd|exr|hdr|ico|svg|qoi|ppm|pgm|raw|dng|cr2|cr3|nef|arw|orf|rw2)$",
    re.IGNORECASE,
)
_SIGNATURES = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]", re.DOTALL)

# The WebUI's own names (images.py, processing.py): <number>-<seed>-mask, grid-<number>, and so on. A pattern must take
# the whole name, or end in what only a program writes: "venetian-mask" is a picture's name, too.
_GRID_NAME = re.compile(r"(?:grid|xyz_grid|xy_grid|prompt_matrix)(?:-\d+(?:-\d+)?|-\d{4,}-.+)?", re.IGNORECASE)
_GRID_FOLDER = re.compile(r"(?:(?:txt2img|img2img|extras)-?)?grids", re.IGNORECASE)
_MASK_NAME = re.compile(r"(?:\d+-)+mask(?:-composite)?|(?:\d+-)+.*-mask-composite", re.IGNORECASE)
_BEFORE_NAME = re.compile(
    r".*-(?:before-(?:highres-fix|color-correction|face-restoration)|ad-(?:before|preview)(?:-\d+\w*)?)|(?:\d+-)+init-image",
    re.IGNORECASE,
)

# Folders where programs keep what their person has thrown away, or smaller copies of what is there already.
_BINS = frozenset(
    {"$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "lost+found",
     "system volume information", ".trashes", ".trash"}
)  # fmt: skip
_THUMBNAILS = frozenset(
    {"@eadir", "thumbnails", "thumbnail", "thumbs", "_thumbs", "_thumbnails", ".thumbnails", ".thumbs", "__macosx"}
)


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
    """Every image path below ``root`` in order of name, with why it is skipped or an empty string.

    What lies in bins and folders of thumbnails is listed, too, with that as the reason; ``root`` itself may be one.
    """
    folders = [(root, "")]
    while folders:
        folder, aside = folders.pop()
        if folder in avoid:
            continue
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            yield folder, aside or "unreadable"
            continue
        below: list[tuple[Path, str]] = []
        for entry in entries:
            path = Path(entry.path)
            is_image = _ENDING.search(entry.name) is not None
            if not _is_text(entry.name):
                if is_image:
                    yield path, "unreadable_name"
                continue
            if entry.is_symlink():
                why = _link_problem(path, root)
                if is_image or (why and path.is_dir()):
                    yield path, aside or why
            elif entry.is_dir():
                if is_image and not aside:
                    yield path, "not_a_file"
                below.append((path, aside or _side_folder(entry.name)))
            elif path.suffix.lower() == ".tmp":
                yield path, "temporary"
            elif unsupported := _UNSUPPORTED.search(entry.name):
                yield path, aside or f"unsupported_{unsupported[1].lower().replace('tiff', 'tif')}"
            elif is_image or (not path.suffix and not aside and _looks_like_an_image(path)):
                yield path, aside or (why_skipped(path) if entry.is_file() else "not_a_file")
        folders += reversed(below)


def _is_text(name: str) -> bool:
    """Whether a file name is valid text; on Linux it can be any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_an_image(path: Path) -> bool:
    """Whether a file without an ending begins as an image does: a browser's cache, a store of blobs."""
    try:
        with open_regular(path, follow=False) as file:
            return _SIGNATURES.match(file.read(16)) is not None
    except OSError:
        return False


def _link_problem(path: Path, root: Path) -> str:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "broken_link"
    if not target.is_relative_to(root):
        return "link_outside"
    return "not_a_file" if not target.is_file() else ""


def _side_folder(name: str) -> str:
    """Why everything in a folder of that name is skipped, or an empty string."""
    name = name.casefold()
    if name in _BINS or name.startswith(".trash-"):
        return "in_bin"
    if name in _THUMBNAILS:
        return "thumbnail"
    return "hidden" if name.startswith(".") else ""


def why_skipped(path: Path) -> str:
    """Why a file of that name is no sample, or an empty string."""
    stem = path.stem
    if stem.startswith("."):
        return "temporary"
    if (
        _GRID_NAME.fullmatch(stem)
        or _GRID_FOLDER.fullmatch(path.parent.name)
        or _GRID_FOLDER.fullmatch(path.parent.parent.name)
    ):
        return "grid"
    if _MASK_NAME.fullmatch(stem):
        return "mask"
    return "intermediate" if _BEFORE_NAME.fullmatch(stem) else ""
