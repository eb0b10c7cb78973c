"""The kernels for a GPU, carried out by Triton's interpreter on the CPU, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_in_the_interpreter() -> None:
    """Triton decides when it is imported whether it compiles: so in a process of its own."""
    pytest.importorskip("triton", reason="Triton has no build for this system.")
    if _INTERPRETED:
        pytest.skip("this is that process")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(ROOT / "tests" / "test_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


interpreted = pytest.mark.skipif(not _INTERPRETED, reason="in a process of its own")


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


# channels, groups, height, width: a group held whole (powers of two and not), and parts of larger pictures
SHAPES = [
    (64, 32, 8, 8),
    (96, 32, 4, 4),
    (768, 32, 4, 4),
    (24, 4, 6, 10),
    (16, 4, 64, 64),
    (48, 8, 48, 48),
    (12, 4, 60, 36),
    (20, 5, 96, 64),
    (8, 2, 192, 192),
]


@interpreted
@pytest.mark.parametrize(("shape", "plain"), [*((s, False) for s in SHAPES), *((s, True) for s in SHAPES[:5])])
def test_norm(shape: tuple[int, int, int, int], plain: bool) -> None:
    from ddpm_core.model import kernels

    channels, groups, height, width = shape
    torch.manual_seed(0)
    x = 3.0 + torch.randn(2, channels, height, width)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    gamma, beta = torch.randn(channels, requires_grad=True), torch.randn(channels, requires_grad=True)
    shift = None if plain else torch.randn(2, channels, requires_grad=True)
    dy, around = torch.randn(2, 2, channels, height, width).unbind(0)
    y, same, _ = kernels.norm(x, gamma, beta, groups, 1e-5, shift=shift, silu=not plain)
    assert torch.equal(same, x) and y.is_contiguous(memory_format=torch.channels_last)
    inputs = [x, gamma, beta] if shift is None else [x, gamma, beta, shift]
    outputs, gradients = ([y], [dy]) if plain else ([y, same], [dy, around])
    got = torch.autograd.grad(outputs, inputs, gradients)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    v = exact[0] if plain else exact[0] + exact[3][:, :, None, None]
    z = F.group_norm(v, groups, exact[1], exact[2], 1e-5)
    z = z if plain else F.silu(z)
    outputs, gradients = ([z], [dy.double()]) if plain else ([z, exact[0]], [dy.double(), around.double()])
    expected = torch.autograd.grad(outputs, exact, gradients)
    assert far(y, z) < 1e-6
    for name, a, b in zip(["x", "gamma", "beta", "shift"], got, expected):
        assert far(a, b) < (1e-5 if name == "shift" else 2e-6), name


# channels of the one and of the other, groups, height, width
@interpreted
@pytest.mark.parametrize("shape", [(128, 64, 32, 4, 4), (48, 16, 4, 48, 48), (12, 8, 5, 6, 6), (20, 4, 4, 64, 48)])
@pytest.mark.parametrize("around", [(True, True), (False, False), (True, False)])
def test_norm_of_two_side_by_side(shape: tuple[int, int, int, int, int], around: tuple[bool, bool]) -> None:
    from ddpm_core.model import kernels

    one, other, groups, height, width = shape
    torch.manual_seed(0)
    a, b = (torch.randn(2, c, height, width).contiguous(memory_format=torch.channels_last) for c in (one, other))
    # a view of what many blocks' projections gave at once, as the network passes it
    shift = torch.randn(2, 3 + one + other)[:, 3:]
    gamma, beta = torch.randn(2, one + other).unbind(0)
    inputs = [value.requires_grad_() for value in (a, b, gamma, beta, shift)]
    y, *same = kernels.norm(a, gamma, beta, groups, 1e-5, beside=b, shift=shift)
    gradients = [torch.randn_like(value) for value in (y, a, b)]
    which = [True, *around]
    given = [g for g, yes in zip(gradients, which) if yes]
    got = torch.autograd.grad([o for o, yes in zip([y, *same], which) if yes], inputs, given)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    v = torch.cat(exact[:2], 1) + exact[4][:, :, None, None]
    z = F.silu(F.group_norm(v, groups, exact[2], exact[3], 1e-5))
    outputs = [o for o, yes in zip([z, *exact[:2]], which) if yes]
    assert far(y, z) < 1e-6
    for value, right in zip(got, torch.autograd.grad(outputs, exact, [g.double() for g in given])):
        assert far(value, right) < 1e-5


@interpreted
@pytest.mark.parametrize("shape", [(64, 32, 8, 8), (16, 4, 64, 64)])
def test_dropout_within_the_norm(shape: tuple[int, int, int, int]) -> None:
    from ddpm_core.model import kernels

    channels, groups, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(4, channels, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
    gamma, beta = torch.zeros(channels, requires_grad=True), torch.ones(channels, requires_grad=True)
    seed = torch.tensor([123456789, -987654321], dtype=torch.int32)
    mask, _, _ = kernels.norm(x, gamma, beta, groups, 1e-5, silu=False, rate=0.25, seed=seed)  # of ones
    kept = mask.detach()
    assert torch.allclose(kept[kept != 0], torch.tensor(4 / 3))
    count = kept.numel()
    assert abs(float((kept != 0).float().mean()) - 0.75) < 5 * (0.25 * 0.75 / count) ** 0.5
    # neighbours in every direction are independent of each other
    dropped = (kept == 0).double() - 0.25
    for direction in range(4):
        beside = (dropped * dropped.roll(1, direction)).mean() / (0.25 * 0.75)
        assert abs(float(beside)) < 5 / count**0.5
    other, _, _ = kernels.norm(x, gamma, beta, groups, 1e-5, silu=False, rate=0.25, seed=seed + 1)
    both = ((other == 0) & (kept == 0)).float().mean()
    assert abs(float(both) - 0.25**2) < 5 * (0.0625 * 0.9375 / count) ** 0.5
    gamma = torch.randn(channels, requires_grad=True)
    dy = torch.randn_like(x)
    y, _, _ = kernels.norm(x, gamma, beta, groups, 1e-5, rate=0.25, seed=seed)
    got = torch.autograd.grad(y, [x, gamma, beta], dy)
    exact = [value.detach().double().requires_grad_() for value in (x, gamma, beta)]
    z = F.silu(F.group_norm(exact[0], groups, exact[1], exact[2], 1e-5)) * kept.double()
    assert far(y, z) < 1e-6
    for a, b in zip(got, torch.autograd.grad(z, exact, dy.double())):
        assert far(a, b) < 2e-6


@interpreted
@pytest.mark.parametrize("mean", [100.0, 1000.0])
@pytest.mark.parametrize("shape", [(64, 32, 8, 8), (16, 4, 64, 64)])
def test_a_mean_far_from_zero_loses_no_variance(mean: float, shape: tuple[int, int, int, int]) -> None:
    from ddpm_core.model import kernels

    channels, groups, height, width = shape
    torch.manual_seed(0)
    x = (mean + torch.randn(2, channels, height, width)).contiguous(memory_format=torch.channels_last)
    y, _, _ = kernels.norm(x, torch.ones(channels), torch.zeros(channels), groups, 1e-5, silu=False)
    z = F.group_norm(x.double(), groups, eps=1e-5)
    assert far(y, z) < 2e-7 * mean


@interpreted
@pytest.mark.parametrize("channels", [16, 20, 192])
@pytest.mark.parametrize("beside", [True, False])
def test_bias(channels: int, beside: bool) -> None:
    from ddpm_core.model import kernels

    torch.manual_seed(0)
    h, other, dy = torch.randn(3, 3, channels, 20, 12).unbind(0)
    h, other = (v.contiguous(memory_format=torch.channels_last).requires_grad_() for v in (h, other))
    bias = torch.randn(channels, requires_grad=True)
    y = kernels.add_bias(h, bias, other if beside else None)
    inputs = [h, bias, other] if beside else [h, bias]
    got = torch.autograd.grad(y, inputs, dy)
    expected = h + bias[:, None, None] + (other if beside else 0)
    assert far(y, expected) < 1e-7
    for a, b in zip(got, torch.autograd.grad(expected, inputs, dy)):
        assert far(a, b) < 1e-6


@interpreted
@pytest.mark.parametrize("shape", [(64, 32, 8, 8), (32, 32, 64, 64)])
def test_bf16(shape: tuple[int, int, int, int]) -> None:
    """Stored in bf16, computed in float32. The interpreter cuts off where a GPU rounds: so twice as far as it might be."""
    from ddpm_core.model import kernels

    channels, groups, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(2, channels, height, width).bfloat16().contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    gamma, beta = (torch.randn(channels).bfloat16().requires_grad_() for _ in range(2))
    dy = torch.randn(2, channels, height, width).bfloat16()
    y, _, _ = kernels.norm(x, gamma, beta, groups, 1e-5)
    assert y.dtype == torch.bfloat16
    exact = [value.detach().double().requires_grad_() for value in (x, gamma, beta)]
    z = F.silu(F.group_norm(exact[0], groups, exact[1], exact[2], 1e-5))
    assert far(y, z) < 2**-8
    got = torch.autograd.grad(y, [x, gamma, beta], dy)
    for a, b in zip(got, torch.autograd.grad(z, exact, dy.double())):
        assert a.dtype == torch.bfloat16 and far(a, b) < 2**-8


@interpreted
@pytest.mark.parametrize("folded", [True, False])
def test_the_whole_network(folded: bool) -> None:
    """Output and every gradient as by PyTorch's own kernels."""
    from ddpm_core.model.condition import AUGMENTATIONS
    from ddpm_core.model.config import UNetConfig
    from ddpm_core.model.unet import UNet
    from ddpm_core.model.ways import Ways

    config = UNetConfig(
        (16, 16),
        block_out_channels=(16, 48),
        attention_levels=(False, True),
        layers_per_block=2,
        attention_head_dim=16,
        norm_num_groups=4,
    )
    ours = UNet(config, ways=Ways(fused=True, folded=folded, joined=True), conditions=AUGMENTATIONS)
    plain = UNet(config, conditions=AUGMENTATIONS)
    torch.manual_seed(0)
    with torch.no_grad():  # what begins at zero would hide what comes after it
        for a, b in zip(ours.parameters(), plain.parameters()):
            b.add_(0.1 * torch.randn_like(b))
            a.copy_(b)
    x, dy = torch.randn(2, 2, 3, 16, 16).unbind(0)
    times, flips = torch.tensor([3, 700]), torch.tensor([True, False])
    outputs, gradients = [], []
    for net in (ours, plain):
        given = x.clone().requires_grad_()
        outputs.append(net(given, times, told={"flip": flips}))
        gradients.append(torch.autograd.grad(outputs[-1], [given, *net.parameters()], dy))
    assert far(outputs[0], outputs[1]) < 2e-6
    for name, a, b in zip(["x", *dict(plain.named_parameters())], *gradients):
        if not name.endswith("to_k.bias"):  # which changes nothing: its gradient is rounding alone
            assert far(a, b) < 2e-5, name


