"""Harvesting: what is kept, rejected, skipped; what is unusual; undo; what can never happen to a person's files."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, random_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from ddpm_core.dataset import infotext
from ddpm_core.dataset.checks import check_content
from ddpm_core.dataset.harvest import harvest
from ddpm_core.dataset.reading import Rejected, decode, decode_user_comment
from ddpm_core.dataset.store import Store
from ddpm_core.dataset.views import VIEWS, Views
from ddpm_core.errors import UserError


@pytest.fixture(scope="module")
def harvested(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, object]]:
    store = Store(tmp_path_factory.mktemp("dataset"))
    return store, harvest(store, [portraits]).to_json()


def test_all_certain_ghosts_and_no_good_picture_are_rejected(
    harvested: tuple[Store, dict[str, object]], portraits: Path, ghosts: dict[str, str]
) -> None:
    store, result = harvested
    assert result["found"] == 1000 and result["added"] == 1000
    assert result["kept"] == 986
    assert result["rejected"] == {"blank": 7, "noise": 7}
    assert result["skipped"] == {"grid": 3}
    for item in store.items(status="rejected"):
        kind = ghosts[str(Path(item["source"]).relative_to(portraits.resolve()))]
        assert kind == {"blank": "black", "noise": "noise"}[item["reason"]]
        assert item["message"].endswith(".")


def test_the_other_ghosts_are_among_the_first_suspects(
    harvested: tuple[Store, dict[str, object]], portraits: Path, ghosts: dict[str, str]
) -> None:
    store, _ = harvested
    first = store.items(status="kept", by_suspicion=True, limit=60)
    found = sum(str(Path(item["source"]).relative_to(portraits.resolve())) in ghosts for item in first)
    assert found >= 12
    assert [i["suspicion"] for i in first] == sorted((i["suspicion"] for i in first), reverse=True)


def test_prompts_of_png_jpeg_and_webp_are_read(harvested: tuple[Store, dict[str, object]]) -> None:
    item = harvested[0].items(limit=1)[0]
    assert item["prompt"].startswith("portrait of a person, facing viewer")
    assert item["negative_prompt"] == "lowres, bad anatomy, bad hands, text"
    assert item["settings"]["Sampler"] == "DPM++ 2M"


def test_harvesting_again_adds_nothing_and_is_quick(
    harvested: tuple[Store, dict[str, object]], portraits: Path
) -> None:
    store, first = harvested
    again = harvest(store, [portraits])
    assert again.added == 0 and again.found == 1000
    assert again.seconds < 0.2 * float(first["seconds"])  # type: ignore[arg-type]


def test_the_sources_are_never_touched(portraits: Path, tmp_path: Path) -> None:
    def state() -> str:
        digest = hashlib.sha256()
        for path in sorted(portraits.rglob("*")):
            status = path.stat()
            digest.update(
                f"{path}{status.st_mtime_ns}{status.st_mode}".encode() + (path.read_bytes() if path.is_file() else b"")
            )
        return digest.hexdigest()

    before = state()
    harvest(Store(tmp_path / "d"), [portraits])
    assert state() == before


# -- bad and odd input --------------------------------------------------------------------------------------------------------

EXPECTED = {
    "truncated.png": "undecodable",
    "bit-flipped.png": "undecodable",
    "zero-bytes.png": "undecodable",
    "text-renamed.png": "undecodable",
    "bomb-30000x30000.png": "bomb",
    "text-bomb.png": "",
    "one-pixel.png": "too_small",
    "very-wide.png": "extreme_aspect",
    "sixteen-bit.png": "",
    "cmyk.jpg": "",
    "alpha.png": "",
    "palette-transparent.png": "",
    "exif-rotated.jpg": "",
    "animated.webp": "",
    "animated.gif": "",
    "prompt-with-quotes-and-colons.png": "",
    "prompt-multiline-no-negative.png": "",
    "prompt-chinese.png": "",
    "infotext-garbage.png": "",
    "html-in-prompt.png": "",
    "UPPERCASE.PNG": "",
    "名前 with spaces & ünïcode.png": "duplicate",
}


def test_every_bad_input_ends_as_it_should(tmp_path: Path) -> None:
    store = Store(tmp_path / "d")
    tracemalloc.start()
    result = harvest(store, [DATA / "bad-inputs"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20  # the text bomb alone inflates to 80 MB, the picture bomb to 2.7 GB
    items = {Path(item["source"]).name: item for item in store.items()}
    assert {name: item["reason"] for name, item in items.items()} == EXPECTED
    assert all(item["message"] for item in items.values() if item["reason"])
    assert result.found == len(EXPECTED)
    assert items["text-bomb.png"]["prompt"] == ""
    assert items["prompt-chinese.png"]["prompt"] == "一个美丽的女孩, 面部特写, 看着观众, 微笑 😀"
    assert (
        items["prompt-with-quotes-and-colons.png"]["prompt"] == 'a sign that says "Steps: 9, Seed: 1", <lora:foo:0.8>'
    )
    assert items["prompt-with-quotes-and-colons.png"]["settings"]["Lora hashes"] == "foo: abc, bar: def"
    assert items["prompt-multiline-no-negative.png"]["prompt"] == "line one,\n\nline two (weight:1.2), [a|b]"
    assert items["html-in-prompt.png"]["prompt"] == "<img src=x onerror=alert(1)>, <script>alert(2)</script>"


def test_the_duplicate_is_kept_where_it_is_alone(tmp_path: Path) -> None:
    name = "名前 with spaces & ünïcode.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes((DATA / "bad-inputs" / name).read_bytes())
    store = Store(tmp_path / "d")
    assert harvest(store, [tmp_path / "in"]).kept == 1


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


@pytest.mark.skipif(os.name == "nt", reason="no FIFOs and no plain links on Windows")
def test_what_is_no_file_is_passed_over_and_never_hangs(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    random_pictures(folder, 3)
    random_pictures(outside, 1, seed=9)
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "out.png").symlink_to(outside / "00000-0.png")
    (folder / "inside.png").symlink_to(folder / "00000-0.png")
    (folder / "outdir").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "x.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    store = Store(tmp_path / "d")
    result = harvest(store, [folder])
    assert result.kept == 3
    assert result.duplicates == 1  # the link within the folder
    assert result.skipped == {"broken_link": 1, "link_outside": 2, "not_a_file": 3}


def test_grids_masks_intermediates_temporaries_and_our_own_are_passed_over(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 12)
    names = [
        "grid-0001.png",
        "00003-5-mask.png",
        "00003-5-mask-composite.png",
        "00003-5-before-highres-fix.png",
        "00003-5-before-color-correction.png",
        "00003-5-before-face-restoration.png",
        "00009.png.tmp",
        "xyz_grid-0001-7.png",
    ]
    pictures = sorted(folder.glob("*.png"))
    for picture, name in zip(pictures, names):
        picture.rename(folder / name)
    own = PngImagePlugin.PngInfo()
    own.add_text("parameters", "Steps: 20, Sampler: DPM++ 2M, Seed: 1, Size: 48x48, DDPM model: me")
    with Image.open(pictures[-1]) as image:
        image.copy().save(pictures[-1], pnginfo=own)
    result = harvest(Store(tmp_path / "d"), [folder])
    assert result.skipped == {"grid": 2, "mask": 2, "intermediate": 3, "temporary": 1, "own": 1}
    assert result.kept == 3


@pytest.mark.parametrize("kind", ["black", "white", "one colour", "nearly black"])
def test_blank_of_any_colour(kind: str) -> None:
    value = {"black": 0, "white": 255, "one colour": 90, "nearly black": 1}[kind]
    with pytest.raises(Rejected) as caught:
        check_content(Image.new("RGB", (128, 96), (value, value, value // 2 if kind == "one colour" else value)))
    assert caught.value.reason == "blank"


@pytest.mark.parametrize(
    "kind",
    [
        "uniform",
        "gaussian",
        "grey",
        "salt and pepper",
        "faint",
        "blocks of 2",
        "blocks of 4",
        "blocks of 8",
        "one channel",
    ],
)
def test_noise_of_many_kinds(kind: str) -> None:
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
    with pytest.raises(Rejected) as caught:
        check_content(Image.fromarray(values.clip(0, 255).astype(np.uint8)))
    assert caught.value.reason == "noise"


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


def test_near_duplicates_are_grouped_mirrored_ones_too_and_kept(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 20, side=96)
    with Image.open(folder / "00003-3.png") as image:
        image.resize((90, 90)).save(folder / "smaller.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    store = Store(tmp_path / "d")
    assert harvest(store, [folder]).kept == 22
    groups = {Path(i["source"]).name: i["twin_group"] for i in store.items()}
    assert groups["00003-3.png"] == groups["smaller.png"] == groups["mirrored.png"] is not None
    assert sum(g is not None for g in groups.values()) == 3


def test_undo_goes_back_step_by_step_also_later(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 6)
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    before = store.items()
    assert store.decide([1, 2], "rejected", "user", "no") == 2
    assert store.decide([3], "rejected", "user", "no") == 1
    assert store.decide([1], "kept") == 1
    store.close()
    store = Store(tmp_path / "d")  # a restart
    assert [i["status"] for i in store.items()] == ["kept", "rejected", "rejected", "kept", "kept", "kept"]
    assert store.undo() == [1]
    assert store.undo() == [3]
    assert sorted(store.undo()) == [1, 2]
    assert store.undo() == []
    assert store.items() == before


def test_a_changed_file_is_a_new_item_and_a_touched_one_is_not(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 2)
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    os.utime(folder / "00000-0.png", ns=(1, 1))
    assert harvest(store, [folder]).added == 0
    (folder / "00001-1.png").write_bytes(
        random_pictures(tmp_path / "other", 1, seed=7).joinpath("00000-0.png").read_bytes()
    )
    assert harvest(store, [folder]).added == 1


def test_a_fingerprint_names_the_exact_kept_set(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 5)
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    first = store.fingerprint()
    store.decide([2], "rejected", "user", "")
    assert store.fingerprint() != first
    store.undo()
    assert store.fingerprint() == first
    elsewhere = Store(tmp_path / "e")
    harvest(elsewhere, [random_pictures(tmp_path / "elsewhere", 5)])
    assert elsewhere.fingerprint() == first


def test_a_foreign_or_newer_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="damaged"):
        Store(tmp_path / "d")
    store = Store(tmp_path / "e")
    with store.transaction() as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    store.close()
    with pytest.raises(UserError, match="newer"):
        Store(tmp_path / "e")


# -- generation text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, prompt, negative, settings_",
    [
        (
            "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 5",
            "a cat",
            "dog",
            {"Steps": "20", "Sampler": "Euler a", "Seed": "5"},
        ),
        (
            "a cat\nSteps: 20, Sampler: Euler a, Seed: 5",
            "a cat",
            "",
            {"Steps": "20", "Sampler": "Euler a", "Seed": "5"},
        ),
        ("Steps: 20, Seed: 5", "Steps: 20, Seed: 5", "", {}),  # fewer than three pairs are prompt
        (
            "one\n\ntwo\nNegative prompt: a\nb\nSteps: 1, Seed: 2, Size: 3x4",
            "one\n\ntwo",
            "a\nb",
            {"Steps": "1", "Seed": "2", "Size": "3x4"},
        ),
        ("Negative prompt: only\nSteps: 1, Seed: 2, Size: 3x4", "", "only", {"Steps": "1", "Seed": "2", "Size": "3x4"}),
        (
            'p\nSteps: 1, Seed: 2, Hashes: "a: b, c: d", Version: v1',
            "p",
            "",
            {"Steps": "1", "Seed": "2", "Hashes": "a: b, c: d", "Version": "v1"},
        ),
        ("", "", "", {}),
    ],
)
def test_generation_text_is_parsed_as_the_webui_does(
    text: str, prompt: str, negative: str, settings_: dict[str, str]
) -> None:
    assert infotext.parse(text) == infotext.Infotext(prompt, negative, settings_)


words = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), min_size=1, max_size=12)
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9 ]{1,10}[A-Za-z]", fullmatch=True)


@given(
    prompt=words,
    negative=words,
    values=st.dictionaries(
        keys,
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20).map(str.strip).filter(bool),
        min_size=3,
        max_size=6,
    ),
)
@settings(max_examples=200, deadline=None)
def test_generation_text_round_trips(prompt: str, negative: str, values: dict[str, str]) -> None:
    info = infotext.Infotext(prompt, negative, values)
    if (
        prompt.startswith(infotext.NEGATIVE)
        or infotext.parse(infotext.build(infotext.Infotext(prompt, negative, {}))).settings
    ):
        return
    assert infotext.parse(infotext.build(info)) == info


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed(text: str) -> None:
    infotext.parse(text)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_comment_is_decoded(raw: bytes) -> None:
    decode_user_comment(raw)
    decode_user_comment(b"UNICODE\0" + raw)


def test_user_comments_of_either_byte_order() -> None:
    for codec in ("utf-16-be", "utf-16-le", "utf-16"):
        assert decode_user_comment(b"UNICODE\0" + "a portrait, 肖像".encode(codec)) == "a portrait, 肖像"


@pytest.mark.parametrize("chunk", ["tEXt", "zTXt", "iTXt"])
def test_png_texts_of_all_three_kinds(chunk: str) -> None:
    info = PngImagePlugin.PngInfo()
    if chunk == "iTXt":
        info.add_itxt("parameters", "a 猫", zip=True)
    else:
        info.add_text("parameters", "a cat", zip=chunk == "zTXt")
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG", pnginfo=info)
    assert decode(out.getvalue(), 64).text == ("a 猫" if chunk == "iTXt" else "a cat")


@given(st.binary(min_size=0, max_size=60), st.integers(0, 4000))
@settings(max_examples=150, deadline=None)
def test_a_damaged_image_is_a_picture_or_a_rejection(noise: bytes, place: int) -> None:
    data = bytearray((DATA / "bad-inputs" / "prompt-chinese.png").read_bytes())
    data[place : place + len(noise)] = noise
    try:
        assert decode(bytes(data), 64).image.mode == "RGB"
    except Rejected as why:
        assert why.message


def test_a_sidecar_gives_the_prompt(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 1)
    (folder / "00000-0.txt").write_text("a sidecar prompt", encoding="utf-8")
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    assert store.items()[0]["prompt"] == "a sidecar prompt"


def test_copies_are_lossless_and_those_of_before_stay_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG copies, from before or from a Pillow without WebP, beside WebP ones."""
    folder = random_pictures(tmp_path / "in", 2)
    store = Store(tmp_path / "d")
    with monkeypatch.context() as without:
        without.setattr("ddpm_core.dataset.store._writes_webp", lambda: False)
        harvest(store, [folder])
    harvest(store, [random_pictures(folder / "more", 2, seed=1)])
    kinds = set()
    for item in store.items():
        copy = store.copy_path(item["sha256"])
        kinds.add(copy.suffix)
        with Image.open(copy) as mine, Image.open(item["source"]) as source:
            assert mine.mode == "RGB" and mine.tobytes() == source.convert("RGB").tobytes()
    assert kinds == {".png", ".webp"}


