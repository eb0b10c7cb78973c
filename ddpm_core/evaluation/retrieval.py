"""How well an image-text encoder finds images by their words, and words by their image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANKS = (1, 5, 10)
_RESAMPLED = 1000


@dataclass(frozen=True)
class Recall:
    """Share of the queries whose answer is among the first so many, with its 95 % interval (bootstrap over queries), and by chance."""

    share: float
    low: float
    high: float
    chance: float

    def to_json(self) -> list[float]:
        """Share, interval, chance."""
        return [round(value, 4) for value in (self.share, self.low, self.high, self.chance)]


def recalls(images: Tensor, texts: Tensor, words: Tensor) -> tuple[dict[int, Recall], dict[int, Recall]]:
    """From words to images and from images to words, by rank. Vectors (N, D) of images and (N, D) of their words; ``words`` (N, K): equal sets
    count as one text, and each of its images is right."""
    sets, text_of = torch.unique((words != 0).to(torch.int8), dim=0, return_inverse=True)
    first = torch.stack([(text_of == i).nonzero()[0, 0] for i in range(len(sets))])
    fit = images @ texts[first].T  # (N, M)
    belongs = text_of[:, None] == torch.arange(len(sets))[None]
    best = torch.where(belongs, fit, torch.tensor(-math.inf)).amax(0)
    ranks_of_texts = ((fit > best[None]) & ~belongs).sum(0)
    ranks_of_images = (fit > fit.gather(1, text_of[:, None])).sum(1)
    n, m, number = len(images), len(sets), belongs.sum(0)
    to_images = {k: _recall(ranks_of_texts < k, float(_chances(n, number, k).mean())) for k in RANKS}
    return to_images, {k: _recall(ranks_of_images < k, min(1.0, k / m)) for k in RANKS}


def _chances(n: int, right: Tensor, k: int) -> Tensor:
    """Probability that one of ``right`` of ``n`` is among ``k`` drawn."""
    missed = torch.ones(len(right), dtype=torch.float64)
    for i in range(min(k, n)):
        missed *= ((n - right - i).clamp_min(0) / (n - i)).double()
    return 1.0 - missed


def _recall(hits: Tensor, chance: float) -> Recall:
    values = hits.double()
    draw = torch.Generator(device="cpu").manual_seed(0)
    means = values[torch.randint(len(values), (_RESAMPLED, len(values)), generator=draw, device="cpu")].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Recall(float(values.mean()), low, high, chance)


def average_precisions(fit: Tensor, words: Tensor) -> Tensor:
    """Of each word (K,): the mean, over the images that have it, of the precision down to them, where images are ranked by their fit (N, K); not a
    number for a word that none of ``words`` (N, K) has. By chance it is about the share of the images that have the word."""
    order = fit.argsort(0, descending=True)
    has = (words != 0).double().gather(0, order)
    precision = has.cumsum(0) / torch.arange(1, len(fit) + 1, dtype=torch.float64)[:, None]
    return (precision * has).sum(0) / has.sum(0)