@interpreted
def test_the_whole_network_of_an_upscaler() -> None:
    """As above, for the Efficient U-Net."""
    from ddpm_core.model.condition import AUGMENTATIONS
    from ddpm_core.model.config import UpscalerConfig
    from ddpm_core.model.efficient_unet import EfficientUNet
    from ddpm_core.model.ways import Ways

    config = UpscalerConfig(
        image_size=(16, 16),
        crop_size=16,
        block_out_channels=(16, 32),
        blocks_per_level=(1, 2),
        norm_num_groups=4,
        detail_channels=16,
    )
    ours = EfficientUNet(config, ways=Ways(fused=True, folded=True, joined=True), conditions=AUGMENTATIONS)
    plain = EfficientUNet(config, conditions=AUGMENTATIONS)
    torch.manual_seed(0)
    with torch.no_grad():
        for a, b in zip(ours.parameters(), plain.parameters()):
            b.add_(0.1 * torch.randn_like(b))
            a.copy_(b)
    x, low, dy = torch.randn(3, 2, 3, 16, 16).unbind(0)
    times, flips, level = torch.tensor([3, 700]), torch.tensor([True, False]), torch.tensor([0.1, 0.3])
    outputs, gradients = [], []
    for net in (ours, plain):
        given = x.clone().requires_grad_()
        outputs.append(net(given, times, told={"low": low, "level": level, "flip": flips}))
        gradients.append(torch.autograd.grad(outputs[-1], [given, *net.parameters()], dy))
    assert far(outputs[0], outputs[1]) < 2e-6
    for name, a, b in zip(["x", *dict(plain.named_parameters())], *gradients):
        assert far(a, b) < 2e-5, name


