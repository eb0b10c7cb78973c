"""The metric orders known damage as a person does; copies are found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_core.dataset.harvest import harvest
from ddpm_core.dataset.packing import pack
from ddpm_core.dataset.store import Store
from ddpm_core.evaluation.features import RandomFeatures
from ddpm_core.evaluation.kid import Estimate, kid
from ddpm_core.evaluation.neighbours import nearest, picture
from ddpm_core.model.diffusion import model_to_uint8, uint8_to_model


@pytest.fixture(scope="module")
def real(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The kept bundled portraits at 32 pixels, in [-1, 1]."""
    store = Store(tmp_path_factory.mktemp("dataset"))
    harvest(store, [portraits])
    return uint8_to_model(pack(store, (32, 32), "center").images)


def damaged(x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Known damage of pictures (N, 3, 32, 32), mildest first; Gaussians are fitted to them."""
    flat = x.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    normal = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
    gaussian = flat.mean(0) + (normal * values.clamp_min(0).sqrt()) @ vectors.T
    tiles = x.unfold(2, 8, 8).unfold(3, 8, 8).reshape(len(x), 3, 16, 8, 8)
    tiles = torch.stack([t[:, torch.randperm(16, generator=generator)] for t in tiles]).view(-1, 3, 4, 4, 8, 8)
    return {
        "blur": F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
        "gaussian": gaussian.float().view_as(x).clamp(-1, 1),
        "tiles": tiles.permute(0, 1, 2, 4, 3, 5).reshape_as(x),
        "pixels": (x.mean(0) + x.std(0) * torch.randn(x.shape, generator=generator)).clamp(-1, 1),
        "noise": torch.randn(x.shape, generator=generator).clamp(-1, 1),
    }


@pytest.fixture(scope="module")
def ladder(real: Tensor) -> dict[str, Estimate]:
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(real), generator=generator)
    half, other = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    features = RandomFeatures()
    reference = features(half)
    return {name: kid(features(x), reference) for name, x in {"halves": other, **damaged(other, generator)}.items()}


def test_the_metric_orders_damage(ladder: dict[str, Estimate]) -> None:
    """halves < blur < full-covariance Gaussian < {tiles, per-pixel Gaussian} < noise, intervals apart."""
    steps = [
        ("halves", "blur"),
        ("blur", "gaussian"),
        ("gaussian", "tiles"),
        ("gaussian", "pixels"),
        ("tiles", "noise"),
        ("pixels", "noise"),
    ]
    for better, worse in steps:
        assert ladder[better].high < ladder[worse].low, (better, worse, ladder)


def test_real_against_real_is_nothing(ladder: dict[str, Estimate]) -> None:
    assert ladder["halves"].low <= 0 <= ladder["halves"].high


def test_the_estimator_is_unbiased_mmd() -> None:
    """Against the definition, written out for a handful of points (Gretton et al. 2012, eq. 3)."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((7, 5), generator=generator).double() + 1, torch.randn((9, 5), generator=generator).double()
    centre, scale = y.mean(0), (y - y.mean(0)).square().mean().sqrt()
    a, b = (x - centre) / scale, (y - centre) / scale

    def k(u: Tensor, v: Tensor) -> float:
        return float((u @ v / 5 + 1) ** 3)

    expected = (
        sum(k(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
        + sum(k(b[i], b[j]) for i in range(9) for j in range(9) if i != j) / 72
        - 2 * sum(k(u, v) for u in a for v in b) / 63
    )
    assert kid(x, y).value == pytest.approx(expected, rel=1e-6)


def test_the_interval_covers_repeated_draws(real: Tensor) -> None:
    """About 95 % of independent comparisons of real halves contain their expectation, 0."""
    features = RandomFeatures()(real)
    generator = torch.Generator().manual_seed(3)
    inside = 0
    for _ in range(20):
        order = torch.randperm(len(real), generator=generator)
        found = kid(features[order[:200]], features[order[200:600]], subsets=60)
        inside += found.low <= 0 <= found.high
    assert inside >= 16


def test_features_do_not_depend_on_the_default_generator(real: Tensor) -> None:
    torch.manual_seed(1)
    one = RandomFeatures()(real[:4])
    torch.manual_seed(2)
    assert torch.equal(one, RandomFeatures()(real[:4]))


def test_copies_are_found_out_mirrored_and_noisy_ones_too(real: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    train, fresh = real[:600], real[600:650]
    copies = train[:30] + 0.02 * torch.randn(train[:30].shape, generator=generator)
    mirrored = train[30:40].flip(3)
    found = nearest(torch.cat([copies, mirrored]), train)
    assert found.memorised.all()
    assert found.mirrored[30:].all()
    assert torch.equal(found.index[:30], torch.arange(30))
    assert nearest(fresh, train).memorised.float().mean() < 0.1
    odd = torch.arange(1, 600, 2)
    among = nearest(train[:40], train, odd, chunk=64)
    assert torch.equal(among.index[1::2], odd[:20]) and bool((among.index % 2 == 1).all())
    assert not among.memorised[0::2].all()


def test_a_duplicated_training_picture_does_not_hide_its_copies(real: Tensor) -> None:
    train = torch.cat([real[:100], real[:100]])
    assert nearest(real[:10], train).memorised.all()


def test_the_picture_shows_the_pairs(real: Tensor) -> None:
    train, samples = model_to_uint8(real[:50]), model_to_uint8(real[:20])
    shown = picture(samples, train, nearest(real[:20], real[:50]), count=8, scale=64)
    assert shown.size == (8 * 68, 2 * 64 + 14)
    upper, lower = shown.crop((0, 0, 64, 64)), shown.crop((0, 70, 64, 134))
    assert list(upper.getdata()) == list(lower.getdata())  # a copy above its original
