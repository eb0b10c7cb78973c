"""Where a sampling starts: images noised to a strength, masks, inversion, blends of noise; against diffusers, with injected noise."""

from __future__ import annotations

import dataclasses
import gc
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CommandLine
from diffusers import DDIMScheduler, RePaintScheduler
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model.config import DiffusionConfig
from ddpm_core.model.diffusion import Diffusion
from ddpm_core.operations.editing import Canvas, filled, open_image, open_mask
from ddpm_core.operations.pictures import enlarge_plainly
from ddpm_core.requests import Edit, Interpolation, SampleRequest
from ddpm_core.sampling import SAMPLERS
from ddpm_core.sampling.denoiser import Denoiser
from ddpm_core.sampling.generate import ImageNoise, SampleSettings, generate
from ddpm_core.sampling.repaint import repaint, way
from ddpm_core.sampling.samplers import ddim
from ddpm_core.sampling.start import Start, circle, invert, kept_steps, slerp
from ddpm_core.service import Service

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


# -- images of any size: what the model sees, and what is put back -----------------------------------------------------


def striped(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 5 % 256, columns * 3 % 256, (rows + columns) % 256], 2).astype(np.uint8))


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int], value: int = 255) -> Image.Image:
    found = Image.new("L", size)
    found.paste(value, box)
    return found


