"""An upscaler after some minutes: is its detail real, does it agree with what it was given, what does an image cost?

Trains the preset on the bundled portraits for ``--minutes`` and judges it on those that are held out (``operations/faithfulness.py``). The
picture in benchmarks/.work shows small, Lanczos, ours and real.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ddpm_core.dataset.packing import pack
from ddpm_core.demo import unpack
from ddpm_core.model.config import UpscalerConfig
from ddpm_core.model.diffusion import model_to_uint8, uint8_to_model
from ddpm_core.model.upscaling import enlarge, shrink
from ddpm_core.operations.context import Context
from ddpm_core.operations.faithfulness import evaluate_upscaler
from ddpm_core.operations.training import train
from ddpm_core.operations.upscaling import Upscaler
from ddpm_core.requests import TrainRequest
from ddpm_core.sampling.upscale import OVERLAP, TILE, UpscaleSettings, starts
from ddpm_core.workspace import Workspace

from . import common

# of the issue that asked for it
BARS = {
    "detail_kid_share": 0.5,
    "consistency_db": 40.0,
    "spectrum_low": 0.85,
    "spectrum_high": 1.15,
    "diversity_coarse": 1.0,
}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--preset", default="upscale-4x-small")
    options.add_argument("--size", type=int, help="of the large images; the preset's by default")
    options.add_argument("--folder", type=Path, help="other images than the bundled portraits, which have 128 pixels")
    options.add_argument("--minutes", type=float, default=4.0)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--count", type=int, default=96)
    options.add_argument(
        "--steps", type=int, nargs="+", default=[UpscaleSettings().steps], help="network calls an image"
    )
    options.add_argument("--noise", type=float, nargs="+", default=[UpscaleSettings().noise])
    options.add_argument("--seams", type=int, metavar="SIDE", help="also look for seams in an image of that size")
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings of the preset")
    a = options.parse_args(argv)
    device = common.device_of(a)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.harvest("portraits", [a.folder or unpack(Path(folder) / "images")])
        context = Context(device, say=common.say)
        for seed in a.seeds:
            name = f"upscaler-{seed}"
            changed = dict(pair.split("=", 1) for pair in a.set)
            request = TrainRequest(
                name, "portraits", preset=a.preset, size=a.size, minutes=a.minutes, seed=seed, settings=changed
            )
            trained = train(workspace, request, context)
            for steps, noise in [(steps, noise) for steps in a.steps for noise in a.noise]:
                settings = UpscaleSettings(steps, noise)
                picture = common.WORK / f"upscaling-{a.preset}-{a.size or 'preset'}-{seed}-{steps}-{noise:g}.png"
                picture.parent.mkdir(exist_ok=True)
                found = evaluate_upscaler(
                    workspace, "portraits", context, model=name, count=a.count, settings=settings, picture_path=picture
                )
                row = {
                    **dataclasses.asdict(settings),
                    "seed": seed,  # of the training
                    "trained_steps": trained["steps"],
                    "one_image_seconds": round(alone(workspace, name, context, settings), 3),
                    **{key: value for key, value in found.items() if key not in ("dataset", "upscaler")},
                }
                above = max(found["detail_kid"] - found["detail_kid_floor"], 0.0)
                row["detail_kid_share"] = round(above / (found["detail_kid_lanczos"] - found["detail_kid_floor"]), 4)
                row["passed"] = reached(row)
                if a.seams:
                    row["seams"] = seams(workspace, name, context, a.seams)
                rows.append(row)
                common.say(str(row))
    first = rows[: len(a.seeds)]
    result = {
        "what": f"{a.preset}, {a.minutes:g} minutes",
        "bar": BARS["detail_kid_share"],
        "ratio": statistics.median(row["detail_kid_share"] for row in first),
        "passed": all(row["passed"] for row in first),
        "rows": rows,
        **common.machine(device),
    }
    return common.answer(a, result)


def alone(workspace: Workspace, name: str, context: Context, settings: UpscaleSettings) -> float:
    """Median seconds for one image by itself."""
    config = workspace.model_config(name).unet
    assert isinstance(config, UpscalerConfig)
    height, width = config.image_size
    upscaler = Upscaler(workspace, name, context)
    small = torch.full((1, 3, height // config.factor, width // config.factor), 128, dtype=torch.uint8)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        upscaler(small, [0], settings)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def seams(workspace: Workspace, name: str, context: Context, side: int) -> dict[str, float]:
    """How much neighbouring pixels differ across the edges of tiles, over how much they differ elsewhere, of what the upscaler adds to a plainly
    enlarged mosaic of the dataset's images, ``side`` pixels large: 1 where nothing shows. The worst and the 95th percentile of the lines where there is no edge, for comparison."""
    config = workspace.model_config(name).unet
    assert isinstance(config, UpscalerConfig)
    packed = pack(workspace.store("portraits"), config.image_size, "center")
    small = shrink(uint8_to_model(packed.images[packed.held_rows[:64]]), config.factor)
    across = -(-side // config.image_size[0])
    rows = [torch.cat([small[(row * across + i) % len(small)] for i in range(across)], 2) for row in range(across)]
    mosaic = torch.cat(rows, 1)[None, :, : side // config.factor, : side // config.factor]
    found = Upscaler(workspace, name, context)(model_to_uint8(mosaic), [0], UpscaleSettings())
    assert found is not None
    added = uint8_to_model(found) - enlarge(mosaic, config.factor)
    lines = starts(side, TILE, OVERLAP, config.stride)
    own = set(range(0, side + 1, config.image_size[0]))  # edges of the mosaic itself
    edges = sorted({edge for one in lines for edge in (one, one + TILE)} - own)
    steps = torch.cat([added.diff(dim=2).abs().mean((0, 1, 3))[None], added.diff(dim=3).abs().mean((0, 1, 2))[None]])
    others = [line for line in range(side - 1) if not {line + 1, line + 2, line} & (own | set(edges))]
    typical = float(steps[:, others].mean())
    return {
        "side": side,
        "tiles": len(lines) ** 2,
        "edges": round(float(steps[:, [edge - 1 for edge in edges]].mean()) / typical, 3),
        "worst": round(float(steps[:, [edge - 1 for edge in edges]].max()) / typical, 3),
        "worst_elsewhere": round(float(steps[:, others].max()) / typical, 3),
        "high_elsewhere": round(float(steps[:, others].quantile(0.95)) / typical, 3),
    }


def reached(row: dict[str, Any]) -> bool:
    """Whether every bar but the time is reached."""
    return bool(
        row["detail_kid_share"] <= BARS["detail_kid_share"]
        and row["consistency_db"] >= BARS["consistency_db"]
        and BARS["spectrum_low"] <= row["spectrum_ratio"] <= BARS["spectrum_high"]
        and row["diversity_coarse"] < BARS["diversity_coarse"]
    )


if __name__ == "__main__":
    sys.exit(run())
