"""Convolutions and matrix products that make the gradients of their weights aside (``aside.py``); no Triton is needed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import aside

_gradients = torch.ops.aten.convolution_backward


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        ctx.aside = aside.current()
        return F.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        with aside.run(ctx.aside, dy, x):
            dw = _gradients(dy, x, weight, None, *ctx.options, [False, True, False])[1]
        if not ctx.needs_input_grad[0]:
            return None, dw, None, None
        return _gradients(dy, x, weight, None, *ctx.options, [True, False, False])[0], dw, None, None


def folded(weight: Tensor) -> Tensor:
    """Fold nearest 2x upsampling into the 3x3 convolution (out, in, 3, 3) after it.

    Returns the kernel (in, out, 4, 4) of the equal transposed convolution with stride 2 and padding 1: each output pixel sees
    2x2 input pixels, 4 products instead of 9. Along a side, rows 0..3 hold the sums of weights {2}, {1, 2}, {0, 1}, {0}.
    """
    w = weight.transpose(0, 1)
    tall = torch.cat([w[:, :, 2:], w[:, :, 1:2] + w[:, :, 2:], w[:, :, :1] + w[:, :, 1:2], w[:, :, :1]], dim=2)
    a, b, c = tall[..., :1], tall[..., 1:2], tall[..., 2:]
    return torch.cat([c, b + c, a + b, a], dim=3).contiguous(memory_format=torch.channels_last)


def unfolded(gradient: Tensor) -> Tensor:
    """The adjoint of :func:`folded`: the gradient (out, in, 3, 3) of the weight from that of the kernel (in, out, 4, 4)."""
    g = gradient.float()
    tall = torch.stack([g[..., 2] + g[..., 3], g[..., 1] + g[..., 2], g[..., 0] + g[..., 1]], dim=3)
    whole = torch.stack([tall[:, :, 2] + tall[:, :, 3], tall[:, :, 1] + tall[:, :, 2], tall[:, :, 0] + tall[:, :, 1]], dim=2)  # fmt: skip
    return whole.to(gradient.dtype).transpose(0, 1).contiguous(memory_format=torch.channels_last)


class _Enlarging(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        kernel = folded(weight)
        ctx.save_for_backward(x, kernel)
        ctx.aside = aside.current()
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, kernel = ctx.saved_tensors
        options = ([2, 2], [1, 1], [1, 1], True, [0, 0], 1)
        with aside.run(ctx.aside, dy, x):
            dw = unfolded(_gradients(dy, x, kernel, None, *options, [False, True, False])[1])
        return _gradients(dy, x, kernel, None, *options, [True, False, False])[0], dw


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.aside = aside.current()
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = dy.reshape(-1, weight.shape[0])
        with aside.run(ctx.aside, dy, x):
            dw = dy.t() @ x.reshape(dy.shape[0], -1)
        return (dy @ weight).view(x.shape), dw


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, beside: Tensor | None, weight: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        ctx.save_for_backward(x, beside, weight)
        ctx.aside = aside.current()
        found = F.linear(_rows(x), weight[:, :channels])
        if beside is not None:
            found = torch.addmm(found, _rows(beside), weight[:, channels:].t())
        return found.view(n, height, width, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, beside, weight = ctx.saved_tensors
        rows, split = _rows(dy), x.shape[1]
        inputs = (x,) if beside is None else (x, beside)
        with aside.run(ctx.aside, rows, *inputs):
            dw = torch.empty_like(weight)
            torch.mm(rows.t(), _rows(x), out=dw[:, :split])
            if beside is not None:
                torch.mm(rows.t(), _rows(beside), out=dw[:, split:])

        def back(part: Tensor, like: Tensor) -> Tensor:
            n, channels, height, width = like.shape
            return (rows @ part).view(n, height, width, channels).permute(0, 3, 1, 2)

        dx = back(weight[:, :split], x)
        return dx, None if beside is None else back(weight[:, split:], beside), dw


def convolution(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """``F.conv2d`` without a bias: x (N, in, H, W), weight (out, in, k, k)."""
    return _Convolution.apply(x, weight, stride, padding)  # type: ignore[no-any-return,no-untyped-call]


def enlarging(x: Tensor, weight: Tensor) -> Tensor:
    """Nearest 2x upsampling, then a 3x3 convolution: x (N, in, H, W) and weight (out, in, 3, 3) to (N, out, 2H, 2W)."""
    return _Enlarging.apply(x, weight)  # type: ignore[no-any-return,no-untyped-call]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` without a bias: x (..., in), weight (out, in)."""
    return _Linear.apply(x, weight)  # type: ignore[no-any-return,no-untyped-call]


def pointwise(x: Tensor, weight: Tensor, beside: Tensor | None = None) -> Tensor:
    """1x1 convolution as a matrix product: channels-last x (N, C, H, W), ``beside`` (N, C2, H, W) as if concatenated to it,
    and weight (out, C + C2), to (N, out, H, W)."""
    return _Pointwise.apply(x, beside, weight)  # type: ignore[no-any-return,no-untyped-call]
