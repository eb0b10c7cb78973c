"""Training speed, images a second: ours with everything on, our bare network step, and the peers' own loops.

All networks have one topology: a peer's has at most 3 % more multiply-adds and at most 5 % fewer, which is asserted. The peers get their data from memory,
already decoded and resized, which their own examples would do for each batch: their figures are upper bounds.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from ddpm_core.dataset.packing import Packed
from ddpm_core.model.config import UNetConfig
from ddpm_core.model.diffusion import uint8_to_model
from ddpm_core.model.loss import loss_per_image, timestep_weights
from ddpm_core.model.unet import UNet
from ddpm_core.operations.context import Context
from ddpm_core.operations.training import train
from ddpm_core.requests import TrainRequest
from ddpm_core.training.how import plain
from ddpm_core.training.loop import TrainingLoop
from ddpm_core.training.settings import PRESETS, Preset, RunConfig
from ddpm_core.training.trainer import Trainer
from ddpm_core.workspace import Workspace

from . import common

MOST_MORE, MOST_LESS = 0.03, 0.05  # multiply-adds of a peer's network; fewer are to its advantage
BARS = {"cpu": 1.5, "cuda": 2.0}
MOST_OVERHEAD = 1.05
LEAST_STREAMED = 0.95


class Timed:
    """Steps of one kind, repeated; :meth:`measure` gives images a second."""

    def __init__(self, step: Callable[[], object], batch: int, seconds: float, device: torch.device) -> None:
        self.step, self.batch, self.seconds, self.device = step, batch, seconds, device
        for _ in range(3):
            step()

    def measure(self) -> float:
        self._synchronise()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds:
            self.step()
            steps += 1
        self._synchronise()
        return steps * self.batch / (time.perf_counter() - began)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Ours:
    """Our trainer as a run uses it: slices, each ended by the one read of its loss."""

    def __init__(self, preset: Preset, packed: Packed, device: torch.device, pictures: str) -> None:
        train = dataclasses.replace(preset.train, pictures=pictures)
        self.trainer = Trainer(RunConfig(preset.model, train), packed.images, device, rows=packed.train_rows)
        self.trainer.run_slice(4, 60.0)

    def measure(self, seconds: float) -> float:
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            result = self.trainer.run_slice(1_000_000, 0.25)
            images += result.steps * self.trainer.settings.batch_size
        return images / (time.perf_counter() - began)


def bare_step(preset: Preset, images: torch.Tensor, device: torch.device) -> Callable[[], object]:
    """Network, loss, gradients and optimizer on one batch that is always there: no data, average or metrics."""
    trainer = Trainer(RunConfig(preset.model, preset.train), images, device, how=plain(device))
    batch = trainer.batches.draw(0)
    x0, times, noise = batch.x0, batch.times, batch.noise
    noisy = trainer.diffusion.add_noise(x0, noise, times).to(trainer.dtype)
    target = trainer.diffusion.target(x0, noise, times)
    weights = timestep_weights(preset.train.weighting, trainer.diffusion, preset.train.snr_gamma)[times]
    cast = trainer.work.cast
    network = trainer.net if cast is None else cast.network

    def step() -> None:
        if cast is not None:
            cast.take_weights()
        losses = loss_per_image(preset.train.loss, network(noisy, times, trainer.dropout.source), target)
        torch.autograd.backward((losses * weights).mean())
        if cast is not None:
            cast.hand_gradients_over()
        torch.nn.utils.clip_grad_norm_(trainer.state.parameters, 1.0)
        trainer.work.optimizer.step()
        trainer.work.optimizer.zero_grad(set_to_none=True)

    return step


def diffusers_model(config: UNetConfig) -> Any:
    from diffusers import UNet2DModel

    levels = config.attention_levels
    return UNet2DModel(
        sample_size=config.image_size[0],
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in levels],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(levels)],
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
    )


def endless(images: torch.Tensor, batch: int) -> Any:
    loader = DataLoader(TensorDataset(uint8_to_model(images)), batch_size=batch, shuffle=True, drop_last=True)
    while True:
        for (found,) in loader:
            yield torch.where((torch.rand(batch) < 0.5)[:, None, None, None], found.flip(3), found)


def diffusers_step(
    config: UNetConfig, images: torch.Tensor, batch: int, device: torch.device, mixed: str
) -> Callable[[], object]:
    """The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py, without its EMA."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler

    model = diffusers_model(config).to(device)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    data = endless(images, batch)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed)

    def step() -> float:
        clean = next(data).to(device)
        noise = torch.randn(clean.shape, device=device)
        times = torch.randint(0, 1000, (batch,), device=device).long()
        noisy = scheduler.add_noise(clean, noise, times)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            output = model(noisy, times).sample
            loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        return loss.detach().item()  # the example logs it at every step

    return step


