"""Sample pictures from a model of the workspace."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from .. import __version__
from ..dataset import infotext
from ..dataset.packing import fit
from ..errors import UserError
from ..evaluation.neighbours import to_image
from ..model import file as model_file
from ..model.build import network_of
from ..model.config import ModelConfig
from ..model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from ..model.network import Network
from ..requests import MOST_BEST_OF, Edit, Enlarging, Prompt, SampleRequest
from ..sampling.generate import SampleSettings, generate, seed_of
from ..sampling.start import Start
from ..sampling.upscale import UpscaleSettings
from ..training import precision
from ..workspace import Workspace
from . import asking
from .context import Context
from .editing import Canvas, flattened, unlike
from .loading import Adapters, adapters_in, called, load_weights, of_kind, unwritten, with_adapters, written
from .pictures import pixels_of
from .ranking import chooser
from .upscaling import Upscaler, own_upscaler


@dataclass
class Sampled:
    """Pictures of one sampling: uint8 (N, 3, H, W), the same as they are wanted (perhaps enlarged), their seeds and
    generation texts, network calls an image; the model's words that they were asked for, and those it does not know, each with the
    nearest that it does, or ""."""

    images: Tensor
    pictures: list[Image.Image]
    seeds: list[int]
    texts: list[str]
    evaluations: int
    seconds: float
    words: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)


def settings_of(request: SampleRequest) -> SampleSettings:
    """How a request is sampled; a random seed where it names none. UserError where a value is out of range."""
    shared = {f.name: getattr(request, f.name) for f in dataclasses.fields(SampleSettings)}
    varied = seed_of(request.variation_seed) if request.variation_strength else None
    return SampleSettings(**{**shared, "seed": seed_of(request.seed), "variation_seed": varied})


def sample(
    workspace: Workspace,
    model: str,
    count: int,
    settings: SampleSettings,
    context: Context,
    *,
    batch_size: int = 64,
    weights: str = "ema",
    step: int | None = None,
    enlarging: Enlarging | None = None,
    prompts: Sequence[Prompt] = (),
    edit: Edit | None = None,
    best_of: int = 1,
    like: Sequence[Image.Image] = (),
    emerging: Callable[[int, int, Tensor], None] | None = None,
) -> Sampled:
    """Sample ``count`` pictures, from the checkpoint of ``step`` where one is named. ``prompts``: one for each picture, or one for all.
    ``edit``: the image to begin with, which a masked result is put back into. ``best_of``: so many are made for each, with seeds that follow each
    other, of which the one is kept that fits its prompt best (``ranking.py``). ``like``: an image for each, or one for all, of which variations are made, by a
    model that is told what its images are like.
    ``emerging(done, total, x0)`` gets the predicted images after each network call.
    """
    each = [prompts[i % len(prompts)] if prompts else Prompt() for i in range(count)]
    make = functools.partial(
        _alike,
        workspace,
        model,
        context=context,
        batch_size=batch_size,
        weights=weights,
        step=step,
        enlarging=enlarging,
        edit=edit,
        best_of=best_of,
        like=like,
        emerging=emerging,
    )
    # a batch is made by one network: those whose prompts call other adapters are made by another
    parts = [list(same) for _, same in itertools.groupby(range(count), key=lambda i: adapters_in(each[i].text))]
    if len(parts) <= 1:
        return make(settings, each)
    found: list[Sampled] = []
    for part in parts:
        found.append(make(_from(settings, part[0] * best_of), [each[i] for i in part]))
        if len(found[-1].images) < len(part):  # stopped
            break
    return Sampled(
        torch.cat([one.images for one in found]),
        [picture for one in found for picture in one.pictures],
        [seed for one in found for seed in one.seeds],
        [text for one in found for text in one.texts],
        max(one.evaluations for one in found),
        sum(one.seconds for one in found),
        list(dict.fromkeys(word for one in found for word in one.words)),
        list(dict(pair for one in found for pair in one.unknown).items()),
    )


def _from(settings: SampleSettings, first: int) -> SampleSettings:
    """The settings whose first image is that of number ``first``."""
    if settings.variation_seed is not None and settings.variation_strength:
        return dataclasses.replace(settings, variation_seed=settings.variation_seed + first)
    return dataclasses.replace(settings, seed=settings.seed + first)


def _alike(
    workspace: Workspace,
    model: str,
    settings: SampleSettings,
    each: Sequence[Prompt],
    *,
    context: Context,
    batch_size: int,
    weights: str,
    step: int | None,
    enlarging: Enlarging | None,
    edit: Edit | None,
    best_of: int,
    like: Sequence[Image.Image],
    emerging: Callable[[int, int, Tensor], None] | None,
) -> Sampled:
    """As :func:`sample`, an image for each prompt, by one network: all of them call the same adapters."""
    if not 1 <= best_of <= MOST_BEST_OF:
        raise UserError(f"Best of must be between 1 and {MOST_BEST_OF}; got {best_of}.")
    if like and any(unwritten(one.text + one.negative) for one in each):
        raise UserError("Variations of an image are made without a prompt: leave out one of them.")
    choose = chooser(workspace, model, each, best_of, context) if best_of > 1 else None
    each = [prompt for prompt in each for _ in range(best_of)]
    count = len(each)
    if not 1 <= batch_size <= 4096:
        raise UserError(f"The batch size must be between 1 and 4096; got {batch_size}.")
    began = time.monotonic()
    config, tensors, title = load_weights(workspace, model, weights, step)
    adapters = called(each[0], context) if each else ()
    config, tensors = with_adapters(
        workspace, title, config, tensors, of_kind(workspace, adapters, upscalers=False), context
    )
    drawing = of_kind(workspace, adapters, upscalers=True)
    if drawing and (enlarging is None or own_upscaler(enlarging.upscaler) is None):
        raise UserError(
            f"{drawing[0][0]} is an adapter of an upscaler; choose that as the upscaler, or leave the adapter out."
        )
    if config.kind == "contrast":
        raise UserError(f"{title} finds and ranks images and makes none; choose another model.")
    if config.kind == "upscaler":
        raise UserError(f"{title} enlarges images and makes none; choose it as the upscaler of another model.")
    height, width = config.image_size
    size = enlarging.target(width, height) if enlarging else (width, height)
    canvas, wanted = None, size if enlarging is not None else None
    if edit is not None:
        canvas = Canvas(edit, (width, height), config.is_grey)
        size = canvas.enlarged_size(size)
    device = context.device
    question = asking.read(config, each, settings.cfg_scale, context, settings, like)
    asking.say_unknown(title, config, each, question.unknown, context)
    with context.gpu_slice():
        net = network_of(config, tensors, device)
        diffusion = Diffusion(config.diffusion, device)
    dtype = precision.of_sampling(device)

    if canvas is not None:
        given = canvas.start.images
        does = "it will draw over it in its own manner"
        _say_unlike(workspace, model, title, given, does, net, diffusion, dtype, context)
    if len(like) == 1 and not config.is_grey:
        given = uint8_to_model(pixels_of(fit(flattened(like[0]), (height, width), "center"))[None])
        does = "what it makes will be like its own images instead"
        _say_unlike(workspace, model, title, given, does, net, diffusion, dtype, context)

    start = canvas.start if canvas is not None else None
    if start is not None and start.mask is None and question.asked is None:
        start = dataclasses.replace(start, resamples=1)  # there is nothing that the image must come to fit

    def network(x: Tensor, t: Tensor, *, told: Mapping[str, Tensor] | None = None) -> Tensor:
        with context.gpu_slice():
            return net(x, t, told=told)  # type: ignore[no-any-return]

    def progress(done: int, total: int, x0: Tensor) -> None:
        if emerging is not None:  # before a page is told that there is something to see
            emerging(done, total, x0)
        context.progress(done, total, "Sampling")

    images, calls = generate(
        network,
        diffusion,
        config.denoised,
        count,
        settings,
        batch_size=batch_size,
        dtype=dtype,
        stop=context.stop,
        progress=progress,
        asked=question.asked,
        start=start,
    )
    pixels = model_to_uint8(images)
    numbers = list(range(len(pixels))) if choose is None else choose(pixels)
    pixels, every = pixels[numbers], settings.seeds(count)
    seeds = [every[number][0] for number in numbers]
    pictures, texts = [], []
    settled, more = _as_sampled(settings, canvas, start, config.diffusion.timesteps)
    # of many images their number is shown, of one its steps
    quiet = context if len(pixels) == 1 else dataclasses.replace(context, report=lambda values: None)
    enlarge = _enlarging_by(workspace, enlarging, quiet, drawing) if enlarging is not None and len(pixels) else None
    for number, one in enumerate(pixels):
        picture, done = to_image(one).convert("RGB"), None
        if enlarge is not None:
            context.progress(number, len(pixels), "Upscaling")
            # a stop leaves whole pictures, in their own size and saying so
            larger = None if context.stop.is_set() else enlarge(picture, size, seeds[number])
            picture, done = (picture, None) if larger is None else (larger, enlarging)
        if canvas is not None:
            picture = canvas.put_back(picture, wanted)
        pictures.append(picture)
        texts.append(
            sample_text(
                title,
                config,
                settled,
                seeds[number],
                calls,
                weights,
                done,
                step,
                each[numbers[number]],
                number=numbers[number],
                size=picture.size,
                more={**more, **_variation_of(like, number)},
            )
        )
    return Sampled(pixels, pictures, seeds, texts, calls, time.monotonic() - began, question.words, question.unknown)


def _variation_of(like: Sequence[Image.Image], number: int) -> dict[str, str]:
    """What the generation text says of the image that one is like: enough to know it again."""
    if not like:
        return {}
    return {"DDPM variation of": hashlib.sha256(like[number % len(like)].tobytes()).hexdigest()[:10]}


def _say_unlike(
    workspace: Workspace,
    model: str,
    title: str,
    given: Tensor | None,
    does: str,
    net: Network,
    diffusion: Diffusion,
    dtype: torch.dtype,
    context: Context,
) -> None:
    """Say where a model has learned nothing like the image that it is ``given``, and what it then ``does``."""
    known = model_file.known_of(model_file.read_config(workspace.model_path(model))[1])
    with context.gpu_slice():
        times = unlike(net, diffusion, given, float(known.get("heldout_loss", 0.0)), dtype)
    if times is not None:
        context.say(
            f"{title} has learned nothing like this image (its error is {times:.1f} times that on images held out of its training): "
            f"{does}."
        )


def _as_sampled(
    settings: SampleSettings, canvas: Canvas | None, start: Start | None, timesteps: int
) -> tuple[SampleSettings, Mapping[str, str]]:
    """The settings as they were used, and what an edit adds to the text: what goes parts of the way several times is DDIM's."""
    if canvas is None or start is None:
        return settings, {}
    if not start.repaints(len(start.times(settings.times(timesteps)))):
        return settings, canvas.described
    eta = settings.eta if settings.definition.uses_eta else 0.0
    resamples = {"DDPM resamples": str(start.resamples)}
    return dataclasses.replace(settings, sampler="ddim", eta=eta), {**canvas.described, **resamples}


