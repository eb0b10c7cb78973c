"""What a model or an adapter is, as data: architecture and diffusion process, validated and JSON-serialisable."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import UserError
from .prediction import PREDICTIONS

SCHEDULES = ("linear", "cosine", "quadratic", "sigmoid")
READINGS = ("pooled", "cross-attention")  # ways in which a text encoder's answer is told

# of model files and runs: 1 without prompts, 4 with words, 5 with a text encoder, 6 an upscaler, 7 an adapter, 8 with parts of the annotated model,
# 9 an image-text encoder, or told an image's place in its space; the numbers are those of tests/data/formats
FORMAT = 9
ADAPTER_FORMAT = 7
BLOCKS, ATTENTIONS = ("residual", "convnext"), ("full", "linear")
MOST_TAGS = 1024
MOST_RANK = 256  # of an adapter
_MOST_ALPHA, _MOST_CONCEPT = 4096.0, 100
_MOST_LETTERS = 20_000
_MOST_WIDTH, _MOST_TOKENS = 16_384, 4096

T = TypeVar("T")


def dataclass_from_json(kind: type[T], values: Any, what: str) -> T:
    """Build a (frozen) config dataclass from parsed JSON; unknown, missing or mistyped keys raise UserError."""
    if not isinstance(values, dict):
        raise UserError(f"The {what} is not a JSON object.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"The {what} has a setting this version does not know: {unknown[0]!r}.")
    ready = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**ready)
    except TypeError as error:
        raise UserError(f"The {what} is incomplete or has a value of the wrong type ({error}).") from None


def _need(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the U-Net of DDPM (Ho et al. 2020, appendix B) as diffusers' ``UNet2DModel`` can express it.

    ``image_size`` is (height, width) in pixels; level ``i`` works at ``image_size / 2**i`` with
    ``block_out_channels[i]`` channels and self-attention where ``attention_levels[i]``. With 1 channel its images are grey.
    ``block`` and ``attention``: DDPM's own, or those of the annotated model (``convnext.py``), which diffusers cannot express; in the
    middle attention is always full.
    """

    image_size: tuple[int, int] = (64, 64)
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    attention_levels: tuple[bool, ...] = (False, False, True, True)
    layers_per_block: int = 2
    attention_head_dim: int = 64
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    block: str = "residual"
    attention: str = "full"

    def __post_init__(self) -> None:
        levels = self.block_out_channels
        _need(
            isinstance(levels, tuple) and 1 <= len(levels) <= 8 and all(_is_int(c, 1, 8192) for c in levels),
            "block_out_channels must list 1 to 8 channel counts, for example 64,128,256,512.",
        )
        _need(
            isinstance(self.attention_levels, tuple)
            and len(self.attention_levels) == len(levels)
            and all(isinstance(a, bool) for a in self.attention_levels),
            f"attention_levels must have one true or false for each of the {len(levels)} levels.",
        )
        _need(
            isinstance(self.image_size, tuple)
            and len(self.image_size) == 2
            and all(_is_int(s, 1, 4096) for s in self.image_size),
            "image_size must be two numbers of pixels, height and width.",
        )
        stride = 2 ** (len(levels) - 1)
        _need(
            all(side % stride == 0 for side in self.image_size),
            f"Size {self.image_size[1]}x{self.image_size[0]} does not fit this network: its {len(levels)} levels "
            f"need sides that are multiples of {stride}, for example {max(stride, round(self.image_size[0] / stride) * stride)}.",
        )
        for name in ("in_channels", "out_channels"):
            _need(_is_int(getattr(self, name), 1, 64), f"{name} must be between 1 and 64.")
        _need(_is_int(self.layers_per_block, 1, 16), "layers_per_block must be between 1 and 16.")
        _need(
            _is_int(self.norm_num_groups, 1, 1024) and all(c % self.norm_num_groups == 0 for c in levels),
            f"norm_num_groups ({self.norm_num_groups}) must divide every channel count of {levels}.",
        )
        _need(
            _is_int(self.attention_head_dim, 1, 8192)
            and levels[-1] % self.attention_head_dim == 0
            and all(c % self.attention_head_dim == 0 for c, a in zip(levels, self.attention_levels) if a),
            f"attention_head_dim ({self.attention_head_dim}) must divide the channels of every level that has attention.",
        )
        _need(
            levels[0] % 2 == 0,
            "The first of block_out_channels must be even: it is the width of the timestep embedding.",
        )
        _need(_is_number(self.dropout, 0.0, 0.95), "dropout must be between 0 and 0.95.")
        _need(_is_number(self.norm_eps, 1e-12, 1.0), "norm_eps must be a small positive number, for example 1e-5.")
        _need(self.block in BLOCKS, f"block must be one of: {', '.join(BLOCKS)}.")
        _need(self.attention in ATTENTIONS, f"attention must be one of: {', '.join(ATTENTIONS)}.")

    @property
    def is_annotated(self) -> bool:
        """Whether it has parts of the annotated model."""
        return (self.block, self.attention) != (BLOCKS[0], ATTENTIONS[0])

    @property
    def attention_channels(self) -> tuple[int, ...]:
        """Channels of each attention layer in the network's order: on the way down, in the middle, on the way up."""
        levels = [c for c, there in zip(self.block_out_channels, self.attention_levels) if there]
        down = [c for c in levels for _ in range(self.layers_per_block)]
        up = [c for c in reversed(levels) for _ in range(self.layers_per_block + 1)]
        return (*down, self.block_out_channels[-1], *up)


