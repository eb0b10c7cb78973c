"""Reading one image file: its pixels as a viewer shows them, and whether anybody can have meant them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from ddpm_core.dataset.checks import check_content
from ddpm_core.dataset.colour import Colours, of_code_points
from ddpm_core.dataset.reading import Rejected, decode

FIELD = DATA / "field"


def pixels(name: str) -> np.ndarray:
    return np.asarray(decode((DATA / "bad-inputs" / name).read_bytes(), 256).image, dtype=np.float64)


def test_odd_modes_become_the_right_rgb() -> None:
    plain = pixels("prompt-chinese.png")
    with Image.open(DATA / "bad-inputs" / "alpha.png") as image:
        rgba = np.asarray(image, dtype=np.float64)
    alpha = rgba[:, :, 3:] / 255
    assert alpha.min() < 0.9
    assert np.abs(pixels("alpha.png") - (alpha * rgba[:, :, :3] + (1 - alpha) * 255)).max() <= 1.5  # on white
    # alpha of 254 and 255 hides text in its last bit: dropped, the colours untouched
    stealthy = np.dstack([plain, np.random.default_rng(0).integers(254, 256, plain.shape[:2])]).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(stealthy, "RGBA").save(out, "PNG")
    assert np.abs(np.asarray(decode(out.getvalue(), 256).image, dtype=np.float64) - plain).max() == 0
    grey = plain @ [0.299, 0.587, 0.114]
    assert np.abs(pixels("sixteen-bit.png").mean(2) - grey).mean() < 3  # scaled, not clipped to white
    assert np.abs(pixels("cmyk.jpg") - plain).mean() < 12
    with Image.open(DATA / "bad-inputs" / "exif-rotated.jpg") as image:
        stored, upright = (
            np.asarray(i.convert("RGB"), dtype=np.float64) for i in (image, ImageOps.exif_transpose(image))
        )
    assert np.abs(pixels("exif-rotated.jpg") - upright).max() == 0
    assert np.abs(pixels("exif-rotated.jpg") - stored).mean() > 5
    with Image.open(DATA / "bad-inputs" / "palette-transparent.png") as image:
        clear = np.asarray(image.convert("RGBA"))[:, :, 3] == 0
    assert clear.any() and pixels("palette-transparent.png")[clear].min() == 255  # transparent shows white


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_on_its_side_becomes_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    spots = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(spots, "RGB").resize((256, 219))  # sides that no factor divides
    lying, upright = io.BytesIO(), io.BytesIO()
    image.save(lying, "PNG", exif=exif)
    with Image.open(lying) as again:
        ImageOps.exif_transpose(again).save(upright, "PNG")
    ours, theirs = (decode(file.getvalue(), 50).image for file in (lying, upright))

    def apart(other: Image.Image) -> float:
        return float(np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(other)).mean())

    assert ours.size == theirs.size
    assert apart(theirs) < 2  # each averages from its own corner
    assert min(apart(ImageOps.mirror(theirs)), apart(ImageOps.flip(theirs))) > 20


@pytest.mark.parametrize("kind", ["black", "white", "one colour", "nearly black"])
def test_blank_of_any_colour(kind: str) -> None:
    value = {"black": 0, "white": 255, "one colour": 90, "nearly black": 1}[kind]
    with pytest.raises(Rejected) as caught:
        check_content(Image.new("RGB", (128, 96), (value, value, value // 2 if kind == "one colour" else value)))
    assert caught.value.reason == "blank"


def noise(kind: str) -> Image.Image:
    rng = np.random.default_rng(1)
    shape = (256, 256, 3)
    if kind.startswith("blocks"):
        side = int(kind.split()[-1])
        values = np.kron(rng.integers(0, 256, (256 // side, 256 // side, 3)), np.ones((side, side, 1)))
    else:
        values = {
            "uniform": rng.integers(0, 256, shape),
            "gaussian": rng.normal(128, 60, shape),
            "faint": rng.normal(128, 6, shape),
            "grey": np.repeat(rng.normal(128, 50, (256, 256, 1)), 3, 2),
            "salt and pepper": 255 * (rng.random((256, 256, 1)) > 0.5) * np.ones(3),
            "one channel": rng.integers(0, 256, shape) * np.array([1, 0, 0]),
        }[kind]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("container", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_coloured_noise_is_certain(kind: str, container: str) -> None:
    out = io.BytesIO()
    noise(kind).save(out, container, **({"quality": 90} if container != "PNG" else {}))
    with pytest.raises(Rejected) as caught:
        check_content(decode(out.getvalue(), 256).image)
    assert caught.value.reason == "noise"


@pytest.mark.parametrize("kind", ["grey", "salt and pepper", "faint", "blocks of 2", "blocks of 8", "one channel"])
def test_what_somebody_may_have_meant_is_not_certain(kind: str) -> None:
    """Gravel, snow, static, a mosaic: test_suspects.py holds that they rank first."""
    check_content(noise(kind))


@pytest.mark.parametrize("path", sorted((FIELD / "taken-for-noise").glob("*.png")), ids=lambda path: path.stem)
def test_stars_confetti_fog_and_stickers_are_pictures(path: Path) -> None:
    check_content(decode(path.read_bytes(), 256).image)


def test_snow_gravel_and_fine_texture_are_pictures() -> None:
    rng = np.random.default_rng(3)
    snow = np.full((256, 256), 60.0)
    snow[rng.integers(0, 256, 900), rng.integers(0, 256, 900)] = 250
    stones = np.kron(rng.normal(128, 40, (64, 64)), np.ones((4, 4)))
    for values in (snow, stones, rng.normal(128, 12, (256, 256)), rng.normal(128, 40, (256, 256))):
        check_content(Image.fromarray(np.repeat(values[:, :, None], 3, 2).clip(0, 255).astype(np.uint8)))


def test_ordinary_rarities_are_no_noise() -> None:
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    rng = np.random.default_rng(2)
    for values in (
        128 + 100 * np.sin(x / 3),
        255 * ((x // 16 + y // 16) % 2),
        np.hypot(x - 128, y - 128),
        255 * (x > 250),
        128 + 60 * np.sin(x / 40) + rng.normal(0, 40, x.shape),
    ):
        check_content(Image.fromarray(np.repeat(values[:, :, None], 3, 2).clip(0, 255).astype(np.uint8)))


@given(st.binary(min_size=0, max_size=60), st.integers(0, 4000))
@settings(max_examples=150, deadline=None)
def test_a_damaged_image_is_a_picture_or_a_rejection(noise: bytes, place: int) -> None:
    data = bytearray((DATA / "bad-inputs" / "prompt-chinese.png").read_bytes())
    data[place : place + len(noise)] = noise
    try:
        assert decode(bytes(data), 64).image.mode == "RGB"
    except Rejected as why:
        assert why.message


def test_shrinking_by_half_averages(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    found = np.asarray(decode(out.getvalue(), 256).image, dtype=float)
    wanted = pixels.reshape(256, 2, 256, 2, 3).astype(float).mean((1, 3))
    assert np.abs(found - wanted).max() <= 1


def test_text_over_the_bound_is_dropped_and_the_picture_kept() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 200_000)
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "PNG", pnginfo=info)
    picture = decode(out.getvalue(), 64)
    assert picture.texts == {} and picture.image.size == (64, 64)
    assert zlib.crc32(picture.image.tobytes())  # pixels are there


# -- colours ------------------------------------------------------------------------------------------------------------------


def encoded(light: np.ndarray) -> np.ndarray:
    """sRGB's curve (IEC 61966-2-1), 0..255."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def png(image: Image.Image, *chunks: tuple[bytes, bytes], **options: object) -> bytes:
    """The PNG of an image with further chunks behind its header."""
    out = io.BytesIO()
    image.save(out, "PNG", **options)  # type: ignore[arg-type]
    data = out.getvalue()
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:33] + more + data[33:]


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, 256).image, dtype=np.float64)


