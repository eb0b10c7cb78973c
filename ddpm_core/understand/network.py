"""Page 7: the network, part for part, and an image's way through it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..model.blocks import Downsample, ResBlock, Upsample
from ..model.convnext import ConvNextBlock
from ..model.layers import Conv2d
from ..model.unet import Attention, LinearAttention
from .desk import Desk, Opened
from .lesson import lesson
from .query import Query, as_noise, shown

_MAPS = 4  # channels shown of each part


def answer(desk: Desk, query: Query) -> dict[str, Any]:
    """Every part with its output's size, weights, multiply-adds, time, and the channels that say most of this noised image."""
    model = desk.model(query.text("model"))
    images = desk.images(model, query.text("dataset"))
    one = lesson(model, images, query)
    found, output = parts(model, one.x, one.times)
    return {
        **one.about,
        "answer": shown(output if model.config.diffusion.prediction == "x0" else as_noise(output)),
        "prediction": model.config.diffusion.prediction,
        "weights": sum(p.numel() for p in model.net.parameters()),
        "multiply_adds": sum(part["multiply_adds"] for part in found),
        "levels": len(model.config.unet.block_out_channels),
        "parts": found,
    }


def parts(model: Opened, x: Tensor, times: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
    """The parts of a network in the order in which an image (1, C, H, W) goes through them, and its answer, on the CPU."""
    net = model.net
    names = {module: name for name, module in net.named_modules() if _is_part(name, module)}
    found: list[dict[str, Any]] = []
    began: list[float] = []
    cuda = net.device.type == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize(net.device)
        return time.perf_counter()

    def before(module: nn.Module, inputs: Any) -> None:
        began.append(now())

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seconds = now() - began.pop()
        found.append(
            {
                "name": names[module],
                "kind": _kind(module),
                "channels": output.shape[1],
                "size": list(output.shape[2:]),
                "weights": sum(p.numel() for p in module.parameters()),
                "multiply_adds": multiply_adds(module, output),
                "milliseconds": round(1000 * seconds, 3),
                "maps": shown(maps(output[0].float().cpu())),
            }
        )

    hooks = [module.register_forward_pre_hook(before) for module in names]
    hooks += [module.register_forward_hook(after) for module in names]
    try:
        output = model.network(x.to(net.device), times.to(net.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found, output.cpu()


def _is_part(name: str, module: nn.Module) -> bool:
    outer = isinstance(module, Conv2d) and name in ("conv_in", "conv_out")
    return outer or isinstance(module, (ResBlock, ConvNextBlock, Attention, Downsample, Upsample))


def _kind(module: nn.Module) -> str:
    kinds: dict[type, str] = {
        ResBlock: "residual block",
        ConvNextBlock: "ConvNeXt block",
        Attention: "attention",
        LinearAttention: "linear attention",
        Downsample: "downsampling",
        Upsample: "upsampling",
    }
    return kinds.get(type(module), "convolution")


def multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Those of a part with this output (1, C, H, W): products with its weights, and of attention those of the pixels with each other."""
    pixels = output.shape[2] * output.shape[3]
    total = 0
    for parameter in module.parameters():
        if parameter.ndim == 4:
            total += parameter.numel() * pixels
        elif parameter.ndim == 2:  # of attention for each pixel, of the timestep once
            total += parameter.numel() * (pixels if isinstance(module, Attention) else 1)
    if isinstance(module, LinearAttention):
        return total + 2 * pixels * output.shape[1] ** 2 // module.heads
    return total + (2 * pixels**2 * output.shape[1] if isinstance(module, Attention) else 0)


def maps(channels: Tensor) -> Tensor:
    """The channels (C, H, W) that vary most, each from its least to its most, (4 or fewer, 3, H, W) in [-1, 1]."""
    chosen = channels[channels.flatten(1).var(1).topk(min(_MAPS, len(channels))).indices]
    low, high = (edge[:, None, None] for edge in (chosen.flatten(1).amin(1), chosen.flatten(1).amax(1)))
    return (2 * (chosen - low) / (high - low).clamp_min(1e-9) - 1)[:, None].expand(-1, 3, -1, -1)
