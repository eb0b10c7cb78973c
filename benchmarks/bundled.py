"""Makes the models that come along (``ddpm_core/assets/models``) from the bundled portraits: a base with words and an upscaler for it.

The base is looked at as it trains, asked for nothing, for training images' own words and for new ones. The last look at which nothing that
was asked for nothing was a copy, and less than one in a hundred of the others, is the one that is kept. Both are then judged as ``evaluate`` judges any model, and written as float16 with ``--write``.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddpm_core.bundled import BASE, FOLDER, UPSCALER
from ddpm_core.demo import unpack
from ddpm_core.model import file as model_file
from ddpm_core.operations.context import Context
from ddpm_core.operations.evaluation import evaluate
from ddpm_core.operations.faithfulness import evaluate_upscaler
from ddpm_core.operations.pictures import grid_of
from ddpm_core.operations.sampling import sample
from ddpm_core.operations.training import train
from ddpm_core.requests import OWN_UPSCALER, Enlarging, TrainRequest
from ddpm_core.sampling.generate import SampleSettings
from ddpm_core.workspace import Workspace

from . import common

DATASET = "portraits"
ABOUT = "Comes with sd-webui-ddpm. Learned from portraits composed of Open Peeps by Pablo Stanley (CC0)."
_MOST_BYTES = 12 * 2**20


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--preset", default="tiny-32")
    options.add_argument("--set", nargs="*", default=["decay_start=400"], metavar="KEY=VALUE", help="of the base")
    options.add_argument("--first", type=int, default=800, help="steps until the first look; then a quarter more each")
    options.add_argument("--steps", type=int, default=2500, help="of the base at most")
    options.add_argument("--minutes", type=float, default=10.0, help="of the upscaler")
    options.add_argument("--samples", type=int, default=512)
    options.add_argument("--folder", type=Path, default=common.WORK / "bundled", help="workspace; goes on where it is")
    options.add_argument("--write", action="store_true", help="put the models where they come along")
    a = options.parse_args(argv)
    context = Context(common.device_of(a), say=common.say)
    workspace = Workspace(a.folder)
    if DATASET not in workspace.dataset_names():
        workspace.harvest(DATASET, [unpack(a.folder / "images")])
    rows = train_base(workspace, context, a)
    if UPSCALER not in workspace.model_names():
        train(workspace, TrainRequest(UPSCALER, DATASET, preset="upscale-4x-small", minutes=a.minutes, seed=0), context)
    upscaler = evaluate_upscaler(workspace, DATASET, context, model=UPSCALER, count=96)
    sizes = {}
    target = FOLDER if a.write else a.folder / "written"
    target.mkdir(parents=True, exist_ok=True)
    for name, path in ((BASE, a.folder / "kept.safetensors"), (UPSCALER, workspace.model_path(UPSCALER))):
        sizes[name] = write(path, target / f"{name}.safetensors", name)
    card = sample(
        workspace,
        str(target / f"{BASE}.safetensors"),
        4,
        SampleSettings(seed=4),
        context,
        enlarging=Enlarging(OWN_UPSCALER + UPSCALER, 4),
    )
    grid_of(card.pictures).resize((512, 512), Image.Resampling.LANCZOS).save(target / f"{BASE}.preview.png")
    result = {
        "what": "the bundled models",
        "rows": rows,
        "upscaler": upscaler,
        "bytes": sizes,
        "bar": _MOST_BYTES,
        "passed": sum(sizes.values()) <= _MOST_BYTES and any(row["kept"] for row in rows),
        **common.machine(context.device),
    }
    return common.answer(a, result)


def train_base(workspace: Workspace, context: Context, a: Any) -> list[dict[str, Any]]:
    """Train it, looking at it as it goes; the looks. The model that is kept lies beside the workspace's."""
    rows: list[dict[str, Any]] = []
    settings = dict(pair.split("=", 1) for pair in a.set)
    steps = a.first
    while steps <= a.steps:
        begun = BASE in workspace.run_names()
        if not begun or workspace.steps_reached(BASE) < steps:
            new: dict[str, Any] = {} if begun else {"preset": a.preset, "seed": 0, "settings": settings}
            request = TrainRequest(BASE, DATASET, steps=steps, resume=begun, stop_before_copying=False, **new)
            train(workspace, request, context)
        found = evaluate(
            workspace,
            DATASET,
            context,
            model=BASE,
            count=a.samples,
            settings=SampleSettings(seed=10_000),
            prompts=True,
        )
        copies = found["copied"]
        row = {
            "steps": steps,
            **{key: found[key] for key in ("kid", "kid_low", "kid_high", "floor", "memorised", "copied")},
            "alignment_mean": found["alignment_mean"],
            "kept": found["memorised"] == 0 and max(copies.values()) < 0.01,
        }
        common.say(str(row))
        if row["kept"]:
            for earlier in rows:
                earlier["kept"] = False
            shutil.copy(workspace.model_path(BASE), a.folder / "kept.safetensors")
        rows.append(row)
        if not row["kept"]:
            break
        steps = math.ceil(steps * 1.25)
    return rows


def write(source: Path, target: Path, name: str) -> int:
    """A model as float16 under its name; its bytes."""
    model = model_file.load(source)
    weights = {key: value.to(torch.float16) for key, value in model.weights.items()}
    named = {"upscaler": UPSCALER} if name == BASE else {}
    info = {**model.info, "dataset": "", "description": ABOUT, "bundled": True, **named}
    model_file.save(target, model.config, weights, title=name, info=info)
    target.chmod(0o644)
    return target.stat().st_size


if __name__ == "__main__":
    sys.exit(run())
