"""Image features from a fixed, untrained convolutional network: offline, the same on every machine.

Random convolutions carry much of what texture and layout statistics a trained network would (Ustyuzhaninov et al.
2016; Saxe et al. 2011), need no download, and favour no kind of picture. They are *not* Inception features: distances
on them are called KID here, never FID, and are comparable only with distances on the same features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE_SEED = 20_200_622  # the day the DDPM paper appeared; any fixed number serves
_WIDTHS = (96, 192, 384)
_GRID = 4
_SPREAD_WEIGHT = 0.5


class RandomFeatures:
    """Three random 3x3 convolutions with ReLU, average pooling between; features are taken after the last.

    Callable: images (N, C, H, W) in [-1, 1] to features (N, d) float32: each channel's mean on a 4x4 grid (where
    things are) and its standard deviation over the picture (how much there is of it). Images are brought to
    ``size`` pixels by area averaging, so that one scale of detail is compared whatever the model's size.

    Widths, grid and the weight of the deviations were chosen so that the distance orders known damage of portraits as
    a person does: real halves < 3x3 blur < full-covariance Gaussian < shuffled tiles, per-pixel Gaussian < noise.
    Grey images (C = 1) count as RGB ones without colour.
    """

    def __init__(self, channels: int = 3, size: int = 32, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator(device="cpu").manual_seed(FEATURE_SEED)
        self.size, self.channels = size, channels
        self.filters: list[Tensor] = []
        previous = channels
        for width in _WIDTHS:
            flat = torch.randn(width, previous * 9, generator=generator, device="cpu")
            flat /= flat.norm(dim=1, keepdim=True)  # unit length keeps the scale of every layer alike
            self.filters.append(flat.view(width, previous, 3, 3).to(device))
            previous = width

    def __call__(self, images: Tensor, batch_size: int = 256) -> Tensor:
        with torch.no_grad():
            return torch.cat([self._features(part) for part in torch.split(images, batch_size)])

    def _features(self, x: Tensor) -> Tensor:
        x = x.float()
        if x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="area")
        for index, weight in enumerate(self.filters):
            if index:
                x = F.avg_pool2d(x, 2)
            x = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight))
        mean = F.adaptive_avg_pool2d(x, _GRID).flatten(1) / _GRID
        deviation = (x - x.mean((2, 3), keepdim=True)).square().mean((2, 3)).sqrt()
        return torch.cat([mean, _SPREAD_WEIGHT * deviation], 1)