@interpreted
def test_dropout_within_the_network_is_told_by_numbers() -> None:
    from ddpm_core.model.config import UNetConfig
    from ddpm_core.model.unet import UNet
    from ddpm_core.model.ways import Ways

    config = UNetConfig((8, 8), 3, 3, (16,), (False,), 1, 16, 4, dropout=0.5)
    net = UNet(config, ways=Ways(fused=True))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, times = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    seeds = torch.randint(-(2**31), 2**31, (net.blocks, 4)).int()
    first = net(x, times, seeds)
    assert torch.equal(first, net(x, times, seeds.clone()))
    for block in range(net.blocks):
        other = seeds.clone()
        other[block, 1] += 1
        assert not torch.equal(first, net(x, times, other)), "each block's mask has numbers of its own"
    assert torch.equal(net(x, times), net(x, times)) and not torch.equal(net(x, times), first)


def small_trainer(how: Any, **changes: Any) -> Any:
    """``how``: a ``How``, or whether to update by flat tensors."""
    import dataclasses

    from ddpm_core.model.config import ModelConfig, UNetConfig
    from ddpm_core.model.ways import Ways
    from ddpm_core.training.how import How
    from ddpm_core.training.settings import RunConfig, TrainSettings
    from ddpm_core.training.trainer import Trainer

    config = UNetConfig((8, 8), 3, 3, (8, 16), (False, True), 1, 16, 4)
    train = TrainSettings(batch_size=4, precision="fp32", warmup_steps=2, weight_decay=0.01)
    train = dataclasses.replace(train, **changes)
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    how = How(Ways(), flat=how) if isinstance(how, bool) else how
    told = {"tags": (torch.rand((16, 3), generator=torch.Generator().manual_seed(1)) < 0.5).float()}
    model = ModelConfig(config, tags=("red", "green", "blue"))
    return Trainer(RunConfig(model, train), images, "cpu", how=how, told=told)


