"""Whether images show the words that they were asked for: a classifier for each word, trained on the real images.

Logistic regression over fixed features (``features.py``) and the shrunken image itself, cross-validated on the real images, so that
what it cannot tell does not count. It needs seconds, and favours no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import RandomFeatures

SURE = 0.95  # balanced accuracy from which a word counts
_FOLDS = 3
_SIDE = 16  # of the shrunken image
_DECAY = 1e-3
_ITERATIONS = 60
_FEWEST_ASKED = 5


class Classifier:
    """Tells words of images (N, 3, H, W) in [-1, 1]. ``accuracy`` (K,): the balanced accuracy of each word, cross-validated."""

    def __init__(self, images: Tensor, words: Tensor) -> None:
        """``words`` (N, K): which each image has."""
        self._features = RandomFeatures(channels=images.shape[1], device="cpu")
        has = (words > 0).float()
        found = self._of(images)
        count = len(images)
        order = torch.randperm(count, generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
        told = torch.zeros_like(has)
        for fold in range(_FOLDS):
            held = torch.zeros(count, dtype=torch.bool)
            held[order[fold::_FOLDS]] = True
            self._fit(found[~held], has[~held])
            told[held] = self._tell(found[held])
        right, wrong = (told > 0).float(), (told <= 0).float()
        hits = (right * has).sum(0) / has.sum(0).clamp_min(1)
        rejections = (wrong * (1 - has)).sum(0) / (1 - has).sum(0).clamp_min(1)
        self.accuracy = (hits + rejections) / 2
        self._fit(found, has)

    def shows(self, images: Tensor) -> Tensor:
        """Which words images show, (N, K) bool."""
        return self._tell(self._of(images)) > 0

    def _of(self, images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images.float(), _SIDE) if min(images.shape[-2:]) > _SIDE else images.float()
        return torch.cat([self._features(images), small.flatten(1)], 1)

    def _fit(self, found: Tensor, has: Tensor) -> None:
        self._mean, deviation = found.mean(0), found.std(0).clamp_min(1e-4)
        self._scale = 4.0 / (deviation * found.shape[1] ** 0.5)
        ready = (found - self._mean) * self._scale
        weight = torch.zeros((found.shape[1], has.shape[1]), requires_grad=True)
        bias = torch.zeros(has.shape[1], requires_grad=True)
        positive = has.sum(0)
        balance = (len(has) - positive) / positive.clamp_min(1)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, history_size=10)

        def closure() -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = F.binary_cross_entropy_with_logits(ready @ weight + bias, has, pos_weight=balance)
                loss = loss * has.shape[1] + _DECAY * weight.square().sum()
                torch.autograd.backward(loss)
            return loss.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        self._weight, self._bias = weight.detach(), bias.detach()

    def _tell(self, found: Tensor) -> Tensor:
        told: Tensor = ((found - self._mean) * self._scale) @ self._weight + self._bias
        return told


@dataclass(frozen=True)
class Alignment:
    """``shares``: of the samples asked for a word, how many show it, for each word that the classifier is sure of and that was asked
    for often enough; ``unasked``: the mean share of the samples not asked for one of these words that show it."""

    shares: dict[str, float]
    unasked: float

    @property
    def mean(self) -> float:
        """The mean share over the words; 0 without any."""
        return sum(self.shares.values()) / max(1, len(self.shares))


def alignment(classifier: Classifier, entries: Sequence[str], images: Tensor, asked: Tensor) -> Alignment:
    """How many of ``images`` (N, 3, H, W) in [-1, 1] show what they were ``asked`` for, (N, K)."""
    shown = classifier.shows(images).float()
    wanted = (asked > 0).float()
    numbers = wanted.sum(0)
    shares, others = {}, []
    for i, entry in enumerate(entries):
        if classifier.accuracy[i] >= SURE and numbers[i] >= _FEWEST_ASKED:
            shares[entry] = float((shown[:, i] * wanted[:, i]).sum() / numbers[i])
            others.append(float((shown[:, i] * (1 - wanted[:, i])).sum() / (1 - wanted[:, i]).sum().clamp_min(1)))
    return Alignment(shares, sum(others) / max(1, len(others)))


def recombined(words: Tensor, count: int, seed: int = 0) -> Tensor:
    """Words that no image has together, (count, K) in {0, 1}, from those of real images (N, K).

    Each takes the words of one image and about half of another's; words that exclude each other (they never meet though they are
    frequent enough to) do not stand together. Fewer than ``count`` where so many are not to be found.
    """
    has = (words > 0).float()
    n = len(has)
    together = has.T @ has
    expected = torch.outer(has.sum(0), has.sum(0)) / max(1, n)
    exclusive = (together == 0) & (expected >= 5)
    draw = torch.Generator(device="cpu").manual_seed(seed)
    found: list[Tensor] = []
    for _ in range(20 * count):
        if len(found) == count:
            break
        first, second = torch.randint(n, (2,), generator=draw, device="cpu").tolist()
        row = has[first].clone()
        new = ((has[second] > 0) & (row == 0)).nonzero()[:, 0]
        for i in new[torch.rand(len(new), generator=draw, device="cpu") < 0.5].tolist():
            row[exclusive[i]] = 0.0
            row[i] = 1.0
        if row.sum() and not bool((has @ row >= row.sum()).any()):
            found.append(row)
    return torch.stack(found) if found else torch.zeros((0, words.shape[1]))