def lucidrains_step(
    config: UNetConfig, images: torch.Tensor, batch: int, device: torch.device, mixed: str, wanted: float
) -> tuple[Callable[[], object], Any]:
    """denoising_diffusion_pytorch's Unet and the body of its Trainer; its width is chosen for equal multiply-adds."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    first, *_ = config.block_out_channels
    mults = tuple(width // first for width in config.block_out_channels)
    full = tuple(config.attention_levels)
    size = config.image_size[0]

    def made(dim: int, on: str = "cpu") -> Any:
        with torch.device(on):
            return Unet(dim=dim, dim_mults=mults, full_attn=full, flash_attn=False)

    example = (torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, device="meta"))
    work = {dim: multiply_adds(made(dim, "meta"), *example) for dim in range(8, 4 * first, 2)}
    dim = min(work, key=lambda d: abs(work[d] - wanted))
    diffusion = GaussianDiffusion(made(dim), image_size=size, timesteps=1000).to(device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10).to(device)
    data = endless((images + 0), batch)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed)

    def step() -> float:
        clean = (next(data) + 1).div(2).to(device)  # it normalises by itself
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = diffusion(clean)
        value = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        return value

    return step, diffusion.model


def multiply_adds(network: torch.nn.Module, *inputs: Any) -> float:
    """Of one forward pass of one image, convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() / 2


