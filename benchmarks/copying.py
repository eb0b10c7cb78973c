"""When copying begins: held-out against seen loss by noise level, and how near samples come to training images, over a long training.

Three sets: the bundled portraits, 200 of them, and 300 drawn images (``badges``). A model with words is asked for nothing and for training
images' own words.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ddpm_core.dataset.packing import Packed, pack
from ddpm_core.dataset.words import words_of
from ddpm_core.demo import unpack
from ddpm_core.evaluation.neighbours import nearest
from ddpm_core.model.diffusion import uint8_to_model
from ddpm_core.model.values import dense
from ddpm_core.operations.context import Context
from ddpm_core.operations.telling import tags_told, told_of
from ddpm_core.sampling.generate import SampleSettings
from ddpm_core.sampling.guidance import Asked
from ddpm_core.training.heldout import loss_by_band
from ddpm_core.training.settings import PRESETS, RunConfig
from ddpm_core.training.trainer import Trainer
from ddpm_core.workspace import Workspace

from . import common
from .prompts import sample

SETS = {"portraits": 0, "portraits-200": 200, "badges": 300}


def draw_badges(folder: Path, count: int) -> None:
    """Round badges: one of eight colours, rings, a letter-like mark of three strokes, all placed at random."""
    folder.mkdir(parents=True)
    random = torch.Generator(device="cpu").manual_seed(7)

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random, device="cpu"))

    for index in range(count):
        image = Image.new("RGB", (128, 128), tuple(int(number(0, 256)) for _ in range(3)))
        draw = ImageDraw.Draw(image)
        x, y, radius = number(45, 83), number(45, 83), number(25, 50)
        for _ in range(1 + int(number(0, 4))):
            colour = tuple(int(number(0, 256)) for _ in range(3))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            radius *= number(0.6, 0.9)
        points = [(number(x - 30, x + 30), number(y - 30, y + 30)) for _ in range(4)]
        draw.line(points, fill=tuple(int(number(0, 256)) for _ in range(3)), width=int(number(3, 9)))
        image.save(folder / f"{index:04}.png")


def packed_set(folder: Path, name: str, size: int, crop: str) -> tuple[Workspace, Packed]:
    """Harvest and pack one of :data:`SETS`."""
    workspace = Workspace(folder)
    if name == "badges":
        draw_badges(folder / "images", SETS[name])
        source = folder / "images"
    else:
        source = unpack(folder / "images")
        for path in sorted(source.rglob("txt2img-images/**/*.webp"))[SETS[name] or 10**9 :]:
            path.unlink()
    workspace.harvest(name, [source])
    return workspace, pack(workspace.store(name), (size, size), crop)


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options.add_argument("--preset", default="tiny-32")
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings of the preset")
    options.add_argument(
        "--first", type=int, default=8000, help="images until the first look; then a quarter more each"
    )
    options.add_argument("--images", type=int, default=200_000)
    options.add_argument("--until", type=float, default=0.05, help="end where this share of the samples are copies")
    options.add_argument("--samples", type=int, default=256)
    options.add_argument("--seed", type=int, default=0)
    a = options.parse_args(argv)
    device = common.device_of(a)
    preset = PRESETS[a.preset]
    rows: list[dict[str, Any]] = []
    for name in a.sets:
        with tempfile.TemporaryDirectory() as folder:
            workspace, packed = packed_set(Path(folder), name, preset.model.unet.image_size[0], preset.train.crop)
            rows += course(name, workspace, packed, a, device)
    return common.answer(a, {"what": "copying over a training", "rows": rows, **common.machine(device)})


def course(name: str, workspace: Workspace, packed: Packed, a: Any, device: torch.device) -> list[dict[str, Any]]:
    """One training, looked at as it goes."""
    preset = PRESETS[a.preset]
    config = RunConfig(preset.model, dataclasses.replace(preset.train, seed=a.seed)).with_settings(
        dict(pair.split("=", 1) for pair in a.set)
    )
    store = workspace.store(name)
    entries = tuple(word.entry for word in words_of(store).words)
    words = tags_told(store, entries, packed) if len(entries) >= 4 else None
    if words is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, tags=entries))
    told = told_of(store, config, packed, Context(torch.device("cpu")))
    trainer = Trainer(config, packed.images, device, rows=packed.train_rows, told=told)
    rows: list[dict[str, Any]] = []
    seconds, until = 0.0, float(a.first)
    batch = config.train.batch_size
    while trainer.step * batch < a.images:
        began = time.perf_counter()
        trainer.run_steps(max(1, math.ceil(until / batch) - trainer.step))
        seconds += time.perf_counter() - began
        row: dict[str, Any] = {
            "set": name,
            "images": trainer.step * batch,
            "epochs": round(trainer.step * batch / len(packed.train_rows), 1),
            "seconds": round(seconds, 1),
            **losses(trainer, packed, told),
        }
        asked = {"none": None}
        if words is not None:
            draw = torch.Generator(device="cpu").manual_seed(1)
            chosen = packed.train_rows[torch.randint(len(packed.train_rows), (a.samples,), generator=draw)]
            asked["own"] = Asked({"tags": words[chosen]}, None, 2.0)
        for kind, question in asked.items():
            samples = sample(trainer, a.samples, SampleSettings(seed=10_000, steps=20), question)
            found = nearest(uint8_to_model(samples), packed.images, packed.train_rows)
            ratios = found.d1 / found.d2.clamp_min(1e-9)
            row[f"copied_{kind}"] = round(float(found.memorised.float().mean()), 4)
            for share in (0.01, 0.05, 0.25):
                row[f"ratio_{kind}_{share:g}"] = round(float(ratios.quantile(share)), 3)
        rows.append(row)
        common.say(str(row))
        if row["copied_none"] >= a.until:
            break
        until *= 1.25
    trainer.free()
    return rows


def losses(trainer: Trainer, packed: Packed, told: Any) -> dict[str, Any]:
    """What the training itself sees when it looks."""
    found: dict[str, Any] = {}
    for kind, which in (("seen", packed.train_rows[:128]), ("held", packed.held_rows[:128])):
        own = {name: dense(values[which]) for name, values in told.items()}
        bands = loss_by_band(
            trainer.ema,
            trainer.diffusion,
            packed.images[which],
            kind=trainer.settings.loss,
            dtype=trainer.dtype,
            gpu_slice=nullcontext,
            told=own,
        )
        found[kind] = [round(value, 5) for value in bands.values()]
    found["gap"] = [round(held / seen - 1, 4) for held, seen in zip(found["held"], found["seen"])]
    return found


if __name__ == "__main__":
    sys.exit(run())
