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
from .repaint import JUMP, repaint, way
from .spacing import timesteps
from .start import Start, slerp

# after a network call: calls done, calls in all, and the predicted images (N, C, H, W) of the current batch
Progress = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class SampleSettings:
    """How to sample. ``steps`` None means the sampler's own default; ``seed`` is that of the first image, then counting up.

    With a ``variation_strength`` (0 to 1) all images have the ``seed``, and the noise of each goes so far towards that of a seed of its own,
    counting up from ``variation_seed``; as the WebUI's Extra seed.
    """

    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    eta: float = 0.0
    seed: int = 0
    spacing: str = "trailing"
    clip: bool = True
    dynamic_threshold: float | None = None
    cfg_scale: float = DEFAULT_SCALE
    variation_seed: int | None = None
    variation_strength: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"There is no sampler {self.sampler!r}; choose one of: {', '.join(SAMPLERS)}.")
        if self.spacing not in SPACINGS:
            raise UserError(f"There is no timestep spacing {self.spacing!r}; choose one of: {', '.join(SPACINGS)}.")
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta must be between 0 and 1; got {self.eta:g}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"The seed must be -1 (random) or a number from 0 to {2**63 - 1}; got {self.seed}.")
        if not 0.0 <= self.variation_strength <= 1.0:
            raise UserError(f"The variation strength must be between 0 and 1; got {self.variation_strength:g}.")
        if self.variation_seed is not None and not 0 <= self.variation_seed < 2**63:
            raise UserError(
                f"The variation seed must be -1 (random) or a number from 0 to {2**63 - 1}; got {self.variation_seed}."
            )
        if not 1.0 <= self.cfg_scale <= MOST_SCALE:
            raise UserError(f"The CFG scale must be between 1 and {MOST_SCALE:g}; got {self.cfg_scale:g}.")
        if self.dynamic_threshold is not None and not 0.5 <= self.dynamic_threshold <= 1.0:
            raise UserError(f"The dynamic threshold is a quantile between 0.5 and 1; got {self.dynamic_threshold:g}.")

    def seeds(self, count: int) -> list[tuple[int, int | None]]:
        """Of each image its seed and its variation seed, if it has one."""
        if self.variation_strength == 0 or self.variation_seed is None:
            return [(self.seed + i, None) for i in range(count)]
        return [(self.seed, self.variation_seed + i) for i in range(count)]

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

    So a seed gives the same picture in whatever batch, and on any device up to its arithmetic. ``variations``: a second seed for each image,
    or none, towards whose noise the first draw goes by ``strength``.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device,
        variations: Sequence[int | None] = (),
        strength: float = 0.0,
    ) -> None:
        self.generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
        self.shape = shape
        self.device = device
        self.variations, self.strength = list(variations) or [None] * len(self.generators), strength

    def first(self) -> Tensor:
        """The first draw, (N, C, H, W) float32 on the device."""
        drawn = self._draw()
        for number, seed in enumerate(self.variations):
            if seed is not None:
                other = torch.randn(self.shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
                drawn[number] = slerp(self.strength, drawn[number], other)
        return drawn.to(self.device)

    def __call__(self, step: int = -1) -> Tensor:
        """The next draw, (N, C, H, W) float32 on the device."""
        return self._draw().to(self.device)

    def _draw(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g, device="cpu") for g in self.generators])


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
    start: Start | None = None,
) -> tuple[Tensor, int]:
    """``count`` images (n, C, H, W) float32 on the CPU in [-1, 1], and the network calls each took.

    Stopped early, only whole images are returned (n may be 0). Where the memory does not suffice for a batch, it is
    halved: an image depends on its own seed only. ``asked``: what a network that can be told shall show, a row for each image;
    ``start``: where the sampling starts, noise where nothing is said.
    """
    if count < 1:
        raise UserError(f"The number of images must be at least 1; got {count}.")
    device = diffusion.alphas_cumprod.device
    start = start or Start()
    times = start.times(settings.times(diffusion.config.timesteps))
    if not times:  # not noised at all
        assert start.images is not None
        return start.images.float().cpu().expand(count, *shape).clone(), 0
    definition = settings.definition
    options = dict(definition.options)
    if definition.uses_eta:
        options["eta"] = settings.eta
    painting = start.repaints(len(times))
    most = sum(step >= 0 for step in way(len(times), JUMP, start.resamples)) if painting else len(times)
    total = most * -(-count // batch_size)
    finished: list[Tensor] = []
    done = calls = first = 0

    def after_step(step: int, x: Tensor, x0: Tensor) -> bool:
        nonlocal done
        done += 1
        progress(done, total, x0)
        return stop is not None and stop.is_set()

    # between given noises nothing else may change
    seeds = settings.seeds(count) if start.noise is None else [(settings.seed, None)] * count
    while first < count:
        some = seeds[first : first + batch_size]
        noise = ImageNoise(
            [seed for seed, _ in some], shape, device, [other for _, other in some], settings.variation_strength
        )
        rows = slice(first, first + len(some))
        plain: Any = network
        if asked is not None:
            plain = asked.network(cast(ToldNetwork, network), rows, diffusion.config.timesteps, device)
        drawn = noise.first()
        given = start.given(rows, drawn)
        denoiser = Denoiser(
            plain,
            diffusion,
            clip=settings.clip,
            dynamic_threshold=settings.dynamic_threshold,
            dtype=dtype,
            given=None if painting or start.mask is None else given,
        )
        sampler, more = definition.function, options
        if painting and given is not None:
            sampler = repaint
            more = {"images": given[0], "mask": given[1], "eta": options.get("eta", 0.0), "resamples": start.resamples}

        before = done
        try:
            with torch.no_grad():
                state = start.state(denoiser, times, rows, drawn)
                images = sampler(denoiser, state, times, noise=noise, callback=after_step, **more)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(some) == 1:
                raise
            batch_size, done = len(some) // 2, before
            total = done + most * -(-(count - first) // batch_size)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        first += len(some)
        if stop is not None and stop.is_set() and denoiser.calls < most:
            break
        calls = denoiser.calls
        finished.append(images.float().cpu())
        if stop is not None and stop.is_set():
            break
    return torch.cat(finished) if finished else torch.empty((0, *shape)), calls
