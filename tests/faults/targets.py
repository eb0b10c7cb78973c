"""What a hostile file can reach, each a function over bytes: it must return, or raise nothing but our own sentence.

``fuzz.py`` runs one for as long as one likes; ``test_fuzz.py`` each for a moment.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from ddpm_core.dataset import handing_out, infotext, packing, ranking
from ddpm_core.dataset.harvest import judge
from ddpm_core.dataset.reading import MAX_TEXT_BYTES
from ddpm_core.dataset.store import NewItem, Store
from ddpm_core.dataset.tags import HIGHEST, LOWEST, Vocabulary, tags_of, vocabulary
from ddpm_core.dataset.words import FILE as WORDS_FILE
from ddpm_core.dataset.words import words_of
from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model import file as model_file
from ddpm_core.model.build import build, network_of
from ddpm_core.model.config import ModelConfig, UNetConfig, UpscalerConfig
from ddpm_core.operations.context import Context
from ddpm_core.operations.resuming import load_checkpoint, reopen
from ddpm_core.operations.telling import FILE as TOLD_FILE
from ddpm_core.operations.telling import told_in_run
from ddpm_core.requests import COLLECTION_STATE, TrainRequest
from ddpm_core.runs import Run
from ddpm_core.service import Service
from ddpm_core.training.checkpoints import CheckpointFolder
from ddpm_core.training.settings import RunConfig
from ddpm_core.training.trainer import Trainer
from ddpm_core.workspace import Workspace

MOST_SECONDS = 5
MOST_MEGABYTES = 1024
NET = UNetConfig(
    (8, 8),
    block_out_channels=(4, 8),
    attention_levels=(False, False),
    layers_per_block=1,
    norm_num_groups=2,
    attention_head_dim=4,
)
SMALL = RunConfig(ModelConfig(NET))
UPSCALER = ModelConfig(
    UpscalerConfig(
        2, (16, 16), 8, block_out_channels=(4, 8), blocks_per_level=(1, 1), norm_num_groups=2, detail_channels=4
    )
)
WORDED = RunConfig(ModelConfig(NET, tags=("red", "blue hat | headwear")))
_FOLDER = Path(tempfile.mkdtemp(prefix="ddpm-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
TORCH_CPU = torch.device("cpu")
_watching = False  # what is touched


def fresh(name: str) -> Path:
    global _watching
    watching, _watching = _watching, False  # removing names files relative to folders that are open
    folder = _FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _watching = watching
    return folder


# -- the targets --------------------------------------------------------------------------------------------------------


def image(data: bytes) -> None:
    """An image file as harvested: its pixels, its text."""
    folder = _FOLDER / "image"
    store = Store(folder)
    item, _ = judge(store, NewItem("x", len(data), 0, "0" * 64), data)
    if item is not None and item.has_copy:
        store.add([item])
        store.copy_path("0" * 64).unlink()
        with store.transaction() as db:
            db.execute("DELETE FROM items")


def text(data: bytes) -> None:
    """Generation text, which anyone can write into a picture, up to what is read of it."""
    data = data[:MAX_TEXT_BYTES]
    found = infotext.parse(data.decode("utf-8", "replace"))
    infotext.parse(infotext.build(found))


def prompt(data: bytes) -> None:
    """A prompt as a dataset and a model with words read it, and the words that a person chose."""
    written = data.decode("utf-8", "replace")
    told = tags_of(written)
    assert all(word and LOWEST <= weight <= HIGHEST for word, weight in told.items()), told
    found = vocabulary([told] * 20 + [{"red": 1.0}] * 20)
    match = Vocabulary([word.entry for word in found]).match(written)
    assert all(value == 0 or LOWEST <= value <= HIGHEST for value in match.values)
    answerable([match.words, match.unknown])


def words(data: bytes) -> None:
    """The file of what a person chose among a dataset's words, and what a run keeps of them."""
    root = fresh("words")
    folder = root / "datasets" / "d"
    folder.mkdir(parents=True)
    shutil.copy(_database_file(), folder / "dataset.sqlite")
    (folder / WORDS_FILE).write_bytes(data)
    workspace = Workspace(root)
    with contextlib.suppress(UserError):
        answerable(words_of(workspace.store("d")).to_json())
    (root / TOLD_FILE).write_bytes(data)
    run = Run(WORDED.to_json(), "d", "0f" * 32, 4, 10)
    made = packing.Packed(torch.zeros((4, 3, 8, 8), dtype=torch.uint8), [1, 2, 3, 4], [False] * 4, root, "f")
    told = told_in_run(workspace, run, WORDED, made, root, Context(TORCH_CPU))["tags"]
    assert told.shape == (4, 2) and bool(torch.isfinite(told).all())


