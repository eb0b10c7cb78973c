"""The parts of the Annotated Diffusion Model against float64 references written apart, and grey images from folder to gallery."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CommandLine
from PIL import Image
from torch import Tensor, nn

from ddpm_core.dataset.packing import fit, pack
from ddpm_core.dataset.reading import read_copy
from ddpm_core.evaluation.features import RandomFeatures
from ddpm_core.model import file as model_file
from ddpm_core.model.blocks import Around
from ddpm_core.model.build import build
from ddpm_core.model.config import DiffusionConfig, ModelConfig, UNetConfig
from ddpm_core.model.convnext import ConvNextBlock, attend_linearly
from ddpm_core.model.layers import Init
from ddpm_core.model.loss import loss_per_image
from ddpm_core.model.schedule import make_alphas_cumprod, make_betas
from ddpm_core.model.unet import LinearAttention
from ddpm_core.training.settings import PRESETS
from ddpm_core.workspace import Workspace

SMALL = UNetConfig((8, 8), 1, 1, (8, 16), (True, True), 1, 8, 1, block="convnext", attention="linear")
ANNOTATED = PRESETS["annotated-28"]


def init() -> Init:
    return Init("cpu", torch.Generator().manual_seed(3))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """With weights of zero made others, so that every part matters."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize(("inputs", "beside", "out"), [(6, 0, 6), (6, 0, 10), (6, 4, 10)])
def test_a_convnext_block_is_that_of_the_annotated_model(inputs: int, beside: int, out: int) -> None:
    """Its code with the layers' own names in torch, in float64."""
    block = shaken(ConvNextBlock(init(), SMALL, inputs + beside, out, 12))
    dim = inputs + beside
    x, more, temb = noise(2, inputs, 9, 7), noise(2, beside, 9, 7, seed=2) if beside else None, noise(2, 12, seed=3)
    given = {name: value.double() for name, value in block.state_dict().items()}
    depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim).double()
    mlp = nn.Linear(12, dim).double()
    net = nn.Sequential(
        nn.GroupNorm(1, dim, 1e-5), nn.Conv2d(dim, 2 * out, 3, padding=1), nn.GELU(), nn.GroupNorm(1, 2 * out, 1e-5),
        nn.Conv2d(2 * out, out, 3, padding=1),
    ).double()  # fmt: skip
    shortcut = (nn.Conv2d(dim, out, 1) if dim != out else nn.Identity()).double()
    names = {
        "depthwise": depthwise,
        "time_emb_proj": mlp,
        "norm1": net[0],
        "conv1": net[1],
        "norm2": net[3],
        "conv2": net[4],
    }
    for name, layer in {**names, **({"conv_shortcut": shortcut} if dim != out else {})}.items():
        layer.load_state_dict(
            {key[len(name) + 1 :]: value for key, value in given.items() if key.startswith(name + ".")}
        )
    whole = (x if more is None else torch.cat([x, more], 1)).double()
    expected = net(depthwise(whole) + mlp(temb.double())[:, :, None, None]) + shortcut(whole)
    found = block(x, Around(temb, None), more)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_linear_attention_is_its_definition() -> None:
    """out_i = sum_j (softmax_d(q_i) / sqrt(d) . softmax_n(k)_j) v_j for each head, by loops in float64 numpy."""
    q, k, v = (noise(2, 10, 12, seed=s) for s in (4, 5, 6))
    found = attend_linearly(q, k, v, 3)
    a, b, c = (part.double().numpy().reshape(2, 10, 3, 4) for part in (q, k, v))
    expected = np.zeros((2, 10, 3, 4))
    for n in range(2):
        for h in range(3):
            weights = np.exp(b[n, :, h]) / np.exp(b[n, :, h]).sum(0)
            for i in range(10):
                mine = np.exp(a[n, i, h]) / np.exp(a[n, i, h]).sum() / math.sqrt(4)
                for j in range(10):
                    expected[n, i, h] += (mine @ weights[j]) * c[n, j, h]
    torch.testing.assert_close(found.double(), torch.from_numpy(expected.reshape(2, 10, 12)), rtol=1e-5, atol=1e-6)


def test_a_linear_attention_layer_is_that_of_the_annotated_model() -> None:
    """Its einsums, in float64: norm, projections, attention, projection, norm, plus the input."""
    config = dataclasses.replace(SMALL, attention_head_dim=4)
    layer = shaken(LinearAttention(init(), config, 8))
    x = noise(2, 8, 5, 6)
    given = {name: value.double() for name, value in layer.state_dict().items()}
    normed = nn.functional.group_norm(x.double(), 1, given["group_norm.weight"], given["group_norm.bias"], 1e-5)
    tokens = normed.flatten(2).transpose(1, 2)
    q, k, v = (
        (tokens @ given[f"{name}.weight"].T + given[f"{name}.bias"]).transpose(1, 2).reshape(2, 2, 4, 30)
        for name in ("to_q", "to_k", "to_v")
    )
    context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
    mixed = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * 4**-0.5).reshape(2, 8, 30).transpose(1, 2)
    out = (mixed @ given["to_out.0.weight"].T + given["to_out.0.bias"]).transpose(1, 2).view(2, 8, 5, 6)
    out = nn.functional.group_norm(out, 1, given["norm_out.weight"], given["norm_out.bias"], 1e-5)
    torch.testing.assert_close(layer(x, Around(noise(2, 4), None)).double(), x.double() + out, rtol=1e-4, atol=1e-5)


