"""Time to quality: KID over images seen and over seconds, for recipes on one and the same network.

Every recipe runs in our trainer, with its speed and its bf16: its own code would be slower, so the comparison at equal
seconds favours the peers. KID is that of ``evaluate``: 512 samples of the averaged weights by DPM-Solver++(2M) in 20
calls against all kept portraits; sampling and scoring are not counted as training time.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from ddpm_core.evaluation.features import RandomFeatures
from ddpm_core.evaluation.kid import kid
from ddpm_core.model.config import DiffusionConfig, ModelConfig
from ddpm_core.model.diffusion import model_to_uint8, uint8_to_model
from ddpm_core.operations.pictures import make_grid
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.training.settings import PRESETS, RunConfig, TrainSettings
from ddpm_core.training.trainer import Trainer

from . import common

SAMPLES = 512
STEPS = 20


@dataclass(frozen=True)
class Story(TrainSettings):
    """Adam 2e-5, an average that keeps 0.999, no warm-up."""

    def ema_decay_at(self, step: int) -> float:
        return 0.999


@dataclass(frozen=True)
class Diffusers(TrainSettings):
    """examples/unconditional_image_generation: 500 steps of warm-up, then a cosine; the average of its --use_ema."""

    total: int = 1200

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total - self.warmup_steps)
        return float(self.learning_rate * max(0.0, 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)))))

    def ema_decay_at(self, step: int) -> float:
        return float(min(0.9999, 1 - (1 + step) ** -0.75))  # EMAModel: inv_gamma 1, power 3/4


@dataclass(frozen=True)
class Lucidrains(TrainSettings):
    """Trainer: Adam 8e-5; ema_pytorch's average: every 10th step, copied until step 100, then warmed up to 0.995."""

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate

    def ema_decay_at(self, step: int) -> float:
        if step % 10:
            return 1.0
        return 0.0 if step <= 100 else min(0.995, 1 - (1 + step - 100) ** (-2 / 3))


@dataclass(frozen=True)
class Prototype(TrainSettings):
    """The untuned first try: v, cosine, min-SNR 5, AdamW 1e-3, an average ramped to 0.999."""

    def ema_decay_at(self, step: int) -> float:
        return min(0.999, (1 + step) / (10 + step))


def recipes(size: int, steps: int) -> dict[str, RunConfig]:
    """By name; ``steps`` is the length that a recipe with a planned end is told."""
    preset = PRESETS["tiny-32" if size == 32 else "portrait-64"]
    batch = preset.train.batch_size
    unet = dataclasses.replace(preset.model.unet, dropout=0.0)
    epsilon = ModelConfig(unet, DiffusionConfig("linear", prediction="epsilon"))
    sigmoid = ModelConfig(unet, DiffusionConfig("sigmoid", prediction="v"))
    cosine = ModelConfig(unet, DiffusionConfig("cosine", prediction="v"))
    plain: dict[str, Any] = {"batch_size": batch, "weighting": "uniform"}
    return {
        "ours": RunConfig(preset.model, preset.train),
        "story": RunConfig(
            epsilon, Story(**plain, learning_rate=2e-5, warmup_steps=0, beta2=0.999, flip_probability=0.0)
        ),
        "diffusers": RunConfig(
            epsilon,
            Diffusers(
                **plain, learning_rate=1e-4, warmup_steps=500, beta1=0.95, beta2=0.999, weight_decay=1e-6, total=steps
            ),
        ),
        "lucidrains": RunConfig(sigmoid, Lucidrains(**plain, learning_rate=8e-5)),
        "prototype": RunConfig(cosine, Prototype(batch_size=batch, learning_rate=1e-3, warmup_steps=100)),
    }


# what of our defaults differs from the story's, each put back to the story's
STORYS: dict[str, dict[str, str]] = {
    "prediction": {"prediction": "epsilon"},
    "schedule": {"schedule": "linear"},
    "weighting": {"weighting": "uniform"},
    "learning rate": {"learning_rate": "2e-5"},
    "warm-up": {"warmup_steps": "0"},
    "beta2": {"beta2": "0.999"},
    "average": {},
}


def one_back(ours: RunConfig) -> dict[str, RunConfig]:
    """Our defaults with one of them put back, by name."""
    found = {f"ours, story's {name}": ours.with_settings(changed) for name, changed in STORYS.items()}
    fields = {f.name: getattr(ours.train, f.name) for f in dataclasses.fields(ours.train)}
    found["ours, story's average"] = RunConfig(ours.model, Story(**fields))
    return found


class Course:
    """One training, scored at given counts of images."""

    def __init__(self, config: RunConfig, packed: Any, device: torch.device, seed: int) -> None:
        self.config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        self.trainer = Trainer(self.config, packed.train, device)
        if type(config.train) is not TrainSettings:  # a peer mirrors pictures without telling its network
            self.trainer.net.conditions["flip"].requires_grad_(False)
        self.seconds = 0.0

    def until(self, images: int) -> None:
        trainer = self.trainer
        steps = images // trainer.settings.batch_size
        while trainer.step < steps:
            began = time.perf_counter()
            trainer.run_slice(steps - trainer.step, 0.25)
            self.seconds += time.perf_counter() - began

    def samples(self, count: int = SAMPLES) -> torch.Tensor:
        unet = self.config.model.unet
        found, _ = generate(
            self.trainer.ema,
            self.trainer.diffusion,
            (unet.out_channels, *unet.image_size),
            count,
            SampleSettings(steps=STEPS, seed=10_000),
            dtype=self.trainer.dtype if self.trainer.device.type == "cuda" else torch.float32,
        )
        return model_to_uint8(found)


