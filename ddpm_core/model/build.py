"""From a configuration to a network."""

from __future__ import annotations

import torch
from torch import Tensor

from .condition import AUGMENTATIONS, Make, conditions_of
from .config import ContrastConfig, ModelConfig, UpscalerConfig
from .contrast import Contrast, WordTower
from .efficient_unet import EfficientUNet
from .network import Network
from .unet import UNet
from .ways import Ways, plain


def build(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    *,
    draw: bool = True,
    ways: Ways | None = None,
    augmented: bool = False,
) -> Network:
    """The network of a model, with its conditions, as ``UNet``; ``augmented``: and those of a training's augmentations."""
    if isinstance(config.unet, ContrastConfig):  # a mirrored image has the same words
        tower, count = config.unet, len(config.tags)
        towers: dict[str, Make] = {"words": lambda init, width: WordTower(init, tower, count)}
        return Contrast(tower, device, generator, draw=draw, ways=ways, conditions={**conditions_of(config), **towers})
    conditions = {**conditions_of(config), **(AUGMENTATIONS if augmented else {})}
    if isinstance(config.unet, UpscalerConfig):
        return EfficientUNet(config.unet, device, generator, draw=draw, ways=ways, conditions=conditions)
    if config.unet.is_annotated:
        ways = plain(device)  # our kernels are written for DDPM's parts
    return UNet(config.unet, device, generator, draw=draw, ways=ways, conditions=conditions)


def network_of(config: ModelConfig, weights: dict[str, Tensor], device: torch.device | str) -> Network:
    """A network with these weights on a device, without gradients."""
    net = build(config, device, draw=False)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.load_tensors(weights)
    return net