@interpreted
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flat_updates_are_the_optimizers_own(optimizer: str, precision: str) -> None:
    flat, plain = (small_trainer(f, optimizer=optimizer, precision=precision) for f in (True, False))
    a, b = flat.run_steps(6), plain.run_steps(6)
    # products of other shapes round otherwise, which the iterations amplify where singular values are small
    close = 1e-2 if precision == "bf16" else 1e-3 if optimizer == "muon" else 1e-5
    assert abs(a.loss - b.loss) < close
    ours, theirs = flat.state_tensors(), plain.state_tensors()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if precision == "fp32" and not name.endswith("to_k.bias"):
            assert torch.allclose(ours[name], value, atol=close), name
    # the interpreter cuts bf16 off instead of rounding it
    everything = [torch.cat([t[k].flatten() for k in theirs if k.startswith(("net.", "ema."))]) for t in (ours, theirs)]
    assert far(*everything) < close


@interpreted
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_flat_updates_go_on_where_they_were(optimizer: str) -> None:
    whole, half, other = (small_trainer(True, optimizer=optimizer) for _ in range(3))
    whole.run_steps(6)
    half.run_steps(3)
    other.run_steps(1)
    other.load_state(half.state_tensors(), half.state_numbers())
    other.run_steps(3)
    expected, got = whole.state_tensors(), other.state_tensors()
    assert expected.keys() == got.keys() and all(torch.equal(got[k], v) for k, v in expected.items())
    other.free()