@pytest.fixture(scope="module")
def colours() -> Image.Image:
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3)
    return Image.fromarray(grid)


@pytest.mark.parametrize("name", ["p3.png", "adobe.jpg"])
def test_a_profile_is_converted_to_srgb(name: str) -> None:
    plain = shown((FIELD / "wide-gamut" / "a-plain-srgb.png").read_bytes())
    with Image.open(FIELD / "wide-gamut" / name) as image:
        dropped = np.asarray(image.convert("RGB"), dtype=np.float64)
    assert np.abs(dropped - plain).mean() > 5
    assert np.abs(shown((FIELD / "wide-gamut" / name).read_bytes()) - plain).mean() < 1


def test_an_srgb_profile_changes_no_pixel(colours: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(shown(png(colours, icc_profile=profile)), np.asarray(colours))


@pytest.mark.parametrize("profile", [b"", b"no profile", b"x" * 100_000], ids=["empty", "short", "long"])
def test_a_profile_that_is_none_is_passed_over(colours: Image.Image, profile: bytes) -> None:
    body = b"name\0\0" + zlib.compress(profile)
    assert np.array_equal(shown(png(colours, (b"iCCP", body))), np.asarray(colours))
    assert np.array_equal(shown(png(colours, (b"iCCP", body[:-4]))), np.asarray(colours))


@pytest.mark.parametrize("stored", [1.0, 1 / 1.8, 0.55])
def test_gamma_becomes_that_of_srgb(colours: Image.Image, stored: float) -> None:
    """PNG 3rd edition, 11.3.2.2: a sample is light to the power of what gAMA says; in float64."""
    found = shown(png(colours, (b"gAMA", struct.pack(">I", round(stored * 100_000)))))
    wanted = encoded((np.asarray(colours) / 255) ** (1 / stored))
    assert np.abs(found - wanted).max() <= 1.5


def test_the_usual_gamma_is_srgb(colours: Image.Image) -> None:
    assert np.array_equal(shown(png(colours, (b"gAMA", struct.pack(">I", 45455)))), np.asarray(colours))


def test_numbers_count_in_the_order_of_the_specification(colours: Image.Image) -> None:
    """cICP before iCCP before sRGB before gAMA and cHRM (PNG 3rd edition, 4.3)."""
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    assert np.array_equal(shown(png(colours, (b"sRGB", b"\0"), gamma)), np.asarray(colours))
    by_number = shown(png(colours, (b"cICP", bytes((12, 13, 0, 1))), (b"sRGB", b"\0")))
    assert np.abs(by_number - p3_reference(colours)).max() <= 1.5


def p3_reference(colours: Image.Image) -> np.ndarray:
    """Display P3 in sRGB, by the matrices of CSS Color 4, in float64."""
    values = np.asarray(colours, dtype=np.float64) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]]
    from_xyz = [
        [3.2409699, -1.5373832, -0.4986108],
        [-0.9692436, 1.8759675, 0.0415551],
        [0.0556301, -0.2039770, 1.0569715],
    ]
    return encoded(light @ (np.array(from_xyz) @ np.array(to_xyz)).T)


