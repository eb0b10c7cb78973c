"""Harvesting: what is kept, rejected, skipped; what is unusual; undo; what can never happen to a person's files."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import DATA, CommandLine, random_pictures
from PIL import Image, PngImagePlugin

from ddpm_core.dataset.harvest import harvest
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
    "text-bomb.png": "duplicate",  # the same pixels
    "one-pixel.png": "too_small",
    "very-wide.png": "extreme_aspect",
    "sixteen-bit.png": "",
    "cmyk.jpg": "",
    "alpha.png": "",
    "palette-transparent.png": "",
    "exif-rotated.jpg": "",
    "animated.webp": "",
    "animated.gif": "",
    "prompt-with-quotes-and-colons.png": "duplicate",  # the same pixels
    "prompt-multiline-no-negative.png": "duplicate",  # the same pixels
    "prompt-chinese.png": "duplicate",  # the same pixels
    "infotext-garbage.png": "duplicate",  # the same pixels
    "html-in-prompt.png": "duplicate",  # the same pixels
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
        without.setattr("ddpm_core.dataset.copies._writes_webp", lambda: False)
        harvest(store, [folder])
    harvest(store, [random_pictures(folder / "more", 2, seed=1)])
    kinds = set()
    for item in store.items():
        copy = store.copy_path(item["sha256"])
        kinds.add(copy.suffix)
        with Image.open(copy) as mine, Image.open(item["source"]) as source:
            assert mine.mode == "RGB" and mine.tobytes() == source.convert("RGB").tobytes()
    assert kinds == {".png", ".webp"}


def test_database_is_plain_sqlite_in_wal_mode(tmp_path: Path) -> None:
    Store(tmp_path / "d")
    assert sqlite3.connect(tmp_path / "d" / "dataset.sqlite").execute("PRAGMA journal_mode").fetchone()[0] == "wal"


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


# -- folders and files as people have them ------------------------------------------------------------------------------------


def copies(folder: Path, names: Sequence[str], side: int = 48) -> None:
    """A different picture under each name, of the container that the name asks for where Pillow knows it."""
    for number, name in enumerate(names):
        picture = random_pictures(folder / ".made", 1, side, seed=number) / "00000-0.png"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".jpg_large": "JPEG", ".webp": "WEBP"}.get(target.suffix, "PNG")
        with Image.open(picture) as image:
            image.save(target, kind)
        picture.unlink()
        picture.parent.rmdir()


def test_bins_and_thumbnails_are_passed_over_and_counted(tmp_path: Path) -> None:
    mine = ["0.png", "sub/1.png", "Trash bin designs/2.png"]
    bins = ["$RECYCLE.BIN/S-1-5-21/$R.png", "#recycle/a.png", ".Trash-1000/files/b.png"]
    thumbnails = ["@eaDir/0.png/THUMB.jpe", "thumbnails/0.webp", ".thumbnails/normal/c.png"]
    copies(tmp_path / "in", [*mine, *bins, *thumbnails, ".cache/d.png", "sub/.ipynb_checkpoints/1-checkpoint.png"])
    result = harvest(Store(tmp_path / "d"), [tmp_path / "in"])
    assert result.kept == 3
    assert result.skipped == {"in_bin": 3, "thumbnail": 3, "hidden": 2}
    named = harvest(Store(tmp_path / "e"), [tmp_path / "in" / "thumbnails"])  # asked for by name
    assert named.kept == 1


def test_names_are_known_by_their_whole_pattern(tmp_path: Path) -> None:
    mine = [
        "venetian-mask",
        "00012-77-a woman with a gas-mask",
        "lake-before-sunset",
        "room-before-and-after",
        "grid-girl",
    ]
    mine += ["girl-before-mirror", "a grid-like city", "masked", "gridlock-2024", "portrait-mask-composition"]
    theirs = [
        "00004-9-mask",
        "00004-9-mask-composite",
        "00004-9-before-highres-fix",
        "00004-9-a cat-before-color-correction",
    ]
    theirs += ["grid", "grid-0001", "grid-0012-77-a cat", "xyz_grid-0001-5", "prompt_matrix-1", "00004-9-ad-before"]
    copies(tmp_path / "in", [f"{name}.png" for name in [*mine, *theirs]])
    store = Store(tmp_path / "d")
    result = harvest(store, [tmp_path / "in"])
    assert {Path(item["source"]).stem for item in store.items()} == set(mine)
    assert result.skipped == {"mask": 2, "intermediate": 3, "grid": 5}


def test_endings_of_every_kind(tmp_path: Path) -> None:
    copies(tmp_path / "in", ["a.jfif", "b.jpe", "d.apng", "e.jpg_large", "noending", "f.PNG"])
    for name in ("c.tif", "c2.tiff", "g.heic", "h.jxl", "i.jp2"):
        (tmp_path / "in" / name).write_bytes(b"whatever")
    (tmp_path / "in" / "README").write_text("no image")
    result = harvest(Store(tmp_path / "d"), [tmp_path / "in"])
    assert result.kept == 6
    assert result.skipped == {"unsupported_tif": 2, "unsupported_heic": 1, "unsupported_jxl": 1, "unsupported_jp2": 1}


def test_equal_pixels_are_duplicates_in_any_container(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 1, 64)
    with Image.open(folder / "00000-0.png") as image:
        plain = image.copy()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler, Seed: 3, Size: 64x64")
    plain.save(folder / "b.png", pnginfo=info)
    plain.save(folder / "c.webp", lossless=True)
    plain.save(folder / "d.bmp")
    plain.resize((128, 128)).save(folder / "e.png")  # larger: no equal
    store = Store(tmp_path / "d")
    result = harvest(store, [folder])
    assert (result.kept, result.duplicates) == (2, 3)
    assert [item["message"] for item in store.items(status="rejected")] == [
        "Exactly the same image as 00000-0.png."
    ] * 3
    assert store.items(ids=[1])[0]["prompt"] == "a cat"  # whichever of them came first
    assert store.decide([2], "kept") == 1  # by its copy, should a person want it


def test_small_pictures_are_kept_where_most_are_small(tmp_path: Path) -> None:
    sprites = random_pictures(tmp_path / "sprites", 12, 16)
    random_pictures(tmp_path / "portraits", 12, 64, seed=1)
    store = Store(tmp_path / "d")
    result = harvest(store, [sprites])
    assert (result.kept, result.rejected) == (12, {})
    harvest(store, [tmp_path / "portraits"])
    assert store.counts() == {"items": 24, "kept": 12, "rejected": {"too_small": 12}}  # it is one of portraits now
    assert store.decide([1, 2], "kept") == 2  # a person's word
    copies(tmp_path / "portraits", ["again.png"], 80)
    harvest(store, [tmp_path / "portraits"])
    assert store.counts()["kept"] == 15


def test_a_few_small_pictures_are_rejected_and_can_be_kept(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 5, 64)
    copies(folder, ["icon.png"], 20)
    copies(folder, ["dot.png"], 12)
    store = Store(tmp_path / "d")
    result = harvest(store, [folder])
    assert result.rejected == {"too_small": 2} and "keep them" in result.notes[0]
    small = {Path(item["source"]).stem: item["id"] for item in store.items(status="rejected")}
    assert store.decide([small["icon"]], "kept") == 1
    with pytest.raises(UserError, match="cannot be kept"):
        store.decide([small["dot"]], "kept")


@pytest.mark.skipif(os.name == "nt", reason="no plain links on Windows")
def test_where_links_lead_that_are_not_followed_is_said(tmp_path: Path) -> None:
    """A cache of blobs, as the Hugging Face hub's client lays it out."""
    blobs = random_pictures(tmp_path / "blobs", 2)
    for path in sorted(blobs.iterdir()):
        path.rename(path.with_suffix(""))
    (tmp_path / "train").mkdir()
    for path in sorted(blobs.iterdir()):
        (tmp_path / "train" / f"{path.name}.png").symlink_to(path)
    store = Store(tmp_path / "d")
    result = harvest(store, [tmp_path / "train"])
    assert result.found == 0 and result.skipped == {"link_outside": 2}
    assert any(str(blobs.resolve()) in note for note in result.notes)
    assert harvest(store, [blobs]).kept == 2


