"""Muon: its iterations against the singular values, its steps against the plain algorithm, and its place in a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainers import NET, run_steps, same, trainer, weights

from ddpm_core.model.unet import UNet
from ddpm_core.training.muon import Muon, is_hidden, orthogonalised, scale_of

SHAPES = [(3, 32, 100), (2, 100, 32), (2, 32, 32), (4, 16, 40)]


def quintic(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """What the iterations should give, from the singular value decomposition in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def plain(x: torch.Tensor) -> torch.Tensor:
    """Jordan's own iterations, in the dtype of x."""
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_iterations_shared_by_shapes_act_on_singular_values_alone() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(shape) * 10.0**-i for i, shape in enumerate(SHAPES)]
    scales = [1.0, 3.0, 0.5, 1.0]
    for batch, scale, result in zip(batches, scales, orthogonalised(batches, scales)):
        assert result.shape == batch.shape and result.dtype == batch.dtype
        for one, found in zip(batch, result):
            assert far(found, scale * quintic(one)) < 2e-5


def test_a_zero_matrix_stays_zero() -> None:
    some = torch.stack([torch.zeros(8, 20), torch.randn(8, 20)])
    found = orthogonalised([some], [1.0])[0]
    assert not found[0].any() and far(found[1], quintic(some[1])) < 2e-5


@pytest.mark.parametrize("decay", [0.0, 2.0, 3.0])
def test_bf16_loses_no_more_than_the_plain_iterations_do(decay: float) -> None:
    """Singular values over several orders of magnitude, as gradients have."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(64, 300, dtype=torch.float64), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -decay, 64, dtype=torch.float64)) @ v
    right = quintic(matrix)
    ours = far(orthogonalised([matrix.bfloat16()[None]], [1.0])[0][0], right)
    assert ours < 1.1 * far(plain(matrix.bfloat16()), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_matrices_of_low_rank_stay_bounded(rank: int, dtype: torch.dtype) -> None:
    """As gradients of small batches are: rounding must not be amplified where there is nothing."""
    torch.manual_seed(rank)
    for shape in ((8, 8), (16, 40), (64, 16), (64, 300)):
        low = torch.randn(20, shape[0], min(rank, *shape)) @ torch.randn(20, min(rank, *shape), shape[1])
        for length in (1e-12, 1e-3, 1e3):
            found = orthogonalised([(low * length).to(dtype)], [1.0])[0].float()
            assert float(torch.linalg.matrix_norm(found, 2).max()) < 1.6, (shape, length)


def test_steps_are_those_of_the_plain_algorithm() -> None:
    """Over several steps on a network with convolutions, projections and matrices of every proportion, in float64."""
    torch.manual_seed(0)
    net = UNet(NET)
    named = dict(net.named_parameters())
    hidden = {name: p for name, p in named.items() if is_hidden(name, p)}
    rest = {name: p for name, p in named.items() if name not in hidden}
    assert hidden and all(p.ndim >= 2 for p in hidden.values())
    assert {"conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight"} <= set(rest)
    expected = {name: p.detach().double().clone() for name, p in named.items()}
    momenta = {name: torch.zeros_like(expected[name]) for name in hidden}
    optimizer = Muon(hidden.values(), torch.optim.AdamW(rest.values(), lr=0.0), ratio=10.0)
    for step in range(4):
        rate = 1e-3 * (step + 1)
        optimizer.param_groups[0]["lr"] = rate
        for name, parameter in named.items():
            parameter.grad = torch.randn_like(parameter)
            if name in hidden:
                gradient = parameter.grad.double()
                momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
                towards = 0.05 * gradient + 0.95 * momenta[name]
                matrix = towards.reshape(len(towards), -1)
                moved = quintic(matrix) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                expected[name] -= 10.0 * rate * moved.reshape(towards.shape)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in hidden.items():
        assert torch.allclose(parameter.detach().double(), expected[name], atol=2e-5), name
        assert torch.allclose(optimizer.state[parameter]["momentum"].double(), momenta[name], atol=1e-6), name
    assert all("exp_avg" in optimizer.state[p] for p in rest.values()), "the rest is AdamW's, in the same place"
    assert scale_of(8, 2) == 2.0 and scale_of(2, 8) == 1.0


def test_it_learns_faster_than_adamw_here() -> None:
    losses = {}
    for optimizer in ("adamw", "muon"):
        t = trainer(optimizer=optimizer, learning_rate=2e-3, flip_probability=0.0)
        run_steps(t, 30)
        losses[optimizer] = t.run_steps(10).loss
    assert losses["muon"] < losses["adamw"]


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("where", ["products", "adamw"])
def test_memory_that_runs_out_in_its_step_changes_nothing(
    when: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starved, calm = (trainer(optimizer="muon", precision="fp32") for _ in range(2))
    assert isinstance(starved.work.optimizer, Muon)
    rest, calls = starved.work.optimizer.rest, 0
    real: Any = orthogonalised if where == "products" else rest.step

    def failing(*values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*values)

    with monkeypatch.context() as patch:
        if where == "products":
            patch.setattr("ddpm_core.training.muon.orthogonalised", failing)
        else:
            patch.setattr(rest, "step", failing)
        for _ in range(when):
            starved.run_steps(1)
    for step in range(when):
        calm.pieces = 2 if step == when - 1 else 1  # as the other goes on
        calm.run_steps(1)
    assert calls == when + 1 and starved.pieces == 2 and same(weights(starved), weights(calm))