def database(data: bytes) -> None:
    root = fresh("database")
    folder = root / "datasets" / "d"
    folder.mkdir(parents=True)
    (folder / "dataset.sqlite").write_bytes(data)
    service = Service(StandaloneHost(root))
    store = service.workspace.store("d")
    copy = store.copy_path("0" * 64)  # that of every item of the seed, where somebody has put something else
    copy.parent.mkdir()
    copy.write_bytes((REGRESSIONS / "image" / "postscript").read_bytes())
    try:
        for view in ("unusual", "twins", "all", "kept", "rejected"):
            answerable(service.watch.items("d", view, 0, 60))
        answerable(store.items())
        store.fingerprint()
        for row in (1, 2):
            with contextlib.suppress(UserError):
                handing_out.thumbnail(service.workspace.store("d"), row, (32, 32))
        answerable(store.undo())
        store.decide([1], "rejected")
        ranking.rank(store)
    finally:
        store.close()


def model(data: bytes) -> None:
    workspace = Workspace(fresh("model"))
    path = workspace.models_folder / "m.safetensors"
    path.write_bytes(data)
    answerable(workspace.list_models())
    loaded = model_file.load(path)
    network_of(loaded.config, loaded.weights, "cpu")


def checkpoint(data: bytes) -> None:
    folder = fresh("checkpoint")
    for step, content in enumerate([*_checkpoints(), data]):  # one that is whole, and this
        (folder / f"step-{step:09d}.safetensors").write_bytes(content)
    CheckpointFolder(folder).best()
    found = CheckpointFolder(folder).load_newest()
    if found is not None:
        load_checkpoint(Trainer(SMALL, torch.zeros((4, 3, 8, 8), dtype=torch.uint8), "cpu"), found)


def packed(data: bytes) -> None:
    path = fresh("packed") / "p.safetensors"
    path.write_bytes(data)
    found = packing.load(path)
    Trainer(SMALL, found.images, "cpu", rows=found.train_rows)


def run_folder(data: bytes) -> None:
    """run.json, metrics and the other small files of a workspace, as the tab's page asks for them."""
    root = fresh("run")
    for name in ("run.json", "metrics.jsonl"):
        (root / "runs" / "m").mkdir(parents=True, exist_ok=True)
        (root / "runs" / "m" / name).write_bytes(data)
    (root / "datasets" / "d").mkdir(parents=True)
    shutil.copy(_database_file(), root / "datasets" / "d" / "dataset.sqlite")
    (root / "datasets" / "d" / COLLECTION_STATE).write_bytes(data)
    (root / "collecting.json").write_bytes(data)
    (root / "trash" / "x").mkdir(parents=True)
    (root / "trash" / "x" / "trash.json").write_bytes(data)
    (root / "trash" / "x" / "0").write_bytes(b"")
    service = Service(StandaloneHost(root))
    service.watch.status_text().encode("utf-8")
    answerable(service.watch.status())
    answerable(service.watch.curves("m"))
    service.collector.wants("a prompt")
    workspace = service.workspace
    with contextlib.suppress(UserError):
        workspace.restore("x")
    reopen(workspace, workspace.run_folder("m"), TrainRequest("m", resume=True), Context(TORCH_CPU))


def answerable(values: Any) -> None:
    """What a page is answered can be written as every FastAPI there is writes it."""
    json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8")


_database_path: Path | None = None


def _database_file() -> Path:
    """A dataset with a few items."""
    global _database_path
    if _database_path is None:
        folder = fresh("seed-database")
        store = Store(folder)
        thumb = np.zeros((24, 24, 3), np.uint8).tobytes()
        store.add([NewItem(f"/x/{i}.png", 10, i, f"{i:064x}", 8, 8, "a prompt", thumb=thumb) for i in range(3)])
        with store.transaction() as db:
            db.execute("PRAGMA user_version")
        with contextlib.closing(sqlite3.connect(folder / "dataset.sqlite")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _database_path = _FOLDER / "seed.sqlite"
        store.close()
        shutil.copy(folder / "dataset.sqlite", _database_path)
    return _database_path


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (image, text, prompt, words, database, model, checkpoint, packed, run_folder)
}