def test_primaries_become_those_of_srgb(colours: Image.Image) -> None:
    places = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    found = shown(png(colours, (b"cHRM", struct.pack(">8I", *places))))
    assert np.abs(found - p3_reference(colours)).max() <= 1.5
    overflowing = (30_000, 32_900, 1, 30_000, 0, 32_900, 1, 31_270)
    assert np.array_equal(shown(png(colours, (b"cHRM", struct.pack(">8I", *overflowing)))), np.asarray(colours))
    broken = (b"cHRM", struct.pack(">8I", *([0] * 8)))
    assert np.array_equal(shown(png(colours, broken)), np.asarray(colours))


def test_high_dynamic_range_stays_as_it_is() -> None:
    assert of_code_points(9, 16) == Colours() and of_code_points(2, 2) == Colours()
    assert Colours().icc == b""


def test_linear_and_transparent_grey_are_shown_as_viewers_do() -> None:
    path = FIELD / "odd-pictures" / "gamma-linear.png"
    with Image.open(path) as image:
        raw = np.asarray(image, dtype=np.float64)
    assert np.abs(shown(path.read_bytes()) - encoded(raw / 255)).max() <= 1.5
    path = FIELD / "odd-pictures" / "grey16-trns.png"
    with Image.open(path) as image:
        deep, clear = np.asarray(image), image.info["transparency"]
    found = shown(path.read_bytes())
    assert (deep == clear).any() and found[deep == clear].min() == 255
    assert np.abs(found[deep != clear].mean(1) - deep[deep != clear] / 257).max() <= 0.51


def test_a_grey_profile_and_one_of_alpha(colours: Image.Image) -> None:
    grey = colours.convert("L")
    linear = (b"gAMA", struct.pack(">I", 100_000))
    wanted = encoded(np.asarray(grey)[..., None].repeat(3, 2) / 255)
    assert np.abs(shown(png(grey, linear)) - wanted).max() <= 1.5
    with_alpha = colours.copy()
    with_alpha.putalpha(128)
    half = shown(png(with_alpha, (b"gAMA", struct.pack(">I", 45455))))
    assert np.abs(half - (np.asarray(colours, dtype=np.float64) * 128 / 255 + 255 * 127 / 255)).max() <= 1.5


def test_a_white_sticker_is_seen_and_others_stand_on_white() -> None:
    sticker = decode((FIELD / "taken-for-noise" / "white-sticker-rgba.png").read_bytes(), 256).image
    assert sticker.getextrema() == ((128, 255),) * 3
    red = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    red.paste((255, 0, 0, 255), (16, 16, 48, 48))
    out = io.BytesIO()
    red.save(out, "PNG")
    assert decode(out.getvalue(), 64).image.getpixel((0, 0)) == (255, 255, 255)


def test_the_size_is_that_of_the_upright_picture() -> None:
    picture = decode((FIELD / "rotated" / "p.jpg").read_bytes(), 256)
    assert (picture.width, picture.height) == picture.image.size == (96, 128)
