"""Many images by one sampler: per-image noise, batches, progress, stopping."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import UserError, is_out_of_memory
from ..model.diffusion import Diffusion
from ..options import SPACINGS
from . import DEFAULT_SAMPLER, SAMPLERS, Sampler
from .denoiser import Denoiser, Network
from .guidance import DEFAULT_SCALE, MOST_SCALE, Asked, ToldNetwork
from .spacing import timesteps

# after a network call: calls done, calls in all, and the predicted images (N, C, H, W) of the current batch
Progress = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class SampleSettings:
    """How to sample. ``steps`` None means the sampler's own default; ``seed`` is that of the first image, then counting up."""

    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    eta: float = 0.0
    seed: int = 0
    spacing: str = "trailing"
    clip: bool = True
    dynamic_threshold: float | None = None
    cfg_scale: float = DEFAULT_SCALE

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"There is no sampler {self.sampler!r}; choose one of: {', '.join(SAMPLERS)}.")
        if self.spacing not in SPACINGS:
            raise UserError(f"There is no timestep spacing {self.spacing!r}; choose one of: {', '.join(SPACINGS)}.")
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta must be between 0 and 1; got {self.eta:g}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"The seed must be -1 (random) or a number from 0 to {2**63 - 1}; got {self.seed}.")
        if not 1.0 <= self.cfg_scale <= MOST_SCALE:
            raise UserError(f"The CFG scale must be between 1 and {MOST_SCALE:g}; got {self.cfg_scale:g}.")
        if self.dynamic_threshold is not None and not 0.5 <= self.dynamic_threshold <= 1.0:
            raise UserError(f"The dynamic threshold is a quantile between 0.5 and 1; got {self.dynamic_threshold:g}.")

    @property
    def definition(self) -> Sampler:
        """The sampler itself."""
        return SAMPLERS[self.sampler]

    def times(self, total: int) -> list[int]:
        """The timesteps that will be visited by a model of ``total`` timesteps."""
        chosen = self.definition
        steps = self.steps if self.steps is not None else min(chosen.default_steps, total)
        if chosen.full_only and steps != total:
            raise UserError(
                f"{chosen.label} is only right for all {total} steps; choose {total} steps or the sampler ddpm."
            )
        return timesteps(self.spacing, steps, total, solver=chosen.solver)


def seed_of(wanted: int | None) -> int:
    """The seed that was asked for; a random one for None and -1, as in the WebUI."""
    return random.SystemRandom().randrange(2**32) if wanted is None or wanted == -1 else wanted


class ImageNoise:
    """Standard normal noise for a batch, each image from a CPU generator of its own.

    So a seed gives the same picture in whatever batch, and on any device up to its arithmetic.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
        self.shape = shape
        self.device = device

    def __call__(self, step: int = -1) -> Tensor:
        """The next draw, (N, C, H, W) float32 on the device."""
        return torch.stack([torch.randn(self.shape, generator=g, device="cpu") for g in self.generators]).to(
            self.device
        )


def generate(
    network: Network | ToldNetwork,
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    count: int,
    settings: SampleSettings,
    *,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    stop: threading.Event | None = None,
    progress: Progress = lambda done, total, x0: None,
    asked: Asked | None = None,
) -> tuple[Tensor, int]:
    """``count`` images (n, C, H, W) float32 on the CPU in [-1, 1], and the network calls each took.

    Stopped early, only whole images are returned (n may be 0). Where the memory does not suffice for a batch, it is
    halved: an image depends on its own seed only. ``asked``: what a network that can be told shall show, a row for each image.
    """
    if count < 1:
        raise UserError(f"The number of images must be at least 1; got {count}.")
    device = diffusion.alphas_cumprod.device
    times = settings.times(diffusion.config.timesteps)
    definition = settings.definition
    options = dict(definition.options)
    if definition.uses_eta:
        options["eta"] = settings.eta
    total = len(times) * -(-count // batch_size)
    finished: list[Tensor] = []
    done = calls = start = 0

    def after_step(step: int, x: Tensor, x0: Tensor) -> bool:
        nonlocal done
        done += 1
        progress(done, total, x0)
        return stop is not None and stop.is_set()

    while start < count:
        seeds = [settings.seed + i for i in range(start, min(start + batch_size, count))]
        noise = ImageNoise(seeds, shape, device)
        rows = slice(start, start + len(seeds))
        plain: Any = network
        if asked is not None:
            plain = asked.network(cast(ToldNetwork, network), rows, diffusion.config.timesteps, device)
        denoiser = Denoiser(
            plain, diffusion, clip=settings.clip, dynamic_threshold=settings.dynamic_threshold, dtype=dtype
        )

        before = done
        try:
            with torch.no_grad():
                images = definition.function(denoiser, noise(), times, noise=noise, callback=after_step, **options)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(seeds) == 1:
                raise
            batch_size, done = len(seeds) // 2, before
            total = done + len(times) * -(-(count - start) // batch_size)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start += len(seeds)
        if stop is not None and stop.is_set() and denoiser.calls < len(times):
            break
        calls = denoiser.calls
        finished.append(images.float().cpu())
        if stop is not None and stop.is_set():
            break
    return torch.cat(finished) if finished else torch.empty((0, *shape)), calls
