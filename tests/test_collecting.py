"""Collecting: live, by asking for pictures, by filters; and never our own."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ddpm_core.collector import Collector, Rule, saved_path
from ddpm_core.dataset.own import OwnPictures
from ddpm_core.dataset.wanted import Wanted
from ddpm_core.errors import UserError
from ddpm_core.operations.collecting import collect
from ddpm_core.operations.context import Context
from ddpm_core.requests import Collection, Generated, GenerationRequest
from ddpm_core.workspace import Workspace


def blocks(seed: int, side: int = 64) -> Image.Image:
    """A picture that no check rejects: a few flat areas."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, text: str = "") -> Path:
    chunk = PngImagePlugin.PngInfo()
    if text:
        chunk.add_text("parameters", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=chunk)
    return path


def text_of(prompt: str, seed: int, **more: str) -> str:
    pairs = {"Steps": "20", "Sampler": "Euler a", "Seed": str(seed), "Size": "64x64", **more}
    return f"{prompt}\nNegative prompt: bad\n" + ", ".join(f"{k}: {v}" for k, v in pairs.items())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def kept(workspace: Workspace, dataset: str) -> list[dict[str, object]]:
    return workspace.show_dataset(dataset, status="kept")


# -- live -------------------------------------------------------------------------------------------------------------


def test_collected_files_become_items_with_their_prompt(workspace: Workspace, tmp_path: Path) -> None:
    collector = Collector(lambda: workspace)
    assert not collector.wants("a cat"), "off until somebody switches it on"
    collector.set_rule(Rule(True, "live", "CAT, portrait"))
    assert collector.wants("Portrait of a cat") and not collector.wants("a cat")
    text = text_of("portrait of a cat", 1)
    collector.offer_file(save(tmp_path / "out" / "00001-1.png", blocks(1), text))
    collector.offer_file(save(tmp_path / "out" / "00002-2.png", blocks(2)), text)  # people switch the file's text off
    collector.offer_file(save(tmp_path / "out" / "grid-0001.png", blocks(3), text))
    collector.offer_file(save(tmp_path / "out" / "00003-3-mask.png", blocks(4), text))
    collector.offer_file(tmp_path / "out" / "gone.png")
    collector.offer_picture(blocks(5), text)
    collector.wait()
    items = kept(workspace, "live")
    assert len(items) == 3 and all(item["prompt"] == "portrait of a cat" for item in items)
    assert str(items[-1]["source"]).startswith("unsaved:")
    assert collector.status()["collected"] == 3 and collector.status()["passed"] == 3
    collector.close()


def test_the_rule_outlives_the_server(workspace: Workspace) -> None:
    Collector(lambda: workspace).set_rule(Rule(True, "live", "cat"))
    assert Collector(lambda: workspace, lambda: Rule(False)).rule == Rule(True, "live", "cat")


def test_the_hosts_default_counts_until_a_person_decides(workspace: Workspace) -> None:
    default = [Rule(True, "collected")]
    collector = Collector(lambda: workspace, lambda: default[0])
    assert collector.wants("anything")
    default[0] = Rule(False, "collected")
    assert not collector.wants("anything"), "a changed setting counts at once"


def test_a_name_that_cannot_be_one_is_refused(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="cannot be the name"):
        Collector(lambda: workspace).set_rule(Rule(True, "../outside"))


def test_overflow_is_counted_not_waited_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    collector = Collector(lambda: (release.wait(20) and workspace) or workspace)
    collector.own_rule = Rule(True, "live")
    began = time.monotonic()
    for i in range(100):  # pictures in memory: sixty-four wait, the rest is reported
        collector.offer_picture(blocks(i, 32), "")
    assert time.monotonic() - began < 5
    assert collector.status()["overflow"] == 100 - 64
    release.set()
    collector.wait()
    assert collector.status()["collected"] == 64


@pytest.mark.alone
def test_one_offer_costs_the_host_little(workspace: Workspace, tmp_path: Path) -> None:
    collector = Collector(lambda: workspace)
    collector.set_rule(Rule(True, "live", "cat"))
    path = save(tmp_path / "00001-1.png", blocks(1))
    began = time.perf_counter()
    for _ in range(200):
        if collector.wants("a cat on a mat"):
            collector.offer_file(path)
    assert (time.perf_counter() - began) / 200 < 0.001
    collector.wait()


