"""Editing with a model: do completed halves fit what was kept, does a changed word change that and nothing else, does inversion come back?

On the bundled base and the held-out portraits. A classifier of one half of the portraits, trained on the real ones, judges the completed
halves: agreement with the skin and background of the half that was kept. A portrait is moved to another word of one kind (skin, background
or shirt) at each strength: the share that shows it, and the share of the other two kinds that stayed.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddpm_core import bundled
from ddpm_core.evaluation.alignment import Classifier
from ddpm_core.evaluation.neighbours import to_image
from ddpm_core.model import file as model_file
from ddpm_core.model.build import network_of
from ddpm_core.model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from ddpm_core.operations.context import Context
from ddpm_core.operations.pictures import grid_of, make_grid
from ddpm_core.operations.sampling import sample
from ddpm_core.operations.telling import tags_told
from ddpm_core.requests import OWN_UPSCALER, Edit, Enlarging, Prompt
from ddpm_core.sampling.denoiser import Denoiser
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.sampling.guidance import Asked
from ddpm_core.sampling.samplers import ddim
from ddpm_core.sampling.start import Start, invert
from ddpm_core.workspace import Workspace

from . import common

KINDS = ("skin", "background", "shirt")
_INVERTED = 100  # steps
_PORTRAYED = 8
BARS = {"completed": 0.9, "changed": 0.8, "kept": 0.8, "inversion_db": 30.0}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--model", default=str(bundled.FOLDER / f"{bundled.BASE}.safetensors"), help="a model file")
    options.add_argument("--images", type=int, default=88)
    options.add_argument("--resamples", type=int, nargs="+", default=[1, 2, 4, 8])
    options.add_argument("--strengths", type=float, nargs="+", default=[0.5])
    options.add_argument(
        "--scales", type=float, nargs="+", default=[2.0], help="CFG scales of what is moved to another word"
    )
    options.add_argument("--away", action="store_true", help="also with the image's own words as the negative prompt")
    options.add_argument("--sampler", default="dpmpp_2m")
    options.add_argument("--picture", type=Path, help="only draw what the README shows, into this file")
    a = options.parse_args(argv)
    device = common.device_of(a)
    if a.picture:
        portrayed(device).save(a.picture, quality=90)
        return 0
    model = model_file.load(bundled.FOLDER / a.model)
    network, process = network_of(model.config, model.weights, device), Diffusion(model.config.diffusion, device)
    packed = common.portraits(model.config.image_size[0])
    entries = model.config.tags
    words = tags_told(Workspace(common.WORK, common.WORK / "models").store("portraits"), entries, packed)
    rows = packed.held_rows[: a.images]
    images, told = uint8_to_model(packed.images[rows]), words[rows]
    everything = uint8_to_model(packed.images)
    groups = groups_of(entries)
    settings = SampleSettings(a.sampler, seed=1000)

    def sampled(start: Start, asked: Tensor | None, scale: float = 2.0, away: Tensor | None = None) -> Tensor:
        against = None if away is None else {"tags": away}
        question = None if asked is None else Asked({"tags": asked}, against, scale)
        found, _ = generate(
            network, process, model.config.denoised, len(images), settings, batch_size=16, asked=question, start=start
        )
        return found

    rows_found: list[dict[str, Any]] = []
    half = images.shape[-1] // 2
    mask = torch.zeros((1, 1, *images.shape[2:]))
    mask[..., half:] = 1.0
    judge = Classifier(square(everything[..., half:]), words)
    common.say(f"halves: the classifier's own accuracy {accuracy(judge, groups)}")
    for resamples in a.resamples:
        for asked in (None, told):
            found = sampled(Start(images, 1.0, mask, blank=True, resamples=resamples), asked)
            shown = judge.shows(square(found[..., half:]))
            row = {
                "what": "completed",
                "resamples": resamples,
                "told": asked is not None,
                **{kind: agreement(shown, told, groups[kind]) for kind in KINDS},
            }
            rows_found.append(row)
            common.say(str(row))
            show(f"completed-{resamples}-{asked is not None}", images, images * (1 - mask) - mask, found)
    judge = Classifier(everything, words)
    common.say(f"whole: the classifier's own accuracy {accuracy(judge, groups)}")
    draw = torch.Generator(device="cpu").manual_seed(5)
    asked_for = {kind: moved(told, groups[kind], draw) for kind in KINDS}
    for strength, scale, away in itertools.product(a.strengths, a.scales, (False, True) if a.away else (False,)):
        for kind, (wanted, new) in asked_for.items():
            found = sampled(Start(images, strength), wanted, scale, told if away else None)
            shown = judge.shows(found)
            row = {
                "what": f"another {kind}",
                "strength": strength,
                "scale": scale,
                "away": away,
                "changed": round(float(shown[range(len(new)), new].float().mean()), 3),
                **{f"kept_{k}": agreement(shown, told, groups[k]) for k in KINDS if k != kind},
            }
            rows_found.append(row)
            common.say(str(row))
            show(f"{kind}-{strength:g}-{scale:g}-{away}", images, images, found)
    rows_found.append({"what": "inversion", "db": inversion(network, process, model.config.denoised)})
    common.say(str(rows_found[-1]))
    result = {
        "what": "editing",
        "bar": BARS,
        "passed": passed(rows_found),
        "rows": rows_found,
        **common.machine(device),
    }
    return common.answer(a, result)


def portrayed(device: torch.device) -> Image.Image:
    """Held-out portraits through the whole cascade, from the top: as they are, their right halves hidden, those drawn anew, and with the words of
    another background, and of another shirt."""
    workspace = Workspace(common.WORK, common.WORK / "models")
    bundled.offer(workspace)
    entries = workspace.model_config(bundled.BASE).tags
    side = workspace.model_config(bundled.UPSCALER).image_size[0]
    packed = common.portraits(side)
    words = tags_told(workspace.store("portraits"), entries, packed)
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 2, 0, side, side))
    draw = torch.Generator(device="cpu").manual_seed(7)
    rows: list[list[Image.Image]] = [[], [], [], [], []]
    for row in packed.held_rows[:_PORTRAYED].tolist():
        given = to_image(packed.images[row])
        hidden = given.copy()
        hidden.paste((128, 128, 128), (side // 2, 0, side, side))

        def edited(edit: Edit, told: Tensor | None = None, given: Image.Image = given) -> Image.Image:
            text = "" if told is None else ", ".join(entries[i].split(" | ")[0] for i in told.nonzero().flatten())
            found = sample(
                workspace,
                bundled.BASE,
                1,
                SampleSettings(seed=5, cfg_scale=3.0),
                Context(device),
                enlarging=Enlarging(OWN_UPSCALER + bundled.UPSCALER, size=(side, side)),
                prompts=(Prompt(text),),
                edit=edit,
            )
            return found.pictures[0]

        others = [moved(words[row][None], groups_of(entries)[kind], draw)[0][0] for kind in ("background", "shirt")]
        made = [
            edited(Edit(given, mask, denoising_strength=1.0, masked_content="noise", mask_blur=0)),
            *(edited(Edit(given, denoising_strength=0.6), told) for told in others),
        ]
        for column, one in zip(rows, (given, hidden, *made)):
            column.append(one)
    return grid_of([one for column in rows for one in column], _PORTRAYED)


def groups_of(entries: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of each kind's words."""
    return {
        kind: [i for i, entry in enumerate(entries) if entry.split(" | ")[0].endswith(f" {kind}")] for kind in KINDS
    }


