"""A Stable Diffusion checkpoint of random weights, for hosts that must have one to start and to generate.

``tiny`` has a tiny network and its own configuration beside it (A1111 reads that); ``full`` has the real shapes of
Stable Diffusion 1.5, for hosts that accept nothing else.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data"
NAME = "ddpm-test"


def make_checkpoint(folder: Path, kind: str, bpe: Path) -> Path:
    """Write ``ddpm-test.safetensors`` into ``folder`` (and, if tiny, what must lie beside it); returns its path.

    ``bpe``: the vocabulary file of the openai-clip package, from which the tokenizer's files are made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.safetensors"
    if kind == "tiny":
        clip = folder.parent / "ddpm-test-clip"
        _write_clip(clip, bpe)
        text = (DATA / "sd1-tiny.yaml").read_text(encoding="utf-8").replace("CLIP_FOLDER", json.dumps(str(clip)))
        path.with_suffix(".yaml").write_text(text, encoding="utf-8")
    if not path.exists():
        shapes = json.loads(gzip.decompress((DATA / f"sd1-{kind}.json.gz").read_bytes()))
        dtype = torch.float16 if kind == "full" else torch.float32
        generator = torch.Generator().manual_seed(0)
        save_file({name: _weights(name, shape, generator).to(dtype) for name, shape in shapes.items()}, path)
    return path


def _weights(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).reshape(shape)
    if len(shape) == 1 and shape[0] == 1000 and "." not in name:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        products = torch.cumprod(1 - betas, 0)
        shifted = torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
        return {
            "betas": betas,
            "alphas_cumprod": products,
            "alphas_cumprod_prev": shifted,
            "sqrt_alphas_cumprod": products.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - products).sqrt(),
        }[name].float()
    if name.endswith("final_layer_norm.bias"):
        # A1111 divides by the mean of what the text encoder says, which is never zero but for random weights
        return torch.full(shape, 0.1)
    if len(shape) == 1:
        return torch.ones(shape) if _is_norm(name) and name.endswith("weight") else torch.zeros(shape)
    decoder = name.startswith(("first_stage_model.decoder", "first_stage_model.post_quant"))
    if decoder and len(shape) == 4:
        # each pixel from its own place alone: blocks of one colour, which no check takes for noise
        weights = torch.zeros(shape)
        weights[:, :, shape[2] // 2, shape[3] // 2] = torch.randn(shape[:2], generator=generator) / math.sqrt(shape[1])
        return weights
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def _is_norm(name: str) -> bool:
    return bool(re.search(r"norm|layer_norm|\.(in_layers|out_layers)\.0\.|model\.out\.0\.|layernorm", name))


def _write_clip(folder: Path, bpe: Path) -> None:
    if (folder / "merges.txt").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    merges = gzip.decompress(bpe.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    words = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **special}), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
