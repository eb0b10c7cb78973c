"""The shrunken lossless copies in a dataset's folder: ``images/ab/abcdef....webp``, named by the SHA-256 of the file they are of."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
from pathlib import Path

from PIL import features

from ..errors import UserError
from ..files import replace_with
from ..parsing import read_regular
from .reading import MAX_COPY_BYTES


class Copies:
    """Those of one dataset's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str, modes: dict[str, int] | None = None) -> str:
        """Where the copy of a file lies, or shall lie: WebP; PNG where Pillow came without WebP.

        UserError for what is no SHA-256, as in a forged file, and for a link. ``modes``: of the folders asked about so far.
        """
        modes = {} if modes is None else modes
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise UserError(f"The dataset in {self._folder} is damaged (no SHA-256: {sha256!r:.60}).")
        # plain texts: Paths would take longer than the disk, and a page of the review asks for sixty
        images = f"{self._folder}{os.sep}images"
        shelf = f"{images}{os.sep}{sha256[:2]}"
        copy, png = (f"{shelf}{os.sep}{sha256[:32]}{end}" for end in (".webp", ".png"))
        mode = _mode(copy)
        if not mode and ((of_png := _mode(png)) or not _writes_webp()):
            copy, mode = png, of_png
        for folder in (images, shelf):
            if folder not in modes:
                modes[folder] = _mode(folder)
        # it could lead anywhere, and what a copy holds is handed out
        if stat.S_ISLNK(mode) or stat.S_ISLNK(modes[shelf]) or stat.S_ISLNK(modes[images]):
            name = Path(copy).name
            raise UserError(f"The dataset in {self._folder} is damaged ({name} is a link, or lies behind one).")
        return copy

    def has(self, sha256: str) -> bool:
        """Whether there is more than an empty file, as a power loss leaves; without :meth:`path`'s checks, for it is quick."""
        stem = f"{self._folder}{os.sep}images{os.sep}{sha256[:2]}{os.sep}{sha256[:32]}"
        for end in (".webp", ".png"):
            with contextlib.suppress(OSError, ValueError):
                if os.stat(stem + end).st_size:
                    return True
        return False

    def take(self, other: Copies, sha256: str) -> bool:
        """Have another dataset's copy of a file here; whether it is."""
        if self.has(sha256):
            return True
        try:
            source = Path(other.path(sha256))
            data = read_regular(source, MAX_COPY_BYTES)
        except OSError:
            return False
        target = Path(self.path(sha256)).with_suffix(source.suffix)
        target.parent.mkdir(exist_ok=True)
        replace_with(target, lambda temporary: temporary.write_bytes(data))
        return True


@functools.cache
def _writes_webp() -> bool:
    return bool(features.check("webp"))


def _mode(path: str) -> int:
    """Of what lies there itself, not of what it leads to; 0 where nothing does."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
