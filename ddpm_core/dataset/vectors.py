"""A vector for each kept item, made by whatever sees images, remembered in the dataset's folder: only what is new is looked at again."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..errors import Stopped, UserError
from ..files import replace_with
from ..parsing import tensors_of
from .packing import fit
from .reading import read_copy
from .store import Kept, Store

FOLDER = "vectors"  # in a dataset's folder
_BATCH = 128


@dataclass(frozen=True)
class Sight:
    """What makes vectors of images: ``embed`` uint8 (N, 3, H, W) to (N, ``width``) float32 of unit length. ``name``: no other sight has it;
    ``size`` (height, width) and ``crop`` of what it is shown."""

    name: str
    size: tuple[int, int]
    crop: str
    width: int
    embed: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Vectors:
    """``values`` (N, D) float32 of the items ``ids``, in their order."""

    ids: list[int]
    values: Tensor


def missing(store: Store, sight: Sight) -> int:
    """How many kept items have no vector yet."""
    known = _read(store, sight)
    return sum(_key(item) not in known for item in store.kept())


def vectors_of(
    store: Store,
    sight: Sight,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    stop: threading.Event | None = None,
) -> Vectors:
    """Of all kept items whose copies can be read. What there is when ``stop`` is set is kept for the next time."""
    kept, known = store.kept(), _read(store, sight)
    wanted = {key: item for item in kept if (key := _key(item)) not in known}
    new = list(wanted.items())

    def one(item: Kept) -> np.ndarray | None:
        try:
            image: Image.Image = fit(read_copy(store.copy_path(item.sha256)), sight.size, sight.crop)
        except OSError:
            return None  # the review shows it as missing
        pixels: np.ndarray = np.asarray(image).transpose(2, 0, 1)
        return pixels

    stopped = False
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="ddpm-vectors") as pool:
        for start in range(0, len(new), _BATCH):
            if stopped := stop is not None and stop.is_set():
                break
            some = new[start : start + _BATCH]
            seen = [
                (key, image)
                for (key, _), image in zip(some, pool.map(one, [item for _, item in some]))
                if image is not None
            ]
            if seen:
                found = sight.embed(torch.from_numpy(np.stack([image for _, image in seen])))
                known |= {key: vector for (key, _), vector in zip(seen, found.numpy())}
            progress(min(start + _BATCH, len(new)), len(new), "Looking at the images")
    there = {key for item in kept if (key := _key(item)) in known}
    if new or len(there) < len(known):
        _write(store, sight, {key: known[key] for key in known if key in there})
    if stopped:
        raise Stopped("Stopped while the images were being looked at; it goes on from there next time.")
    pairs = [(item.id, known[key]) for item in kept if (key := _key(item)) in known]
    values = np.stack([vector for _, vector in pairs]) if pairs else np.zeros((0, sight.width), dtype=np.float32)
    return Vectors([item for item, _ in pairs], torch.from_numpy(values))


def _key(item: Kept) -> int:
    digest = hashlib.sha256(f"{item.sha256}+{item.revision}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _path(store: Store, sight: Sight) -> os.PathLike[str]:
    folder = store.folder / FOLDER
    if folder.is_symlink():  # it could lead anywhere
        raise UserError(f"The dataset in {store.folder} is damaged ({FOLDER} is a link).")
    return folder / f"{sight.name[:20]}-{sight.crop}.safetensors"


def _read(store: Store, sight: Sight) -> dict[int, np.ndarray]:
    path = _path(store, sight)
    if not os.path.exists(path):  # noqa: PTH110 - a dangling link is none
        return {}
    try:
        with tensors_of(path, "damaged") as file:  # type: ignore[arg-type]
            keys, values = file.get_tensor("keys"), file.get_tensor("vectors")
            fits = keys.ndim == 1 and keys.dtype == torch.int64 and values.dtype == torch.float32
            if not fits or values.shape != (len(keys), sight.width) or not bool(torch.isfinite(values).all()):
                raise ValueError("they are none")
            return dict(zip(keys.tolist(), values.numpy()))
    except UserError:
        return {}  # made anew
    return {}


def _write(store: Store, sight: Sight, known: dict[int, np.ndarray]) -> None:
    if not known:
        return
    tensors = {
        "keys": torch.tensor(list(known), dtype=torch.int64),
        "vectors": torch.from_numpy(np.stack(list(known.values()))),
    }
    path = store.folder / FOLDER / f"{sight.name[:20]}-{sight.crop}.safetensors"
    path.parent.mkdir(exist_ok=True)
    replace_with(path, lambda temporary: save_file(tensors, temporary))
