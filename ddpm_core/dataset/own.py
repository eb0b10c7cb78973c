"""Which pictures are samples of our own models, by content: people switch off the generation text that says so."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from PIL import Image

from ..parsing import Growing


class OwnPictures:
    """A list on disk of hashes of every picture we saved; appended to, never rewritten.

    A line is ``WxH <SHA-256 of the file> <SHA-256 of the RGB pixels>``: the first is found at once, the second also
    after the host has saved the picture again with another text or as another lossless kind of file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._file = Growing(path)
        self._hashes: set[str] = set()
        self._sizes: set[tuple[int, int]] = set()

    def _refresh(self) -> None:
        with self._guard:
            try:
                new, _ = self._file.added()
            except OSError:
                return
            for line in new.decode("ascii", "replace").splitlines():
                size, _, hashes = line.partition(" ")
                width, _, height = size.partition("x")
                if width.isdigit() and height.isdigit():
                    self._sizes.add((int(width), int(height)))
                    self._hashes.update(hashes.split())

    def remember(self, image: Image.Image, file: bytes | None = None) -> None:
        """Note a picture of ours (and, where known, the bytes of its file)."""
        hashes = [hashlib.sha256(file).hexdigest()] if file is not None else []
        line = " ".join([f"{image.width}x{image.height}", *hashes, pixels_of(image)]) + "\n"
        with self._guard:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="ascii") as out:
                out.write(line)

    def holds(self, sha256: str, image: Image.Image | None = None) -> bool:
        """Whether a file of that hash, or a picture of those pixels, is ours."""
        self._refresh()
        if sha256 in self._hashes:
            return True
        return image is not None and image.size in self._sizes and pixels_of(image) in self._hashes


def pixels_of(image: Image.Image) -> str:
    """SHA-256 of a picture's RGB pixels, row by row."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
