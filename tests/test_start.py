"""Where a sampling starts: images noised to a strength, masks, inversion, blends of noise; against diffusers, with injected noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, RePaintScheduler
from torch import Tensor

from ddpm_core.model.config import DiffusionConfig
from ddpm_core.model.diffusion import Diffusion
from ddpm_core.sampling import SAMPLERS
from ddpm_core.sampling.denoiser import Denoiser
from ddpm_core.sampling.generate import ImageNoise, SampleSettings, generate
from ddpm_core.sampling.repaint import repaint, way
from ddpm_core.sampling.samplers import ddim
from ddpm_core.sampling.start import Start, circle, invert, kept_steps, slerp

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth function of image and time, different at every pixel."""
    scale = (t.float() / 700 + 0.4)[:, None, None, None]
    return torch.sin(1.7 * x + scale) + 0.3 * torch.roll(x, 1, -1) * scale


def diffusion(**changes: Any) -> Diffusion:
    return Diffusion(DiffusionConfig(**{"schedule": "linear", "prediction": "epsilon", **changes}), CPU)


def drawn(seed: int, count: int = 2) -> Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def picture() -> Tensor:
    return torch.tanh(drawn(99, 1))


@pytest.fixture
def mask() -> Tensor:
    found = torch.zeros((1, 1, 8, 8))
    found[..., 2:6, 1:5] = 1.0
    return found


@pytest.mark.parametrize(("count", "jump", "resamples"), [(50, 5, 3), (20, 5, 2), (20, 10, 10), (7, 5, 2), (4, 5, 9)])
def test_the_way_of_repaint_is_that_of_diffusers(count: int, jump: int, resamples: int) -> None:
    theirs = RePaintScheduler(num_train_timesteps=count)
    theirs.set_timesteps(count, jump, resamples)
    expected, last = [], int(theirs.timesteps[0]) + 1
    for t in theirs.timesteps.tolist():
        expected.append(count - 1 - t if t < last else -1 - (count - 1 - last))
        last = t
    assert way(count, jump, resamples) == expected


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_repaint_equals_diffusers_step_for_step(eta: float, picture: Tensor, mask: Tensor) -> None:
    theirs = RePaintScheduler(num_train_timesteps=40, beta_schedule="linear", eta=eta)
    theirs.set_timesteps(40, 5, 3)
    noise = torch.Generator().manual_seed(3)
    x, last, expected = drawn(0), 40, []
    for t in theirs.timesteps.tolist():
        if t < last:
            answer = network(x, torch.full((2,), t))
            x = theirs.step(answer, t, x, picture, 1 - mask, generator=noise).prev_sample
            expected.append(x)
        else:
            x = theirs.undo_step(x, last, generator=noise)
        last = t
    own, seen = torch.Generator().manual_seed(3), []
    denoiser = Denoiser(network, diffusion(timesteps=40))
    found = repaint(
        denoiser,
        drawn(0),
        list(range(39, -1, -1)),
        images=picture,
        mask=mask,
        noise=lambda _: torch.randn((2, *SHAPE), generator=own),
        callback=lambda i, x, x0: seen.append(x),  # type: ignore[func-returns-value]
        eta=eta,
        resamples=3,
        jump=5,
    )
    assert len(seen) == len(expected) > 40
    for mine, other in zip(seen, expected):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    assert torch.equal((1 - mask) * found, (1 - mask) * picture.expand(2, *SHAPE))


@pytest.mark.parametrize("strength", [0.3, 0.75, 0.99])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_img2img_equals_diffusers_step_for_step(strength: float, eta: float, picture: Tensor) -> None:
    """diffusers' img2img pipelines: add_noise at the first of the last timesteps, then the scheduler's steps."""
    theirs = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=True, set_alpha_to_one=True)
    theirs.set_timesteps(20)
    left = theirs.timesteps[len(theirs.timesteps) - kept_steps(strength, 20) :]
    noise = ImageNoise([5, 6], SHAPE, CPU)
    x = theirs.add_noise(picture.expand(2, *SHAPE), noise.first(), left[:1])
    for t in left:
        answer = network(x, torch.full((2,), int(t)))
        x = theirs.step(answer, int(t), x, eta=eta, variance_noise=noise() if eta else None).prev_sample
    settings = SampleSettings("ddim", 20, eta=eta, seed=5)
    found, calls = generate(network, diffusion(), SHAPE, 2, settings, start=Start(picture, strength))
    assert calls == len(left)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_the_denoising_strength_means_what_it_means_in_the_webui() -> None:
    for steps in (1, 2, 12, 20, 50):
        for hundredths in range(1, 101):
            strength = hundredths / 100
            asked = int(min(strength, 0.999) * steps)  # sd_samplers_common.setup_img2img_steps: t_enc
            assert kept_steps(strength, steps) == asked + 1  # sigmas[steps - t_enc - 1:], one more than steps
    assert kept_steps(0.0, 20) == 0


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_strength_0_is_the_picture_and_1_is_plain_sampling(sampler: str, picture: Tensor) -> None:
    process = diffusion(timesteps=30)
    settings = SampleSettings(sampler, 30, seed=1)
    plain, _ = generate(network, process, SHAPE, 3, settings)
    found, calls = generate(network, process, SHAPE, 3, settings, start=Start(picture, 0.0))
    assert calls == 0 and torch.equal(found, picture.expand(3, *SHAPE))
    found, _ = generate(network, process, SHAPE, 3, settings, start=Start(picture, 1.0))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("resamples", [1, 3])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_what_is_not_masked_stays_exactly(
    sampler: str, blank: bool, resamples: int, zero_snr: bool, picture: Tensor, mask: Tensor
) -> None:
    process = diffusion(timesteps=30, zero_terminal_snr=zero_snr, prediction="v" if zero_snr else "epsilon")
    for strength in (0.5, 1.0):
        start = Start(picture, strength, mask, blank, resamples)
        found, _ = generate(network, process, SHAPE, 2, SampleSettings(sampler, 30, seed=1), start=start)
        assert bool(torch.isfinite(found).all())
        outside = (1 - mask).expand_as(found) == 1
        torch.testing.assert_close(found[outside], picture.expand_as(found)[outside], atol=1e-6, rtol=0)
        assert float((found - picture).abs()[~outside].mean()) > 0.05
        assert not torch.equal(found[0], found[1])


