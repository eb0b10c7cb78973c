"""Export to diffusers: a folder that ``DDPMPipeline.from_pretrained`` opens, same pictures from the same noise.

A model with words has beside it a pipeline of its own, ``pipeline.py``, which a person loads by ``custom_pipeline``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UserError
from ..files import write_readable
from .config import ModelConfig, UNetConfig
from .file import ModelFile
from .prediction import PREDICTIONS

_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "quadratic": "scaled_linear", "sigmoid": "sigmoid"}


def unet_config(config: ModelConfig) -> dict[str, Any]:
    """``UNet2DModel``'s configuration of our network."""
    unet = config.unet
    if not isinstance(unet, UNetConfig):
        raise UserError(
            "diffusers has no network like an upscaler's or an image-text encoder's; it stays in this format."
        )
    if unet.is_annotated:
        raise UserError(
            "diffusers has no ConvNeXt block and no linear attention for its U-Net; train with block=residual and attention=full to export."
        )
    height, width = unet.image_size
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": list(unet.block_out_channels),
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in unet.attention_levels],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(unet.attention_levels)],
        "layers_per_block": unet.layers_per_block,
        "attention_head_dim": unet.attention_head_dim,
        "norm_num_groups": unet.norm_num_groups,
        "norm_eps": unet.norm_eps,
        "dropout": unet.dropout,
        "act_fn": "silu",
        "add_attention": True,
        "center_input_sample": False,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "time_embedding_type": "positional",
        "mid_block_scale_factor": 1,
    }


def scheduler_config(config: ModelConfig) -> dict[str, Any]:
    """``DDPMScheduler``'s configuration of our process; the other schedulers are made from it with ``from_config``."""
    diffusion = config.diffusion
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.timesteps,
        "beta_schedule": _SCHEDULES[diffusion.schedule],
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
        "prediction_type": PREDICTIONS[diffusion.prediction].in_diffusers,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "trailing",
        "steps_offset": 0,
    }


def to_diffusers(model: ModelFile, target: Path) -> list[Path]:
    """Write the folder; returns its files. UserError when it cannot be written or is not empty."""
    try:
        if target.exists() and any(target.iterdir()):
            raise UserError(f"The folder {target} is not empty; choose a new one for the export.")
        for part in ("unet", "scheduler"):
            (target / part).mkdir(parents=True, exist_ok=True)
        index = {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
        files = []
        for name, values in (
            ("model_index.json", index),
            ("unet/config.json", unet_config(model.config)),
            ("scheduler/scheduler_config.json", scheduler_config(model.config)),
        ):
            (target / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            files.append(target / name)
        weights = target / "unet" / "diffusion_pytorch_model.safetensors"
        # the conditions have no place in UNet2DModel: this is the network that is told nothing
        tensors = {k: v.contiguous() for k, v in model.weights.items() if not k.startswith("conditions.")}
        write_readable(weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        return [*files, weights, *(_words(model, target) if model.config.tags else ())]
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The export could not be written to {target} ({error}); make room or choose another folder."
        ) from None


def _words(model: ModelFile, target: Path) -> list[Path]:
    """What ``pipeline.py`` reads, and itself."""
    pipeline, known, weights = (target / name for name in ("pipeline.py", "words.json", "words.safetensors"))
    pipeline.write_bytes((Path(__file__).parent.parent / "assets" / "pipeline.py").read_bytes())
    words = {"words": list(model.config.tags)}
    known.write_text(json.dumps(words, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    prefix = "conditions.tags."
    tensors = {k[len(prefix) :]: v.contiguous() for k, v in model.weights.items() if k.startswith(prefix)}
    write_readable(weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    return [pipeline, known, weights]