def moved(told: Tensor, numbers: list[int], draw: torch.Generator) -> tuple[Tensor, list[int]]:
    """Words with another one of some for each image, and which."""
    wanted, new = told.clone(), []
    for number in range(len(wanted)):
        others = [i for i in numbers if wanted[number, i] == 0]
        chosen = others[int(torch.randint(len(others), (1,), generator=draw, device="cpu"))]
        wanted[number, numbers] = 0.0
        wanted[number, chosen] = 1.0
        new.append(chosen)
    return wanted, new


def square(halves: Tensor) -> Tensor:
    """Halves of images as wide as they are high, for the features."""
    return F.interpolate(halves, (halves.shape[2], halves.shape[2]), mode="bilinear")


def accuracy(judge: Classifier, groups: dict[str, list[int]]) -> dict[str, float]:
    """The mean balanced accuracy of each kind's words."""
    return {kind: round(float(judge.accuracy[numbers].mean()), 3) for kind, numbers in groups.items()}


def agreement(shown: Tensor, told: Tensor, numbers: list[int]) -> float:
    """The share of the images that show the word that they have of some."""
    has = told[:, numbers] > 0
    return round(float((shown[:, numbers] & has).any(1)[has.any(1)].float().mean()), 3)


def inversion(network: Any, process: Diffusion, shape: tuple[int, int, int]) -> list[float]:
    """Decibels between ten samples of the model and what comes back of them, by so many steps of DDIM."""
    times = [1000 * (_INVERTED - i) // _INVERTED - 1 for i in range(_INVERTED)]
    settings = SampleSettings("ddim", 50, seed=0, clip=False)
    samples, _ = generate(network, process, shape, 10, settings)
    denoiser = Denoiser(network, process, clip=False)
    with torch.no_grad():
        noise = invert(denoiser, samples, times)
        again = ddim(denoiser, noise, times, noise=lambda _: noise)
    return [round(-10 * math.log10(float(((x - y) ** 2).mean()) / 4), 1) for x, y in zip(samples, again)]


def passed(rows: list[dict[str, Any]]) -> bool:
    """Whether the defaults (eight resamples, told nothing; strength 0.5, CFG scale 2) reach the bars, and every inversion does."""
    completed = [row for row in rows if row["what"] == "completed" and row["resamples"] == 8 and not row["told"]]
    changed = [row for row in rows if row.get("strength") == 0.5 and row["scale"] == 2.0 and not row["away"]]
    kept = [value for row in changed for key, value in row.items() if key.startswith("kept_")]
    return (
        all(min(row["skin"], row["background"]) >= BARS["completed"] for row in completed)
        and all(row["changed"] >= BARS["changed"] for row in changed)
        and all(value >= BARS["kept"] for value in kept)
        and min(rows[-1]["db"]) >= BARS["inversion_db"]
    )


def show(name: str, *rows: Tensor) -> None:
    """Twelve of each in a row of its own, to be looked at."""
    common.WORK.mkdir(exist_ok=True)
    picture = make_grid(torch.cat([model_to_uint8(row[:12].clamp(-1, 1)) for row in rows]), columns=12)
    picture.resize((picture.width * 3, picture.height * 3), 0).save(common.WORK / f"editing-{name}.png")


if __name__ == "__main__":
    sys.exit(run())