# -- seeds --------------------------------------------------------------------------------------------------------------


def seeds(name: str) -> list[bytes]:
    """Valid inputs to begin from, and what broke a target before."""
    found = {
        "image": _images,
        "text": _texts,
        "prompt": _prompts,
        "words": _words,
        "database": lambda: [_database_file().read_bytes()],
        "model": _models,
        "checkpoint": _checkpoints,
        "packed": _packed,
        "run_folder": _jsons,
    }[name]()
    return [*found, *(path.read_bytes() for path in sorted((REGRESSIONS / name).glob("*")))]


REGRESSIONS = Path(__file__).resolve().parent / "regressions"


def _images() -> list[bytes]:
    picture = Image.effect_mandelbrot((40, 40), (-2, -2, 2, 2), 20).convert("RGB")
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("parameters", _texts()[0].decode())
    chunk.add_itxt("parameters", "ü" * 40, zip=True)
    found = []
    for form, options in (
        ("PNG", {"pnginfo": chunk}),
        ("JPEG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("EPS", {}),  # a kind that is not read: Pillow would start Ghostscript
    ):
        out = io.BytesIO()
        picture.save(out, format=form, **options)
        found.append(out.getvalue())
    return found


def _texts() -> list[bytes]:
    return [
        b"portrait, (face:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 512x512, "
        b'Model hash: 6ce0161689, Lora hashes: "a: 1, b: 2", Version: v1.10.1',
        "提示词\nSteps: 1, Size: 8x8".encode(),
    ]


def _prompts() -> list[bytes]:
    return [
        b"(1girl, smile:1.2), <lora:x:0.8> red_hair, [blue:green:0.5] eyes, [a|b], ^_^, \\(x\\) BREAK y # comment",
        b"a photo of the red cat that sits on a mat AND a dog :-0.5\n{{best}}, __wildcard__",
        "提示词，红色, ＦＵＬＬ".encode(),
    ]


def _words() -> list[bytes]:
    path = fresh("seed-words") / TOLD_FILE
    save_file({"ids": torch.tensor([1, 2, 3, 4]), "tags": torch.eye(4)[:, :2].contiguous()}, path)
    chosen = {"left_out": ["red"], "kept": [], "merged": [["a", "b"]]}
    return [path.read_bytes(), json.dumps({"format": 1, "history": [{}, chosen]}).encode()]


def _models() -> list[bytes]:
    found = []
    for kind in (SMALL.model, WORDED.model, UPSCALER):
        path = fresh("seed-model") / "m.safetensors"
        model_file.save(path, kind, dict(build(kind).named_parameters()), title="m", info={"steps": 1})
        found.append(path.read_bytes())
    return found


@functools.cache
def _checkpoints() -> list[bytes]:
    trainer = Trainer(SMALL, torch.zeros((4, 3, 8, 8), dtype=torch.uint8), "cpu")
    folder = CheckpointFolder(fresh("seed-checkpoint"))
    numbers = {**trainer.state_numbers(), "seconds": 1.0, "heldout_loss": 0.5, "precision": "fp32"}
    return [folder.save(trainer.state_tensors(), numbers).read_bytes()]


def _packed() -> list[bytes]:
    _checkpoints()  # torch makes a folder of its own beside the first training of a process
    path = fresh("seed-packed") / "p.safetensors"
    tensors = {
        "images": torch.zeros((4, 3, 8, 8), dtype=torch.uint8),
        "ids": torch.arange(4),
        "held_out": torch.zeros(4).bool(),
    }
    save_file(tensors, path, metadata={"fingerprint": "f"})
    return [path.read_bytes()]


def _jsons() -> list[bytes]:
    run: dict[str, Any] = {"format": 1, "config": SMALL.to_json(), "dataset": "d", "images": 4}
    run |= {
        "fingerprint": "0f" * 32,
        "steps": 10,
        "minutes": None,
        "began": 1.0,
        "state": "running",
        "version": "0",
        "init_from": None,
    }
    line = {"kind": "train", "step": 1, "loss": 0.5, "images_per_second": 3.0, "seconds": 1.0, "learning_rate": 0.1}
    held = {"kind": "heldout", "step": 1, "heldout_loss": 0.5, "seen_loss": 0.5, "bands": {"0-9": 0.1}}
    request = {"prompt": "p", "negative_prompt": "", "sampler": "Euler", "scheduler": "", "steps": 1}
    return [
        json.dumps(run).encode(),
        b"\n".join(json.dumps(value).encode() for value in (line, held, {"kind": "note", "text": "x"})),
        json.dumps({"request": request, "total": 3, "batch_size": 1, "seed": 1, "done": 0}).encode(),
        json.dumps({"enabled": True, "dataset": "d", "words": "a, b"}).encode(),
        json.dumps({"kind": "model", "name": "m", "when": 1.0, "paths": ["/x/m.safetensors"]}).encode(),
    ]


# -- mutation -----------------------------------------------------------------------------------------------------------

_NUMBERS = [0, 1, -1, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
_WORDS = [
    b"..",
    b"/etc/passwd",
    b"null",
    b"true",
    b"-1",
    b"1e400",
    b"NaN",
    b"[]",
    b"{}",
    b'""',
    b"\x00",
    b"<script>",
    b"\xff\xfe",
]
_WORDS += [b"9" * 40, b"[" * 2000, b'"shape":[4294967296,4294967296]', b"CON", "٣".encode(), b"\xed\xa0\x80"]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few random changes: bits, bytes, numbers, words, pieces left out, doubled or moved."""
    changed = bytearray(data)
    for _ in range(1 + int(chance.expovariate(0.7))):
        place = chance.randrange(len(changed) + 1)
        length = int(2 ** chance.uniform(0, max(1, len(changed).bit_length())))
        kind = chance.randrange(8)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            form = chance.choice("<I >I <Q >Q <H".split())  # noqa: SIM905
            number = chance.choice(_NUMBERS) % 256 ** struct.calcsize(form)
            changed[place : place + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            changed[place : place + chance.choice([0, 4])] = chance.choice(_WORDS)
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5:
            changed[place:place] = changed[place : place + length]
        elif kind == 6:  # what takes time in proportion to the square shows only in long runs
            changed[place:place] = changed[place : place + min(length, 8)] * (2**16 // max(1, min(length, 8)))
        else:
            other = chance.randrange(len(changed) + 1)
            changed[place : place + length] = changed[other : other + length]
    return bytes(changed[: 2**22])


@contextlib.contextmanager
def watched(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """TimeoutError in what takes longer (where signals can tell)."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"over {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_HOME = Path(__file__).resolve().parents[2]
# what the interpreter and its libraries read; all else that is touched must lie in the target's own folder
_LIBRARIES = [
    sys.prefix,
    sys.base_prefix,
    str(_HOME / "ddpm_core"),
    str(_HOME / "tests"),
    "/proc",
    "/sys",
    "/usr",
    "/dev",
]
_LIBRARIES += [str(Path(part).resolve()) for part in sys.path if part and Path(part).resolve() != _HOME]
_touching = {
    "open",
    "os.listdir",
    "os.scandir",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
}
_strays: list[str] = []


def _touched(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect"):
        _strays.append(f"{event} {arguments!r:.300}")
    elif event in _touching:
        for argument in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if isinstance(argument, (str, bytes)) and len(argument) > 1:
                path = os.path.realpath(os.fsdecode(argument))
                if not path.startswith((str(_FOLDER.resolve()), *_LIBRARIES)):
                    _strays.append(f"{event} {path}")


sys.addaudithook(_touched)


def attempt(name: str, data: bytes) -> None:
    """Once; anything but a return or our own sentence is raised, and so is any touch of what lies elsewhere."""
    global _watching
    _strays.clear()
    _watching = True
    try:
        with contextlib.suppress(UserError):
            TARGETS[name](data)
    finally:
        _watching = False
    assert not _strays, _strays


def megabytes() -> float:
    """The most that this process has held; on Linux without what it inherits from the one that started it."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, float]:
    """Plain mutation for so long; how often, and by how much memory grew."""
    chance, corpus = random.Random(seed), seeds(name)
    for data in corpus:
        with watched():
            attempt(name, data)
    before, count, begun = megabytes(), 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        data = mutate(chance.choice(corpus), chance)
        try:
            with watched():
                attempt(name, data)
        except BaseException:
            Path(f"crash-{name}").write_bytes(data)
            raise
        count += 1
    return count, megabytes() - before
