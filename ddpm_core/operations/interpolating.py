"""From one sample to another: frames between two noises, and between two prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..evaluation.neighbours import to_image
from ..files import next_number, replace_with
from ..model.build import network_of
from ..model.diffusion import Diffusion, model_to_uint8
from ..model.values import dense
from ..requests import Prompt
from ..sampling.generate import ImageNoise, SampleSettings, generate
from ..sampling.guidance import Asked
from ..sampling.start import Start, circle, slerp
from ..training import precision
from ..workspace import Workspace
from . import asking
from .context import Context
from .loading import adapters_in, called, load_weights, of_kind, with_adapters
from .pictures import grid_of
from .sampling import Sampled, sample_text

MOST_FRAMES = 1000
_LEAST_SIDE = 256  # of an animation
_FRAME_MILLISECONDS = 80


def interpolate(
    workspace: Workspace,
    model: str,
    seeds: tuple[int, int],
    frames: int,
    settings: SampleSettings,
    context: Context,
    *,
    prompts: tuple[Prompt, Prompt] = (Prompt(), Prompt()),
    loop: bool = False,
    batch_size: int = 64,
    weights: str = "ema",
    step: int | None = None,
    emerging: Callable[[int, int, Tensor], None] = lambda done, total, x0: None,
) -> Sampled:
    """``frames`` samples whose noise goes from that of the first seed to that of the second (spherically, so that each is noise), and whose
    words go from the first prompt to the second. ``loop``: on the circle through both noises, with the first prompt, so that the last frame
    leads to the first. ``weights``, ``step``, ``emerging``: as for ``sampling.sample``. UserError where a value is out of range."""
    if not 2 <= frames <= MOST_FRAMES:
        raise UserError(f"The number of frames must be between 2 and {MOST_FRAMES}; got {frames}.")
    if not all(0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"The seeds must be numbers from 0 to {2**63 - 1}.")
    if loop and seeds[0] == seeds[1]:
        raise UserError("A loop needs two different seeds.")
    if not (settings.definition.solver or settings.definition.uses_eta):
        raise UserError(
            f"{settings.definition.label} adds noise at each step, so that frames would flicker; choose DPM++ 2M, DDIM or UniPC."
        )
    settings = dataclasses.replace(settings, eta=0.0, seed=seeds[0], variation_strength=0.0)
    began = time.monotonic()
    config, tensors, title = load_weights(workspace, model, weights, step)
    adapters = of_kind(workspace, called(prompts[0], context), upscalers=False)
    if adapters_in(prompts[1].text) not in ((), adapters):
        raise UserError(
            "Both prompts of an interpolation are by one network: let them call the same adapters, or the first alone."
        )
    config, tensors = with_adapters(workspace, title, config, tensors, adapters, context)
    if config.kind != "unet":
        raise UserError(f"{title} makes no images; choose another model.")
    question = asking.read(config, prompts, settings.cfg_scale, context, settings)
    asking.say_unknown(title, config, prompts, question.unknown, context)
    shares = [number / frames if loop else number / (frames - 1) for number in range(frames)]
    asked = _between(question.asked, [0.0] * frames if loop else shares)
    device = context.device
    ends = ImageNoise(seeds, config.denoised, torch.device("cpu")).first()
    noise = circle(ends[0], ends[1], frames) if loop else torch.stack([slerp(one, ends[0], ends[1]) for one in shares])
    with context.gpu_slice():
        net, process = network_of(config, tensors, device), Diffusion(config.diffusion, device)

    def network(x: Tensor, t: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
        with context.gpu_slice():
            return net(x, t, told=told)  # type: ignore[no-any-return]

    def progress(done: int, total: int, x0: Tensor) -> None:
        emerging(done, total, x0)
        context.progress(done, total, "Sampling")

    images, calls = generate(
        network,
        process,
        config.denoised,
        frames,
        settings,
        batch_size=batch_size,
        dtype=precision.of_sampling(device),
        stop=context.stop,
        progress=progress,
        asked=asked,
        start=Start(noise=noise),
    )
    pixels = model_to_uint8(images)
    texts = [
        sample_text(
            title,
            config,
            settings,
            seeds[0],
            calls,
            weights,
            step=step,
            prompt=prompts[0],
            more={
                "DDPM frame": f"{number + 1} of {frames}",
                "DDPM to seed": str(seeds[1]),
                **({"DDPM to prompt": prompts[1].text.strip()} if prompts[1] != prompts[0] else {}),
                **({"DDPM loop": "True"} if loop else {}),
            },
        )
        for number in range(len(pixels))
    ]
    pictures = [to_image(one).convert("RGB") for one in pixels]
    found = [seeds[0]] * len(pixels)
    return Sampled(pixels, pictures, found, texts, calls, time.monotonic() - began, question.words, question.unknown)


def _between(asked: Asked | None, shares: list[float]) -> Asked | None:
    """What each frame is asked for, of what the two ends are."""
    if asked is None:
        return None

    def blended(both: Tensor) -> Tensor:
        return torch.stack([(1 - share) * both[0] + share * both[1] for share in shares])

    told = {name: blended(dense(values[:2])) for name, values in asked.told.items()}
    negative = {name: blended(dense(values[:2])) for name, values in (asked.negative or {}).items()}
    return Asked(told, negative, asked.scale)


def write_animation(pictures: list[Image.Image], out: Path, there_and_back: bool) -> tuple[str, str]:
    """A strip of the frames and an endless animation (WebP), beside them; their paths."""
    times = max(1, _LEAST_SIDE // min(pictures[0].size))
    large = [one.resize((times * one.width, times * one.height), Image.Resampling.NEAREST) for one in pictures]
    if there_and_back:
        large += large[-2:0:-1]
    number = next_number(out, r"strip-(\d{4,})\.png")
    strip, animation = out / f"strip-{number:04d}.png", out / f"animation-{number:04d}.webp"
    picture = grid_of(pictures, len(pictures))
    replace_with(strip, lambda temporary: picture.save(temporary, format="PNG"))
    options = {"save_all": True, "append_images": large[1:], "duration": _FRAME_MILLISECONDS, "loop": 0, "quality": 90}
    replace_with(animation, lambda temporary: large[0].save(temporary, format="WEBP", **options))
    return str(strip), str(animation)
