"""Editing images: what the model sees of them, masks, putting back; by the command line and a server; between two samples."""

from __future__ import annotations

import dataclasses
import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandLine
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ddpm_core.errors import UserError
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.operations.editing import Canvas, filled, open_image, open_mask
from ddpm_core.operations.pictures import enlarge_plainly
from ddpm_core.requests import Edit, Interpolation, SampleRequest
from ddpm_core.service import Service
from ddpm_core.workspace import Workspace

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
    assert "Sampler: DDIM" in text and "DDPM eta: 0" in text and "DDPM resamples: 8" in text
    assert made("--steps", 20, "--sampler", "ddim")[1] == pixels, "and so its text makes it again"
    text, _ = made("--steps", 4)
    assert "Sampler: DPM++ 2M" in text and "resamples" not in text
    # without a mask once, unless words are asked for, which the image shall come to show
    given = given[: given.index("--mask")]
    text, _ = made("--steps", 20)
    assert "Sampler: DPM++ 2M" in text and "resamples" not in text
    config = Workspace(trained.workspace).model_config("m")
    word = config.tags[0].split(" | ")[0]
    text, _ = made("--steps", 20, "--prompt", word)
    assert "Sampler: DDIM" in text and "DDPM resamples: 8" in text


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
