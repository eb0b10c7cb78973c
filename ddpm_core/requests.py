"""What a person asks for, in words that need no torch: the tab, the API and the command line fill these in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import UserError
from .options import (
    CONDITIONS,
    CROPS,
    MASKED_CONTENTS,
    PRECISIONS,
    PRIORS,
    RESIZE_MODES,
    SPACINGS,
    WEIGHTS,
    check,
    option,
)
from .parsing import read_json, read_record
from .text import legible

MOST_IMAGES = 100_000
MOST_TEXT = 20_000  # characters of a prompt
MOST_PIXELS = 4096  # a side of what samples are brought to
MOST_FACTOR = 16
MOST_BEST_OF = 16
COLLECTION_STATE = "generating.json"  # in a dataset's folder
OWN_UPSCALER = "DDPM: "  # before the name of an upscaler of ours in a list of upscalers
UPSCALER_STEPS, UPSCALER_NOISE = 10, 0.1  # of ours, until a person says otherwise
NATIVE = "None (native size)"  # what a list of upscalers offers first


@dataclass
class TrainRequest:
    """What a person asks for; None leaves it to the preset (or, when resuming, to the run)."""

    model: str = option(metavar="NAME")
    dataset: str | None = option(None, metavar="NAME")
    preset: str | None = option(
        None,
        help="tiny-32, portrait-64, article-64, annotated-28, detail-128, upscale-4x, upscale-4x-small or contrast",
    )
    size: int | None = option(None, label="Image size in pixels (0 = preset)", metavar="PX")
    crop: str | None = option(None, label="Crop", choices=CROPS, shown="center")
    steps: int | None = option(None, help="total, including those before a resume")
    minutes: float | None = option(None, help="time limit")
    batch_size: int | None = option(None, label="Batch size (0 = preset)")
    learning_rate: float | None = option(None, label="Learning rate (0 = preset)", flag="--lr", help="learning rate")
    precision: str | None = option(None, label="Precision", choices=PRECISIONS, shown="auto")
    seed: int | None = option(None, label="Training seed")
    checkpoint_every: int | None = option(
        None, label="Checkpoint every N steps (0 = by time)", low=1, metavar="STEPS", help="default: by time"
    )
    condition: str | None = option(
        None,
        label="Prompts",
        info="auto = the words of the prompts, where there are enough; text = the WebUI's text encoder; image = what an image is like, by an "
        "image-text encoder (preset contrast), for variations",
        choices=CONDITIONS,
        shown="auto",
        help="what the model learns to be told: the words of the prompts (tags), the prompts by the WebUI's text encoder "
        "(text: pooled or cross-attention, by the number of images), what an image is like by an image-text encoder (image), or nothing (default: auto)",
    )
    stop_before_copying: bool | None = option(
        None,
        label="Stop before it copies",
        info="Ends the training when it begins to learn its images by heart",
        shown=True,
        help="end where it begins to learn its images by heart (the default of a new run), or go on",
    )
    resume: bool = option(False)
    init_from: str | None = option(None, metavar="MODEL", help="initial weights: those of this model")
    base: str | None = option(
        None, metavar="MODEL", help="train an adapter of this model, which stays as it is, instead of a model"
    )
    concept: str | None = option(
        None,
        label="New word",
        info="What the new images show, in a word that the model does not know yet; empty: the words of their own prompts",
        group="adapter",
        shown="",
        metavar="WORD",
        help="of an adapter: a new word for what the images show",
    )
    prior: str | None = option(
        None,
        label="Keep what the model knows",
        info="preserve = beside each new image it learns to answer the model's own images as before; none = it forgets them",
        group="adapter",
        choices=PRIORS,
        shown=PRIORS[0],
        help="of an adapter: what keeps the model from forgetting (default preserve)",
    )
    settings: dict[str, str] = field(default_factory=dict)

    def check_limits(self) -> None:
        """UserError where steps, minutes or intervals are out of range."""
        if self.steps is not None and not 1 <= self.steps <= 10**9:
            raise UserError(f"The number of steps must be at least 1; got {self.steps}.")
        if self.minutes is not None and not 0 < self.minutes <= 10**6:
            raise UserError(f"The number of minutes must be more than 0; got {self.minutes:g}.")
        check(self, ["checkpoint_every", "condition", "prior"])


@dataclass(frozen=True)
class GenerationRequest:
    """What the host's own text-to-image shall make; empty names leave the choice to the host."""

    prompt: str = option()
    negative_prompt: str = option("")
    sampler: str = option("")
    scheduler: str = option("")
    steps: int = option(20)
    cfg_scale: float = option(7.0)
    width: int = option(512)
    height: int = option(512)
    each_line: bool = option(False, help="Each line of the prompt is a prompt of its own.")
    styles: list[str] = field(default_factory=list)  # of the host

    def prompts(self) -> list[str]:
        """The prompts, in order: one, or one a line."""
        lines = [line.strip() for line in self.prompt.splitlines() if line.strip()] if self.each_line else []
        return lines or [self.prompt]

    def check(self) -> None:
        """UserError where a number is out of range or a text too long."""
        if not isinstance(self.styles, list) or not all(isinstance(style, str) for style in self.styles):
            raise UserError("The styles must be a list of names.")
        if max(len(self.prompt), len(self.negative_prompt)) > MOST_TEXT:
            raise UserError(f"A prompt can have at most {MOST_TEXT} characters.")
        if not 1 <= self.steps <= 150:
            raise UserError(f"Sampling steps must be between 1 and 150; got {self.steps}.")
        if not 1 <= self.cfg_scale <= 30:
            raise UserError(f"CFG scale must be between 1 and 30; got {self.cfg_scale:g}.")
        for side in (self.width, self.height):
            if not 64 <= side <= 2048 or side % 8:
                raise UserError(f"Width and height must be multiples of 8 between 64 and 2048; got {side}.")