@dataclass(frozen=True)
class UpscalerConfig:
    """Architecture of the Efficient U-Net (``efficient_unet.py``) that enlarges ``factor`` times.

    ``image_size`` (height, width) of the large images that it learns from, of which it sees squares of ``crop_size``; level ``i``
    works at 1 / 2**(i + 1) of their size with ``block_out_channels[i]`` channels and ``blocks_per_level[i]`` residual blocks each way.
    ``detail_channels`` at full size. What it predicts is the residual of the plainly enlarged image, times ``gain``.
    """

    factor: int = 4
    image_size: tuple[int, int] = (128, 128)
    crop_size: int = 64
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (32, 64, 128)
    blocks_per_level: tuple[int, ...] = (1, 2, 2)
    norm_num_groups: int = 8
    norm_eps: float = 1e-5
    dropout: float = 0.0
    detail_channels: int = 16
    gain: float = 2.0

    def __post_init__(self) -> None:
        widths = self.block_out_channels
        _need(
            isinstance(widths, tuple) and 1 <= len(widths) <= 8 and all(_is_int(c, 2, 8192) for c in widths),
            "block_out_channels must list 1 to 8 channel counts, for example 32,64,128.",
        )
        _need(
            isinstance(self.blocks_per_level, tuple)
            and len(self.blocks_per_level) == len(widths)
            and all(_is_int(n, 1, 16) for n in self.blocks_per_level),
            f"blocks_per_level must have one number from 1 to 16 for each of the {len(widths)} levels.",
        )
        _need(self.factor in (2, 4), "An upscaler's factor is 2 or 4.")
        _need(self.in_channels == 3 and self.out_channels == 3, "An upscaler's images have 3 channels.")
        _need(
            _is_int(self.norm_num_groups, 1, 1024) and all(c % self.norm_num_groups == 0 for c in widths),
            f"norm_num_groups ({self.norm_num_groups}) must divide every channel count of {widths}.",
        )
        _need(
            widths[0] % 2 == 0,
            "The first of block_out_channels must be even: it is the width of the timestep embedding.",
        )
        unit = max(self.stride, self.factor)
        _need(
            _is_int(self.crop_size, unit, 1024) and self.crop_size % unit == 0,
            f"crop_size must be a multiple of {unit}, for this network's strides and factor.",
        )
        _need(
            isinstance(self.image_size, tuple)
            and len(self.image_size) == 2
            and all(_is_int(s, self.crop_size, 4096) and s % self.factor == 0 for s in self.image_size),
            f"image_size must be two multiples of {self.factor} pixels, height and width, not below the crop_size of {self.crop_size}.",
        )
        _need(_is_number(self.dropout, 0.0, 0.95), "dropout must be between 0 and 0.95.")
        _need(_is_number(self.norm_eps, 1e-12, 1.0), "norm_eps must be a small positive number, for example 1e-5.")
        _need(
            _is_int(self.detail_channels, 1, 1024) and self.detail_channels % self.norm_num_groups == 0,
            f"detail_channels must be a multiple of norm_num_groups ({self.norm_num_groups}).",
        )
        _need(_is_number(self.gain, 0.01, 100.0), "gain must be between 0.01 and 100.")

    @property
    def stride(self) -> int:
        """What divides the sides of an image that the network can take."""
        return int(2 ** len(self.block_out_channels))