@interpreted
def test_the_gpu_scripts_rung(tmp_path: object) -> None:
    from pathlib import Path

    sys.path.insert(0, str(ROOT))
    from benchmarks import gpu

    assert isinstance(tmp_path, Path)
    options = ["--alone", "--miniature", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu.run([*options, "--rungs", "kernels"]) == 0 and gpu.measured(tmp_path) == {"kernels"}


@interpreted
def test_agreement_is_noticed() -> None:
    from ddpm_core.model import kernels

    assert kernels.agree(torch.device("cpu"))
    plain = F.group_norm
    try:
        F.group_norm = lambda x, *rest: plain(x, *rest) * 1.01  # type: ignore[assignment]
        assert not kernels.agree(torch.device("cpu"))
    finally:
        F.group_norm = plain


class Uncapturable(TorchDispatchMode):
    """Fails at what a CUDA graph cannot hold: reading from the device, and shapes that depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_pin_memory", "lift_fresh", "unique")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[-1].split(".")[0]
        assert not name.startswith(self.FORBIDDEN), f"{name} cannot be captured"
        return function(*args, **(kwargs or {}))


@interpreted
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_can_be_captured(optimizer: str, precision: str) -> None:
    """Nothing is read back, and every tensor that outlives the step stays where it is."""
    t: Any = small_trainer(True, optimizer=optimizer, precision=precision)
    t.run_steps(2)
    lasting = [*t.net.parameters(), *t.ema.parameters(), t.work.sums]
    lasting += [value for state in t.work.optimizer.state.values() for value in state.values()]
    lasting += [] if t.work.cast is None else t.work.cast.network.parameters()
    before = [value.data_ptr() for value in lasting]
    weights = t.net.conv_in.weight.clone()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Uncapturable():
        float(weights.detach().sum())
    drawn = t.batches.draw(t.step)
    t.work.set_numbers(1e-3, 0.1)
    with Uncapturable():
        t.work.compute(drawn.x0, drawn.times, drawn.noise, *(drawn.told[name] for name in t.net.can_be_told))
    assert [value.data_ptr() for value in lasting] == before
    assert not torch.equal(weights, t.net.conv_in.weight)
    assert all(p.grad is None for p in t.net.parameters())


class Raced(TorchDispatchMode):
    """Fails at a kernel of the first stream that touches what the second one makes, before the two are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = False
        self.made: dict[int, Any] = {}  # storages: a further reference to a tensor would let autograd copy it

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tree_leaves((args, kwargs))  # the interpreter takes a kernel's tensors by their storages
        given = {v.untyped_storage().data_ptr() for v in inputs if isinstance(v, torch.Tensor)}
        given |= {v.data_ptr() for v in inputs if isinstance(v, torch.UntypedStorage)}
        given.discard(0)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        assert self.aside or is_view or not given & set(self.made), f"{function} reads what may not be there yet"
        found = function(*args, **(kwargs or {}))
        if self.aside and "set_" not in function.name():  # as the interpreter does with its arguments
            for value in filter(None.__ne__, tree_leaves(found)):
                storage = value.untyped_storage()
                if storage.data_ptr() not in given:
                    self.made[storage.data_ptr()] = storage
        return found


@interpreted
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_made_aside_is_left_alone_until_joined(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither autograd nor a layer copies, casts or adds to a gradient that the second stream may not have finished."""
    from contextlib import contextmanager

    from ddpm_core.model.aside import Aside
    from ddpm_core.model.ways import FAST
    from ddpm_core.training.how import How

    t: Any = small_trainer(How(FAST, flat=True, aside=True), precision=precision)
    watching = Raced()
    runs = 0

    @contextmanager
    def run(self: Any, *inputs: torch.Tensor) -> Any:
        nonlocal runs
        runs += 1
        watching.aside = True
        yield
        watching.aside = False

    for name in ("run", "branch"):
        monkeypatch.setattr(Aside, name, run)
    for name in ("join", "merge"):
        monkeypatch.setattr(Aside, name, lambda self: watching.made.clear())
    with watching:
        t.train_step()
    assert runs > 50
    plain: Any = small_trainer(How(FAST, flat=True), precision=precision)
    plain.run_steps(1)
    ours, theirs = t.state_tensors(), plain.state_tensors()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