@dataclass(frozen=True)
class Generated:
    """One picture the host made; ``path`` is None where the host's settings save nothing."""

    image: Image.Image
    text: str
    path: Path | None


@dataclass(frozen=True)
class Collection:
    """A generate-and-collect, as it is kept in the dataset's folder until it is finished."""

    request: GenerationRequest
    total: int
    batch_size: int = 1
    seed: int = -1
    done: int = 0

    @classmethod
    def from_json(cls, values: Any) -> Collection:
        """UserError where the record is damaged."""
        try:
            return read_record(cls, {**values, "request": read_record(GenerationRequest, values["request"])})
        except (ValueError, TypeError, KeyError):
            raise UserError("What was to be generated cannot be read any more; start it again.") from None

    @classmethod
    def unfinished(cls, folder: Path) -> Collection | None:
        """What a dataset still waits for, if a generate-and-collect was stopped or cut off; from the dataset's folder."""
        if not (folder / COLLECTION_STATE).exists():
            return None
        try:
            return cls.from_json(read_json(folder / COLLECTION_STATE, "list of what to generate"))
        except UserError:
            return None

    def check(self) -> None:
        """UserError where a number is out of range."""
        self.request.check()
        if not 1 <= self.total <= MOST_IMAGES:
            raise UserError(f"The number of images must be between 1 and {MOST_IMAGES}; got {self.total}.")
        if self.total < len(self.request.prompts()):
            raise UserError(f"There are {len(self.request.prompts())} prompts: make at least as many images.")
        if not 1 <= self.batch_size <= 64:
            raise UserError(f"The batch size must be between 1 and 64; got {self.batch_size}.")
        if not -1 <= self.seed < 2**32:
            raise UserError("The seed must be -1 (random) or a number up to 4294967295.")


