"""Image and text in one space: retrieval, ranking, variations, a prior's prompts, and the speed of a search, on the bundled portraits.

``encoder``: each seed trains the preset *contrast* for its steps; recall and average precision on the held-out portraits. ``ranking``: of the bundled
model's samples the best of several, by the encoder and by the model's own loss (after the Diffusion Classifier, Li et al. 2023); alignment as in
``benchmarks.prompts``. ``ways``: models that are told words, a text encoder's tokens (where MiniLM is at hand), or the image (words by the prior), trained
for equal steps; alignment, KID, copies, seconds; and variations of held-out portraits: the share that a classifier gives the same skin, background and
shirt. ``search``: milliseconds to answer.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_core import bundled
from ddpm_core.dataset.packing import pack
from ddpm_core.dataset.vectors import Vectors
from ddpm_core.errors import UserError
from ddpm_core.evaluation.alignment import Classifier, alignment
from ddpm_core.evaluation.neighbours import nearest, to_image
from ddpm_core.model import file as model_file
from ddpm_core.model.build import network_of
from ddpm_core.model.diffusion import Diffusion, uint8_to_model
from ddpm_core.operations.alignment import prompt_of
from ddpm_core.operations.context import Context
from ddpm_core.operations.encoding import encoders, open_encoder
from ddpm_core.operations.pictures import make_grid
from ddpm_core.operations.ranking import chooser
from ddpm_core.operations.retrieval import evaluate_encoder
from ddpm_core.operations.sampling import sample
from ddpm_core.operations.searching import Index, index_of
from ddpm_core.operations.telling import tags_told
from ddpm_core.operations.training import train
from ddpm_core.requests import Prompt, TrainRequest
from ddpm_core.sampling.generate import SampleSettings
from ddpm_core.workspace import Workspace

from . import common
from .encoder import MiniLM
from .quality import Score

DATASET = "portraits"
KINDS = ("skin", "background", "shirt")
_MANY = 100_000
BARS = {
    "recall_over_chance": 4.0,
    "precision": 0.8,
    "seconds": 180.0,
    "closed": 1 / 3,
    "alike": 0.8,
    "ms": 50.0,
    "ms_many": 300.0,
}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--parts", nargs="+", default=["encoder", "ranking", "ways", "search"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument(
        "--steps", type=int, default=340, help="of the models that are told something, as the demo trains"
    )
    options.add_argument("--encoder-steps", type=int, help="default: the preset's")
    options.add_argument("--samples", type=int, default=256)
    options.add_argument("--best-of", type=int, default=8)
    options.add_argument("--ways", nargs="+", default=["tags", "cross-attention", "image"])
    a = options.parse_args(argv)
    device = common.device_of(a)
    common.portraits(32)
    workspace = Workspace(common.WORK, common.WORK / "models")
    context = Context(device, image_encoder=encoders(lambda: workspace))
    result: dict[str, Any] = {"what": "image and text in one space", "bars": BARS, **common.machine(device)}
    if "encoder" in a.parts:
        result["encoder"] = [_encoder(workspace, context, seed, a.encoder_steps) for seed in a.seeds]
        for row in result["encoder"]:
            common.say(str(row))
    if workspace.encoder_of(DATASET) is None:
        _encoder(workspace, context, a.seeds[0], a.encoder_steps)
    judge = Judge(workspace)
    for part, measure in (("ranking", _ranking), ("ways", _ways), ("search", _search)):
        if part in a.parts:
            result[part] = measure(workspace, context, judge, a)
            common.say(f"{part}: {result[part]}")
    return common.answer(a, result)


def _fresh(workspace: Workspace, name: str, request: TrainRequest, context: Context) -> float:
    """Train a model anew; seconds."""
    if name in workspace.model_names():
        workspace.delete_model(name)
        workspace.empty_trash()
    began = time.monotonic()
    train(workspace, request, context)
    return round(time.monotonic() - began, 1)


def _encoder(workspace: Workspace, context: Context, seed: int, steps: int | None) -> dict[str, Any]:
    name = f"finder-{seed}"
    request = TrainRequest(model=name, dataset=DATASET, preset="contrast", seed=seed, steps=steps)
    seconds = _fresh(workspace, name, request, context)
    found = evaluate_encoder(workspace, DATASET, context, model=name)
    return {"seed": seed, **found, "average_precision": None, "seconds": seconds}


class Judge:
    """Tells words of 32-pixel portraits, and which kinds of them there are."""

    def __init__(self, workspace: Workspace) -> None:
        self.packed = pack(workspace.store(DATASET), (32, 32), "center")
        config, _ = model_file.read_config(bundled.FOLDER / f"{bundled.BASE}.safetensors")
        self.entries = config.tags
        self.words = tags_told(workspace.store(DATASET), self.entries, self.packed)
        self.classifier = Classifier(uint8_to_model(self.packed.images), self.words)
        self.score = Score(self.packed.images)

    def own(self, count: int, seed: int) -> Tensor:
        """Words of so many training images, (count, K)."""
        draw = torch.Generator(device="cpu").manual_seed(seed)
        rows = self.packed.train_rows
        return self.words[rows[torch.randint(len(rows), (count,), generator=draw, device="cpu")]]

    def aligned(self, images: Tensor, asked: Tensor) -> float:
        return round(alignment(self.classifier, self.entries, uint8_to_model(images), asked).mean, 4)

    def copied(self, images: Tensor) -> float:
        found = nearest(uint8_to_model(images), self.packed.images, self.packed.train_rows)
        return round(float(found.memorised.float().mean()), 4)

    def alike(self, images: Tensor, given: Tensor) -> dict[str, float]:
        """Of samples and the images they are variations of: how many show the same word of each kind."""
        shown = self.classifier.shows(uint8_to_model(images))
        found = {}
        for kind in KINDS:
            places = [i for i, entry in enumerate(self.entries) if entry.endswith(kind)]
            has = given[:, places] > 0
            one = has.sum(1) == 1
            same = (shown[:, places] & has).any(1)
            found[kind] = round(float(same[one].float().mean()), 4)
        return found


def _ranking(workspace: Workspace, context: Context, judge: Judge, a: Any) -> dict[str, Any]:
    model = str(bundled.FOLDER / f"{bundled.BASE}.safetensors")
    found: dict[str, Any] = {"best_of": a.best_of}
    rows: dict[str, list[float]] = {"one": [], "encoder": [], "own loss": []}
    for seed in a.seeds:
        count = a.samples
        asked = judge.own(count, seed)
        prompts = [prompt_of(row, judge.entries) for row in asked]
        every = [prompt for prompt in prompts for _ in range(a.best_of)]
        made = sample(
            workspace, model, len(every), SampleSettings(seed=10_000 * (seed + 1)), context, prompts=every
        ).images
        loss = _by_own_loss(model, made, asked.repeat_interleave(a.best_of, 0), context)
        kept = {
            "one": list(range(0, len(made), a.best_of)),
            "encoder": chooser(workspace, model, prompts, a.best_of, context)(made),
            "own loss": (loss.view(count, a.best_of).argmax(1) + torch.arange(count) * a.best_of).tolist(),
        }
        for name, numbers in kept.items():
            rows[name].append(judge.aligned(made[numbers], asked))
            found.setdefault(f"{name} kid", []).append(judge.score(made[numbers])["kid"])
            found.setdefault(f"{name} copied", []).append(judge.copied(made[numbers]))
        common.say(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in rows.items()))
    plain = statistics.mean(rows["one"])
    closed = {
        name: round((statistics.mean(values) - plain) / (1 - plain), 4)
        for name, values in rows.items()
        if name != "one"
    }
    return {**found, **rows, "closed": closed}


def _by_own_loss(model: str, images: Tensor, words: Tensor, context: Context, draws: int = 8) -> Tensor:
    """(N,): by how much less a model errs on its samples when told the words than without, at the same noise."""
    loaded = model_file.load(Path(model))
    net, process = (
        network_of(loaded.config, loaded.weights, context.device),
        Diffusion(loaded.config.diffusion, context.device),
    )
    numbers = torch.Generator(device="cpu").manual_seed(7)
    total, found = loaded.config.diffusion.timesteps, torch.zeros(len(images))
    for draw in range(draws):
        time_ = int((0.1 + 0.8 * (draw + 0.5) / draws) * total)
        noise = torch.randn((1, *images.shape[1:]), generator=numbers, device="cpu")
        for start in range(0, len(images), 128):
            part = slice(start, start + 128)
            x0 = uint8_to_model(images[part])
            times = torch.full((len(x0),), time_, dtype=torch.int64)
            noisy, target = (
                process.add_noise(x0, noise.expand_as(x0), times),
                process.target(x0, noise.expand_as(x0), times),
            )
            with torch.no_grad():
                errors = [
                    (net(noisy, times, told={"tags": told}) - target).square().flatten(1).mean(1)
                    for told in (words[part], torch.zeros_like(words[part]))
                ]
            found[part] += errors[1] - errors[0]
    return found


def _ways(workspace: Workspace, context: Context, judge: Judge, a: Any) -> list[dict[str, Any]]:
    rows = []
    for way in a.ways:
        if way not in ("tags", "image", "none"):
            try:
                reader = MiniLM()
            except (UserError, OSError, ImportError) as error:
                common.say(f"{way}: left out ({error})")
                continue
            context = dataclasses.replace(context, text_encoder=lambda reader=reader: reader)
        for seed in a.seeds:
            name = f"told-{way}-{seed}"
            request = TrainRequest(
                model=name,
                dataset=DATASET,
                preset="tiny-32",
                seed=seed,
                steps=a.steps,
                condition=way,
                stop_before_copying=False,
            )
            seconds = _fresh(workspace, name, request, context)
            asked = judge.own(a.samples, seed)
            prompts = [prompt_of(row, judge.entries) for row in asked]
            settings = SampleSettings(seed=10_000)
            made = sample(workspace, name, a.samples, settings, context, prompts=prompts).images
            plain = sample(workspace, name, a.samples, settings, context).images
            row: dict[str, Any] = {
                "way": way,
                "seed": seed,
                "seconds": seconds,
                "alignment": judge.aligned(made, asked),
                **judge.score(made),
                "copied": judge.copied(made),
                "copied_plain": judge.copied(plain),
            }
            if way == "image":
                row |= _variations(workspace, context, judge, name)
            common.say(str(row))
            rows.append(row)
    return rows


def _variations(workspace: Workspace, context: Context, judge: Judge, name: str) -> dict[str, Any]:
    """Of held-out portraits, and copies made of trained ones."""
    large = pack(workspace.store(DATASET), (64, 64), "center")

    def made(rows: Tensor) -> Tensor:
        like = [to_image(large.images[row]) for row in rows]
        return sample(workspace, name, len(like), SampleSettings(seed=1), context, prompts=[Prompt()], like=like).images

    held, trained = judge.packed.held_rows, judge.packed.train_rows[:100]
    images = made(held)
    shown = torch.stack([one for pair in zip(judge.packed.images[held[:16]], images[:16]) for one in pair])
    make_grid(shown, columns=8).save(common.WORK / f"variations-{name}.png")
    return {"alike": judge.alike(images, judge.words[held]), "copied_variations": judge.copied(made(trained))}


def _search(workspace: Workspace, context: Context, judge: Judge, a: Any) -> dict[str, Any]:
    small = index_of(workspace, DATASET, context)
    assert small.encoder is not None
    encoder = open_encoder(workspace, small.encoder.name, context)
    numbers = torch.Generator(device="cpu").manual_seed(0)
    values = torch.nn.functional.normalize(
        torch.randn((_MANY, encoder.sight.width), generator=numbers, device="cpu"), dim=1
    )
    many = Index(workspace.store(DATASET), Vectors(list(range(_MANY)), values), encoder, encoder.sight)
    image = to_image(judge.packed.images[0])

    def times(index: Index, ask: Callable[[Index], Tensor]) -> float:
        spent = []
        for _ in range(21):
            began = time.perf_counter()
            index.best(ask(index), 60)
            spent.append(1000 * (time.perf_counter() - began))
        return round(sorted(spent)[-2], 2)  # the 95th percentile

    asks: dict[str, Callable[[Index], Tensor]] = {
        "words": lambda index: index.by_words("blue shirt, glasses")[0],
        "image": lambda index: index.by_image(image),
    }
    return {name: {"ms": times(small, ask), "ms_many": times(many, ask)} for name, ask in asks.items()}


if __name__ == "__main__":
    sys.exit(run())
