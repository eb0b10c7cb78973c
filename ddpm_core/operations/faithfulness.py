"""How good an upscaler is: real images that it has not seen are shrunk, enlarged by it, and compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dataset.packing import pack
from ..errors import Stopped, UserError
from ..evaluation import faithfulness as measures
from ..evaluation.detail import detail_features
from ..evaluation.kid import Estimate, kid
from ..files import replace_with
from ..model import file as model_file
from ..model.config import UpscalerConfig
from ..model.diffusion import model_to_uint8, uint8_to_model
from ..model.upscaling import shrink
from ..options import CROPS
from ..sampling.upscale import UpscaleSettings
from ..workspace import Workspace
from .context import Context
from .pictures import make_grid
from .upscaling import Upscaler

_BATCH = 8
_SEEDS, _SEVERAL = 4, 8  # images of which several are made
_MOST_REFERENCE = 300
_SHOWN = 8


def evaluate_upscaler(
    workspace: Workspace,
    dataset: str,
    context: Context,
    *,
    model: str,
    count: int = 96,
    settings: UpscaleSettings | None = None,
    picture_path: Path | None = None,
) -> dict[str, Any]:
    """Judged on images of the dataset that are held out (on any, where none are, and says so)."""
    began = time.monotonic()
    settings = settings or UpscaleSettings()
    path = workspace.model_path(model)
    config, about = model_file.read_config(path)
    unet = config.unet
    if not isinstance(unet, UpscalerConfig):
        raise UserError(f"{path.stem} makes images and enlarges none: evaluate it with --model.")
    crop = model_file.known_of(about).get("crop", "center")
    packed = pack(
        workspace.store(dataset), config.image_size, crop if crop in CROPS else "center", context.progress, context.stop
    )
    rows, others = packed.held_rows, packed.train_rows
    if len(rows) < 16:
        context.say(f"Only {len(rows)} images of {dataset} are held out: it is judged on images that it may have seen.")
        rows = others = torch.arange(len(packed.ids))
    if len(rows) < 16:
        raise UserError(f"The dataset {dataset!r} has only {len(rows)} kept images; an evaluation needs at least 16.")
    real = uint8_to_model(packed.images[rows[:count]])
    small = model_to_uint8(shrink(real, unet.factor))
    upscaler = Upscaler(workspace, model, context)
    per_image = time.monotonic()
    large = _enlarged(upscaler, small, settings, 0, context)
    per_image = (time.monotonic() - per_image) / len(real)
    several = torch.stack(
        [_enlarged(upscaler, small[:_SEVERAL], settings, 1000 * seed, context) for seed in range(1, _SEEDS + 1)]
    )
    given = uint8_to_model(small)
    plain = measures.lanczos(given, unet.factor)
    context.progress(0, 1, "Comparing")
    draw = torch.randperm(len(others), generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    reference = detail_features(uint8_to_model(packed.images[others[draw[:_MOST_REFERENCE]]]))

    def detail(images: Tensor) -> Estimate:
        found = detail_features(images, seed=1)
        return kid(found.features, reference.features, groups=(found.groups, reference.groups), subsets=50)

    ours, theirs, truth = detail(large), detail(plain), detail(real)
    varied, coarse = measures.diversity(several, unet.factor)
    out = picture_path or workspace.root / "evaluations" / f"{path.stem}-{dataset}.png"
    squares = given.repeat_interleave(unet.factor, 2).repeat_interleave(unet.factor, 3)
    shown = torch.cat([part[:_SHOWN] for part in (squares, plain, large, real)])
    grid = make_grid(model_to_uint8(shown), columns=min(_SHOWN, len(real)))
    replace_with(out, lambda temporary: grid.save(temporary, format="PNG"))
    return {
        "dataset": dataset,
        "upscaler": path.stem,
        "factor": unet.factor,
        "size": list(config.image_size),
        "consistency_db": round(measures.consistency_db(large, given, unet.factor), 2),
        "spectrum_ratio": round(measures.spectrum_ratio(large, real, unet.factor), 4),
        "spectrum_ratio_lanczos": round(measures.spectrum_ratio(plain, real, unet.factor), 4),
        "detail_kid": round(ours.value, 5),
        "detail_kid_low": round(ours.low, 5),
        "detail_kid_high": round(ours.high, 5),
        "detail_kid_lanczos": round(theirs.value, 5),
        "detail_kid_floor": round(truth.value, 5),
        "colour_drift": round(measures.colour_drift(large, real), 3),
        "diversity": round(varied, 3),
        "diversity_coarse": round(coarse, 3),
        "picture": str(out),
        "count": len(real),
        "seconds_per_image": round(per_image, 4),
        "seconds": round(time.monotonic() - began, 3),
    }


def _enlarged(upscaler: Upscaler, small: Tensor, settings: UpscaleSettings, seed: int, context: Context) -> Tensor:
    found = []
    for start in range(0, len(small), _BATCH):
        part = small[start : start + _BATCH]
        large = upscaler(part, range(seed + start, seed + start + len(part)), settings)
        if large is None:
            raise Stopped("Stopped before the upscaler was judged.")
        found.append(uint8_to_model(large))
        context.progress(start + len(part), len(small), "Upscaling")
    return torch.cat(found)
