"""Prompts: whether a model shows what it is asked for, and what learning words costs.

Each seed trains the preset on the bundled portraits twice for equal steps, with and without words, in turns. Alignment: for each word
that a classifier tells with a balanced accuracy of 95 % on the real portraits, the share of the samples asked for it that show it; once
with the words of training images, once recombined to what no image has together. Copies by ``evaluate``'s measure. KID of the samples
asked for training images' words over that of the model without words.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ddpm_core.dataset.packing import pack
from ddpm_core.dataset.words import words_of
from ddpm_core.demo import unpack
from ddpm_core.evaluation.alignment import Alignment, Classifier, alignment, recombined
from ddpm_core.evaluation.neighbours import nearest
from ddpm_core.model.config import READINGS, TextConfig
from ddpm_core.model.diffusion import model_to_uint8, uint8_to_model
from ddpm_core.operations import asking
from ddpm_core.operations.alignment import prompt_of
from ddpm_core.operations.context import Context
from ddpm_core.operations.pictures import make_grid
from ddpm_core.operations.telling import tags_told, told_of
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.sampling.guidance import BAND, DEFAULT_SCALE, Asked
from ddpm_core.training.settings import PRESETS, RunConfig
from ddpm_core.training.trainer import Trainer
from ddpm_core.workspace import Workspace

from . import common
from .encoder import MiniLM
from .quality import Score


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--preset", default="tiny-32")
    options.add_argument("--steps", type=int, default=340, help="as the demo trains on a CPU")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--scales", type=float, nargs="+", default=[DEFAULT_SCALE], help="CFG scales")
    options.add_argument("--band", type=float, nargs=2, default=list(BAND), help="shares of the timesteps")
    options.add_argument("--samples", type=int, default=512)
    options.add_argument("--conditions", nargs="+", default=["tags"], choices=["tags", *READINGS])
    a = options.parse_args(argv)
    device = common.device_of(a)
    preset = PRESETS[a.preset]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.harvest("portraits", [unpack(Path(folder) / "images")])
        store = workspace.store("portraits")
        packed = pack(store, preset.model.unet.image_size, preset.train.crop)
        entries = tuple(word.entry for word in words_of(store).words)
        words = tags_told(store, entries, packed)
        classifier = Classifier(uint8_to_model(packed.images), words)
        context, models = Context(torch.device("cpu")), {"plain": preset.model}
        for kind in a.conditions:
            models[kind] = dataclasses.replace(preset.model, **({"tags": entries} if kind == "tags" else {}))
            if kind != "tags":
                encoder = MiniLM()
                context.text_encoder = lambda encoder=encoder: encoder
                text = TextConfig(kind, encoder.name, encoder.fingerprint, encoder.width, encoder.tokens)
                models[kind] = dataclasses.replace(preset.model, text=text)
        configs = {name: RunConfig(model, preset.train) for name, model in models.items()}
        told = {name: told_of(store, config, packed, context) for name, config in configs.items()}
        score = Score(packed.images)
        for seed in a.seeds:
            trainers = {
                name: Trainer(
                    dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed)),
                    packed.images,
                    device,
                    rows=packed.train_rows,
                    told=told[name],
                )
                for name, config in configs.items()
            }
            seconds = dict.fromkeys(trainers, 0.0)
            for _ in range(0, a.steps, 20):  # in turns, so that both meet the same machine
                for name, trainer in trainers.items():
                    seconds[name] += trainer.run_steps(min(20, a.steps - trainer.step)).seconds
            settings = SampleSettings(seed=10_000)
            without = sample(trainers["plain"], a.samples, settings, None)
            rows.append(
                {
                    "seed": seed,
                    "model": "plain",
                    "seconds": round(seconds["plain"], 1),
                    **score(without),
                    "copied": copied(without, packed),
                }
            )
            common.say(str(rows[-1]))
            draw = torch.Generator(device="cpu").manual_seed(seed)
            own = words[packed.train_rows[torch.randint(len(packed.train_rows), (a.samples,), generator=draw)]]
            new = recombined(words, a.samples, seed)
            for kind, scale in itertools.product(a.conditions, a.scales):
                row: dict[str, Any] = {"seed": seed, "model": kind, "scale": scale, "seconds": round(seconds[kind], 1)}
                for name, asked in (("own", own), ("recombined", new)):
                    prompts = [prompt_of(one, entries) for one in asked]
                    question = asking.read(configs[kind].model, prompts, scale, context).asked
                    assert question is not None
                    wanted = dataclasses.replace(question, band=tuple(a.band))
                    samples = sample(trainers[kind], len(asked), settings, wanted)
                    found = alignment(classifier, entries, uint8_to_model(samples), asked)
                    row |= {f"{name}_{key}": value for key, value in shares(found, words, entries).items()}
                    row[f"{name}_copied"] = copied(samples, packed)
                    if name == "own":
                        row |= score(samples)
                        make_grid(samples[:64]).save(common.WORK / f"prompts-{a.preset}-{kind}-{seed}-{scale:g}.png")
                rows.append(row)
                common.say(str(row))
            for trainer in trainers.values():
                trainer.free()
    costs = [
        mine["seconds"] / other["seconds"]
        for mine in rows
        for other in rows
        if mine["model"] == a.conditions[0] and other["model"] == "plain" and mine["seed"] == other["seed"]
    ]
    result = {
        "what": f"prompts, {a.preset}, {a.steps} steps",
        "ratio": round(sorted(costs)[len(costs) // 2], 3),
        "bar": 1.02,
        "passed": sorted(costs)[len(costs) // 2] <= 1.02,
        "words": len(entries),
        "rows": rows,
        **common.machine(device),
    }
    return common.answer(a, result)


def sample(trainer: Trainer, count: int, settings: SampleSettings, asked: Asked | None) -> torch.Tensor:
    """uint8 samples of a trainer's averaged weights."""
    unet = trainer.config.model.unet
    dtype = trainer.dtype if trainer.device.type == "cuda" else torch.float32
    shape = (unet.out_channels, *unet.image_size)
    found, _ = generate(trainer.ema, trainer.diffusion, shape, count, settings, dtype=dtype, asked=asked)
    return model_to_uint8(found)


def copied(samples: torch.Tensor, packed: Any) -> float:
    """The memorised fraction."""
    return round(float(nearest(uint8_to_model(samples), packed.images, packed.train_rows).memorised.float().mean()), 4)


def shares(found: Alignment, told: torch.Tensor, entries: tuple[str, ...]) -> dict[str, Any]:
    """Mean alignment of all words, of the frequent ones (a tenth of the images or more), and how often a word shows unasked."""
    often = {entry for i, entry in enumerate(entries) if float((told[:, i] > 0).float().mean()) >= 0.1}
    frequent = [share for word, share in found.shares.items() if word in often]
    return {
        "alignment": round(found.mean, 3),
        "frequent": round(sum(frequent) / max(1, len(frequent)), 3),
        "judged": len(found.shares),
        "unasked": round(found.unasked, 3),
    }


if __name__ == "__main__":
    sys.exit(run())