def test_a_harvest_that_finds_nothing_leaves_nothing(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = cli.run("harvest", "--dataset", "d", tmp_path / "empty")
    assert "No images found" in str(answer["notes"]) and answer["counts"] == {"items": 0, "kept": 0, "rejected": {}}
    assert cli.run("dataset", "list")["datasets"] == []
    cli.run("harvest", "--dataset", "d", random_pictures(tmp_path / "in", 2))
    cli.run("harvest", "--dataset", "d", tmp_path / "empty")
    assert cli.run("dataset", "list")["datasets"] == [{"name": "d", "items": 2, "kept": 2, "rejected": {}}]


# -- what an older version has read -------------------------------------------------------------------------------------------


def as_before(store: Store) -> None:
    """The dataset as the version before READ_AS 2 left it: profiles dropped, no hashes of pixels, no prompts of others."""
    for item in store.items():
        with Image.open(item["source"]) as image:
            image.convert("RGB").save(store.copy_path(item["sha256"]), lossless=True)
    with store.transaction() as db:
        db.execute("UPDATE items SET read_as = 1, pixels = '', texture = NULL, prompt = ''")


def test_harvesting_again_mends_colours_prompts_and_verdicts(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(DATA / "field" / "wide-gamut", folder)
    shutil.copytree(DATA / "field" / "other-programs", folder / "other")
    shutil.copy(DATA / "field" / "taken-for-noise" / "stars-100.png", folder)
    store = Store(tmp_path / "d")
    fresh = harvest(store, [folder])
    assert fresh.mended == 0
    wanted = {item["source"]: (item["prompt"], item["status"]) for item in store.items()}
    pixels = {item["source"]: store.copy_path(item["sha256"]).read_bytes() for item in store.items()}
    as_before(store)
    names = {Path(item["source"]).name: item["id"] for item in store.items()}
    with store.transaction() as db:
        db.execute("UPDATE items SET status = 'rejected', reason = 'noise' WHERE id = ?", (names["stars-100.png"],))
    store.decide([names["fooocus.png"]], "rejected", "user", "Rejected by hand.")
    before = store.fingerprint()

    again = harvest(store, [folder])
    assert (again.added, again.mended) == (0, len(wanted))
    assert "2 of them" in again.notes[0] and "255 on average" in again.notes[0]
    now = {item["source"]: (item["prompt"], item["status"]) for item in store.items()}
    rejected = str(folder.resolve() / "other" / "fooocus.png")
    assert now.pop(rejected) == (wanted.pop(rejected)[0], "rejected")  # as a person decided
    assert now == wanted
    found = {item["source"]: store.copy_path(item["sha256"]).read_bytes() for item in store.items()}
    with_profile = {source for source in pixels if Path(source).name in ("p3.png", "adobe.jpg")}
    assert len(with_profile) == 2
    for source in with_profile:
        with Image.open(io.BytesIO(found[source])) as mine, Image.open(io.BytesIO(pixels[source])) as right:
            assert mine.tobytes() == right.tobytes()
    assert store.fingerprint() != before  # another set to train on: packed anew
    assert harvest(store, [folder]).mended == 0


def test_mending_leaves_copies_of_their_own_size_and_right_ones_alone(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 3, 400)
    store = Store(tmp_path / "d")
    harvest(store, [folder], keep_size=320)
    with store.transaction() as db:
        db.execute("UPDATE items SET read_as = 1, pixels = '', texture = NULL")
    copies_ = {path: path.read_bytes() for path in store.folder.rglob("*.webp")}
    before = store.fingerprint()
    again = harvest(store, [folder])
    assert again.mended == 3 and again.notes == []
    assert {path: path.read_bytes() for path in store.folder.rglob("*.webp")} == copies_
    assert store.fingerprint() == before


def outdated(store: Store) -> None:
    with store.transaction() as db:
        db.execute("UPDATE items SET read_as = 1, pixels = '', texture = NULL")


def twin_files(folder: Path) -> Path:
    """Two pictures, each as a PNG and a BMP with the same pixels, b before a."""
    random_pictures(folder / "first", 2, 64)
    (folder / "second").mkdir()
    for path in sorted((folder / "first").glob("*.png")):
        with Image.open(path) as image:
            image.save(folder / "second" / f"{path.stem}.bmp")
    return folder


def test_mending_rejects_no_copy_that_a_person_has_chosen(tmp_path: Path) -> None:
    """Both were kept before; the person rejected one of them: the other one stays."""
    folder = twin_files(tmp_path / "in")
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    with store.transaction() as db:
        db.execute("UPDATE items SET status = 'kept', reason = '', message = ''")
    outdated(store)
    store.decide([1], "rejected", "user", "Rejected by hand.")
    harvest(store, [folder])
    kept = [item["id"] for item in store.items(status="kept")]
    assert kept == [2, 3]  # of the first picture the BMP, of the second one of two


def test_mending_finds_equal_pictures_in_any_order(tmp_path: Path) -> None:
    folder = twin_files(tmp_path / "in")
    store = Store(tmp_path / "d")
    harvest(store, [folder / "first", folder / "second"])
    with store.transaction() as db:
        db.execute("UPDATE items SET status = 'kept', reason = '', message = ''")
    outdated(store)
    harvest(store, [folder / "second", folder / "first"])  # the later ones first
    assert [item["id"] for item in store.items(status="kept")] == [1, 2]


def test_mending_takes_no_picture_from_a_kept_item(tmp_path: Path) -> None:
    """What a person kept against the checks stays with its picture, also where its bytes are another's."""
    folder = random_pictures(tmp_path / "in", 1, 64)
    shutil.copy(folder / "00000-0.png", folder / "00001-1.png")
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    with store.transaction() as db:
        db.execute("UPDATE items SET status = 'rejected', reason = 'noise', has_copy = 1")
    outdated(store)
    store.decide([2], "kept")
    harvest(store, [folder])
    item = store.items(ids=[2])[0]
    assert item["status"] == "kept" and item["has_copy"] and store.copy_of(2).exists()


def test_a_harvest_killed_after_the_copy_still_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    shutil.copytree(DATA / "field" / "wide-gamut", folder)
    store = Store(tmp_path / "d")
    harvest(store, [folder])
    as_before(store)
    with store.transaction() as db:  # as thumbnails of the colours of before
        db.execute("UPDATE items SET thumb = zeroblob(1728) WHERE source LIKE '%p3.png'")
    before = store.fingerprint()

    def killed(*values: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(store, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            harvest(store, [folder])
    assert harvest(store, [folder]).notes and store.fingerprint() != before


def test_small_pictures_are_checked_like_others(tmp_path: Path) -> None:
    folder = random_pictures(tmp_path / "in", 6, 20)
    shutil.copy(folder / "00000-0.png", folder / "same.png")
    Image.new("RGB", (20, 20)).save(folder / "black.png")
    result = harvest(Store(tmp_path / "d"), [folder])
    assert result.kept == 6 and result.rejected == {"duplicate": 1, "blank": 1}
