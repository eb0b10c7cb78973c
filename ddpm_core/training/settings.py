"""How to train, as data; and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..model.config import (
    ADAPTER_FORMAT,
    AdapterConfig,
    ContrastConfig,
    DiffusionConfig,
    ModelConfig,
    UNetConfig,
    UpscalerConfig,
    dataclass_from_json,
)
from ..model.loss import LOSSES, WEIGHTINGS
from ..options import CROPS, PRECISIONS
from .pictures import HOLDING

OPTIMIZERS = ("adamw", "muon")
ADAPTER_STEPS = 500  # of an adapter's training, until a person says otherwise


@dataclass(frozen=True)
class TrainSettings:
    """One training run. Nothing in it depends on how long the run will be, so a run may stop or go on at any step.

    ``ema_power``: the average of weights gives step s the weight (s/t)^power at step t (Karras et al. 2024, eq. 5),
    so that its length grows with the run. ``flip_probability``: mirrored pictures are marked to the network, which
    is asked for unmirrored ones when sampling (non-leaking augmentation, Karras et al. 2022, appendix F.2).
    ``pictures``: held on the device, streamed to it from the packed file, or (auto) whichever its memory allows.
    ``optimizer`` of the hidden weight matrices; ``muon_ratio``: Muon's learning rate over that of the rest (``muon.py``).
    """

    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_start: int = 0
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_power: float = 8.0
    loss: str = "mse"
    weighting: str = "min-snr"
    snr_gamma: float = 5.0
    flip_probability: float = 0.5
    precision: str = "auto"
    seed: int = 0
    crop: str = "center"
    pictures: str = "auto"
    optimizer: str = "adamw"
    muon_ratio: float = 10.0

    def __post_init__(self) -> None:
        def between(name: str, low: float, high: float, whole: bool = False) -> None:
            value = getattr(self, name)
            kinds = (int,) if whole else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                raise UserError(
                    f"{name} must be a {'whole ' if whole else ''}number between {low:g} and {high:g}; got {value!r}."
                )

        def one_of(name: str, choices: tuple[str, ...]) -> None:
            if getattr(self, name) not in choices:
                raise UserError(f"There is no {name} {getattr(self, name)!r}; choose one of: {', '.join(choices)}.")

        between("batch_size", 1, 65536, whole=True)
        between("learning_rate", 1e-8, 1.0)
        between("warmup_steps", 0, 1_000_000, whole=True)
        between("decay_start", 0, 1_000_000_000, whole=True)
        between("beta1", 0.0, 0.99999)
        between("beta2", 0.0, 0.99999)
        between("weight_decay", 0.0, 1.0)
        between("gradient_clip", 1e-3, 1e6)
        between("ema_power", 0.0, 1000.0)
        between("snr_gamma", 0.01, 1e6)
        between("flip_probability", 0.0, 1.0)
        between("seed", 0, 2**63 - 1, whole=True)
        one_of("loss", LOSSES)
        one_of("weighting", WEIGHTINGS)
        one_of("precision", PRECISIONS)
        one_of("crop", CROPS)
        one_of("pictures", HOLDING)
        one_of("optimizer", OPTIMIZERS)
        between("muon_ratio", 1e-3, 1e5)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then constant, then (from ``decay_start`` if set) falling with the inverse square root."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_start and step > self.decay_start:
            rate *= (self.decay_start / step) ** 0.5
        return rate

    def ema_decay_at(self, step: int) -> float:
        """Weight kept by the average at the update after step ``step`` (0-based): (1 - 1/t)^(power + 1)."""
        return float((1.0 - 1.0 / (step + 1)) ** (self.ema_power + 1.0))


@dataclass(frozen=True)
class Preset:
    """A named starting point. ``steps`` is how long it trains unless told otherwise, ``condition`` what its model is told."""

    name: str
    summary: str
    model: ModelConfig
    train: TrainSettings
    steps: int
    condition: str = "auto"


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "tiny-32",
            "32x32, for a CPU: recognisable images in minutes",
            ModelConfig(UNetConfig((32, 32), 3, 3, (32, 64, 128), (False, False, True), 1, 128, 8)),
            TrainSettings(
                learning_rate=2e-3,
                warmup_steps=50,
                snr_gamma=2.0,
                flip_probability=0.0,
                optimizer="muon",
                muon_ratio=10.0,
            ),
            steps=1500,
        ),
        Preset(
            "portrait-64",
            "64x64, the default on a GPU",
            ModelConfig(
                UNetConfig((64, 64), 3, 3, (64, 128, 256, 512), (False, False, True, True), 2, 64, 32, dropout=0.1)
            ),
            TrainSettings(batch_size=64, learning_rate=1e-3, warmup_steps=100, optimizer="muon", muon_ratio=10.0),
            steps=12_000,
        ),
        Preset(
            "article-64",
            "64x64, a plain DDPM as in the original article, for comparison",
            ModelConfig(
                UNetConfig((64, 64), 3, 3, (64, 128, 256, 512), (False, False, True, True), 2, 64, 32),
                DiffusionConfig("linear", prediction="epsilon"),
            ),
            TrainSettings(
                batch_size=64,
                learning_rate=2e-5,
                warmup_steps=0,
                beta2=0.999,
                weighting="uniform",
                flip_probability=0.0,
            ),
            steps=12_000,
            condition="none",
        ),
        Preset(
            "annotated-28",
            "28x28, grey, the parts of the Annotated Diffusion Model, for learning and for a CPU",
            ModelConfig(
                UNetConfig(
                    (28, 28), 1, 1, (16, 32, 64), (True, True, True), 1, 16, 1, block="convnext", attention="linear"
                ),
                # the article's beta_end of 0.02 would leave 13 % of the image at the last of 200 timesteps
                DiffusionConfig("linear", timesteps=200, beta_end=0.1),
            ),
            TrainSettings(
                learning_rate=2e-3,
                warmup_steps=50,
                loss="huber",
                weighting="uniform",
                flip_probability=0.0,
                optimizer="muon",
                muon_ratio=10.0,
            ),
            steps=3000,
            condition="none",
        ),
        Preset(
            "detail-128",
            "128x128, for a GPU with 12 GB and patience",
            ModelConfig(
                UNetConfig((128, 128), 3, 3, (64, 128, 256, 512), (False, False, False, True), 2, 64, 32, dropout=0.1)
            ),
            TrainSettings(batch_size=32, learning_rate=2e-4, warmup_steps=500),
            steps=40_000,
        ),
        Preset(
            "upscale-4x-small",
            "an upscaler for 32 to 128 pixels or more, for a CPU: minutes",
            ModelConfig(UpscalerConfig()),
            TrainSettings(
                batch_size=8,
                learning_rate=2e-3,
                warmup_steps=50,
                decay_start=100,
                weighting="uniform",
                optimizer="muon",
                muon_ratio=10.0,
            ),
            steps=1500,
            condition="none",
        ),
        Preset(
            "upscale-4x",
            "an upscaler for 64 to 256 pixels or more, for a GPU",
            ModelConfig(
                UpscalerConfig(
                    image_size=(256, 256),
                    crop_size=64,
                    block_out_channels=(64, 128, 256, 256),
                    blocks_per_level=(1, 2, 4, 4),
                    norm_num_groups=16,
                    detail_channels=32,
                )
            ),
            TrainSettings(learning_rate=1e-3, weighting="uniform", optimizer="muon", muon_ratio=10.0),
            steps=20_000,
            condition="none",
        ),
        Preset(
            "contrast",
            "an image-text encoder: search a dataset, rank images by a prompt; minutes on a CPU",
            ModelConfig(ContrastConfig(), DiffusionConfig("cosine", prediction="x0")),
            TrainSettings(
                batch_size=128,
                learning_rate=1e-3,
                warmup_steps=20,
                weight_decay=0.05,
                weighting="uniform",
                optimizer="muon",
                muon_ratio=10.0,
            ),
            steps=360,
            condition="tags",
        ),
    )
}


def get_preset(name: str) -> Preset:
    """A preset by name; UserError where there is none."""
    if name not in PRESETS:
        raise UserError(f"There is no preset {name!r}; choose one of: {', '.join(PRESETS)}.")
    return PRESETS[name]


def default_preset(device_type: str) -> Preset:
    """The preset for a type of device."""
    return PRESETS["tiny-32" if device_type == "cpu" else "portrait-64"]


@dataclass(frozen=True)
class AdapterSettings:
    """A fine-tuning by an adapter: of which model (its name, and the ``digest`` of its weights), the shape of the twins and the new word, and how much
    it counts that the base's own images are answered as before (``preserve``, 0 for not at all)."""

    base: str
    digest: str
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    preserve: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.base, str) or not isinstance(self.digest, str):
            raise UserError("The run configuration does not say which model it fine-tunes.")
        number = self.preserve
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 <= number <= 100:
            raise UserError(f"preserve must be a number between 0 and 100; got {number!r}.")

    @classmethod
    def from_json(cls, values: Any) -> AdapterSettings:
        """UserError where something is missing or of another kind."""
        adapter = values.get("adapter") if isinstance(values, dict) else None
        found = dataclass_from_json(AdapterConfig, adapter, "adapter's settings")
        return dataclass_from_json(cls, {**values, "adapter": found}, "fine-tuning's settings")


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run besides the data: what the model is and how it is trained; ``tuning``: where it fine-tunes another, by an
    adapter."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainSettings = field(default_factory=TrainSettings)
    tuning: AdapterSettings | None = None

    @property
    def format(self) -> int:
        """The oldest format that can say all of it."""
        return self.model.format if self.tuning is None else max(self.model.format, ADAPTER_FORMAT)

    def to_json(self) -> dict[str, Any]:
        """JSON that :meth:`from_json` reads."""
        found: dict[str, Any] = {"model": self.model.to_json(), "train": dataclasses.asdict(self.train)}
        return found if self.tuning is None else {**found, "tuning": dataclasses.asdict(self.tuning)}

    @classmethod
    def from_json(cls, values: Any) -> RunConfig:
        """UserError where something is missing or of another kind."""
        if not isinstance(values, dict) or "model" not in values or "train" not in values:
            raise UserError("The run configuration is incomplete.")
        return cls(
            ModelConfig.from_json(values["model"]),
            dataclass_from_json(TrainSettings, values["train"], "training settings"),
            AdapterSettings.from_json(values["tuning"]) if values.get("tuning") is not None else None,
        )

    def with_settings(self, settings: dict[str, str]) -> RunConfig:
        """Change settings by their names in the network, the diffusion or the training; texts are read by type.

        All at once, because some only fit together (a channel count and a choice of attention for each level).
        """
        parts: dict[str, Any] = {"unet": self.model.unet, "diffusion": self.model.diffusion, "train": self.train}
        changes: dict[str, dict[str, Any]] = {name: {} for name in parts}
        for key, text in settings.items():
            owner = next(
                (name for name, part in parts.items() if key in {f.name for f in dataclasses.fields(part)}), None
            )
            if owner is None:
                known = sorted(f.name for part in parts.values() for f in dataclasses.fields(part))
                raise UserError(f"There is no setting {key!r}; the settings are: {', '.join(known)}.")
            changes[owner][key] = _parse_like(getattr(parts[owner], key), key, text)
        unet, diffusion, train = (dataclasses.replace(part, **changes[name]) for name, part in parts.items())
        model = dataclasses.replace(self.model, unet=unet, diffusion=diffusion)
        return dataclasses.replace(self, model=model, train=train)


def _parse_like(example: Any, key: str, text: str) -> Any:
    """Read ``text`` as the type of ``example``: tuples are comma-separated."""
    try:
        if isinstance(example, tuple):
            return tuple(_parse_like(example[0], key, part.strip()) for part in text.split(","))
        if isinstance(example, bool):
            if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
                raise ValueError(text)
            return text.lower() in ("true", "1", "yes")
        if isinstance(example, int):
            return int(text)
        if isinstance(example, float):
            return float(text)
    except ValueError:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(example), "a list")
        raise UserError(f"The setting {key} must be {kind}; got {text!r}.") from None
    return text