@dataclass(frozen=True)
class ContrastConfig:
    """Architecture of an image-text encoder and its prior (``contrast.py``).

    ``image_size`` (height, width) of the images that it sees; level ``i`` of its image tower works at 1 / 2**(i + 1) of that with
    ``block_out_channels[i]`` channels, and the last is averaged on a ``grid``. ``embedding_dim``: of the space. ``shift``: by how many pixels
    a training moves its images at the most; ``erased``: of which share of them it hides a part.
    """

    image_size: tuple[int, int] = (96, 96)
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    grid: int = 6
    embedding_dim: int = 64
    norm_num_groups: int = 8
    norm_eps: float = 1e-5
    dropout: float = 0.0
    shift: int = 3
    erased: float = 0.7
    prior_channels: int = 256
    prior_layers: int = 3

    def __post_init__(self) -> None:
        widths = self.block_out_channels
        _need(
            isinstance(widths, tuple) and 1 <= len(widths) <= 8 and all(_is_int(c, 2, 4096) for c in widths),
            "block_out_channels must list 1 to 8 channel counts, for example 16,32,64,128.",
        )
        _need(
            _is_int(self.norm_num_groups, 1, 1024) and all(c % self.norm_num_groups == 0 for c in widths),
            f"norm_num_groups ({self.norm_num_groups}) must divide every channel count of {widths}.",
        )
        _need(self.in_channels == 3 and self.out_channels == 3, "An encoder's images have 3 channels.")
        unit = int(2 ** len(widths))
        _need(
            isinstance(self.image_size, tuple)
            and len(self.image_size) == 2
            and all(_is_int(s, unit, 1024) and s % unit == 0 for s in self.image_size),
            f"image_size must be two multiples of {unit} pixels, height and width.",
        )
        _need(_is_int(self.grid, 1, 16), "grid must be between 1 and 16.")
        _need(_is_int(self.embedding_dim, 2, 1024), "embedding_dim must be between 2 and 1024.")
        _need(_is_number(self.norm_eps, 1e-12, 1.0), "norm_eps must be a small positive number, for example 1e-5.")
        _need(self.dropout == 0.0, "An encoder has no dropout.")
        _need(_is_int(self.shift, 0, 64), "shift must be between 0 and 64 pixels.")
        _need(_is_number(self.erased, 0.0, 1.0), "erased must be between 0 and 1.")
        _need(_is_int(self.prior_channels, 2, 8192), "prior_channels must be between 2 and 8192.")
        _need(_is_int(self.prior_layers, 1, 64), "prior_layers must be between 1 and 64.")


@dataclass(frozen=True)
class ImageConfig:
    """The image-text encoder in whose space a model is told what its image is like. ``name`` for people, ``fingerprint`` of its weights;
    ``width`` of a vector."""

    name: str
    fingerprint: str
    width: int

    def __post_init__(self) -> None:
        if not _is_int(self.width, 1, _MOST_WIDTH):
            raise UserError("The image-text encoder's width is out of range.")
        if not all(isinstance(text, str) and 0 < len(text) <= 200 for text in (self.name, self.fingerprint)):
            raise UserError("The image-text encoder's name or fingerprint is no text.")


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process: noise schedule over ``timesteps`` steps and what the network predicts."""

    schedule: str = "cosine"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False
    prediction: str = "v"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"There is no noise schedule {self.schedule!r}; choose one of: {', '.join(SCHEDULES)}.")
        if self.prediction not in PREDICTIONS:
            raise UserError(
                f"There is no prediction type {self.prediction!r}; choose one of: {', '.join(PREDICTIONS)}."
            )
        if not _is_int(self.timesteps, 2, 100_000):
            raise UserError("timesteps must be a whole number between 2 and 100000.")
        if not (
            _is_number(self.beta_start, 0.0, 1.0)
            and _is_number(self.beta_end, 0.0, 1.0)
            and 0.0 < self.beta_start <= self.beta_end < 1.0
        ):
            raise UserError("beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1.")
        if not isinstance(self.zero_terminal_snr, bool):
            raise UserError("zero_terminal_snr must be true or false.")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise UserError(
                "With zero_terminal_snr the last timestep is pure noise, from which epsilon tells nothing; "
                "use the prediction v or x0."
            )


@dataclass(frozen=True)
class TextConfig:
    """The text encoder whose answers a model is told. ``reading``: how; ``name`` for people, ``fingerprint`` of its weights;
    ``width`` of a token, ``tokens`` of a prompt."""

    reading: str
    name: str
    fingerprint: str
    width: int
    tokens: int

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise UserError(f"There is no reading of texts {self.reading!r}; there are: {', '.join(READINGS)}.")
        if not (_is_int(self.width, 1, _MOST_WIDTH) and _is_int(self.tokens, 1, _MOST_TOKENS)):
            raise UserError("The text encoder's width or number of tokens is out of range.")
        if not all(isinstance(text, str) and 0 < len(text) <= 200 for text in (self.name, self.fingerprint)):
            raise UserError("The text encoder's name or fingerprint is no text.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values for one image."""
        return (self.width,) if self.reading == "pooled" else (self.tokens, self.width)