@dataclass(frozen=True)
class Enlarging:
    """How samples are brought to another size: by an upscaler, to ``factor`` times their own or to ``size`` (w, h).

    ``steps`` and ``noise`` are for upscalers of ours, as in ``sampling.upscale.UpscaleSettings``.
    """

    upscaler: str
    factor: float = 1.0
    size: tuple[int, int] | None = None
    steps: int = UPSCALER_STEPS
    noise: float = UPSCALER_NOISE

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= MOST_FACTOR:
            raise UserError(f"Images can be upscaled 1 to {MOST_FACTOR} times; got {self.factor:g}.")

    def target(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) of a sample of that native size."""
        found = self.size or (round(width * self.factor), round(height * self.factor))
        if not all(1 <= side <= MOST_PIXELS for side in found):
            raise UserError(f"Images can be at most {MOST_PIXELS} pixels on a side; choose a smaller factor.")
        return found


@dataclass(frozen=True)
class Prompt:
    """What an image shall show, and what not."""

    text: str = ""
    negative: str = ""

    def __post_init__(self) -> None:
        for name in ("text", "negative"):  # no file holds a lone surrogate
            object.__setattr__(self, name, legible(getattr(self, name)))
        if max(len(self.text), len(self.negative)) > MOST_TEXT:
            raise UserError(f"A prompt can have at most {MOST_TEXT} characters.")


@dataclass(frozen=True)
class Interpolation:
    """Frames from the sample of a seed to that of another, and from the request's prompt to another."""

    to_seed: int = option(-1, label="To seed (-1 = random)")
    to_prompt: str = option("", label="To prompt (empty = the same)")
    frames: int = option(16, label="Frames", low=2, high=100, step=1)
    loop: bool = option(False, label="Loop")


# of a SampleRequest, what counts for an interpolation
INTERPOLATED = (
    "model",
    "sampler",
    "steps",
    "weights",
    "clip",
    "spacing",
    "dynamic_threshold",
    "checkpoint_step",
    "prompt",
    "negative_prompt",
    "cfg_scale",
)


@dataclass(frozen=True)
class Edit:
    """An image to begin with, as in the WebUI's img2img and inpainting; ``mask``: white where is drawn anew, all of it where there is none.

    ``resize_mode``: how an image of other proportions is brought to the model's: stretched, cut, or filled up. ``only_masked``: the model
    draws the masked part with ``mask_padding`` pixels around it instead of the whole image. ``resamples``: how often each part of the way from
    noise to image is gone, so that what is drawn fits what stays, or what is asked for; once where there is neither mask nor prompt. ``ready``: image and mask are as ``operations.editing.prepared`` makes them.
    """

    image: Image.Image
    mask: Image.Image | None = None
    denoising_strength: float = 0.75
    resize_mode: str = "crop"
    invert_mask: bool = False
    mask_blur: int = 4
    masked_content: str = "original"
    only_masked: bool = False
    mask_padding: int = 32
    resamples: int = 8
    ready: bool = False


