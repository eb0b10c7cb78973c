"""Kept pictures at training resolution: cropped, resized, and packed into one uint8 safetensors file."""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import Stopped, UserError
from ..files import replace_with
from ..parsing import tensors_of
from .reading import read_copy
from .store import Kept, Store, fingerprint_of

HOLDOUT_ONE_IN = 10
_AHEAD = 128  # pictures that are made while the one before them is written
HOLDOUT_FROM = 40  # with fewer pictures none is held out


def fit(image: Image.Image, size: tuple[int, int], crop: str) -> Image.Image:
    """Bring an RGB picture to (height, width) without squashing it.

    center and top cut what overhangs (top keeps the upper edge, where heads are); pad keeps all and fills with the
    mean colour of the border. Lanczos, whose support grows with the reduction, so that nothing aliases.
    """
    height, width = size
    if crop == "pad":
        scale = min(width / image.width, height / image.height)
        inner = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
        canvas = Image.new("RGB", (width, height), border_colour(inner))
        canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return canvas
    scale = max(width / image.width, height / image.height)
    box_width, box_height = width / scale, height / scale
    left = (image.width - box_width) / 2
    top = 0.0 if crop == "top" else (image.height - box_height) / 2
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + box_width, top + box_height))


def border_colour(image: Image.Image) -> tuple[int, int, int]:
    """Mean colour of an RGB image's outermost pixels."""
    pixels = np.asarray(image, dtype=np.float64)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(0).round().astype(int)
    return int(edge[0]), int(edge[1]), int(edge[2])


@dataclass(frozen=True)
class Packed:
    """Training pictures (N, C, H, W) uint8, C 3 or for grey ones 1, memory-mapped, with their item ids and which are held out."""

    images: Tensor
    ids: list[int]
    held_out: list[bool]
    path: Path
    fingerprint: str

    @property
    def train_rows(self) -> Tensor:
        """Indices into ``images`` of those to train on, (M,) int64."""
        return torch.tensor([row for row, held in enumerate(self.held_out) if not held], dtype=torch.int64)

    @property
    def held_rows(self) -> Tensor:
        """Indices into ``images`` of the held-out ones, (K,) int64."""
        return torch.tensor([row for row, held in enumerate(self.held_out) if held], dtype=torch.int64)

    @property
    def train(self) -> Tensor:
        """Images to train on, (M, 3, H, W) uint8."""
        return self.images[self.train_rows]

    @property
    def held(self) -> Tensor:
        """Held-out images, (K, 3, H, W) uint8."""
        return self.images[self.held_rows]

    @property
    def train_ids(self) -> list[int]:
        """Item ids of the images to train on."""
        return [i for i, h in zip(self.ids, self.held_out) if not h]


def packed_path(store: Store, fingerprint: str, size: tuple[int, int], crop: str, grey: bool = False) -> Path:
    """Where a dataset's images of a size (height, width) and crop are packed, perhaps grey; UserError for a forged folder."""
    folder = store.folder / "packed"
    if folder.is_symlink():  # it could lead anywhere
        raise UserError(f"The dataset in {store.folder} is damaged (packed is a link).")
    return folder / f"{fingerprint[:20]}-{size[1]}x{size[0]}-{crop}{'-grey' if grey else ''}.safetensors"


def holdout(sha256s: list[str]) -> list[bool]:
    """One picture in ten, chosen by its own SHA-256, so that adding others never moves one across; none below 40."""
    if len(sha256s) < HOLDOUT_FROM:
        return [False] * len(sha256s)
    chosen = [int(sha[:8], 16) % HOLDOUT_ONE_IN == 0 for sha in sha256s]
    if not any(chosen):
        chosen[0] = True
    return chosen


def pack(
    store: Store,
    size: tuple[int, int],
    crop: str,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    stop: threading.Event | None = None,
    *,
    grey: bool = False,
) -> Packed:
    """The packed file of the kept items, made now unless it exists. Stopped when ``stop`` is set before it is whole. ``grey``: with one
    channel, luma of Rec. 601."""
    kept = store.kept()
    if not kept:
        raise UserError("No image is kept in this dataset; harvest a folder or keep some of the rejected ones.")
    # of this very list: a person may go on rejecting while it is packed
    path = packed_path(store, fingerprint_of(kept), size, crop, grey)
    if path.exists():
        return load(path, grey)

    def one(index: int) -> bytes:
        source = store.copy_path(kept[index].sha256)
        try:
            small = fit(read_copy(source), size, crop)
        except OSError as error:
            raise UserError(
                f"The copy {source} of item {kept[index].id} is missing or damaged ({error}); "
                "delete that file and harvest its folder again, or reject the item."
            ) from None
        pixels: bytes = (np.asarray(small.convert("L")) if grey else np.asarray(small).transpose(2, 0, 1)).tobytes()
        return pixels

    def write(temporary: Path) -> None:
        with (
            open(temporary, "wb") as file,
            ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="ddpm-pack") as pool,
        ):
            file.write(_head(kept, size, 1 if grey else 3))
            for start in range(0, len(kept), _AHEAD):
                if stop is not None and stop.is_set():
                    raise Stopped("Stopped while the images were being packed; it starts over next time.")
                for number, picture in enumerate(pool.map(one, range(start, min(start + _AHEAD, len(kept)))), start):
                    file.write(picture)
                    if number % 64 == 63:
                        progress(number + 1, len(kept), "Preparing images")

    replace_with(path, write)
    return load(path, grey)


def _head(kept: list[Kept], size: tuple[int, int], channels: int) -> bytes:
    """What stands before the pictures in a packed file: safetensors' header (its README gives the format), ids, held out.

    The library's own writer wants all pictures in memory, twice; a dataset may be larger than that.
    """
    ids = np.asarray([item.id for item in kept], dtype="<i8").tobytes()
    held_out = np.asarray(holdout([item.sha256 for item in kept]), dtype=bool).tobytes()
    shape = [len(kept), channels, *size]
    ends = list(itertools.accumulate([0, len(ids), len(held_out), math.prod(shape)]))
    header = {
        "__metadata__": {"fingerprint": fingerprint_of(kept)},
        "ids": {"dtype": "I64", "shape": [len(kept)], "data_offsets": ends[0:2]},
        "held_out": {"dtype": "BOOL", "shape": [len(kept)], "data_offsets": ends[1:3]},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": ends[2:4]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text + ids + held_out


def load(path: Path, grey: bool = False) -> Packed:
    """Open a packed file, memory-mapped; UserError when it is missing or damaged."""
    problem = f"The packed dataset {path} is missing or damaged"
    with tensors_of(path, problem, "; delete it, it is made anew.") as file:
        fingerprint = (file.metadata() or {})["fingerprint"]
        images, ids, held_out = (file.get_tensor(name) for name in ("images", "ids", "held_out"))
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or images.shape[1] != (1 if grey else 3)
            or not images.numel()
        ):
            raise ValueError("its pictures are none")
        if (ids.dtype, held_out.dtype) != (torch.int64, torch.bool) or not ids.shape == held_out.shape == images.shape[
            :1
        ]:
            raise ValueError("it does not say what its pictures are")
        if bool(held_out.all()):
            raise ValueError("it leaves no picture to train on")
        return Packed(images, ids.tolist(), held_out.tolist(), path, fingerprint)
