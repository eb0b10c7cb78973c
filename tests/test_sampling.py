"""Every sampler step for step against diffusers, with its own noise injected."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from ddpm_core.errors import UserError
from ddpm_core.model import file as model_file
from ddpm_core.model.build import network_of
from ddpm_core.model.config import DiffusionConfig, ModelConfig, UNetConfig
from ddpm_core.model.diffusion import Diffusion
from ddpm_core.model.export import scheduler_config, to_diffusers
from ddpm_core.model.unet import UNet
from ddpm_core.sampling.denoiser import Denoiser
from ddpm_core.sampling.generate import SampleSettings, generate
from ddpm_core.sampling.samplers import ddim, ddpm, dpmpp_2m, unipc
from ddpm_core.sampling.spacing import timesteps

SHAPE = (2, 3, 8, 8)
PROCESSES = [
    (schedule, prediction, zero)
    for schedule in ("linear", "cosine", "quadratic", "sigmoid")
    for prediction in ("epsilon", "v", "x0")
    for zero in (False, True)
    if not (zero and prediction == "epsilon")
]


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth stand-in for a trained network: its answers depend on the whole state and the time."""
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    return (0.6 * x - 0.4 * blurred) * torch.cos(t.float() / 600)[:, None, None, None] + 0.1


def their_config(config: DiffusionConfig, **changes: Any) -> dict[str, Any]:
    values = scheduler_config(ModelConfig(diffusion=config))
    return {**{k: v for k, v in values.items() if not k.startswith("_")}, **changes}


def run_theirs(
    scheduler: Any, x: Tensor, noises: list[Tensor], monkeypatch: pytest.MonkeyPatch, **step: Any
) -> list[Tensor]:
    """Drive a diffusers scheduler with our network; where it draws noise it gets ours."""
    drawn = iter(noises)
    for module in {type(scheduler).__module__}:
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, **k: next(drawn), raising=False)
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, torch.full((len(x),), int(t))), t, x, **step).prev_sample
        states.append(x)
    return states


def run_ours(
    sampler: Callable[..., Tensor],
    config: DiffusionConfig,
    x: Tensor,
    times: list[int],
    noises: list[Tensor],
    clip: bool,
    **options: Any,
) -> list[Tensor]:
    states: list[Tensor] = []
    denoiser = Denoiser(network, Diffusion(config), clip=clip)
    sampler(
        denoiser,
        x,
        times,
        noise=lambda i: noises[i],
        callback=lambda i, state, x0: states.append(state) or False,
        **options,
    )
    assert denoiser.calls == len(times)
    return states


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert torch.isfinite(a).all()
        if not torch.isfinite(
            b
        ).all():  # DDIM with eta 1 from zero SNR: diffusers takes the root of a rounding error below zero
            pytest.skip(f"diffusers itself is not finite at step {i}")
        error = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        assert error < 1e-4, f"step {i}: {error}"


