"""The perfect memoriser: the denoiser that knows its images by heart and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.diffusion import Diffusion, uint8_to_model

_ROWS = 256  # images that are held in double precision at once


class Memoriser:
    """The network with the least loss on a finite set of images x_i, in closed form (Karras et al. 2022, appendix B.3; Gu et al. 2023):

        D*(x, t) = sum_i w_i x_i,   w = softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)),   alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t)

    At much noise it answers with the mean of all, at little noise with the nearest one; a sampling by it gives one of the images back.
    Called like a network, it answers in the prediction of ``diffusion``.
    """

    def __init__(self, images: Tensor, diffusion: Diffusion) -> None:
        """``images``: uint8 (M, C, H, W), on the CPU, at least one."""
        self.images = images
        self.diffusion = diffusion
        self._alpha, self._sigma = diffusion.sqrt_alpha.double().cpu(), diffusion.sqrt_one_minus_alpha.double().cpu()
        self._squares = torch.cat([(rows**2).sum(1) for rows in self._rows()])

    def _rows(self) -> Iterator[Tensor]:
        for first in range(0, len(self.images), _ROWS):
            yield uint8_to_model(self.images[first : first + _ROWS]).flatten(1).double()

    def weights(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """How probable it is that x (N, C, H, W) at its timesteps (N,) came of each image: (N, M) float64, rows of sum 1."""
        flat = x.detach().flatten(1).double().cpu()
        alpha, sigma = (table[timesteps.cpu()][:, None] for table in (self._alpha, self._sigma))
        # |x|^2 is the same for all; sums of products in double: they are divided by as little as 1e-4
        products = torch.cat([flat @ rows.T for rows in self._rows()], dim=1)
        return torch.softmax((alpha * products - alpha**2 * self._squares / 2) / sigma**2, dim=1)

    def x0(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """D*, (N, C, H, W) float32 on the CPU."""
        return self.mean(self.weights(x, timesteps)).view(x.shape)

    def mean(self, weights: Tensor) -> Tensor:
        """The images' mean by weights (N, M): (N, C H W) float32."""
        first, found = 0, torch.zeros((len(weights), self.images[0].numel()), dtype=torch.float64, device="cpu")
        for rows in self._rows():
            found += weights[:, first : first + len(rows)] @ rows
            first += len(rows)
        return found.float()

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """(N, C, H, W) and (N,) to (N, C, H, W), as a network."""
        x0 = self.x0(x, timesteps).to(x.device)
        alpha, sigma = (
            table[timesteps][:, None, None, None]
            for table in (self.diffusion.sqrt_alpha, self.diffusion.sqrt_one_minus_alpha)
        )
        return self.diffusion.prediction.target(x0, (x - alpha * x0) / sigma, alpha, sigma).to(x.dtype)


def effective(weights: Tensor) -> Tensor:
    """How many images weights (N, M) are spread over: the exponential of their entropy, (N,), 1 to M."""
    entropy: Tensor = torch.special.entr(weights)
    return entropy.sum(1).exp()