def test_shrinking_by_half_averages(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    found = np.asarray(decode(out.getvalue(), 256).image, dtype=float)
    wanted = pixels.reshape(256, 2, 256, 2, 3).astype(float).mean((1, 3))
    assert np.abs(found - wanted).max() <= 1


def test_database_is_plain_sqlite_in_wal_mode(tmp_path: Path) -> None:
    Store(tmp_path / "d")
    assert sqlite3.connect(tmp_path / "d" / "dataset.sqlite").execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_text_over_the_bound_is_dropped_and_the_picture_kept() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 200_000)
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "PNG", pnginfo=info)
    picture = decode(out.getvalue(), 64)
    assert picture.text == "" and picture.image.size == (64, 64)
    assert zlib.crc32(picture.image.tobytes())  # pixels are there


def test_a_page_of_a_review_follows_every_change_of_whoever_makes_it(tmp_path: Path) -> None:
    """Pages by remembered ids are those that the database itself would order, also after another process wrote."""
    store, other = Store(tmp_path / "d"), Store(tmp_path / "d")
    harvest(store, [random_pictures(tmp_path / "in", 30)])
    views = Views()

    def agree() -> None:
        for view, which in VIEWS.items():
            wanted = store.items(**which)
            pages = [views.page(store, view, number, 7)[0] for number in range(6)]
            assert [item for page in pages for item in page] == wanted
            _, total, counts = views.page(store, view, 99, 7)
            assert total == len(wanted) and counts == store.counts()

    agree()
    other.decide([3, 5], "rejected", "user", "")
    agree()
    other.undo()
    with other.transaction() as db:
        db.execute("UPDATE items SET twin_group = id % 3, suspicion = NULL WHERE id > 20")
    agree()
    harvest(other, [random_pictures(tmp_path / "more", 5, seed=4)])
    agree()
    with pytest.raises(UserError, match="no view"):
        views.page(store, "best", 0, 10)
