"""Where a sampling starts, and what of it is given: noise, an image noised to a strength, an image whose masked part is drawn anew.

Images are (N, C, H, W) in [-1, 1], masks (N, 1, H, W) in [0, 1] with 1 where is drawn; N may be 1 for all images of a sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .repaint import JUMP, way

FIXED_POINTS = 3  # of each step of an inversion


def slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """Between two noises (..., C, H, W), which keeps their variance where a straight line would not; ``share`` 0 is ``low``. As the WebUI does
    it (Shoemake 1985, by columns), so that a strength means the same."""
    axis = -2
    cosine = (low / low.norm(dim=axis, keepdim=True) * high / high.norm(dim=axis, keepdim=True)).sum(axis, keepdim=True)
    if float(cosine.mean()) > 0.9995:  # nearly the same one
        return low + share * (high - low)
    angle = torch.acos(cosine)
    return (torch.sin((1.0 - share) * angle) * low + torch.sin(share * angle) * high) / torch.sin(angle)


def circle(first: Tensor, second: Tensor, count: int) -> Tensor:
    """``count`` noises (count, C, H, W) on the circle through two independent ones (C, H, W): an animation of them has no end."""
    angles = torch.arange(count, device=first.device) * (2 * torch.pi / count)
    return angles.cos()[:, None, None, None] * first + angles.sin()[:, None, None, None] * second


def kept_steps(strength: float, steps: int) -> int:
    """How many of the last steps an image of that denoising strength goes through, as in the WebUI: none for 0, all for 1."""
    return 0 if strength <= 0 else min(steps, int(min(strength, 0.999) * steps) + 1)


@dataclass(frozen=True)
class Start:
    """``strength``: how much of the way from noise to image is gone anew (SDEdit, Meng et al. 2022). ``mask``: where; the rest stays as
    in ``images``. ``blank``: nothing of ``images`` is under the mask, noise is there at first. ``resamples``: how often each part of the
    way is gone, so that what is drawn fits what stays (RePaint), or what is asked for. ``noise``: to begin with, instead of what the seeds give."""

    images: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    blank: bool = False
    resamples: int = 1
    noise: Tensor | None = None

    def times(self, times: Sequence[int]) -> list[int]:
        """Of a sampling's timesteps those that are left."""
        if self.images is None:
            return list(times)
        return list(times[len(times) - kept_steps(self.strength, len(times)) :])

    def repaints(self, steps: int) -> bool:
        """Whether parts of so many steps are gone several times."""
        whole = self.mask is None and self.strength >= 1  # nothing is given
        return self.images is not None and not whole and any(step < 0 for step in way(steps, JUMP, self.resamples))

    def state(self, denoiser: Denoiser, times: Sequence[int], rows: slice, noise: Tensor) -> Tensor:
        """What the sampling of the images ``rows`` begins with: ``noise`` (n, C, H, W), or the images noised to the first of ``times``."""
        if self.noise is not None:
            noise = _of(self.noise, rows, noise)
        if self.images is None or self.strength >= 1:
            return noise
        images = _of(self.images, rows, noise)
        a = denoiser.alpha_bar(times[0])
        state = a.sqrt() * images + (1 - a).sqrt() * noise
        if self.blank and self.mask is not None:
            mask = _of(self.mask, rows, noise)
            state = mask * noise + (1 - mask) * state
        return state

    def given(self, rows: slice, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Images and mask of ``rows``, where there is a mask; all is drawn, where parts are gone several times without one."""
        if self.images is None or (self.mask is None and (self.resamples == 1 or self.strength >= 1)):
            return None
        if self.mask is None:
            return _of(self.images, rows, like), torch.ones((1, 1, 1, 1), device=like.device)
        return _of(self.images, rows, like), _of(self.mask, rows, like)


def _of(values: Tensor, rows: slice, like: Tensor) -> Tensor:
    return (values if len(values) == 1 else values[rows]).to(like.device, torch.float32)


def invert(denoiser: Denoiser, images: Tensor, times: Sequence[int]) -> Tensor:
    """The noise (N, C, H, W) from which DDIM (eta 0) samples these images in ``times`` (Song et al. 2021, section 4.3).

    Each step solves for the state that leads to the one before it, by fixed points (Pan et al. 2023), from the denoiser's answer at the state
    itself; with that answer alone, as is usual, a few steps miss by much. The denoiser must not clip.
    """
    x = images
    for t, after in zip(reversed(times), [-1, *reversed(times[1:])]):
        a, a_after = denoiser.alpha_bar(t), denoiser.alpha_bar(after)
        found = x
        for _ in range(FIXED_POINTS + 1):
            epsilon = denoiser(found, t)[1]
            found = a.sqrt() * (x - (1 - a_after).sqrt() * epsilon) / a_after.sqrt() + (1 - a).sqrt() * epsilon
        x = found
    return x