@pytest.mark.parametrize("size", [(128, 128), (200, 90), (90, 200), (33, 31)])
@pytest.mark.parametrize("resize_mode", ["resize", "crop", "fill"])
@pytest.mark.parametrize("only_masked", [False, True])
def test_outside_the_mask_no_pixel_changes(size: tuple[int, int], resize_mode: str, only_masked: bool) -> None:
    image = striped(*size)
    middle = (size[0] // 2 - 8, size[1] // 2 - 6, size[0] // 2 + 8, size[1] // 2 + 6)
    edit = Edit(image, box_mask(size, middle), resize_mode=resize_mode, only_masked=only_masked, mask_blur=2)
    canvas = Canvas(edit, (32, 32))
    assert canvas.start.images is not None and canvas.start.images.shape == (1, 3, 32, 32)
    assert canvas.start.mask is not None and 0 < float(canvas.start.mask.mean()) < 1
    found = canvas.put_back(Image.new("RGB", (32, 32), "white"))
    assert found.size == size
    old, new = (np.asarray(one).astype(int) for one in (image, found))
    changed = np.abs(old - new).max(2) > 0
    assert canvas.mask is not None
    assert not changed[np.asarray(canvas.mask) == 0].any()
    assert (new[size[1] // 2, size[0] // 2] > 250).all()


def test_what_the_model_sees_of_an_image() -> None:
    image = striped(100, 60)
    assert Canvas(Edit(image, resize_mode="resize"), (32, 32)).part_size == (100, 60)
    assert Canvas(Edit(image, resize_mode="crop"), (32, 32)).part_size == (60, 60)
    assert Canvas(Edit(image, resize_mode="fill"), (32, 32)).part_size == (100, 100)
    mask = box_mask((100, 60), (10, 10, 20, 15))
    near = Canvas(Edit(image, mask, only_masked=True, mask_padding=4, mask_blur=0), (32, 32))
    assert near.part_size == (18, 18)
    assert near.described["DDPM enlarged"] == "0.562x"
    assert near.described["Inpaint area"] == "Only masked"
    # a model that is not square
    assert Canvas(Edit(image, resize_mode="crop"), (32, 64)).part_size == (30, 60)


def test_a_mask_is_read_as_people_make_them() -> None:
    image = striped(64, 64)
    white = box_mask((64, 64), (20, 20, 40, 40))
    clear = Image.merge("RGBA", [Image.new("L", (64, 64), 0)] * 3 + [white])  # black strokes on nothing
    of_other_size = white.resize((32, 32))
    inverted = ImageOps.invert(white)

    def covered(mask: Image.Image, **about: Any) -> np.ndarray:
        canvas = Canvas(Edit(image, mask, mask_blur=0, **about), (32, 32))
        return np.asarray(canvas.mask)

    plain = covered(white)
    assert (plain == np.asarray(white)).all()
    assert (covered(clear) == plain).all()
    assert (covered(white.convert("CMYK").convert("RGB")) == plain).mean() > 0.99
    assert (covered(inverted, invert_mask=True) == plain).all()
    assert (np.abs(covered(of_other_size).astype(int) - plain) > 128).mean() < 0.05
    grey = Canvas(Edit(image, white.point(lambda v: v // 4), mask_blur=0), (32, 32))
    assert grey.start.mask is not None and float(grey.start.mask.max()) == 1.0  # however weakly it is drawn
    for empty in (Image.new("L", (64, 64)), Image.new("RGBA", (64, 64))):
        with pytest.raises(UserError, match="mask is empty"):
            covered(empty)
    full = Canvas(Edit(image, Image.new("L", (64, 64), 255)), (32, 32))
    assert full.start.mask is not None and float(full.start.mask.min()) == 1.0
    with pytest.raises(UserError, match="choose another resize mode"):
        Canvas(Edit(striped(200, 60), box_mask((200, 60), (0, 0, 9, 60)), mask_blur=0), (32, 32))


def test_images_of_all_kinds_can_be_begun_with() -> None:
    image = striped(40, 40)
    for one in (
        image.convert("CMYK"),
        image.convert("L"),
        image.convert("P"),
        image.convert("1"),
        image.convert("RGBA"),
    ):
        assert Canvas(Edit(one), (16, 16)).start.images is not None
    seen_through = Canvas(Edit(Image.new("RGBA", (40, 40), (255, 0, 0, 0))), (16, 16)).start.images
    assert seen_through is not None and float(seen_through.min()) > 0.99  # white, as in the WebUI
    assert Canvas(Edit(Image.new("RGB", (1, 1), "red")), (16, 16)).start.images is not None
    with pytest.raises(UserError, match="times as long"):
        Canvas(Edit(Image.new("RGB", (900, 10))), (16, 16))
    assert Canvas(Edit(Image.new("LA", (40, 40)).convert("La")), (16, 16)).start.images is not None
    deep = Image.fromarray(np.full((40, 40), 3000, np.uint16))
    assert Canvas(Edit(deep), (16, 16)).image.getpixel((3, 3)) == (12, 12, 12)
    with pytest.raises(UserError, match="megapixels"):
        Canvas(Edit(Image.new("RGB", (5000, 4000))), (16, 16))


@pytest.mark.parametrize("masked", [False, True])
def test_an_enlarged_sample_lands_where_the_model_drew_it(masked: bool) -> None:
    """A model that is square sees an image that is not as a whole, squeezed; upscalers keep proportions, and would cut."""
    image = striped(200, 100)
    mask = Image.new("L", image.size, 255) if masked else None
    canvas = Canvas(Edit(image, mask, resize_mode="resize", mask_blur=0), (32, 32))
    sample = Image.new("RGB", (32, 32), "white")
    sample.paste((255, 0, 0), (0, 24, 32, 32))  # its lowest quarter
    larger = enlarge_plainly(sample, canvas.enlarged_size((200, 100)), "Lanczos")
    found = np.asarray(canvas.put_back(larger, (200, 100)))
    assert found.shape == (100, 200, 3)
    red = (found[..., 0] > 200) & (found[..., 1] < 60)
    assert 0.22 < red.mean() < 0.28 and red[80:].all()
    # the part may be larger than upscalers may make: the rest is plain enlarging
    tall = Edit(Image.new("RGB", (4096, 512)), Image.new("L", (4096, 512), 255), resize_mode="fill")
    assert max(Canvas(tall, (64, 128)).enlarged_size((1, 1))) <= 4096


def test_masks_from_files_are_read_as_safely_as_images(tmp_path: Path) -> None:
    drawn_at = box_mask((64, 48), (10, 8, 30, 20))
    deep = Image.fromarray(np.asarray(drawn_at).astype(np.uint16) * 257)
    clear = Image.merge("RGBA", [Image.new("L", (64, 48), 0)] * 3 + [drawn_at])
    for name, one in (
        ("grey.png", drawn_at),
        ("deep.png", deep),
        ("clear.png", clear),
        ("colour.webp", drawn_at.convert("RGB")),
    ):
        one.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert (np.asarray(open_mask(tmp_path / name)) == np.asarray(drawn_at)).all(), name
    turned = Image.Exif()
    turned[0x0112] = 6
    drawn_at.save(tmp_path / "turned.png", exif=turned)
    assert open_mask(tmp_path / "turned.png").size == (48, 64)
    text = PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    drawn_at.save(tmp_path / "long.png", pnginfo=text)
    assert open_mask(tmp_path / "long.png").size == (64, 48)
    Image.new("RGB", (100, 310), "red").save(tmp_path / "tall.png")
    assert open_image(tmp_path / "tall.png").size == (100, 310), "three times as long as wide is an image"
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    assert open_image(tmp_path / "one.png").size == (1, 1)


def test_a_mask_that_blur_would_wipe_out_is_not_blurred() -> None:
    dot = box_mask((256, 256), (100, 100, 101, 101))
    canvas = Canvas(Edit(striped(256, 256), dot, mask_blur=12, only_masked=True, mask_padding=0), (32, 32))
    assert canvas.mask is not None and canvas.mask.getbbox() is not None


def test_what_waits_holds_little(trained: CommandLine) -> None:
    service = Service(StandaloneHost(trained.workspace))
    try:
        request = SampleRequest("m", count=1, steps=2, image=striped(64, 64), mask=box_mask((64, 64), (9, 9, 40, 40)))
        job = service.start_sampling(request)
        assert job.finished.wait(60) and job.state == "done", job.error
        assert "Mask blur: 4" in job.artifacts["results"][0].text
        gc.collect()
        assert not [one for one in gc.get_objects() if isinstance(one, Edit)], "what is over holds no image any more"
        for large in (Image.new("L", (9000, 10)), Image.new("L", (4096, 4200))):
            with pytest.raises(UserError, match="megapixels"):
                service.start_sampling(dataclasses.replace(request, mask=large))
    finally:
        service.shutdown()


def test_the_text_says_what_was_sampled(trained: CommandLine, few: Path, tmp_path: Path) -> None:
    """Going parts of the way several times is DDIM's, whatever was chosen; with few steps no part is gone twice."""
    box_mask((128, 128), (30, 30, 90, 90)).save(tmp_path / "mask.png")
    image = sorted(few.iterdir())[0]
    given = ["--model", "m", "--count", 1, "--seed", 4, "--init", image, "--mask", tmp_path / "mask.png"]

    def made(*more: object) -> tuple[str, bytes]:
        found = trained.run("sample", *given, *more, "--out", tmp_path / "out")
        with Image.open(found["files"][0]) as opened:  # type: ignore[index]
            return opened.info["parameters"], opened.convert("RGB").tobytes()

    text, pixels = made("--steps", 20)
    assert "Sampler: DDIM" in text and "DDPM eta: 0" in text and "DDPM resamples: 2" in text
    assert made("--steps", 20, "--sampler", "ddim")[1] == pixels, "and so its text makes it again"
    text, _ = made("--steps", 4)
    assert "Sampler: DPM++ 2M" in text and "resamples" not in text


def test_filling_takes_the_colours_around() -> None:
    image = Image.new("RGB", (64, 64), (40, 90, 200))
    image.paste((255, 255, 0), (18, 18, 46, 46))
    mask = box_mask((64, 64), (16, 16, 48, 48))
    found = np.asarray(filled(image, mask)).astype(int)
    assert np.abs(found - (40, 90, 200)).max() <= 6, "nothing of what was under the mask is left"


# -- by the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(few: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    line = CommandLine(tmp_path_factory.mktemp("edited") / "ws")
    line.run("harvest", "--dataset", "faces", few)
    small = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")
    options = [word for setting in small for word in ("--set", setting)]
    line.run("train", "--model", "m", "--dataset", "faces", "--preset", "tiny-32", "--size", 16, "--steps", 3, *options)
    return line


def test_an_image_is_edited_by_the_command_line(trained: CommandLine, few: Path, tmp_path: Path) -> None:
    image = sorted(few.iterdir())[0]
    with Image.open(image) as opened:
        original = opened.convert("RGB")
    box_mask(original.size, (60, 60, 140, 140)).save(tmp_path / "mask.png")
    to = ["--out", tmp_path / "out", "--steps", 4, "--count", 2]
    found = trained.run("sample", "--model", "m", "--init", image, "--mask", tmp_path / "mask.png", *to)
    assert found["size"] == list(original.size)
    with Image.open(found["files"][0]) as opened:  # type: ignore[index]
        text, changed = opened.info["parameters"], np.asarray(opened.convert("RGB"))
    for part in (
        "Denoising strength: 0.75",
        "Mask blur: 4",
        f"DDPM enlarged: {original.width / 16:g}x",
    ):
        assert part in text
    assert f"Size: {original.width}x{original.height}" in text
    same = np.abs(changed.astype(int) - np.asarray(original)).max(2) == 0
    assert same[:40].all() and same[170:].all() and not same[80:120, 80:120].all()
    found = trained.run("sample", "--model", "m", "--init", image, "--denoising-strength", 0.5, *to)
    assert found["size"] == [16, 16]
    assert found["evaluations"] == 3
    found = trained.run("sample", "--model", "m", "--seed", 3, "--variation-seed", 9, "--variation-strength", 0.3, *to)
    with Image.open(found["files"][1]) as opened:  # type: ignore[index]
        assert "Seed: 3, Size: 16x16, Variation seed: 10, Variation seed strength: 0.3" in opened.info["parameters"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--init", "nowhere.png"], "There is no readable image nowhere.png"),
        (["--mask", "IMAGE"], "A mask needs the image that it belongs to"),
        (["--init", "IMAGE", "--denoising-strength", "nan"], "Denoising strength must be between 0 and 1"),
        (["--init", "IMAGE", "--denoising-strength", "1.1"], "Denoising strength must be between 0 and 1"),
        (["--init", "IMAGE", "--mask", "TEXT"], "cannot be edited"),
        (["--init", "TEXT"], "cannot be edited"),
        (["--init", "IMAGE", "--mask", "BLACK"], "The mask is empty"),
        (["--init", "IMAGE", "--mask-blur", "99"], "Mask blur must be between 0 and 64"),
        (["--init", "IMAGE", "--resamples", "0"], "Resamples must be between 1 and 10"),
        (["--variation-strength", "2"], "The variation strength must be between 0 and 1"),
        (["--init", "LONG"], "as long as it is wide"),
        (["--variation-seed", "-7", "--variation-strength", "0.5"], "The variation seed must be"),
    ],
)
def test_bad_input_gets_a_sentence(
    arguments: list[str], said: str, trained: CommandLine, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    Image.new("RGB", (900, 20)).save(tmp_path / "long.png")
    places = {
        "LONG": tmp_path / "long.png",
        "IMAGE": sorted(few.iterdir())[0],
        "TEXT": tmp_path / "text.png",
        "BLACK": tmp_path / "black.png",
    }
    given = [str(places.get(word, word)) for word in arguments]
    answer = trained.run("sample", "--model", "m", "--count", 1, "--out", tmp_path / "out", *given, code=2)
    assert said in str(answer["error"])


# -- between two samples ----------------------------------------------------------------------------------------------


def test_frames_go_from_one_sample_to_the_other(trained: CommandLine, tmp_path: Path) -> None:
    words = trained.run("models", "show", "m")["tags"]
    first, second = (word.split(" | ")[0] for word in words[:2])  # type: ignore[union-attr, index]
    shared = ["--model", "m", "--steps", 4, "--cfg-scale", 1]
    between = ["--seeds", 3, 8, "--frames", 5, "--prompt", first, "--to-prompt", second, "--out", tmp_path / "between"]
    found = trained.run("interpolate", *shared, *between)

    def read(path: str) -> np.ndarray:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB")).astype(int)

    frames = [read(path) for path in found["files"]]  # type: ignore[attr-defined]
    assert len(frames) == 5
    for frame, seed, prompt in ((frames[0], 3, first), (frames[-1], 8, second)):
        alone = trained.run(
            "sample", *shared, "--seed", seed, "--count", 1, "--prompt", prompt, "--out", tmp_path / f"{seed}"
        )
        assert np.abs(frame - read(alone["files"][0])).max() <= 1  # type: ignore[index]
    steps = [float(np.abs(a - b).mean()) for a, b in zip(frames, frames[1:])]
    assert min(steps) > 0 and max(steps) < 4 * min(steps), "no frame jumps"
    with Image.open(str(found["animation"])) as animation:
        assert animation.n_frames == 8 and animation.info["loop"] == 0  # there and back
    with Image.open(str(found["strip"])) as strip:
        assert strip.size == (5 * 16, 16)
    around = trained.run("interpolate", *shared, "--seeds", 3, 8, "--frames", 6, "--loop", "--out", tmp_path / "around")
    circle_frames = [read(path) for path in around["files"]]  # type: ignore[attr-defined]
    steps = [float(np.abs(a - b).mean()) for a, b in zip(circle_frames, [*circle_frames[1:], circle_frames[0]])]
    assert max(steps) < 4 * min(steps), "the last leads to the first"
    again = trained.run("interpolate", *shared, *between)
    assert not {*found["files"]} & {*again["files"]}, "no file is overwritten"  # type: ignore[misc]
    for bad, said in ((["--frames", 1], "between 2 and 1000"), (["--seeds", -1, 3], "The seeds must be")):
        answer = trained.run("interpolate", *shared, "--seeds", 1, 2, *bad, "--out", tmp_path / "bad", code=2)
        assert said in str(answer["error"])


def test_a_server_interpolates_in_the_background(trained: CommandLine) -> None:
    service = Service(StandaloneHost(trained.workspace))
    try:
        request = SampleRequest("m", steps=3, seed=5, variation_strength=0.5)
        job = service.start_interpolation(request, Interpolation(to_seed=6, frames=4))
        assert job.finished.wait(60) and job.state == "done", job.error
        results = job.artifacts["results"]
        assert len(results) == 4 and "DDPM frame: 2 of 4" in results[1].text and "DDPM to seed: 6" in results[1].text
        assert len(job.artifacts["frames"]) == 6, "there and back"
        assert "Variation" not in results[0].text
        with Image.open(io.BytesIO(service.watch.animation(job))) as animation:
            assert animation.n_frames == 6  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="Frames must be between 2 and 100"):
            service.start_interpolation(request, Interpolation(frames=1))
    finally:
        service.shutdown()
