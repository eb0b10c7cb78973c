"""The model file: one safetensors with the averaged weights and, in its metadata, all that sampling needs."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..parsing import parse_json, tensors_of
from .build import build
from .config import FORMAT, ModelConfig

KEY = "ddpm"
ADAPTER = "adapter"  # in the description of a file that holds one
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_HEADER_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ModelFile:
    """A loaded model: configuration, averaged weights, and what is known of its training."""

    config: ModelConfig
    weights: dict[str, Tensor]
    info: dict[str, Any]


def save(path: Path, config: ModelConfig, weights: dict[str, Tensor], *, title: str, info: dict[str, Any]) -> None:
    """Write a model file to exactly ``path`` (the caller renames). ``info`` is shown to people: plain JSON, no path, no prompt."""
    height, width = config.image_size
    metadata = {
        KEY: json.dumps({"format": config.format, "config": config.to_json(), "info": info}),
        # https://github.com/Stability-AI/ModelSpec
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"ddpm-{config.kind}-pixel",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": config.diffusion.prediction,
        "modelspec.date": str(info.get("date", "")),
        "modelspec.description": str(info.get("description", "")),
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata=metadata)


def read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and info of a model file, reading only its header."""
    values = metadata_of(path)
    if ADAPTER in values:
        raise UserError(
            f"{path.stem} is an adapter, which changes a model and makes no images by itself; choose its model, and the adapter beside it "
            f"(<ddpm:{path.stem}:1> in the prompt)."
        )
    return ModelConfig.from_json(values.get("config")), info_of(values)


def known_of(info: dict[str, Any]) -> dict[str, Any]:
    """Of a model file's info what a training writes there, where it is of its kind: another's file may say anything."""
    return {
        key: info[key]
        for key, kind in _KNOWN.items()
        if isinstance(info.get(key), kind) and not isinstance(info[key], bool)
    }


_KNOWN: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("steps", "images_seen", "images"), int),
    **dict.fromkeys(("crop", "dataset", "fingerprint", "upscaler", "base", "date", "version"), str),
    "heldout_loss": (int, float),
}


def info_of(values: dict[str, Any]) -> dict[str, Any]:
    """What a file's metadata tell people, empty where that is damaged."""
    info = values.get("info")
    return info if isinstance(info, dict) else {}


def metadata_of(path: Path) -> dict[str, Any]:
    """What is written in the head of one of our files; UserError where it is none."""
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path.name} is not a model of ours: those end in .safetensors.")
    if not path.is_file():
        raise UserError(f"There is no model file {path}.")
    try:
        with open(path, "rb") as file:
            header = file.read(8)
        if len(header) < 8 or struct.unpack("<Q", header)[0] > _MAX_HEADER_BYTES:
            raise ValueError("no readable header")
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"The model file {path.name} is damaged or cut off ({error}); copy it again.") from None
    if KEY not in metadata:
        raise UserError(
            f"{path.name} is a safetensors file of another kind, not a model trained here; "
            "choose one from 'models list'."
        )
    try:
        values = parse_json(metadata[KEY])
        version = int(values["format"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"The description inside {path.name} is damaged; copy the file again.") from None
    if version > FORMAT:
        raise UserError(f"{path.name} was written by a newer version; update this extension to use it.")
    return values  # type: ignore[no-any-return]


def load(path: Path) -> ModelFile:
    """Read and check a model file; UserError says what is wrong with it."""
    config, info = read_config(path)
    expected = {name: tuple(p.shape) for name, p in build(config, "meta").named_parameters()}
    size = path.stat().st_size
    if 2 * sum(math.prod(shape) for shape in expected.values()) > size:
        raise UserError(f"The model file {path.name} is smaller than the network it describes; copy it again.")
    with tensors_of(path, f"The model file {path.name} is damaged", "; copy it again.") as opened:
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a dict
    if {name: tuple(value.shape) for name, value in tensors.items()} != expected:
        raise UserError(f"The weights in {path.name} do not fit the network that it describes; it is no model of ours.")
    if not all(value.dtype in _DTYPES and bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise UserError(f"{path.name} holds weights that are not finite numbers; use an earlier copy of it.")
    return ModelFile(config, tensors, info)
