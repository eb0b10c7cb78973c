"""What a step minimises: from a part of a batch to the loss of each of its images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.contrast import fit_of_words
from ..model.diffusion import Diffusion
from ..model.loss import loss_per_image, timestep_weights
from ..model.network import DropoutSource
from .settings import TrainSettings

SOFTNESS = 2.0  # a pair counts as fitting by the share of words that it has in common, to this power
WORD_SHARE = 2.0  # of the loss of single words, over that of whole texts


class Preserve(Protocol):
    """What keeps a fine-tuning from forgetting (``tuning.Preserving``): targets of a part of a batch, and how much each counts."""

    def __call__(
        self, target: Tensor, noisy: Tensor, times: Tensor, told: Mapping[str, Tensor], start: int
    ) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) and (n,)."""
        ...


@dataclass(frozen=True)
class Part:
    """A part of a batch (``Batch``), which begins with its image ``start``; ``beside()``: a context for what may use second streams."""

    x0: Tensor
    times: Tensor
    noise: Tensor
    told: Mapping[str, Tensor]
    dropout: DropoutSource
    start: int
    beside: Callable[[], AbstractContextManager[object]] = nullcontext


class Objective(Protocol):
    """``objective(network, part)``: the loss of each image (n,), as it is reported, and as it is minimised. Pure: can be captured."""

    def __call__(self, network: Any, part: Part) -> tuple[Tensor, Tensor]:
        """As above."""
        ...


class Denoise:
    """The weighted error of what the network predicts of a noised image (Ho et al. 2020; Hang et al. 2023)."""

    def __init__(
        self, diffusion: Diffusion, settings: TrainSettings, dtype: torch.dtype, preserving: Preserve | None
    ) -> None:
        self._diffusion, self._dtype, self._preserving, self._loss = diffusion, dtype, preserving, settings.loss
        self.weights = timestep_weights(settings.weighting, diffusion, settings.snr_gamma)

    def __call__(self, network: Any, part: Part) -> tuple[Tensor, Tensor]:
        """As :class:`Objective`."""
        times, told = part.times, part.told
        noisy = self._diffusion.add_noise(part.x0, part.noise, times)
        target = self._diffusion.target(part.x0, part.noise, times)
        with part.beside():
            output = network(noisy.to(self._dtype), times, part.dropout, told)
        weights = self.weights[times]
        if self._preserving is not None:
            target, shares = self._preserving(target, noisy.to(self._dtype), times, told, part.start)
            weights = weights * shares
        losses = loss_per_image(self._loss, output, target)
        return losses, losses * weights


class FitTogether:
    """Images and words come together in one space, and a prior learns it (``model/contrast.py``).

    Symmetric InfoNCE (Radford et al. 2021) between the images of a batch and their words, of which some are left out at random; many images
    share words, so a pair fits as far as it has words in common, instead of fully or not at all. Beside it the same for each single word
    and the batch's images, and the prior's error on the images' vectors, whose gradients end there.
    """

    def __init__(self, diffusion: Diffusion, dtype: torch.dtype) -> None:
        self._diffusion, self._dtype = diffusion, dtype

    def __call__(self, network: Any, part: Part) -> tuple[Tensor, Tensor]:
        """As :class:`Objective`; ``told``: words, and which of them are ``kept`` for the text and ``asked`` of the prior."""
        times, noise = part.times, part.noise
        tags, kept, asked = (part.told[name] for name in ("tags", "kept", "asked"))
        images = network.embed_images(part.x0.to(self._dtype))
        losses = pair_losses(network, images, tags, tags * kept) + WORD_SHARE * word_loss(network, images, tags)
        vectors = (images.detach() * math.sqrt(images.shape[1]))[:, :, None, None]
        noisy = self._diffusion.add_noise(vectors, noise, times)
        answer = network(noisy.to(self._dtype), times, part.dropout, {"tags": tags * kept * asked[:, None]})
        target = self._diffusion.target(vectors, noise, times)
        return losses, losses + loss_per_image("mse", answer, target)


def pair_losses(network: Any, images: Tensor, words: Tensor, texts: Tensor) -> Tensor:
    """InfoNCE of each pair, (N,): vectors (N, D) of images with ``words`` (N, K), and ``texts`` (N, K) made of some of these words."""
    logits = network.scale * fit_of_words(images, network.embed_words(texts))
    has, said = (words != 0).float(), (texts != 0).float()
    common = has @ said.T  # image i, text j
    union = has.sum(1)[:, None] + said.sum(1)[None] - common
    fits = (common / union.clamp_min(1)) ** SOFTNESS
    by_image = fits / fits.sum(1, keepdim=True).clamp_min(1e-6)
    by_text = fits / fits.sum(0, keepdim=True).clamp_min(1e-6)
    images_loss = -(by_image * F.log_softmax(logits, 1)).sum(1)
    texts_loss = -(by_text * F.log_softmax(logits, 0)).sum(0)
    return (images_loss + texts_loss) / 2


def word_loss(network: Any, images: Tensor, words: Tensor) -> Tensor:
    """Of each word that any of the images has: which have it; the mean, a number."""
    has = (words != 0).float()
    single = network.embed_words(torch.eye(words.shape[1], device=words.device))
    logits = network.scale * fit_of_words(images, single)
    number = has.sum(0)
    losses = -(has / number.clamp_min(1) * F.log_softmax(logits, 0)).sum(0)
    return losses.sum() / (number > 0).sum().clamp_min(1)
