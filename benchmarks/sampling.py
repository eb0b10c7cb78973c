"""Sampling: images a second and KID over network calls, for every sampler on one trained model.

Against the full ancestral sampler, and against diffusers' pipelines with the exported model: speed at equal pictures.
The model is the demo's, trained once (minutes) and kept in benchmarks/.work.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import torch
from torch import Tensor

from ddpm_core.model import file as model_file
from ddpm_core.model.build import network_of
from ddpm_core.model.diffusion import Diffusion, model_to_uint8
from ddpm_core.model.export import to_diffusers
from ddpm_core.operations.context import Context
from ddpm_core.operations.training import train
from ddpm_core.requests import TrainRequest
from ddpm_core.sampling import SAMPLERS
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.training import precision
from ddpm_core.training.settings import default_preset
from ddpm_core.workspace import Workspace

from . import common
from .quality import Score

NAME = "sampling"
COURSES = [
    ("dpmpp_2m", 10),
    ("dpmpp_2m", 20),
    ("unipc", 8),
    ("unipc", 12),
    ("ddim", 20),
    ("ddim", 50),
    ("ddpm", 100),
]
DEFAULT = ("dpmpp_2m", 20)


def trained(device: torch.device, minutes: float) -> Workspace:
    workspace = Workspace(common.WORK, common.WORK / "models")
    if NAME not in workspace.model_names():
        preset = default_preset(device.type)
        common.portraits(preset.model.unet.image_size[0])
        common.say(f"Training {preset.name} for {minutes:g} minutes.")
        request = TrainRequest(model=NAME, dataset="portraits", preset=preset.name, minutes=minutes)
        train(workspace, request, Context(device))
    return workspace


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--count", type=int, default=256)
    options.add_argument("--minutes", type=float, default=4.0, help="of training, the first time")
    options.add_argument("--no-full", action="store_true", help="leave out the full ancestral sampler")
    a = options.parse_args(argv)
    device = common.device_of(a)
    workspace = trained(device, a.minutes)
    path = workspace.model_path(NAME)
    loaded = model_file.load(path)
    config = loaded.config
    score = Score(common.portraits(config.unet.image_size[0]).images)
    net = network_of(config, loaded.weights, device)
    diffusion = Diffusion(config.diffusion, device)
    dtype = precision.DTYPES[precision.choose("auto", device)] if device.type == "cuda" else torch.float32
    shape = (config.unet.out_channels, *config.unet.image_size)

    def ours(sampler: str, steps: int, count: int) -> tuple[Tensor, int]:
        found, calls = generate(net, diffusion, shape, count, SampleSettings(sampler, steps, seed=10_000), dtype=dtype)
        return model_to_uint8(found), calls

    rows: list[dict[str, Any]] = []
    courses = [*COURSES, *([] if a.no_full else [("ddpm", config.diffusion.timesteps)])]
    ours("dpmpp_2m", 2, 16)
    for sampler, steps in courses:
        began = time.perf_counter()
        samples, calls = ours(sampler, steps, a.count)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "sampler": SAMPLERS[sampler].label,
                "calls": calls,
                "images_per_second": round(a.count / seconds, 2),
                **score(samples),
            }
        )
        common.say(str(rows[-1]))
    peer = diffusers_row(workspace, path, device, min(a.count, 64), ours)
    default = next(r for r in rows if (r["sampler"], r["calls"]) == (SAMPLERS[DEFAULT[0]].label, DEFAULT[1]))
    full = next((r for r in rows if r["calls"] == config.diffusion.timesteps), None)
    result = {
        "what": f"{default['calls']} calls of {default['sampler']} against {full['calls'] if full else 0} ancestral ones",
        "ratio": round(default["kid"] / full["high"], 3) if full else None,
        "bar": 1.0,
        "passed": full is None or default["kid"] <= full["high"],
        "speed_over_full": round(default["images_per_second"] / full["images_per_second"], 1) if full else None,
        "speed_over_diffusers": peer,
        "count": a.count,
        "rows": rows,
        **common.machine(device),
    }
    return common.answer(a, result)


def diffusers_row(workspace: Workspace, path: Any, device: torch.device, count: int, ours: Any) -> dict[str, float]:
    """The exported model in DDIMPipeline with 20 calls, and our DDIM with as many: images a second, paired."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    folder = common.WORK / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    to_diffusers(model_file.load(path), folder)
    scheduler = DDIMScheduler.from_pretrained(str(folder), subfolder="scheduler")
    pipeline = DDIMPipeline(unet=UNet2DModel.from_pretrained(str(folder), subfolder="unet"), scheduler=scheduler)
    pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)

    def theirs() -> float:
        began = time.perf_counter()
        pipeline(batch_size=count, num_inference_steps=20, output_type="np")
        return count / (time.perf_counter() - began)

    def mine() -> float:
        began = time.perf_counter()
        ours("ddim", 20, count)
        return count / (time.perf_counter() - began)

    rates = common.alternate({"ours": mine, "diffusers": theirs}, 3, common.say)
    return {
        "ratio": round(common.paired_ratio(rates["ours"], rates["diffusers"]), 3),
        **{name: common.summary(values)["median"] for name, values in rates.items()},
    }


if __name__ == "__main__":
    sys.exit(run())