def test_every_part_begins_as_the_identity() -> None:
    x, around = noise(2, 8, 8, 8), Around(noise(2, 12), None)
    assert torch.equal(ConvNextBlock(init(), SMALL, 8, 8, 12)(x, around), x)
    assert torch.equal(LinearAttention(init(), SMALL, 8)(x, around), x)


def test_schedule_and_loss_are_those_of_the_article() -> None:
    config = ANNOTATED.model.diffusion
    betas = np.linspace(1e-4, 0.1, 200)
    np.testing.assert_allclose(make_betas(config).double().numpy(), betas, atol=1e-7)
    np.testing.assert_allclose(make_alphas_cumprod(config).double().numpy(), np.cumprod(1 - betas), rtol=1e-4)
    a, b = 3 * noise(4, 1, 5, 5), noise(4, 1, 5, 5, seed=2)
    far = (a.double() - b.double()).abs().numpy().reshape(4, -1)
    expected = np.where(far < 1, 0.5 * far**2, far - 0.5).mean(1)
    np.testing.assert_allclose(loss_per_image(ANNOTATED.train.loss, a, b).numpy(), expected, rtol=1e-5)
    assert (ANNOTATED.train.loss, ANNOTATED.model.image_size, ANNOTATED.model.denoised[0]) == ("huber", (28, 28), 1)


def test_the_parts_stand_beside_those_of_ddpm_and_old_files_stay_as_they_are() -> None:
    for block in ("residual", "convnext"):
        for attention in ("full", "linear"):
            unet = dataclasses.replace(SMALL, block=block, attention=attention)
            model = ModelConfig(unet, DiffusionConfig(timesteps=50))
            net = build(model)
            assert net(noise(2, 1, 8, 8), torch.tensor([3, 4])).shape == (2, 1, 8, 8)
            kinds = {type(module).__name__ for module in net.modules()}
            assert ("ConvNextBlock" in kinds) == (block == "convnext") != ("ResBlock" in kinds)
            assert ("LinearAttention" in kinds) == (attention == "linear")
            plain = (block, attention) == ("residual", "full")
            assert model.format == (1 if plain else 8)
            assert ("block" in model.to_json()["unet"]) != plain
            assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model


# -- grey images ----------------------------------------------------------------------------------------------------------------


def test_grey_images_from_folder_to_gallery(cli: CommandLine, few: Path, tmp_path: Path) -> None:
    cli.run("harvest", "--dataset", "d", few)
    workspace = Workspace(cli.workspace)
    store = workspace.store("d")
    packed = pack(store, (28, 28), "center", grey=True)
    assert packed.images.shape[1:] == (1, 28, 28) and packed.path.name.endswith("-grey.safetensors")
    first = fit(read_copy(store.copy_path(store.kept()[0].sha256)), (28, 28), "center").convert("L")
    assert (packed.images[0, 0].numpy() == np.asarray(first)).all()

    small = ("block_out_channels=8,16", "attention_levels=true,true", "attention_head_dim=8", "batch_size=8")
    options = [word for setting in small for word in ("--set", setting)]
    began = ["train", "--dataset", "d", "--preset", "annotated-28", "--model", "m", "--steps", 4, "--precision", "fp32"]
    assert cli.run(*began, *options)["steps"] == 4
    assert cli.run("train", "--model", "m", "--resume", "--steps", 6)["steps"] == 6
    loaded = model_file.load(workspace.model_path("m"))
    assert loaded.config.is_annotated and loaded.config.is_grey
    preview = next((cli.workspace / "runs" / "m" / "previews").glob("*.png"))
    assert Image.open(preview).size[1] >= 28
    found = cli.run("sample", "--model", "m", "--count", 2, "--steps", 4, "--seed", 1, "--out", tmp_path / "out")
    with Image.open(found["files"][0]) as image:  # type: ignore[index]
        assert image.mode == "RGB" and image.size == (28, 28)
        red, green, blue = (np.asarray(image)[..., i] for i in range(3))
        assert (red == green).all() and (green == blue).all()
    edited = ["--init", found["files"][0], "--denoising-strength", 0, "--out", tmp_path / "same"]  # type: ignore[index]
    same = cli.run("sample", "--model", "m", "--count", 1, *edited)["files"][0]  # type: ignore[index]
    with Image.open(same) as after, Image.open(found["files"][0]) as before:  # type: ignore[index]
        assert (np.asarray(after) == np.asarray(before)).all()
    assert cli.run("evaluate", "--model", "m", "--dataset", "d", "--count", 16)["own_images"] is True
    refused = cli.run("export", "--model", "m", "--out", tmp_path / "folder", code=2)
    assert "block=residual" in str(refused["error"])


def test_images_are_rgb_or_grey(cli: CommandLine, few: Path) -> None:
    cli.run("harvest", "--dataset", "d", few)
    odd = ["train", "--dataset", "d", "--preset", "annotated-28", "--model", "m", "--steps", 1]
    for settings in (("in_channels=3",), ("in_channels=2", "out_channels=2")):
        given = [word for setting in settings for word in ("--set", setting)]
        assert "RGB or grey" in str(cli.run(*odd, *given, code=2)["error"])


def test_grey_images_count_as_colourless_ones_for_kid() -> None:
    grey = noise(6, 1, 32, 32).clamp(-1, 1)
    features = RandomFeatures(channels=3)
    torch.testing.assert_close(features(grey), features(grey.expand(-1, 3, -1, -1)))
