"""How near a model, or a folder of pictures, comes to a dataset, and whether it copies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..dataset.packing import fit, pack
from ..dataset.reading import Rejected, Skipped, decode, read_bytes
from ..dataset.scanning import check_folder, scan
from ..errors import UserError
from ..evaluation.detail import CROP, detail_features
from ..evaluation.features import RandomFeatures
from ..evaluation.kid import Estimate, kid
from ..evaluation.neighbours import nearest, picture
from ..files import replace_with
from ..model import file as model_file
from ..model.diffusion import uint8_to_model
from ..options import CROPS
from ..sampling.generate import SampleSettings
from ..workspace import Workspace
from .alignment import measure
from .context import Context
from .sampling import sample

_MOST_REFERENCE = 4000
_MOST_PIECED = 300  # images of which pieces are compared


def evaluate(
    workspace: Workspace,
    dataset: str,
    context: Context,
    *,
    model: str | None = None,
    images: Path | None = None,
    count: int = 512,
    settings: SampleSettings | None = None,
    picture_path: Path | None = None,
    prompts: bool = False,
) -> dict[str, Any]:
    """KID against the dataset with its interval and the real-vs-real floor, and the memorised fraction.

    The pictures are sampled from ``model``, or read from the folder ``images``. ``prompts``: also whether a model with words does what it
    is asked for, and whether its words unlock copies (``alignment.py``).
    """
    if (model is None) == (images is None):
        raise UserError("Give either --model or --images, or --upscaler.")
    if count < 16:
        raise UserError(f"An evaluation needs at least 16 images; got {count}.")
    began = time.monotonic()
    settings = settings or SampleSettings()
    if model is not None:
        config, about = model_file.read_config(workspace.model_path(model))
        size, name = config.image_size, workspace.model_path(model).stem
        if config.kind == "upscaler":
            raise UserError(f"{name} enlarges images and makes none: evaluate it with --upscaler.")
        about = model_file.known_of(about)
        crop, learned_from = about.get("crop", "center"), about.get("dataset")
        if about.get("fingerprint") == workspace.store(dataset).fingerprint():
            learned_from = dataset  # whatever it was called when the model was trained
        if learned_from and learned_from != dataset:
            context.say(
                f"{name} was trained on {learned_from}, not from {dataset}: memorised training images cannot show here."
            )
    else:
        size, crop, name, about, learned_from = (64, 64), "center", Path(str(images)).name, {}, None
    if prompts and (model is None or not config.takes_prompts):
        raise UserError(f"{name} was trained without prompts: there are no words to judge.")
    packed = pack(
        workspace.store(dataset),
        size,
        crop if crop in CROPS else "center",
        context.progress,
        context.stop,
        grey=model is not None and config.is_grey,
    )
    if len(packed.ids) < 8:
        raise UserError(
            f"The dataset {dataset!r} has only {len(packed.ids)} kept images; an evaluation needs at least 8."
        )
    if model is not None:
        samples = sample(workspace, model, count, settings, context).images
    else:
        samples = read_folder(Path(str(images)), size, count)
    if len(samples) < 16:
        raise UserError(f"There are only {len(samples)} images to evaluate; at least 16 are needed.")
    context.progress(0, 1, "Comparing")
    features = RandomFeatures(channels=3, device="cpu")
    # KID's memory grows with the square of the reference: a fixed draw of a large dataset serves as well
    draw = torch.randperm(len(packed.ids), generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    drawn = draw[:_MOST_REFERENCE].sort().values
    reference = packed.images[drawn]
    real = features(uint8_to_model(reference))
    found = kid(features(uint8_to_model(samples)), real)
    floor = real_floor(real)
    near = nearest(uint8_to_model(samples), packed.images, packed.train_rows)
    out = picture_path or workspace.root / "evaluations" / f"{name}-{dataset}.png"
    neighbours = picture(samples, packed.images, near)
    replace_with(out, lambda temporary: neighbours.save(temporary, format="PNG"))
    worded: dict[str, Any] = {}
    if prompts and model is not None:
        weights = model_file.load(workspace.model_path(model)).weights
        copied = float(near.memorised.float().mean())
        worded = measure(
            workspace,
            workspace.store(dataset),
            model,
            config,
            weights,
            packed,
            drawn,
            real,
            context,
            count=count,
            settings=settings,
            copied_without=copied,
        )
    return {
        **worded,
        "dataset": dataset,
        "learned_from": learned_from,
        # whether copying was looked for among the very images that it learned from
        "own_images": about.get("fingerprint") == packed.fingerprint,
        "kid": round(found.value, 5),
        "kid_low": round(found.low, 5),
        "kid_high": round(found.high, 5),
        "floor": round(floor, 5),
        "memorised": round(float(near.memorised.float().mean()), 5),
        "neighbours": str(out),
        **_detail(samples, reference),
        "count": len(samples),
        "reference": len(reference),
        "features": "random convolutions (not Inception: not comparable with FID or KID elsewhere)",
        "seconds": round(time.monotonic() - began, 3),
    }


def _detail(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Detail KID with its floor, where there is any detail beyond KID's 32 pixels."""
    if min(samples.shape[2:]) <= CROP:
        return {}
    # pieces of one image are alike: more images, not more pieces
    half = min(_MOST_PIECED, len(reference) // 2)
    order = torch.randperm(len(reference), generator=torch.Generator(device="cpu").manual_seed(1), device="cpu")
    real = detail_features(uint8_to_model(reference[order[:half]]))

    def distance(images: Tensor) -> Estimate:
        found = detail_features(uint8_to_model(images), seed=1)
        return kid(found.features, real.features, groups=(found.groups, real.groups), subsets=50)

    found, floor = distance(samples[:_MOST_PIECED]), distance(reference[order[half : 2 * half]])
    return {
        "detail_kid": round(found.value, 5),
        "detail_kid_low": round(found.low, 5),
        "detail_kid_high": round(found.high, 5),
        "detail_kid_floor": round(floor.value, 5),
    }


def real_floor(features: Tensor, rounds: int = 4) -> float:
    """KID between random halves of the real set, a mean of several: what a perfect model would score."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    values = []
    for _ in range(rounds):
        order = torch.randperm(len(features), generator=generator, device="cpu")
        half = len(order) // 2
        values.append(kid(features[order[:half]], features[order[half:]], subsets=2).value)
    return sum(values) / len(values)


def read_folder(folder: Path, size: tuple[int, int], most: int) -> Tensor:
    """Up to ``most`` pictures of a folder as uint8 (N, 3, H, W), centre-cropped to size."""
    found: list[Tensor] = []
    for path, skipped in scan(check_folder(folder), set()):
        if skipped or len(found) >= most:
            continue
        try:
            small = fit(decode(read_bytes(path), max(size)).image, size, "center")
        except (Rejected, Skipped):
            continue
        found.append(torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy()))
    if not found:
        raise UserError(f"There is no readable image in {folder}.")
    return torch.stack(found)