@dataclass(frozen=True)
class SampleRequest:
    """Samples of a model. ``seed`` of the first image, then counting up; ``size`` (width, height): instead of ``factor``."""

    model: str = option(metavar="NAME or FILE")
    count: int = option(16)
    sampler: str = option("dpmpp_2m", help="dpmpp_2m, ddim, unipc, ddpm or ddpm_large")
    steps: int | None = option(None, help="network calls an image (default: the sampler's own)")
    seed: int | None = option(None, help="of the first image, then counting up; -1: random")
    eta: float = option(
        0.0, label="Eta (DDIM)", low=0, high=1, step=0.05, help="for ddim: 0 deterministic, 1 as noisy as ddpm"
    )
    weights: str = option(
        "ema",
        label="Weights",
        info="ema = averaged over the training, usually better; raw = as the last step left them",
        choices=WEIGHTS,
    )
    clip: bool = option(
        True, label="Clip x0", info="Keeps the predicted image within the range of an image", help="do not clip x0"
    )
    spacing: str = option("trailing", label="Timestep spacing", choices=SPACINGS)
    dynamic_threshold: float | None = option(
        None,
        label="Dynamic threshold (0 = off)",
        metavar="Q",
        help="dynamic thresholding at this quantile, for example 0.995",
    )
    checkpoint_step: int | None = option(None, metavar="STEP", help="from an older checkpoint of the model's run")
    prompt: str = option("", help="what the images shall show, in words that the model knows (models show)")
    negative_prompt: str = option("", help="what they shall not show")
    cfg_scale: float = option(
        2.0,
        label="CFG scale",
        low=1,
        high=30,
        step=0.5,
        help="how strictly the prompt is followed, 1 to 30; 1 is fastest",
    )
    best_of: int = option(
        1,
        label="Best of",
        info="Makes so many for each image and keeps the one that fits the prompt best; needs an image-text encoder (preset contrast)",
        low=1,
        high=MOST_BEST_OF,
        step=1,
        metavar="N",
        help="make so many for each image and keep the one that fits the prompt best, by an image-text encoder of the model's dataset",
    )
    upscaler: str | None = option(
        None, metavar="NAME", help="an upscaler of yours, or Lanczos or Nearest (default: the model's own size)"
    )
    factor: float = option(4.0, help="how many times larger the upscaler makes the images")
    upscaler_steps: int = option(
        UPSCALER_STEPS,
        label="Upscaler steps (DDPM upscalers)",
        low=1,
        high=100,
        step=1,
        help="network calls of an upscaler of yours for each image",
    )
    upscaler_noise: float = option(
        UPSCALER_NOISE,
        label="Upscaler noise (DDPM upscalers)",
        info="Higher redraws more of the detail, lower keeps more of the sample",
        low=0,
        high=0.3,
        step=0.01,
        help="noise that an upscaler of yours gives the image before it draws, 0 to 0.3",
    )
    size: tuple[int, int] | None = None
    variation_seed: int | None = option(
        None, label="Variation seed (-1 = random)", shown=-1, group="variation", help="-1: random"
    )
    variation_strength: float = option(
        0.0,
        label="Variation strength",
        low=0,
        high=1,
        step=0.01,
        group="variation",
        help="how far the noise of the seed goes towards that of the variation seed, 0 to 1",
    )
    variation_of: Image.Image | None = None
    image: Image.Image | None = None
    mask: Image.Image | None = None
    denoising_strength: float = option(
        0.75,
        label="Denoising strength",
        low=0,
        high=1,
        step=0.01,
        group="edit",
        help="of an image to begin with (--init): 0 leaves it as it is, 1 leaves nothing of it",
    )
    resize_mode: str = option(
        "crop",
        label="Resize mode",
        choices=RESIZE_MODES,
        group="edit",
        help="how that image is brought to the model's proportions: resize (stretch), crop, or fill",
    )
    mask_blur: int = option(4, label="Mask blur", low=0, high=64, step=1, group="edit", help="pixels")
    masked_content: str = option(
        "original",
        label="Masked content",
        choices=MASKED_CONTENTS,
        group="edit",
        help="what is under the mask at first: the original, colours from around it, or noise",
    )
    only_masked: bool = option(
        False,
        label="Inpaint area: only masked",
        group="edit",
        help="the model draws the masked part and some pixels around it instead of the whole image",
    )
    invert_mask: bool = option(
        False, label="Inpaint not masked", group="edit", help="draw what is black in the mask instead of what is white"
    )
    mask_padding: int = option(
        32,
        label="Only masked padding, pixels",
        low=0,
        high=256,
        step=4,
        group="edit",
        help="those pixels",
    )
    resamples: int = option(
        8,
        label="Resamples",
        info="More fit the new part to the rest, or the image to the prompt, and take longer",
        low=1,
        high=10,
        step=1,
        group="edit",
        help="how often each part of the way from noise to image is gone, under a mask or towards a prompt, 1 to 10",
    )

    @property
    def edit(self) -> Edit | None:
        """The image to begin with, if there is one; UserError where a value is out of range."""
        if self.image is None:
            if self.mask is not None:
                raise UserError("A mask needs the image that it belongs to; give that, too (--init).")
            return None
        names = [name for name in Edit.__dataclass_fields__ if name != "ready"]
        check(self, [name for name in names if name not in ("image", "mask")])
        return Edit(**{name: getattr(self, name) for name in names})

    @property
    def asked(self) -> Prompt:
        """The prompts; UserError where one is too long."""
        return Prompt(self.prompt, self.negative_prompt)

    @property
    def enlarging(self) -> Enlarging | None:
        """How the samples are enlarged, if they are; UserError for a factor out of range."""
        if not self.upscaler:
            return None
        return Enlarging(self.upscaler, self.factor, self.size, self.upscaler_steps, self.upscaler_noise)
