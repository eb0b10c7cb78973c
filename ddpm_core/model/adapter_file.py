"""The file of an adapter: its twins under kohya's names, and in the metadata what they belong to.

It lies among our models and never among the host's LoRAs: the WebUI would take it for one of Stable Diffusion 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..names import is_name
from ..parsing import tensors_of
from .config import ADAPTER_FORMAT, MOST_RANK, AdapterConfig, ModelConfig, dataclass_from_json
from .file import ADAPTER, KEY, info_of, metadata_of
from .lora import CONCEPT, Adapter

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MOST_TENSORS, _MOST_NUMBERS = 4096, 2**28


@dataclass(frozen=True)
class AdapterHead:
    """What an adapter's file says of itself: ``base``, the name of the model that it changes, that one's ``digest`` and configuration, and what
    is known of its training."""

    config: AdapterConfig
    base: str
    digest: str
    model: ModelConfig
    info: dict[str, Any]


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's weights, whatever else its file says."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to("cpu").contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save(path: Path, adapter: Adapter, model: ModelConfig, *, info: dict[str, Any]) -> None:
    """Write an adapter to exactly ``path`` (the caller renames), in float16; ``model``: the configuration of its base."""
    config = adapter.config
    tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in adapter.tensors.items()}
    alpha = torch.tensor(config.alpha, dtype=torch.float32)
    down = ".lora_down.weight"
    alphas = {f"{name[: -len(down)]}.alpha": alpha.clone() for name in tensors if name.endswith(down)}
    about = {"config": dataclasses.asdict(config), "base": adapter.base, "digest": adapter.digest}
    height, width = model.image_size
    metadata = {
        KEY: json.dumps(
            {"format": max(model.format, ADAPTER_FORMAT), ADAPTER: about, "model": model.to_json(), "info": info}
        ),
        "ss_base_model_version": f"ddpm-{model.kind}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": f"{config.alpha:g}",
        "ss_output_name": adapter.name,
        "ss_sd_model_name": adapter.base,
        "ss_sd_model_hash": adapter.digest,
        "ss_num_train_images": str(info.get("images", "")),
        "ss_steps": str(info.get("steps", "")),
        "ss_resolution": f"({width}, {height})",
        "ss_tag_frequency": json.dumps(
            {config.concept: {config.concept: info.get("images", 0)}} if config.concept else {}
        ),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"ddpm-{model.kind}-pixel/lora",
        "modelspec.title": adapter.name,
        "modelspec.date": str(info.get("date", "")),
    }
    save_file({**tensors, **alphas}, path, metadata=metadata)


def read_head(path: Path) -> AdapterHead | None:
    """Of one of our files, reading only its head; None where it is no adapter but a model, UserError where it is neither."""
    values = metadata_of(path)
    if ADAPTER not in values:
        return None
    about = values[ADAPTER]
    if (
        not isinstance(about, dict)
        or not all(isinstance(about.get(key), str) for key in ("base", "digest"))
        or not is_name(about["base"])
    ):
        raise UserError(f"The description inside {path.name} is damaged; copy the file again.")
    config = dataclass_from_json(AdapterConfig, about.get("config"), "adapter's description")
    return AdapterHead(
        config, about["base"], about["digest"], ModelConfig.from_json(values.get("model")), info_of(values)
    )


def load(path: Path) -> Adapter:
    """Read and check an adapter; UserError says what is wrong with it."""
    head = read_head(path)
    if head is None:
        raise UserError(f"{path.stem} is a model and no adapter; choose it as the model.")
    with tensors_of(path, f"The adapter {path.name} is damaged", "; copy it again.") as opened:
        names = list(opened.keys())
        if len(names) > _MOST_TENSORS or path.stat().st_size > 4 * _MOST_NUMBERS:
            raise ValueError("it holds too much")
        tensors = {name: opened.get_tensor(name).clone() for name in names}
    for name in [name for name in tensors if name.endswith(".alpha")]:
        alpha = tensors.pop(name)
        if alpha.numel() != 1 or not math.isclose(float(alpha), head.config.alpha, rel_tol=1e-3):
            raise UserError(f"The adapter {path.name} has another alpha than it says; copy it again.")
    _check(path, head.config, tensors)
    return Adapter(head.config, tensors, path.stem, head.base, head.digest)


def _check(path: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """UserError where the tensors are not those of such an adapter; whether they fit the base is seen when they meet."""
    down, up = ".lora_down.weight", ".lora_up.weight"
    keys = {name[: -len(down)] for name in tensors if name.endswith(down)}
    expected = {f"{key}{side}" for key in keys for side in (down, up)} | ({CONCEPT} if config.concept else set())
    if not keys or set(tensors) != expected:
        raise UserError(f"{path.name} is no adapter of ours: its weights have other names.")
    for key in keys:
        thin, wide = tensors[key + down], tensors[key + up]
        rank = thin.shape[0] if thin.ndim in (2, 4) else 0
        if wide.ndim != thin.ndim or not 1 <= rank <= min(config.rank, MOST_RANK) or wide.shape[1] != rank:
            raise UserError(f"The adapter {path.name} has another rank than it says; copy it again.")
    if config.concept and tensors[CONCEPT].ndim != 1:
        raise UserError(f"The adapter {path.name} is damaged: its word has no embedding; copy it again.")
    if not all(value.dtype in _DTYPES and bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise UserError(f"{path.name} holds weights that are not finite numbers; use an earlier copy of it.")
