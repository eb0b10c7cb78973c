"""The network, the schedules and the predictions, against diffusers and against their own algebra."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_core.errors import UserError
from ddpm_core.model import file as model_file
from ddpm_core.model.build import network_of
from ddpm_core.model.config import SCHEDULES, DiffusionConfig, ModelConfig, UNetConfig
from ddpm_core.model.diffusion import Diffusion, model_to_uint8, uint8_to_model
from ddpm_core.model.export import scheduler_config, unet_config
from ddpm_core.model.loss import loss_per_image, timestep_weights
from ddpm_core.model.prediction import PREDICTIONS
from ddpm_core.model.unet import UNet

ARCHITECTURES = {
    "one level": UNetConfig(
        (8, 8),
        block_out_channels=(8,),
        attention_levels=(True,),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
    ),
    "three levels": UNetConfig(
        (16, 16),
        block_out_channels=(8, 16, 32),
        attention_levels=(False, True, True),
        layers_per_block=2,
        attention_head_dim=8,
        norm_num_groups=4,
    ),
    "no attention": UNetConfig(
        (16, 16),
        block_out_channels=(8, 16),
        attention_levels=(False, False),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=8,
    ),
    "not square": UNetConfig(
        (16, 24),
        block_out_channels=(8, 16, 16),
        attention_levels=(False, False, True),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=2,
    ),
    "grey": UNetConfig(
        (16, 16),
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        attention_levels=(False, True),
        layers_per_block=3,
        attention_head_dim=8,
        norm_num_groups=4,
    ),
}


def shaken(config: UNetConfig, scale: float = 0.05) -> UNet:
    """A network whose zero-initialised layers are not zero, so that a wrong wire shows."""
    net = UNet(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return net


def diffusers_twin(net: UNet) -> UNet2DModel:
    config = {k: v for k, v in unet_config(ModelConfig(net.config)).items() if not k.startswith("_")}
    twin = UNet2DModel(**config)
    twin.load_state_dict({k: v.detach().contiguous() for k, v in net.named_parameters()})
    return twin


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_network_equals_diffusers(name: str) -> None:
    config = ARCHITECTURES[name]
    net = shaken(config)
    twin = diffusers_twin(net)
    x = torch.randn((3, config.in_channels, *config.image_size), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 17, 999])
    with torch.no_grad():
        ours, theirs = net(x, t), twin(x, t).sample
    assert theirs.abs().mean() > 0.01
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_gradients_equal_diffusers() -> None:
    net = shaken(ARCHITECTURES["three levels"])
    twin = diffusers_twin(net)
    x, t = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.tensor([5, 500])
    net(x, t).square().mean().backward()
    twin(x, t).sample.square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6), name


def test_default_architecture_is_the_storys() -> None:
    """63.15 million parameters: the GroupNorm twin of the network of the story."""
    total = sum(p.numel() for p in UNet(UNetConfig(), device="meta").parameters())
    assert round(total / 1e6, 2) == 63.15


def test_bf16_is_near_fp32() -> None:
    net = shaken(ARCHITECTURES["three levels"])
    x, t = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        full, half = net(x, t), net(x.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 3e-2


def test_dropout_only_with_a_generator_and_from_it_alone() -> None:
    config = UNetConfig(
        (8, 8),
        block_out_channels=(8,),
        attention_levels=(False,),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        dropout=0.5,
    )
    net = shaken(config)
    x, t = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2])
    with torch.no_grad():
        still = net(x, t)
        assert torch.equal(still, net(x, t))
        torch.manual_seed(0)
        one = net(x, t, torch.Generator().manual_seed(5))
        torch.manual_seed(1)
        again = net(x, t, torch.Generator().manual_seed(5))
        other = net(x, t, torch.Generator().manual_seed(6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, still)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_tables_equal_diffusers(schedule: str, zero_snr: bool) -> None:
    config = DiffusionConfig(schedule, zero_terminal_snr=zero_snr, prediction="v")
    ours = Diffusion(config).alphas_cumprod
    options = {k: v for k, v in scheduler_config(ModelConfig(diffusion=config)).items() if not k.startswith("_")}
    theirs = DDPMScheduler(**options).alphas_cumprod
    assert (ours - theirs).abs().max() <= 1e-6
    assert (ours[1:] <= ours[:-1]).all()
    if zero_snr:
        assert ours[-1] == 0


@given(st.sampled_from(sorted(PREDICTIONS)), st.integers(0, 2**31), st.floats(0.02, 0.98))
@settings(max_examples=60, deadline=None)
def test_prediction_conversions_invert(prediction: str, seed: int, alpha_bar: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn((2, 3, 4, 4), generator=generator), torch.randn((2, 3, 4, 4), generator=generator)
    alpha, sigma = torch.tensor(alpha_bar).sqrt(), torch.tensor(1 - alpha_bar).sqrt()
    x = alpha * x0 + sigma * eps
    kind = PREDICTIONS[prediction]
    back_x0, back_eps = kind.to_x0_and_epsilon(kind.target(x0, eps, alpha, sigma), x, alpha, sigma)
    assert torch.allclose(back_x0, x0, atol=1e-4)
    assert torch.allclose(back_eps, eps, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_forward_process_and_target_equal_diffusers(prediction: str) -> None:
    config = DiffusionConfig("cosine", prediction=prediction)
    ours = Diffusion(config)
    theirs = DDPMScheduler(
        **{k: v for k, v in scheduler_config(ModelConfig(diffusion=config)).items() if not k.startswith("_")}
    )
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn((5, 3, 4, 4), generator=generator), torch.randn((5, 3, 4, 4), generator=generator)
    t = torch.tensor([0, 1, 400, 998, 999])
    assert torch.allclose(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), atol=1e-6)
    if prediction == "v":
        assert torch.allclose(ours.target(x0, noise, t), theirs.get_velocity(x0, noise, t), atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_image_loss_alike(prediction: str) -> None:
    """Whatever the network predicts, min-SNR weighting is min(SNR, 5) on the implied image error (Hang et al. 2023)."""
    diffusion = Diffusion(DiffusionConfig("linear", prediction=prediction))
    weights = timestep_weights("min-snr", diffusion)
    t = torch.tensor([20, 200, 500, 800])
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn((4, 3, 8, 8), generator=generator), torch.randn((4, 3, 8, 8), generator=generator)
    x = diffusion.add_noise(x0, noise, t)
    output = diffusion.target(x0, noise, t) + 0.01 * torch.randn(x0.shape, generator=generator)
    loss = weights[t] * loss_per_image("mse", output, diffusion.target(x0, noise, t))
    guessed, _ = diffusion.to_x0_and_epsilon(output, x, t)
    expected = diffusion.snr[t].clamp(max=5) * (guessed - x0).square().flatten(1).mean(1)
    assert torch.allclose(loss, expected, rtol=2e-2)


def test_losses_equal_torch() -> None:
    a, b = 3 * torch.randn((4, 3, 8, 8)), torch.randn((4, 3, 8, 8))
    for kind, function in (
        ("mse", torch.nn.functional.mse_loss),
        ("l1", torch.nn.functional.l1_loss),
        ("huber", torch.nn.functional.huber_loss),
    ):
        assert torch.allclose(loss_per_image(kind, a, b).mean(), function(a, b), rtol=1e-5)


def test_pixels_survive_the_model_range() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(model_to_uint8(uint8_to_model(every)), every)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"image_size": (30, 30)}, "multiples of 8"),
        ({"block_out_channels": (64, 100, 256, 512)}, "norm_num_groups"),
        ({"attention_head_dim": 48}, "attention_head_dim"),
        ({"attention_levels": (True,)}, "attention_levels"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_impossible_architectures_say_why(change: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        UNetConfig(**change)  # type: ignore[arg-type]


def small_model(path: Path) -> ModelConfig:
    config = ModelConfig(ARCHITECTURES["no attention"])
    weights = {k: v.detach() for k, v in shaken(config.unet).named_parameters()}
    model_file.save(path, config, weights, title="small", info={"steps": 3})
    return config


def test_model_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    config = small_model(path)
    loaded = model_file.load(path)
    assert loaded.config == config
    assert loaded.info["steps"] == 3
    net = network_of(loaded.config, loaded.weights, "cpu")
    x, t = torch.zeros(1, 3, 16, 16), torch.tensor([5])
    with torch.no_grad():
        assert torch.equal(net(x, t), shaken(config.unet)(x, t))


@pytest.mark.skipif(os.name == "nt", reason="modes of Unix")
def test_a_model_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.safetensors"
    small_model(path)
    path.chmod(0o000)
    if os.access(path, os.R_OK):  # root may read everything
        monkeypatch.setattr(os, "access", lambda asked, mode: not path.samefile(asked))
    with pytest.raises(UserError, match="may not be read by this user; change its permissions"):
        model_file.load(path)


def test_broken_model_files_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    small_model(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])

    def with_header(change: dict[str, object]) -> bytes:
        changed = json.dumps({**header, "__metadata__": {**header["__metadata__"], **change}}).encode()
        return struct.pack("<Q", len(changed)) + changed + data[8 + length :]

    description = json.loads(header["__metadata__"]["ddpm"])
    newer = json.dumps({**description, "format": 99})
    other = json.dumps({**description, "config": ModelConfig(ARCHITECTURES["three levels"]).to_json()})
    nan = torch.full((2, 2), float("nan"))
    for content, word in (
        (data[: len(data) // 2], "damaged or cut"),
        (b"", "damaged or cut"),
        (b"\xff" * 64, "damaged or cut"),
        (with_header({"ddpm": newer}), "newer version"),
        (with_header({"ddpm": "nonsense"}), "damaged"),
        (with_header({"ddpm": other}), "smaller|do not fit"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=word):
            model_file.load(path)
    from safetensors.torch import save_file

    save_file({"a": nan}, path)
    with pytest.raises(UserError, match="another kind"):
        model_file.load(path)
    with pytest.raises(UserError, match="safetensors"):
        model_file.load(tmp_path / "model.ckpt")
