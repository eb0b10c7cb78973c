"""Sampling inside a generation of the host: its progress bar and live preview show ours, its Interrupt and Skip end it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import images, processing, shared
from PIL import Image
from torch import Tensor

from ....errors import UserError
from ....operations.editing import flattened
from ....operations.loading import reweighted
from ....requests import MOST_TEXT, NATIVE, Edit, Enlarging, Prompt
from ....results import Result
from ....sampling import SAMPLERS
from ....sampling.generate import SampleSettings
from ....sampling.guidance import DEFAULT_SCALE
from ....service import Service
from ..choices import styled
from ..facts import option
from ..naming import save_image

NEWEST = "(newest)"  # of the models; none can have this name
_PREVIEW_SECONDS = 0.25
_PREVIEW_SIDE = 384
_PREVIEW_MOST = 16
_MOST_SEED = 2**32
_MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Choice:
    """What a person chose for a sampling; ``seed`` -1 is that of the host's generation, ``upscaler`` NATIVE is none; ``adapter_weight``: of all
    adapters, instead of what the prompt says."""

    model: str = NEWEST
    count: int = 1
    sampler: str = "dpmpp_2m"
    steps: int = 20
    seed: int = -1
    upscaler: str = NATIVE
    weights: str = "ema"
    cfg_scale: float = DEFAULT_SCALE
    adapter_weight: float | None = None

    @classmethod
    def read(cls, values: Sequence[Any]) -> Choice:
        """From values of controls, or of an API request, in the order of the fields: a sampler by its name or its label;
        None, or left out at the end, for a default."""
        model, count, sampler, steps, seed, upscaler, weights, scale = [*values, *[None] * 8][:8]
        named = {s.label: s.name for s in SAMPLERS.values()}
        try:
            return cls(
                str(NEWEST if model is None else model),
                int(cls.count if count is None else count),
                named.get(str(sampler), str(sampler or cls.sampler)),
                int(cls.steps if steps is None else steps),
                int(cls.seed if seed is None else seed),
                str(upscaler or NATIVE),
                str(weights or cls.weights),
                float(cls.cfg_scale if scale is None else scale),
            )
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                "Number of images, steps and seed must be whole numbers, and the CFG scale a number."
            ) from None


def sample(
    service: Service, choice: Choice, p: Any, seed: int, size: tuple[int, int], batch_size: int
) -> tuple[list[Result], UserError | None]:
    """Sample as chosen, as a part of the generation ``p``, which holds the queue's lock, and save as it saves.

    ``seed`` is the host's, taken where the choice names none; ``size`` (width, height) is the host's, which an upscaler
    brings the pictures to. The pictures, and what went wrong in saving them; interrupted, only whole pictures.
    """
    model = service.workspace.newest_model() if choice.model == NEWEST else choice.model
    if model is None:
        raise UserError("There is no model yet: train one in the DDPM tab.")
    varied, strength = variation_of(p) if choice.seed < 0 else (None, 0.0)
    settings = SampleSettings(
        choice.sampler,
        choice.steps,
        seed=seed if choice.seed < 0 else choice.seed,
        cfg_scale=choice.cfg_scale,
        variation_seed=varied,
        variation_strength=strength,
    )
    with _Progress() as progress:
        return service.sample_within(
            model,
            choice.count,
            settings,
            weights=choice.weights,
            enlarging=None if choice.upscaler == NATIVE else Enlarging(choice.upscaler, size=size),
            prompts=_reweighted(prompts_of(p), choice.adapter_weight),
            edit=edit_of(p),
            batch_size=max(1, min(batch_size, _MOST_AT_ONCE)),
            stop=progress.stop,
            emerging=progress.after_call,
            report=progress.heed,
            save=lambda image, text, number, _: _save(p, image, text, number),
        )


def variation_of(p: Any) -> tuple[int | None, float]:
    """Seed and strength of the variation that a generation asks for (Extra seed)."""
    strength = float(getattr(p, "subseed_strength", 0.0) or 0.0)
    seeds = getattr(p, "all_subseeds", None) or [getattr(p, "subseed", -1)]
    if not 0.0 < strength <= 1.0:
        return None, 0.0
    return (int(seeds[0]) if int(seeds[0]) >= 0 else random_seed()), strength


def edit_of(edited: Any) -> Edit | None:
    """The image that an img2img begins with, at the size that the host brings it to, with its mask; None in txt2img.

    Where only the masked part is drawn the host, too, keeps the image's own size.
    """
    images_given = getattr(edited, "init_images", None)
    if not images_given:
        return None
    image = flattened(images_given[0], str(option("img2img_background_color", "") or "#ffffff"))
    mask = getattr(edited, "image_mask", None)
    if mask is not None and processing.create_binary_mask(mask).getbbox() is None and not edited.inpainting_mask_invert:
        mask = None  # the host, too, goes on without it
    mode = {0: "resize", 1: "crop", 2: "fill"}.get(int(edited.resize_mode), "resize")
    only_masked = mask is not None and bool(edited.inpaint_full_res)
    if not only_masked:
        number = ("resize", "crop", "fill").index(mode)
        image = images.resize_image(number, image, int(edited.width), int(edited.height))
        if mask is not None:
            mask = images.resize_image(
                number, processing.create_binary_mask(mask), int(edited.width), int(edited.height)
            )
    return Edit(
        image,
        mask,
        denoising_strength=float(edited.denoising_strength),
        resize_mode=mode,
        invert_mask=bool(edited.inpainting_mask_invert),
        mask_blur=round(max(edited.mask_blur_x, edited.mask_blur_y)),
        masked_content={0: "fill", 1: "original"}.get(int(edited.inpainting_fill), "noise"),
        only_masked=only_masked,
        mask_padding=int(edited.inpaint_full_res_padding),
    )


def prompts_of(p: Any) -> list[Prompt]:
    """The prompts of a generation, one for each of its pictures; of a text that is too long its beginning."""
    texts, others = getattr(p, "all_prompts", None), getattr(p, "all_negative_prompts", None)
    if not texts or not others:  # a script that generates by itself comes before the host has made its lists
        texts, others = (
            value if isinstance(value, list) else [value] for value in (p.prompt or "", p.negative_prompt or "")
        )
        styles = list(getattr(p, "styles", None) or [])
        texts = [styled(str(text), "", styles)[0] for text in texts]
        others = [styled("", str(other), styles)[1] for other in others]
    pairs = zip(texts, [*others, *[others[-1]] * len(texts)])
    return [Prompt(str(text)[:MOST_TEXT], str(other)[:MOST_TEXT]) for text, other in pairs]


def _reweighted(prompts: list[Prompt], weight: float | None) -> list[Prompt]:
    if weight is None:
        return prompts
    return [Prompt(reweighted(prompt.text, weight), prompt.negative) for prompt in prompts]


def _save(p: Any, image: Image.Image, text: str, seed: int) -> Path | None:
    if option("enable_pnginfo", True):
        image.info["parameters"] = text  # as the host does for its own, so that its answers carry it
    if p.do_not_save_samples:
        return None
    return save_image(image, text, seed, str(p.outpath_samples or ""), str(getattr(p, "user", None) or ""))


def tell(processed: Any, said: str) -> None:
    """What went wrong, below the gallery; and among the parameters for the API, whose answer has no comments."""
    processed.comments += f"DDPM: {said}\n"
    processed.extra_generation_params = {**processed.extra_generation_params, "DDPM error": said}


def random_seed() -> int:
    """A seed as the host draws one."""
    return random.SystemRandom().randrange(_MOST_SEED)


class _Progress:
    """The host's progress bar and live preview while we sample: the last of its jobs.

    It is not one job more where there is but one: with several, the host's Interrupt only ends after the current one.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._shown = 0.0

    def __enter__(self) -> _Progress:
        state = shared.state
        state.skipped = False  # a Skip until now was for the host's own
        state.current_latent = None  # else the host would decode its own last latent over our preview
        state.sampling_step = 0
        if state.job_no >= state.job_count > 0:
            state.job_no = state.job_count - 1
        state.textinfo = "DDPM"
        return self

    def __exit__(self, *error: object) -> None:
        shared.state.textinfo = None
        shared.state.nextjob()

    def heed(self, _: object = None) -> None:
        """Stop when a person says so; *stop after the current one* lets ours, which are the current one, be finished."""
        if shared.state.interrupted or shared.state.skipped:
            self.stop.set()

    def after_call(self, done: int, total: int, x0: Tensor) -> None:
        state = shared.state
        state.sampling_steps, state.sampling_step = total, done
        self.heed()
        if option("live_previews_enable", False) and time.monotonic() - self._shown > _PREVIEW_SECONDS:
            from ....model.diffusion import model_to_uint8
            from ....operations.pictures import enlarged, make_grid

            self._shown = time.monotonic()
            state.assign_current_image(enlarged(make_grid(model_to_uint8(x0[:_PREVIEW_MOST]).cpu()), _PREVIEW_SIDE))