def peaks(device: torch.device) -> dict[str, float]:
    """What the device reaches in this very run: a large bf16 product in TFLOP/s, a large copy in GB/s."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    big = torch.empty((256 if device.type == "cuda" else 64) * 2**20, device=device)
    other = torch.empty_like(big)

    def best(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(8):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return {
        "bf16_tflops": 2 * n**3 / best(lambda: a @ a) / 1e12,
        "copy_gb_per_s": 2 * big.numel() * 4 / best(lambda: other.copy_(big)) / 1e9,
    }


def whole_run(preset: Preset, device: torch.device, minutes: float) -> dict[str, float]:
    """Shares of a run's time, as ``train`` makes it: looks (held-out loss and preview), and saving (checkpoint, model)."""
    spent = {"_watch": 0.0, "_save": 0.0}

    def timed(name: str) -> Callable[[TrainingLoop], Any]:
        plain = getattr(TrainingLoop, name)

        def call(self: TrainingLoop) -> Any:
            began = time.perf_counter()
            try:
                return plain(self)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    workspace = Workspace(common.WORK, common.WORK / "models")
    name = "whole-run"
    if name in workspace.model_names():
        workspace.delete_model(name)
    request = TrainRequest(model=name, dataset="portraits", preset=preset.name, minutes=minutes)
    with patch.object(TrainingLoop, "_watch", timed("_watch")), patch.object(TrainingLoop, "_save", timed("_save")):
        done = train(workspace, request, Context(device))
    seconds = float(done["seconds"])
    return {
        "seconds": seconds,
        "images_per_second": round(done["images_seen"] / seconds, 2),
        "looks": round(spent["_watch"] / seconds, 4),
        "saving": round(spent["_save"] / seconds, 4),
    }


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--run-minutes", type=float, default=3.0, help="of a whole run, for what previews cost; or 0")
    options.add_argument("--preset", help="default: tiny-32 on a CPU, article-64 on a GPU")
    options.add_argument("--batch-size", type=int)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=6.0, help="for each kind in each round")
    options.add_argument(
        "--peer-precision", default=None, help="fp32, bf16 or fp16; default: fp32 on a CPU, bf16 on a GPU"
    )
    a = options.parse_args(argv)
    device = common.device_of(a)
    preset = PRESETS[a.preset or ("tiny-32" if device.type == "cpu" else "article-64")]
    if a.batch_size:
        preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, batch_size=a.batch_size))
    config, batch = preset.model.unet, preset.train.batch_size
    mixed = a.peer_precision or ("fp32" if device.type == "cpu" else "bf16")
    packed = common.portraits(config.image_size[0])
    images = packed.train

    size = config.image_size[0]
    sample = (torch.zeros(1, 3, size, size), torch.zeros(1))
    ours_net, peer_net = UNet(config, "cpu"), diffusers_model(config)
    work = {"ours": multiply_adds(ours_net, *sample), "diffusers": multiply_adds(peer_net, *sample)}
    parameters = {
        name: sum(p.numel() for p in net.parameters()) for name, net in (("ours", ours_net), ("diffusers", peer_net))
    }

    ours, streamed = Ours(preset, packed, device, "device"), Ours(preset, packed, device, "stream")
    bare = Timed(bare_step(preset, images, device), batch, a.seconds, device)
    peer = Timed(diffusers_step(config, images, batch, device, mixed), batch, a.seconds, device)
    kinds: dict[str, Callable[[], float]] = {
        "ours": lambda: ours.measure(a.seconds),
        "streamed": lambda: streamed.measure(a.seconds),
        "bare": bare.measure,
        "diffusers": peer.measure,
    }
    missing = None
    try:
        step, network = lucidrains_step(config, images, batch, device, mixed, work["ours"])
        work["lucidrains"] = multiply_adds(network.to("cpu"), *sample)
        network.to(device)
        parameters["lucidrains"] = sum(p.numel() for p in network.parameters())
        kinds["lucidrains"] = Timed(step, batch, a.seconds, device).measure
    except ImportError as error:
        missing = f"lucidrains left out: {error}"
        common.say(missing)
    for name, value in work.items():
        assert -MOST_LESS <= value / work["ours"] - 1 <= MOST_MORE, (
            f"{name}: {value:.4g} multiply-adds, ours {work['ours']:.4g}"
        )
    rates = common.alternate(kinds, a.rounds, common.say)
    median = {name: common.summary(values)["median"] for name, values in rates.items()}
    ratio = common.paired_ratio(rates["ours"], rates["diffusers"])
    overhead = common.paired_ratio(rates["bare"], rates["ours"])
    streaming = common.paired_ratio(rates["streamed"], rates["ours"])
    top = peaks(device)
    flops = 3 * 2 * work["ours"] * median["ours"]  # forward once, backward twice
    bar = BARS.get(device.type, 1.0)
    result = {
        "what": f"training {preset.name}, batch {batch}",
        "ratio": round(ratio, 3),
        "bar": bar,
        "passed": ratio >= bar and overhead <= MOST_OVERHEAD and streaming >= LEAST_STREAMED,
        "ratio_lucidrains": round(common.paired_ratio(rates["ours"], rates["lucidrains"]), 3)
        if "lucidrains" in rates
        else missing,
        "overhead_over_bare_step": round(overhead - 1, 4),
        "streamed_over_resident": round(streaming, 4),
        "whole_run": whole_run(preset, device, a.run_minutes) if a.run_minutes else None,
        "images_per_second": {name: common.summary(values) for name, values in rates.items()},
        "milliseconds_per_step": round(1000 * batch / median["ours"], 3),
        "precision": {"ours": ours.trainer.precision, "peers": mixed},
        "multiply_adds": work,
        "parameters": parameters,
        "model_flop_utilisation": round(flops / 1e12 / top["bf16_tflops"], 4),
        "peaks": top,
        **common.machine(device),
    }
    assert all(math.isfinite(v) for v in median.values())
    return common.answer(a, result)


if __name__ == "__main__":
    sys.exit(run())
