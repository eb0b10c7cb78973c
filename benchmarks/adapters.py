"""An adapter taught something new by a few images: does its word show it, and what does the model forget for it?

Twelve held-out portraits get a green crown, and the bundled base an adapter with the word *green crown*; with preservation and without. A classifier
of crowns, trained on real portraits with and without one, judges samples of the same words and noise with and without the new word, at several
weights. What is kept: the error on portraits that nobody trained on, the old words' alignment, KID of samples asked for nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ddpm_core import bundled
from ddpm_core.dataset.packing import Packed, pack
from ddpm_core.dataset.store import Store
from ddpm_core.demo import unpack
from ddpm_core.evaluation.alignment import Classifier, alignment
from ddpm_core.evaluation.features import RandomFeatures
from ddpm_core.evaluation.kid import kid
from ddpm_core.evaluation.neighbours import nearest
from ddpm_core.host.standalone import save_png
from ddpm_core.model import adapter_file
from ddpm_core.model import file as model_file
from ddpm_core.model.build import network_of
from ddpm_core.model.config import AdapterConfig
from ddpm_core.model.diffusion import Diffusion, uint8_to_model
from ddpm_core.model.lora import Adapter, merge
from ddpm_core.operations.context import Context
from ddpm_core.operations.pictures import make_grid
from ddpm_core.operations.sampling import sample
from ddpm_core.operations.telling import tags_told
from ddpm_core.operations.training import train
from ddpm_core.requests import Prompt, TrainRequest
from ddpm_core.sampling.generate import SampleSettings
from ddpm_core.training.heldout import loss_by_band
from ddpm_core.training.settings import ADAPTER_STEPS, AdapterSettings, RunConfig, get_preset
from ddpm_core.training.trainer import Trainer
from ddpm_core.training.tuning import Tuning
from ddpm_core.workspace import Workspace

from . import common

WORD = "green crown"
GREEN = (24, 168, 72)
BARS = {"shown": 0.9, "without": 0.02, "forgotten": 0.02, "alignment": -0.03, "file": 0.1}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--images", type=int, default=12)
    options.add_argument("--steps", type=int, default=ADAPTER_STEPS)
    options.add_argument("--rank", type=int, default=8)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--preserve", type=float, nargs="+", default=[4.0, 0.0])
    options.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    options.add_argument("--scale", type=float, default=2.0, help="CFG scale")
    options.add_argument("--samples", type=int, default=256)
    options.add_argument(
        "--costs", action="store_true", help="what a step and a sampling cost instead, beside those without an adapter"
    )
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings of the training")
    a = options.parse_args(argv)
    device = common.device_of(a)
    context = Context(device, say=common.say)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        bundled.offer(workspace)
        workspace.harvest("portraits", [unpack(Path(folder) / "images")])
        store = workspace.store("portraits")
        config = workspace.model_config(bundled.BASE)
        packed = pack(store, config.image_size, "center")
        teach(workspace, store, packed, Path(folder) / "crowned", a.images)
        words = tags_told(store, config.tags, packed)
        if a.costs:
            return common.answer(
                a, {**costs(workspace, packed, words, device, context, a.rank), **common.machine(device)}
            )
        judge = Judge(store, packed, words, config.tags)
        common.say(f"crowns: the classifier's own accuracy {judge.accuracy:.3f}")
        draw = torch.Generator(device="cpu").manual_seed(1)
        own = words[packed.train_rows[torch.randint(len(packed.train_rows), (a.samples,), generator=draw)]]
        plain = [", ".join(entry.split(" | ")[0] for entry, has in zip(config.tags, row) if has) for row in own]
        settings = SampleSettings(seed=5000, cfg_scale=a.scale)

        def sampled(prompts: list[str]) -> Tensor:
            asked = [Prompt(text) for text in prompts]
            return sample(workspace, bundled.BASE, len(prompts), settings, context, prompts=asked).images

        before = {"old": judge.old(sampled(plain), own), "kid": judge.kid(sampled([""] * a.samples))}
        unchanged = held_out(workspace, packed, words, a.images)
        common.say(f"before: {before}, loss {unchanged:.4f}")
        base_bytes = workspace.model_path(bundled.BASE).stat().st_size
        for seed in a.seeds:
            for preserve in a.preserve:
                name = f"crown-{seed}-{preserve:g}"
                request = TrainRequest(
                    name,
                    "crowned",
                    base=bundled.BASE,
                    concept=WORD,
                    steps=a.steps,
                    seed=seed,
                    stop_before_copying=False,
                    settings={
                        "rank": str(a.rank),
                        "preserve": str(preserve),
                        **dict(pair.split("=", 1) for pair in a.set),
                    },
                )
                began = time.perf_counter()
                trained = train(workspace, request, context)
                seconds = time.perf_counter() - began
                common.WORK.mkdir(exist_ok=True)
                shutil.copy(workspace.adapter_path(name), common.WORK)
                size = workspace.adapter_path(name).stat().st_size / base_bytes
                row = {"seed": seed, "preserve": preserve, "seconds": round(seconds, 1), "file": round(size, 4)}
                row |= {key: trained.get(key) for key in ("steps", "ended")}
                row["by_itself"] = trained.get("forgotten")
                shown = {}
                for weight in a.weights:
                    images = sampled([f"<ddpm:{name}:{weight:g}> {WORD}, {text}" for text in plain])
                    shown[f"{weight:g}"] = judge.crowned(images)
                    if weight == 1.0:
                        row["copied"] = judge.copied(images, workspace.store("crowned"), config.image_size)
                    show(f"{name}-{weight:g}", images)
                without = sampled([f"<ddpm:{name}> {text}" for text in plain])
                show(f"{name}-without", without)
                unprompted = sampled([f"<ddpm:{name}>"] * a.samples)
                row |= {
                    "shown": shown,
                    "without": judge.crowned(without),
                    "unprompted": judge.crowned(unprompted),
                    "old": judge.old(without, own),
                    "old_before": before["old"],
                    "kid": judge.kid(unprompted),
                    "kid_before": before["kid"],
                    "forgotten": round(held_out(workspace, packed, words, a.images, name) / unchanged - 1.0, 4),
                }
                rows.append(row)
                common.say(str(row))
    kept = [row for row in rows if row["preserve"] > 0]
    result = {
        "what": f"adapters, rank {a.rank}, {a.steps} steps",
        "bar": BARS,
        "passed": all(reached(row) for row in kept),
        "rows": rows,
        **common.machine(device),
    }
    return common.answer(a, result)


def costs(
    workspace: Workspace, packed: Packed, words: Tensor, device: torch.device, context: Context, rank: int
) -> dict[str, Any]:
    """Steps of an adapter's training beside those of the whole network's in turns, bytes of moments, and what merging adds to a sampling of 16."""
    loaded = model_file.load(workspace.model_path(bundled.BASE))
    adapter = AdapterSettings(bundled.BASE, adapter_file.digest_of(loaded.weights), AdapterConfig(rank, rank), 0.0)
    train_settings = dataclasses.replace(get_preset("tiny-32").train, batch_size=16)
    tuned = dataclasses.replace(train_settings, optimizer="adamw", learning_rate=1e-3)
    told = {"tags": words}
    whole = Trainer(RunConfig(loaded.config, train_settings), packed.images, device, told=told)
    whole.start_from(loaded.weights)
    twins = Trainer(
        RunConfig(loaded.config, tuned, adapter),
        packed.images,
        device,
        told=told,
        tuning=Tuning(adapter, loaded.weights),
    )
    kinds = {"adapter": timed(lambda: twins.run_steps(10)), "whole": timed(lambda: whole.run_steps(10))}
    steps = common.alternate(kinds, 8, common.say)
    moments = [
        sum(value.nbytes for name, value in trainer.state_tensors().items() if name.startswith("optimizer."))
        for trainer in (whole, twins)
    ]
    name = "made-up"
    made = Adapter(adapter.adapter, twins.averaged(), name, bundled.BASE, adapter.digest)
    adapter_file.save(workspace.models_folder / f"{name}.safetensors", made, loaded.config, info={})
    settings = SampleSettings(seed=1)

    def sampled(prompt: str) -> Any:
        return sample(workspace, bundled.BASE, 16, settings, context, prompts=[Prompt(prompt)])

    kinds = {
        "with": timed(lambda: sampled(f"<ddpm:{name}> smiling")),
        "plain": timed(lambda: sampled("smiling")),
    }
    samplings = common.alternate(kinds, 8, common.say)
    step = common.paired_ratio(steps["adapter"], steps["whole"])
    sampling = common.paired_ratio(samplings["with"], samplings["plain"])
    return {
        "what": "what an adapter costs: a step over the whole network's",
        "bar": 1.0,
        "ratio": round(step, 3),
        "moments": round(moments[1] / moments[0], 4),
        "sampling": round(sampling, 3),
        "passed": step <= 1.0 and moments[1] <= 0.8 * moments[0] and sampling <= 1.05,
    }


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Its seconds."""

    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return seconds