def start(seed: int = 0, count: int = 1100) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), [torch.randn(SHAPE, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("schedule, prediction, zero", PROCESSES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(
    schedule: str, prediction: str, zero: bool, clip: bool, variance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionConfig(schedule, timesteps=100, prediction=prediction, zero_terminal_snr=zero)
    scheduler = DDPMScheduler(**their_config(config, clip_sample=clip, variance_type=variance))
    scheduler.set_timesteps(100)
    x, noises = start()
    times = timesteps("trailing", 100, 100)
    assert times == scheduler.timesteps.tolist()
    # without clipping an untrained network's epsilon or v explodes; compare while the numbers are ordinary
    close(
        run_ours(ddpm, config, x, times, noises, clip, variance=variance), run_theirs(scheduler, x, noises, monkeypatch)
    )


@pytest.mark.parametrize("schedule, prediction, zero", PROCESSES)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spacing, steps", [("trailing", 20), ("leading", 25)])
def test_ddim(
    schedule: str, prediction: str, zero: bool, eta: float, spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionConfig(schedule, prediction=prediction, zero_terminal_snr=zero)
    if schedule == "sigmoid":
        pytest.skip("diffusers' DDIMScheduler has no sigmoid schedule")
    scheduler = DDIMScheduler(
        **{k: v for k, v in their_config(config, timestep_spacing=spacing).items() if k != "variance_type"},
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    x, noises = start()
    times = timesteps(spacing, steps, 1000)
    assert times == scheduler.timesteps.tolist()
    close(
        run_ours(ddim, config, x, times, noises, True, eta=eta), run_theirs(scheduler, x, noises, monkeypatch, eta=eta)
    )


@pytest.mark.parametrize("schedule, prediction, zero", PROCESSES)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 12, 20])
@pytest.mark.parametrize("kind", ["dpmpp_2m", "unipc"])
def test_solvers(
    kind: str, schedule: str, prediction: str, zero: bool, spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionConfig(schedule, prediction=prediction, zero_terminal_snr=zero)
    # static clipping is dynamic thresholding whose largest value is 1
    options = their_config(
        config, timestep_spacing=spacing, thresholding=True, sample_max_value=1.0, final_sigmas_type="zero"
    )
    if schedule == "sigmoid":
        pytest.skip("diffusers' solvers have no sigmoid schedule")
    if kind == "dpmpp_2m":
        known = set(inspect.signature(DPMSolverMultistepScheduler.__init__).parameters)
        scheduler: Any = DPMSolverMultistepScheduler(
            **{k: v for k, v in options.items() if k in known},
            algorithm_type="dpmsolver++",
            solver_order=2,
            lower_order_final=True,
        )
    else:
        known = set(inspect.signature(UniPCMultistepScheduler.__init__).parameters)
        scheduler = UniPCMultistepScheduler(
            **{k: v for k, v in options.items() if k in known},
            solver_order=2,
            solver_type="bh2",
            lower_order_final=True,
        )
    scheduler.set_timesteps(steps)
    x, noises = start()
    times = timesteps(spacing, steps, 1000, solver=True)
    assert times == scheduler.timesteps.tolist()
    close(
        run_ours(dpmpp_2m if kind == "dpmpp_2m" else unipc, config, x, times, noises, True),
        run_theirs(scheduler, x, noises, monkeypatch),
    )


def test_dynamic_thresholding_equals_diffusers() -> None:
    config = DiffusionConfig("linear", prediction="x0")
    scheduler = DDPMScheduler(
        **their_config(config, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
    )
    x0 = 3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(lambda x, t: x0, Diffusion(config), dynamic_threshold=0.9)
    assert torch.allclose(denoiser(x0, 10)[0], scheduler._threshold_sample(x0), atol=1e-5)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 7, 20, 333, 999, 1000])
@pytest.mark.parametrize("solver", [False, True])
def test_timesteps_fall_and_stay_in_range(spacing: str, steps: int, solver: bool) -> None:
    found = timesteps(spacing, steps, 1000, solver=solver)
    assert len(found) <= steps and all(0 <= t < 1000 for t in found)
    assert all(a > b for a, b in zip(found, found[1:]))
    if spacing == "trailing":
        assert found[0] == 999


# -- the exported model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> model_file.ModelFile:
    config = ModelConfig(
        UNetConfig(
            (16, 16),
            block_out_channels=(8, 16, 32),
            attention_levels=(False, False, True),
            layers_per_block=1,
            attention_head_dim=16,
            norm_num_groups=4,
        ),
        DiffusionConfig("cosine", prediction="v"),
    )
    net = UNet(config.unet)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model_file.save(path, config, {k: v.detach() for k, v in net.named_parameters()}, title="m", info={})
    return model_file.load(path)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m", "unipc"])
def test_export_gives_the_same_picture(
    name: str, model: model_file.ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_diffusers(model, tmp_path / "out")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    base = pipeline.scheduler.config
    if name == "ddpm":
        scheduler: Any = pipeline.scheduler
    elif name == "ddim":
        scheduler = DDIMScheduler.from_config(base)
    elif name == "dpmpp_2m":
        scheduler = DPMSolverMultistepScheduler.from_config(base, thresholding=True, sample_max_value=1.0)
    else:
        scheduler = UniPCMultistepScheduler.from_config(base, thresholding=True, sample_max_value=1.0)
    steps = {"ddpm": 50, "ddim": 20, "dpmpp_2m": 20, "unipc": 12}[name]
    settings = SampleSettings(name, steps, seed=7)
    net = network_of(model.config, model.weights, "cpu")
    ours, calls = generate(net, Diffusion(model.config.diffusion), (3, 16, 16), 2, settings)
    assert calls == steps
    generators = [torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)]

    def draw(*a: Any, **k: Any) -> Tensor:
        return torch.stack([torch.randn((3, 16, 16), generator=g) for g in generators])

    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", draw, raising=False)
    x = draw()
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    assert (ours - x).abs().max() < 1e-4


def test_export_refuses_a_full_folder(model: model_file.ModelFile, tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        to_diffusers(model, tmp_path)


# -- generating ---------------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_picture_in_any_batch(model: model_file.ModelFile) -> None:
    net = network_of(model.config, model.weights, "cpu")
    diffusion = Diffusion(model.config.diffusion)
    for name in ("dpmpp_2m", "ddim"):
        settings = SampleSettings(name, 8, eta=0.5, seed=3)
        whole, _ = generate(net, diffusion, (3, 16, 16), 5, settings, batch_size=5)
        parts, _ = generate(net, diffusion, (3, 16, 16), 5, settings, batch_size=2)
        assert (whole - parts).abs().max() * 127.5 < 1.0
        alone, _ = generate(net, diffusion, (3, 16, 16), 1, SampleSettings(name, 8, eta=0.5, seed=5))
        assert (whole[2:3] - alone).abs().max() * 127.5 < 1.0


def test_sampling_leaves_the_default_generator_alone(model: model_file.ModelFile) -> None:
    net = network_of(model.config, model.weights, "cpu")
    before = torch.get_rng_state()
    one, _ = generate(net, Diffusion(model.config.diffusion), (3, 16, 16), 1, SampleSettings(steps=3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    two, _ = generate(net, Diffusion(model.config.diffusion), (3, 16, 16), 1, SampleSettings(steps=3))
    assert torch.equal(one, two)


def test_stopping_returns_whole_images_only(model: model_file.ModelFile) -> None:
    net = network_of(model.config, model.weights, "cpu")
    stop = threading.Event()
    seen: list[int] = []

    def progress(done: int, total: int, x0: Tensor) -> None:
        seen.append(done)
        assert total == 15
        if done == 7:  # in the middle of the second of three batches
            stop.set()

    images, _ = generate(
        net,
        Diffusion(model.config.diffusion),
        (3, 16, 16),
        6,
        SampleSettings(steps=5),
        batch_size=2,
        stop=stop,
        progress=progress,
    )
    assert len(images) == 2
    assert seen == list(range(1, 8))


@pytest.mark.parametrize(
    "change, word",
    [
        ({"sampler": "euler"}, "dpmpp_2m, ddim, unipc, ddpm"),
        ({"eta": 2.0}, "eta"),
        ({"seed": -1}, "seed"),
        ({"spacing": "odd"}, "trailing"),
    ],
)
def test_bad_settings_list_what_there_is(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        SampleSettings(**change)


def test_too_many_steps_and_partial_large_variance_are_refused() -> None:
    with pytest.raises(UserError, match="between 1 and 1000"):
        SampleSettings(steps=1001).times(1000)
    with pytest.raises(UserError, match="all 1000 steps"):
        SampleSettings("ddpm_large", 50).times(1000)


def test_out_of_memory_halves_the_batch_and_changes_nothing() -> None:
    diffusion = Diffusion(DiffusionConfig(timesteps=50), "cpu")
    seen: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        seen.append(len(x))
        return x * 0.5

    told: list[tuple[int, int]] = []
    settings = SampleSettings("ddim", 4, seed=5)
    shape = (3, 4, 4)
    starved, _ = generate(
        network,
        diffusion,
        shape,
        7,
        settings,
        batch_size=7,
        progress=lambda done, total, x0: told.append((done, total)),
    )
    plain, _ = generate(lambda x, t: x * 0.5, diffusion, shape, 7, settings, batch_size=1)
    assert max(seen) == 3 and torch.equal(starved, plain)
    assert told == [(i + 1, 12) for i in range(12)]
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(lambda x, t: network(torch.zeros(4, 1), t), diffusion, shape, 2, settings)
