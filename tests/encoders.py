"""A text encoder for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class WordVectors:
    """A fixed random vector for each word, plus one for its place: what tells prompts apart, and nothing of what they mean."""

    def __init__(self, name: str = "vectors", width: int = 24, tokens: int = 12) -> None:
        self.name, self.fingerprint, self.width, self.tokens = name, f"fingerprint of {name}", width, tokens
        self.read: list[str] = []

    def _vector(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(f"{self.name}:{text}".encode()).digest()[:7], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def encode(self, texts: Sequence[str]) -> Tensor:
        found = torch.zeros((len(texts), self.tokens, self.width))
        for row, text in zip(found, texts):
            self.read.append(text)
            for place, word in enumerate(text.replace(",", " ").split()[: self.tokens]):
                row[place] = self._vector(word) + 0.1 * self._vector(f"place {place}")
        return found