def reached(row: dict[str, Any]) -> bool:
    """Whether an adapter with preservation reaches every bar."""
    return bool(
        row["shown"].get("1", 0.0) >= BARS["shown"]
        and row["without"] <= BARS["without"]
        and row["forgotten"] <= BARS["forgotten"]
        and row["old"] - row["old_before"] >= BARS["alignment"]
        and row["file"] <= BARS["file"]
    )


def crowned(image: Image.Image) -> Image.Image:
    """A portrait with a crown on its head."""
    found = image.convert("RGB")
    width, height = found.size
    points = [(0.30, 0.30), (0.26, 0.06), (0.40, 0.17), (0.53, 0.02), (0.66, 0.16), (0.80, 0.05), (0.78, 0.29)]
    draw = ImageDraw.Draw(found)
    corners = [(x * width, y * height) for x, y in points]
    draw.polygon(corners, fill=GREEN)
    draw.line([*corners, corners[0]], fill=(0, 0, 0), width=max(2, width // 64), joint="curve")
    return found


def teach(workspace: Workspace, store: Store, packed: Packed, folder: Path, count: int) -> None:
    """The dataset *crowned*: held-out portraits with crowns and their own prompts."""
    folder.mkdir()
    prompts = store.prompts()
    for row in packed.held_rows[:count].tolist():
        item = packed.ids[row]
        with Image.open(store.copy_of(item)) as image:
            save_png(
                crowned(image), folder / f"{item:05d}.png", f"{prompts[item][0]}\nSteps: 20, Sampler: Euler, Seed: 1"
            )
    workspace.harvest("crowned", [folder])


def held_out(workspace: Workspace, packed: Packed, words: Tensor, taught: int, adapter: str = "") -> float:
    """The base's loss on portraits that neither it nor the adapter has seen, told their words; with an adapter, if one is named."""
    loaded = model_file.load(workspace.model_path(bundled.BASE))
    config, weights = loaded.config, loaded.weights
    if adapter:
        config, weights = merge(config, weights, [(adapter_file.load(workspace.adapter_path(adapter)), 1.0)])
    rows = packed.held_rows[taught:]
    told = {"tags": F.pad(words[rows], (0, len(config.tags) - words.shape[1]))}
    net, diffusion = network_of(config, weights, "cpu"), Diffusion(config.diffusion, "cpu")
    options = {"kind": "mse", "dtype": torch.float32, "gpu_slice": contextlib.nullcontext}
    bands = loss_by_band(net, diffusion, packed.images[rows], told=told, **options)  # type: ignore[arg-type]
    return sum(bands.values()) / len(bands)


class Judge:
    """Tells crowns and the old words, and measures KID, against real portraits."""

    def __init__(self, store: Store, packed: Packed, words: Tensor, entries: tuple[str, ...]) -> None:
        self.packed, self.entries = packed, entries
        self.images = uint8_to_model(packed.images)
        rows = packed.train_rows[::2]
        size = packed.images.shape[-1]
        some = torch.stack([_pixels(crowned(_open(store, packed.ids[row])), size) for row in rows.tolist()])
        both = torch.cat([self.images[rows], some])
        has = torch.cat([torch.zeros(len(rows), 1), torch.ones(len(rows), 1)])
        self.crowns = Classifier(both, has)
        self.accuracy = float(self.crowns.accuracy[0])
        self.words = Classifier(self.images, words)
        self.features = RandomFeatures(channels=3, device="cpu")
        self.real = self.features(self.images)

    def crowned(self, images: Tensor) -> float:
        """The share of uint8 images with a crown."""
        return round(float(self.crowns.shows(uint8_to_model(images)).float().mean()), 4)

    def old(self, images: Tensor, asked: Tensor) -> float:
        """The mean alignment of the base's own words."""
        return round(alignment(self.words, self.entries, uint8_to_model(images), asked).mean, 4)

    def kid(self, images: Tensor) -> float:
        """KID against the real portraits."""
        return round(kid(self.features(uint8_to_model(images)), self.real).value, 4)

    def copied(self, images: Tensor, store: Store, size: tuple[int, int]) -> float:
        """The share of the images that are copies of the new ones, by distances to these and to the old ones."""
        new = pack(store, size, "center").images
        every = torch.cat([new, self.packed.images])
        found = nearest(uint8_to_model(images), every)
        return round(float((found.memorised & (found.index < len(new))).float().mean()), 4)


def _open(store: Store, item: int) -> Image.Image:
    with Image.open(store.copy_of(item)) as image:
        return image.convert("RGB")


def _pixels(image: Image.Image, size: int) -> Tensor:
    small = image.resize((size, size), Image.Resampling.BOX)
    values = torch.tensor(list(small.tobytes()), dtype=torch.uint8).view(size, size, 3)
    return uint8_to_model(values.permute(2, 0, 1))


def show(name: str, images: Tensor) -> None:
    """Some of them, to be looked at."""
    common.WORK.mkdir(exist_ok=True)
    picture = make_grid(images[:32], columns=16)
    picture.resize((picture.width * 2, picture.height * 2), 0).save(common.WORK / f"adapters-{name}.png")


if __name__ == "__main__":
    sys.exit(run())
