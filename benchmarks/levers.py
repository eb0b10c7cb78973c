"""What each lever of speed is worth on its own: the bare training step as it is, and with one thing changed back or added.

No bar: the figures say what to build next, and keep what was built honest.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ddpm_core.dataset.packing import Packed
from ddpm_core.model.loss import loss_per_image, timestep_weights
from ddpm_core.model.ways import Ways, plain
from ddpm_core.training.how import How
from ddpm_core.training.settings import PRESETS, Preset, RunConfig
from ddpm_core.training.trainer import Trainer

from . import common
from .training import Timed


def step_of(
    preset: Preset,
    packed: Packed,
    device: torch.device,
    *,
    precision: str = "auto",
    optimizer: dict[str, Any] | None = None,
    network: Callable[[Any, tuple[torch.Tensor, torch.Tensor]], Any] = lambda net, example: net,
    ways: Ways | None = None,
    cast: bool = True,
) -> Callable[[], object]:
    """Network, loss, gradients and optimizer on one batch that is always there, without dropout."""
    train = dataclasses.replace(preset.train, precision=precision)
    ways = plain(device) if ways is None else ways
    trainer = Trainer(RunConfig(preset.model, train), packed.images, device, how=How(ways))
    if optimizer is not None:
        trainer.work.optimizer = torch.optim.AdamW(trainer.state.parameters, lr=train.learning_rate, **optimizer)
    batch = trainer.batches.draw(0)
    x0, times, noise = batch.x0, batch.times, batch.noise
    noisy = trainer.diffusion.add_noise(x0, noise, times).to(trainer.dtype)
    target = trainer.diffusion.target(x0, noise, times)
    weights = timestep_weights(train.weighting, trainer.diffusion, train.snr_gamma)[times]
    copied = trainer.work.cast if cast else None
    net = network(trainer.net if copied is None else copied.network, (noisy, times))

    def step() -> None:
        if copied is not None:
            copied.take_weights()
        losses = loss_per_image(train.loss, net(noisy, times), target)
        torch.autograd.backward((losses * weights).mean())
        if copied is not None:
            copied.hand_gradients_over()
        torch.nn.utils.clip_grad_norm_(trainer.state.parameters, 1.0)
        trainer.work.optimizer.step()
        trainer.work.optimizer.zero_grad(set_to_none=True)

    return step


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    a = options.parse_args(argv)
    device = common.device_of(a)
    name = "tiny-32" if device.type == "cpu" else "article-64"
    preset = PRESETS[name]
    packed = common.portraits(preset.model.unet.image_size[0])
    makers: dict[str, dict[str, Any]] = {
        "as it is": {},
        "float32": {"precision": "fp32"},
        "the other layout": {"ways": dataclasses.replace(plain(device), channels_last=device.type != "cpu")},
        "upsampling folded": {"ways": dataclasses.replace(plain(device), folded=True)},
        "attention's products joined": {"ways": dataclasses.replace(plain(device), joined=True)},
        "weights cast one by one": {"cast": False},
        "optimizer by foreach": {"optimizer": {"foreach": True}},
        "optimizer parameter by parameter": {"optimizer": {"foreach": False}},
        "network by torch.compile": {"network": lambda net, example: torch.compile(net)},
    }
    if device.type == "cuda":
        makers["network by CUDA graphs"] = {"network": torch.cuda.make_graphed_callables}
    kinds: dict[str, Callable[[], float]] = {}
    first: dict[str, float] = {}
    for kind, how in makers.items():
        began = time.perf_counter()
        try:
            timed = Timed(step_of(preset, packed, device, **how), preset.train.batch_size, a.seconds, device)
        except Exception as error:  # no compiler, no such precision
            common.say(f"{kind}: not here ({str(error).strip().splitlines()[0][:200]})")
            continue
        first[kind] = round(time.perf_counter() - began, 1)
        kinds[kind] = timed.measure
    found = common.alternate(kinds, a.rounds, common.say)
    base = found["as it is"]
    rows = [
        {
            "kind": kind,
            "images_per_second": round(common.summary(values)["median"], 1),
            "of_as_it_is": round(common.paired_ratio(values, base), 3),
            "seconds_before_the_fourth_step": first[kind],
        }
        for kind, values in found.items()
    ]
    result = {"what": f"levers of a training step of {name}", "rows": rows, **common.machine(device)}
    return common.answer(a, result)


if __name__ == "__main__":
    sys.exit(run())