# of networks, by the name in a model's file
NetworkConfig = UNetConfig | UpscalerConfig | ContrastConfig
KINDS: dict[str, type[NetworkConfig]] = {"unet": UNetConfig, "upscaler": UpscalerConfig, "contrast": ContrastConfig}


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to sample from a set of weights. ``tags``: the words it can be told, in the order of their embeddings;
    ``text``: the text encoder that reads its prompts; ``image``: the image-text encoder by which it is told what an image is like."""

    unet: NetworkConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    tags: tuple[str, ...] = ()
    text: TextConfig | None = None
    image: ImageConfig | None = None

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        return next(name for name, network in KINDS.items() if isinstance(self.unet, network))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that it makes, or learns from, in pixels."""
        return self.unet.image_size

    @property
    def denoised(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of what the network denoises in a training."""
        if isinstance(self.unet, ContrastConfig):
            return (self.unet.embedding_dim, 1, 1)
        sides = (self.unet.crop_size,) * 2 if isinstance(self.unet, UpscalerConfig) else self.unet.image_size
        return (self.unet.out_channels, *sides)

    @property
    def is_grey(self) -> bool:
        """Whether its images have one channel."""
        return self.unet.in_channels == 1

    @property
    def is_annotated(self) -> bool:
        """Whether its network has parts of the annotated model."""
        return isinstance(self.unet, UNetConfig) and self.unet.is_annotated

    @property
    def takes_prompts(self) -> bool:
        """Whether it is told anything of a prompt."""
        return bool(self.tags) or self.text is not None or self.image is not None

    @property
    def format(self) -> int:
        """The oldest format that can say all of it, so that older versions read what they can."""
        if self.kind == "contrast" or self.image is not None:
            return 9
        if self.is_annotated:
            return 8
        return 6 if self.kind != "unet" else 5 if self.text is not None else 4 if self.tags else 1

    def to_json(self) -> dict[str, Any]:
        """JSON that :meth:`from_json` reads."""
        values = dataclasses.asdict(self)
        for name in ("text", "image"):  # of which older versions do not know the one
            if values[name] is None:
                del values[name]
        if self.kind == "unet" and not self.is_annotated:
            del values["unet"]["block"], values["unet"]["attention"]  # which older versions do not know
        return values if self.kind == "unet" else {"kind": self.kind, **values}

    @classmethod
    def from_json(cls, values: Any) -> ModelConfig:
        """UserError where something is missing or of another kind."""
        if not isinstance(values, dict) or not {"unet", "diffusion"} <= set(values):
            raise UserError("The model configuration is incomplete.")
        kind = values.get("kind", "unet")
        if kind not in KINDS:
            raise UserError(f"The model is of a kind that this version does not know: {kind!r:.50}.")
        tags = values.get("tags", [])
        if not isinstance(tags, list) or not all(
            isinstance(tag, str) and 0 < len(tag) <= _MOST_LETTERS for tag in tags
        ):
            raise UserError("The model configuration's tags are no list of words.")
        if kind == "contrast" and not tags:
            raise UserError("The image-text encoder knows no words.")
        if len(set(tags)) < len(tags) or len(tags) > MOST_TAGS:
            raise UserError(f"The model configuration's tags are more than {MOST_TAGS} or name a word twice.")
        return cls(
            unet=dataclass_from_json(KINDS[kind], values["unet"], "network configuration"),
            diffusion=dataclass_from_json(DiffusionConfig, values["diffusion"], "diffusion configuration"),
            tags=tuple(tags),
            text=dataclass_from_json(TextConfig, values["text"], "text encoder") if values.get("text") else None,
            image=dataclass_from_json(ImageConfig, values["image"], "image-text encoder")
            if values.get("image")
            else None,
        )


@dataclass(frozen=True)
class AdapterConfig:
    """``rank`` of the twins and what they are multiplied by, ``alpha`` / rank; ``concept``: a word that they add to the model, if any."""

    rank: int = 8
    alpha: float = 8.0
    concept: str = ""

    def __post_init__(self) -> None:
        rank = self.rank
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST_RANK:
            raise UserError(f"An adapter's rank must be a whole number between 1 and {MOST_RANK}; got {rank!r}.")
        alpha = self.alpha
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha <= _MOST_ALPHA:
            raise UserError(f"An adapter's alpha must be above 0 and at most {_MOST_ALPHA:g}; got {alpha!r}.")
        word = self.concept
        if not isinstance(word, str) or len(word) > _MOST_CONCEPT or re.search(r"[()\[\]<>|:,\n\r]", word):
            raise UserError("An adapter's concept must be one word or a few without commas and brackets.")

    @property
    def scale(self) -> float:
        """What the product of the twins is multiplied by."""
        return self.alpha / self.rank
