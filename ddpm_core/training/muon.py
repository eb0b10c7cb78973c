"""Muon for the hidden weight matrices, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the update of a weight matrix by the nearest
matrix whose singular values are all one: with momentum B <- beta B + (1 - beta) G and the Nesterov step U = (1 - beta) G +
beta B, the update is U (U^T U)^(-1/2), found by five Newton-Schulz iterations X <- P X, P = a I + b A + c A^2, A = X X^T, from
X = U / |U|, whose coefficients drive singular values to between 0.7 and 1.2. It is scaled by sqrt(max(1, out / in)). A
convolution is the matrix (out, in * height * width).

In float32 X is not carried along: P and A commute, being polynomials of the first A, so A <- P A P, Q <- P Q, and finally X = Q X.
All products but the first and last then have the size of the shorter side, so matrices that share it share the iterations,
whatever their longer side: fewer and smaller products. In bfloat16 rounding makes small eigenvalues of A negative, which this
form amplifies until it diverges on matrices of low rank; there X is iterated as it stands, in batches of one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
MOMENTUM = 0.95


def orthogonalised(batches: Sequence[Tensor], scales: Sequence[float], iterations: int = _ITERATIONS) -> list[Tensor]:
    """Orthogonalise batches of matrices (B, m, n), float32 or bfloat16: singular values become about the batch's scale; zero
    matrices stay zero."""
    results: list[Tensor] = [torch.empty(0)] * len(batches)
    classes: dict[int, list[int]] = {}
    for i, batch in enumerate(batches):
        if batch.dtype == torch.float32:
            classes.setdefault(min(batch.shape[1:]), []).append(i)
        else:
            results[i] = _plainly(batch, scales[i], iterations)
    for members in classes.values():
        tall = [batches[i].shape[1] > batches[i].shape[2] for i in members]
        x = [batches[i].transpose(1, 2) if t else batches[i] for i, t in zip(members, tall)]
        a = torch.cat([one @ one.transpose(1, 2) for one in x])
        inverse = 1.0 / (a.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-30)  # of |X|^2, the trace of X X^T
        a = a * inverse
        q = inverse.sqrt()
        for left in reversed(range(iterations)):
            p = torch.baddbmm(a, a, a, beta=_B, alpha=_C)
            p.diagonal(dim1=1, dim2=2).add_(_A)
            q = p * q if left == iterations - 1 else p @ q
            if left:
                a = p @ a @ p
        for i, t, part, one in zip(members, tall, torch.split(q, [len(one) for one in x]), x):
            found = (part if scales[i] == 1.0 else part * scales[i]) @ one
            results[i] = found.transpose(1, 2) if t else found
    return results


def _plainly(batch: Tensor, scale: float, iterations: int) -> Tensor:
    tall = batch.shape[1] > batch.shape[2]
    x = batch.transpose(1, 2) if tall else batch
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = x / (norm + 1e-15).to(x.dtype)
    for left in reversed(range(iterations)):
        a = x @ x.transpose(1, 2)
        p = torch.baddbmm(a, a, a, beta=_B, alpha=_C)
        p.diagonal(dim1=1, dim2=2).add_(_A)
        x = (p if left or scale == 1.0 else p * scale) @ x
    return x.transpose(1, 2) if tall else x


def scale_of(height: int, width: int) -> float:
    """Factor for the update of an (out, in) matrix."""
    return max(1.0, height / width) ** 0.5  # type: ignore[no-any-return]


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a U-Net parameter is a weight matrix between hidden layers, which Muon is for."""
    return parameter.ndim >= 2 and not name.startswith(
        ("conv_in", "conv_out", "time_embedding", "conditions", "images.conv_in", "images.projection", "prior_")
    )


class Muon(torch.optim.Optimizer):
    """Muon for ``hidden`` matrices; steps ``rest``, an AdamW for the other parameters, along and shares its state dict.

    Muon's learning rate is ``ratio`` times the group's ``lr``, which both follow. ``dtype`` of the iterations: float32 or
    bfloat16.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        rest: torch.optim.AdamW,
        ratio: float,
        momentum: float = MOMENTUM,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(list(hidden), {"lr": rest.param_groups[0]["lr"], "momentum": momentum})
        self.rest = rest
        self.rest.state = self.state
        self.defaults = {**self.defaults, "fused": rest.defaults.get("fused")}
        self._ratio, self._dtype = ratio, dtype

    def has(self, parameter: Tensor) -> bool:
        """Whether Muon updates this parameter."""
        return any(parameter is one for one in self.param_groups[0]["params"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters."""
        super().zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters; where memory runs out, none."""
        group = self.param_groups[0]
        rate, momentum = group["lr"], group["momentum"]
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        before = [self.state[p].get("momentum", torch.zeros_like(p)) for p in parameters]
        momenta = torch._foreach_lerp(before, gradients, 1.0 - momentum)
        steps = torch._foreach_lerp(gradients, momenta, momentum)
        alike: dict[tuple[int, int], list[int]] = {}
        for i, parameter in enumerate(parameters):
            alike.setdefault((len(parameter), parameter[0].numel()), []).append(i)
        # columns in memory order: the iterations do not depend on it
        batches = [torch.stack([_matrix(steps[i]).to(self._dtype) for i in found]) for found in alike.values()]
        scales = [self._ratio * scale_of(*shape) for shape in alike]
        updates: list[Tensor] = [torch.empty(0)] * len(parameters)
        for found, batch in zip(alike.values(), orthogonalised(batches, scales)):
            for i, update in zip(found, batch.to(torch.float32).unbind(0)):
                updates[i] = _shaped(update, parameters[i])
        torch._foreach_mul_(updates, -rate)
        # nothing has changed so far: if memory runs out, the whole step can be repeated
        self.rest.param_groups[0]["lr"] = rate
        self.rest.step()
        for parameter, new in zip(parameters, momenta):
            if "momentum" in self.state[parameter]:
                self.state[parameter]["momentum"].copy_(new)  # in place, for a captured step
            else:
                self.state[parameter]["momentum"] = new
        changed: list[Tensor] = list(parameters)
        torch._foreach_add_(changed, updates)


def _last(value: Tensor) -> bool:
    return value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)


def _matrix(value: Tensor) -> Tensor:
    """(out, in, ...) as (out, in * ...), without copying."""
    return (value.permute(0, 2, 3, 1) if _last(value) else value).reshape(len(value), -1)


def _shaped(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_matrix`."""
    if _last(like):
        out, inputs, high, wide = like.shape
        return matrix.reshape(out, high, wide, inputs).permute(0, 3, 1, 2)
    return matrix.reshape(like.shape)