def _enlarging_by(
    workspace: Workspace, enlarging: Enlarging, context: Context, adapters: Adapters
) -> Callable[[Image.Image, tuple[int, int], int], Image.Image | None]:
    """Image, size and seed to the enlarged image: by an upscaler of ours, or by one of the host's, which needs no seed."""
    name = own_upscaler(enlarging.upscaler)
    if name is None:
        return lambda image, size, seed: context.enlarge(image, size, enlarging.upscaler)
    upscaler = Upscaler(workspace, name, context, adapters)
    settings = UpscaleSettings(enlarging.steps, enlarging.noise)
    return lambda image, size, seed: upscaler.enlarge(image, size, seed, settings)


def sample_text(
    title: str,
    config: ModelConfig,
    settings: SampleSettings,
    seed: int,
    calls: int,
    weights: str,
    enlarging: Enlarging | None = None,
    step: int | None = None,
    prompt: Prompt | None = None,
    *,
    number: int = 0,
    size: tuple[int, int] | None = None,
    more: Mapping[str, str] | None = None,
) -> str:
    """The generation text of a sample, in the WebUI's format. ``number`` within the sampling; ``size`` (width, height) of the image, where it is
    not that of a plain sample; ``more``: what an edit adds."""
    height, width = config.image_size
    if enlarging is not None:
        width, height = enlarging.target(width, height)
    width, height = size or (width, height)
    values = {
        "Steps": str(calls),
        "Sampler": settings.definition.label,
        **(
            {"CFG scale": f"{settings.cfg_scale:g}"}
            if config.takes_prompts and prompt and (prompt.text + prompt.negative).strip()
            else {}
        ),
        "Seed": str(seed),
        "Size": f"{width}x{height}",
        **(
            {"Variation seed": str(varied), "Variation seed strength": f"{settings.variation_strength:g}"}
            if (varied := settings.seeds(number + 1)[number][1]) is not None
            else {}
        ),
        **(more or {}),
        infotext.OWN_KEY: title,
        "DDPM sampler": settings.sampler,
        "DDPM steps": str(settings.steps if settings.steps is not None else calls),
        "DDPM weights": weights,
        "Version": f"sd-webui-ddpm {__version__}",
    }
    if step is not None:
        values["DDPM checkpoint step"] = str(step)
    if settings.definition.uses_eta:
        values["DDPM eta"] = f"{settings.eta:g}"
    if settings.spacing != "trailing":
        values["DDPM spacing"] = settings.spacing
    if settings.dynamic_threshold is not None:
        values["DDPM dynamic threshold"] = f"{settings.dynamic_threshold:g}"
    if enlarging is not None:
        values["DDPM upscaler"] = enlarging.upscaler
        if own_upscaler(enlarging.upscaler) is not None:
            plain = UpscaleSettings()
            if enlarging.steps != plain.steps:
                values["DDPM upscaler steps"] = str(enlarging.steps)
            if enlarging.noise != plain.noise:
                values["DDPM upscaler noise"] = f"{enlarging.noise:g}"
    prompt = prompt or Prompt()
    if not config.takes_prompts:  # what it does not know is none of its
        prompt = Prompt(written(prompt.text))
    return infotext.build(infotext.Infotext(prompt.text.strip(), prompt.negative.strip(), values))