def test_without_a_mask_resamples_draw_everything_several_times(picture: Tensor, mask: Tensor) -> None:
    """As with a mask that is all white; not at strength 1, where nothing is given."""
    process, settings = diffusion(), SampleSettings("ddim", 20, seed=3)
    several, calls = generate(network, process, SHAPE, 2, settings, start=Start(picture, 0.6, resamples=3))
    white, same = generate(
        network, process, SHAPE, 2, settings, start=Start(picture, 0.6, torch.ones_like(mask), resamples=3)
    )
    once, least = generate(network, process, SHAPE, 2, settings, start=Start(picture, 0.6))
    assert torch.equal(several, white) and calls == same > least == 13
    assert float((several - once).abs().max()) > 0.01
    plain, _ = generate(network, process, SHAPE, 2, settings)
    anew, calls = generate(network, process, SHAPE, 2, settings, start=Start(picture, 1.0, resamples=3))
    assert torch.equal(anew, plain) and calls == 20


def test_a_masked_sampling_is_the_same_in_any_batch(picture: Tensor, mask: Tensor) -> None:
    pictures = torch.cat([picture, -picture, 0.5 * picture])
    for resamples in (1, 2):
        start = Start(pictures, 0.8, mask, resamples=resamples)
        settings = SampleSettings("ddim", 10, eta=0.5, seed=4)
        whole, _ = generate(network, diffusion(), SHAPE, 3, settings, start=start)
        parts, _ = generate(network, diffusion(), SHAPE, 3, settings, start=start, batch_size=1)
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)


def test_inversion_finds_the_noise_that_an_image_comes_from() -> None:
    def calm(x: Tensor, t: Tensor) -> Tensor:
        return 0.6 * torch.tanh(x) + 0.05 * torch.roll(x, 1, -1)

    process = diffusion()
    times = [1000 * (25 - i) // 25 - 1 for i in range(25)]
    denoiser = Denoiser(calm, process, clip=False)
    first = drawn(8)
    images = ddim(denoiser, first, times, noise=lambda _: first)
    found = invert(denoiser, images, times)
    again = ddim(denoiser, found, times, noise=lambda _: first)

    def decibels(one: Tensor, other: Tensor) -> float:
        return -10 * math.log10(float(((one - other) ** 2).mean()) / 4)

    assert decibels(again, images) > 50
    assert float((found - first).abs().max()) < 0.05


def test_slerp_is_that_of_the_webui() -> None:
    def theirs(val: float, low: Tensor, high: Tensor) -> Tensor:
        """modules/rng.py of 1.10.1, for noise (C, H, W), in float64."""
        low, high = low.double(), high.double()
        low_norm = low / torch.norm(low, dim=1, keepdim=True)
        high_norm = high / torch.norm(high, dim=1, keepdim=True)
        dot = (low_norm * high_norm).sum(1)
        omega = torch.acos(dot)
        so = torch.sin(omega)
        return (torch.sin((1.0 - val) * omega) / so).unsqueeze(1) * low + (torch.sin(val * omega) / so).unsqueeze(
            1
        ) * high

    one, other = drawn(1, 1)[0], drawn(2, 1)[0]
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        torch.testing.assert_close(slerp(share, one, other), theirs(share, one, other).float(), atol=1e-6, rtol=1e-6)
    assert torch.equal(slerp(0.3, one, one), one)


def test_a_variation_lies_between_two_seeds() -> None:
    def sampled(**about: Any) -> Tensor:
        settings = SampleSettings("dpmpp_2m", 8, **about)
        return generate(network, diffusion(), SHAPE, 2, settings)[0]

    base, other = sampled(seed=7), sampled(seed=70)
    assert torch.equal(sampled(seed=7, variation_seed=70, variation_strength=0.0), base)
    torch.testing.assert_close(sampled(seed=7, variation_seed=70, variation_strength=1.0), other, atol=1e-4, rtol=1e-4)
    some = sampled(seed=7, variation_seed=70, variation_strength=0.2)
    assert not torch.equal(some[0], some[1])
    assert SampleSettings(seed=7, variation_seed=70, variation_strength=0.2).seeds(2) == [(7, 70), (7, 71)]


def test_the_noises_of_a_circle_are_noise_and_close_it() -> None:
    one, other = drawn(1, 1)[0], drawn(2, 1)[0]
    found = circle(one, other, 8)
    assert torch.equal(found[0], one)
    torch.testing.assert_close(found[2], other, atol=1e-6, rtol=0)
    steps = (found - found.roll(1, 0)).flatten(1).norm(dim=1)
    assert float(steps.max() / steps.min()) < 1.1
    assert 0.8 < float(found.std()) < 1.2
