"""From a network to a denoiser: what every sampler calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # whoever only offers the names need not wait for it
    from ..model.diffusion import Diffusion


Network = Callable[[Tensor, Tensor], Tensor]


class Denoiser:
    """``denoiser(x, t)`` -> (x0, epsilon), both (N, C, H, W) float32, for x at the integer timestep t of all images.

    The predicted image is clipped to [-1, 1] (``clip``), or scaled into it by dynamic thresholding at that quantile
    of its absolute values (Saharia et al. 2022, section 2.3; ``dynamic_threshold`` in 0..1, 0.995 in the paper).
    As in diffusers, epsilon is the network's own and is not derived anew from the clipped image.
    ``given``: images (N, C, H, W) of which the part outside a mask (N, 1, H, W), 1 where is drawn, is known: there the answer is what is given,
    and the noise that leads from it to x. So every sampler keeps that part as it was noised at first, and ends with it.
    ``calls`` counts the network evaluations.
    """

    def __init__(
        self,
        network: Network,
        diffusion: Diffusion,
        *,
        clip: bool = True,
        dynamic_threshold: float | None = None,
        dtype: torch.dtype = torch.float32,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.given = given
        self.network = network
        self.diffusion = diffusion
        self.clip = clip
        self.dynamic_threshold = dynamic_threshold
        self.dtype = dtype
        self.calls = 0
        # coefficients are float32 numbers on the CPU, as in diffusers: no device round trip, the same rounding
        self.alphas_cumprod = diffusion.alphas_cumprod.cpu()

    def alpha_bar(self, timestep: int) -> Tensor:
        """abar at a timestep, a float32 scalar on the CPU; -1 is the clean image, abar = 1."""
        return torch.ones((), device="cpu") if timestep < 0 else self.alphas_cumprod[timestep]

    def __call__(self, x: Tensor, timestep: int, zero_alpha_bar: float = 0.0) -> tuple[Tensor, Tensor]:
        """``zero_alpha_bar`` stands in for an abar of exactly 0, for samplers that work in log-SNR."""
        self.calls += 1
        times = torch.full((x.shape[0],), timestep, device=x.device, dtype=torch.long)
        output = self.network(x.to(self.dtype), times).float()
        a = self.alpha_bar(timestep)
        a = torch.where(a == 0, zero_alpha_bar, a)
        x0, epsilon = self.diffusion.prediction.to_x0_and_epsilon(output, x, a.sqrt(), (1 - a).sqrt())
        x0 = self._bound(x0)
        if self.given is None:
            return x0, epsilon
        images, mask = self.given
        known = (x - a.sqrt() * images) / (1 - a).sqrt()
        return mask * x0 + (1 - mask) * images, mask * epsilon + (1 - mask) * known

    def _bound(self, x0: Tensor) -> Tensor:
        if self.dynamic_threshold is not None:
            flat = x0.abs().flatten(1)
            scale = torch.quantile(flat, self.dynamic_threshold, dim=1).clamp_min(1.0)[:, None, None, None]
            return torch.minimum(torch.maximum(x0, -scale), scale) / scale
        return x0.clamp(-1.0, 1.0) if self.clip else x0