def test_collecting_goes_on_after_a_failure(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(lambda: workspace)
    collector.set_rule(Rule(True, "live"))
    monkeypatch.setattr("ddpm_core.collector._RANK_AFTER_SECONDS", 0.05)
    workspace.store("live", create=True)

    def broken(store: object) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("ddpm_core.dataset.ranking.rank", broken)
    collector.offer_file(save(tmp_path / "00001-1.png", blocks(1)))
    end = time.monotonic() + 10
    while not collector.status()["error"] and time.monotonic() < end:
        time.sleep(0.05)
    assert "disk I/O error" in str(collector.status()["error"])
    collector.offer_file(save(tmp_path / "00002-2.png", blocks(2)))
    collector.wait()
    assert collector.status()["collected"] == 2


def test_a_number_suffix_is_found(tmp_path: Path) -> None:
    """A1111's *Add number suffix* says name.png where it wrote name-1.png."""
    old, new = save(tmp_path / "cat[1].png", blocks(1)), save(tmp_path / "cat[1]-1.png", blocks(2))
    save(tmp_path / "cat[1]-other.png", blocks(3))
    os.utime(old, (1, 1))
    assert saved_path(old, new.stat().st_mtime) == new
    assert saved_path(new, new.stat().st_mtime) == new


# -- our own ----------------------------------------------------------------------------------------------------------


def test_our_own_pictures_are_known_by_content(workspace: Workspace, tmp_path: Path) -> None:
    ours = blocks(9, 32)
    saved = save(tmp_path / "out" / "00001-9.png", ours)
    workspace.own.remember(ours, saved.read_bytes())
    again = OwnPictures(workspace.root / "own-pictures.txt")  # another process
    assert again.holds("", ours) and not again.holds("", blocks(10, 32))
    save(tmp_path / "out" / "resaved.png", ours, "some text")
    ours.save(tmp_path / "out" / "resaved.webp", lossless=True)
    save(tmp_path / "out" / "theirs.png", blocks(11, 32))
    result = workspace.harvest("set", [tmp_path / "out"])
    assert result.kept == 1 and result.skipped["own"] == 3


# -- filters ----------------------------------------------------------------------------------------------------------


def test_filters(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out / "1.png", blocks(1), text_of("portrait of a Woman", 1, Model="dream", **{"Model hash": "abc123"}))
    save(out / "2.png", blocks(2), text_of("a house", 2, Model="dream"))
    save(out / "3.png", blocks(3, 96), text_of("portrait of a woman", 3, Model="other"))
    old = save(out / "4.png", blocks(4), text_of("portrait of a woman", 4, Model="dream"))
    os.utime(old, (1_600_000_000, 1_600_000_000))  # 2020-09-13

    def names(**given: str) -> list[str]:
        name = f"set{len(workspace.dataset_names())}"
        result = workspace.harvest(name, [out], wanted=Wanted.parse(**given))
        assert result.found == result.added and result.skipped["filtered"] == 4 - result.kept
        return sorted(Path(str(item["source"])).stem for item in kept(workspace, name))

    assert names() == ["1", "2", "3", "4"]
    assert names(prompt="woman, PORTRAIT") == ["1", "3", "4"]
    assert names(model="Dream") == ["1", "2", "4"]
    assert names(model="abc123") == ["1"]
    assert names(size="96x96") == ["3"]
    assert names(until="2020-09-14") == ["4"]
    assert names(since="2020-09-15", prompt="woman") == ["1", "3"]
    # what was filtered out can be harvested later
    workspace.harvest("later", [out], wanted=Wanted.parse(prompt="house"))
    assert workspace.harvest("later", [out]).added == 3


@pytest.mark.parametrize(
    "given", [{"since": "yesterday"}, {"size": "big"}, {"since": "2026-02-01", "until": "2026-01-01"}]
)
def test_filters_that_make_no_sense_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        Wanted.parse(**given)


# -- generate and collect ---------------------------------------------------------------------------------------------


def test_generate_and_collect_goes_on_where_it_was(workspace: Workspace, tmp_path: Path) -> None:
    asked: list[list[int]] = []
    context = Context(None)  # type: ignore[arg-type]

    def host(request: GenerationRequest, seeds: list[int], stop: threading.Event) -> list[Generated]:
        asked.append(seeds)
        if len(asked) == 3:
            return []  # Interrupt was pressed in the host: the batch counts for nothing
        made = []
        for seed in seeds:
            text = text_of(request.prompt, seed)
            path = save(tmp_path / "out" / f"{seed}.png", blocks(seed), text) if seed % 2 else None
            made.append(Generated(blocks(seed), text, path))
        return made

    wanted = Collection(GenerationRequest("a hill"), total=7, batch_size=2, seed=100)
    first = collect(workspace, "hills", wanted, host, context)
    assert first["generated"] == 4 and context.stop.is_set()
    left = Collection.unfinished(workspace.dataset_folder("hills"))
    assert left is not None and (left.done, left.total, left.seed) == (4, 7, 100)
    second = collect(workspace, "hills", None, host, Context(None))  # type: ignore[arg-type]
    assert second["generated"] == 3 and Collection.unfinished(workspace.dataset_folder("hills")) is None
    assert asked == [[100, 101], [102, 103], [104, 105], [104, 105], [106]]
    items = kept(workspace, "hills")
    assert len(items) == 7 and {item["prompt"] for item in items} == {"a hill"}
    assert sum(str(item["source"]).startswith("unsaved:") for item in items) == 4


def test_each_line_is_a_prompt_of_its_own(workspace: Workspace) -> None:
    """The images are divided among them, whatever the batch size and wherever it was stopped."""
    asked: list[tuple[str, list[int], list[str]]] = []

    def host(request: GenerationRequest, seeds: list[int], stop: threading.Event) -> list[Generated]:
        asked.append((request.prompt, seeds, request.styles))
        return [Generated(blocks(seed), text_of(request.prompt, seed), None) for seed in seeds]

    request = GenerationRequest("a hill\n\n  a lake \na cat", each_line=True, styles=["ink"])
    collect(workspace, "views", Collection(request, total=8, batch_size=4, seed=10), host, Context(None))  # type: ignore[arg-type]
    assert asked == [
        ("a hill", [10, 11, 12], ["ink"]),
        ("a lake", [13, 14, 15], ["ink"]),
        ("a cat", [16, 17], ["ink"]),
    ]
    whole = GenerationRequest("a hill\na lake")
    assert whole.prompts() == ["a hill\na lake"]


def test_one_that_failed_at_once_blocks_no_other(workspace: Workspace) -> None:
    def broken(request: GenerationRequest, seeds: list[int], stop: threading.Event) -> list[Generated]:
        raise UserError("The WebUI could not generate.")

    with pytest.raises(UserError, match="could not generate"):
        collect(workspace, "hills", Collection(GenerationRequest("a hill"), 3), broken, Context(None))  # type: ignore[arg-type]
    assert Collection.unfinished(workspace.dataset_folder("hills")) is None


@pytest.mark.parametrize(
    "wanted",
    [
        Collection(GenerationRequest("a\nb\nc", each_line=True), 2),
        Collection(GenerationRequest("x", styles="ink"), 1),  # type: ignore[arg-type]
        Collection(GenerationRequest("x"), 0),
        Collection(GenerationRequest("x"), 1, 65),
        Collection(GenerationRequest("x", width=100), 1),
        Collection(GenerationRequest("x", steps=0), 1),
        Collection(GenerationRequest("x", cfg_scale=float("nan")), 1),
        Collection(GenerationRequest("x"), 1, seed=2**32),
    ],
)
def test_impossible_requests_are_refused(wanted: Collection) -> None:
    with pytest.raises(UserError):
        wanted.check()


def test_a_damaged_list_of_what_is_left_is_no_obstacle(workspace: Workspace) -> None:
    folder = workspace.store("set", create=True).folder
    for text in ("{", "{}", '{"request": 5}', "[]"):
        (folder / "generating.json").write_text(text)
        assert Collection.unfinished(workspace.dataset_folder("set")) is None