class Score:
    """KID against the kept portraits."""

    def __init__(self, reference: torch.Tensor) -> None:
        self.features = RandomFeatures(channels=3, device="cpu")
        self.real = self.features(uint8_to_model(reference))

    def __call__(self, samples: torch.Tensor) -> dict[str, float]:
        found = kid(self.features(uint8_to_model(samples)), self.real)
        return {"kid": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--size", type=int, help="default: 32 on a CPU, 64 on a GPU")
    options.add_argument("--recipes", nargs="*", default=["ours", "story", "diffusers", "lucidrains", "prototype"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options.add_argument("--images", type=int, nargs="+", default=[6000, 12_000], help="scored at these counts")
    options.add_argument("--prototype-images", type=int, default=38_400, help="the prototype is scored there")
    options.add_argument("--one-back", action="store_true", help="instead: our defaults, each put back to the story's")
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings of 'ours'")
    options.add_argument(
        "--trial",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="a recipe more: 'ours' with settings changed",
    )
    a = options.parse_args(argv)
    device = common.device_of(a)
    size = a.size or (32 if device.type == "cpu" else 64)
    packed = common.portraits(size)
    score = Score(packed.images)
    batch = PRESETS["tiny-32" if size == 32 else "portrait-64"].train.batch_size
    known = recipes(size, max(a.images) // batch)
    known["ours"] = known["ours"].with_settings(dict(pair.split("=", 1) for pair in a.set))
    for trial in a.trial:
        name, _, pairs = trial.partition(":")
        known[name] = known["ours"].with_settings(dict(pair.split("=", 1) for pair in pairs.split(",")))
    names = [*a.recipes, *(trial.partition(":")[0] for trial in a.trial)]
    if a.one_back:
        known.update(one_back(known["ours"]))
        names = ["ours", *one_back(known["ours"])]
    rows: list[dict[str, Any]] = []
    for seed in a.seeds:
        for name in names:
            course = Course(known[name], packed, device, seed)
            for images in [a.prototype_images] if name == "prototype" else sorted(a.images):
                course.until(images)
                samples = course.samples()
                row = {
                    "recipe": name,
                    "seed": seed,
                    "images": images,
                    "seconds": round(course.seconds, 1),
                    **score(samples),
                }
                rows.append(row)
                common.say(str(row))
            picture = f"quality-{size}-{name.replace(' ', '-')}-{seed}.png"
            make_grid(samples[:64]).save(common.WORK / picture)
            course.trainer.free()
    result = {
        "what": f"KID over images and seconds at {size}x{size}",
        **({} if a.one_back or a.trial else verdict(rows)),
        "rows": rows,
        **common.machine(device),
    }
    return common.answer(a, result)


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours against each other recipe, at equal images and at equal (or less) seconds: intervals apart, on every seed."""
    others = sorted({row["recipe"] for row in rows} - {"ours", "prototype"})
    ours = [row for row in rows if row["recipe"] == "ours"]
    apart = [
        mine["high"] < row["low"]
        for row in rows
        if row["recipe"] in others
        for mine in ours
        if mine["seed"] == row["seed"] and (mine["images"] == row["images"] or _nearest(ours, row) is mine)
    ]
    found: dict[str, Any] = {"bar": 1.0, "passed": all(apart) and bool(apart)}
    found["ratio"] = round(sum(apart) / len(apart), 3) if apart else None
    reached = [sooner(rows, seed) for seed in sorted({row["seed"] for row in rows})]
    if any(reached):
        found["prototype_reached_at"] = reached
        found["passed"] = found["passed"] and all(
            one is not None and one["images_share"] <= 0.5 and one["seconds_share"] <= 1 / 3 for one in reached
        )
    return found


def _nearest(ours: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """The last of our scores of that seed that took no longer than the other's."""
    earlier = [mine for mine in ours if mine["seed"] == row["seed"] and mine["seconds"] <= row["seconds"]]
    return max(earlier, key=lambda mine: float(mine["seconds"]), default=None)


def sooner(rows: list[dict[str, Any]], seed: int) -> dict[str, Any] | None:
    """The first of our scores that is at least as good as the prototype's last; shares of its images and seconds."""
    prototype = [row for row in rows if row["recipe"] == "prototype" and row["seed"] == seed]
    if not prototype:
        return None
    last = max(prototype, key=lambda row: int(row["images"]))
    for row in sorted((r for r in rows if r["recipe"] == "ours" and r["seed"] == seed), key=lambda r: int(r["images"])):
        if row["kid"] <= last["kid"]:
            return {
                "seed": seed,
                "images_share": round(row["images"] / last["images"], 3),
                "seconds_share": round(row["seconds"] / last["seconds"], 3),
            }
    return None


if __name__ == "__main__":
    sys.exit(run())
