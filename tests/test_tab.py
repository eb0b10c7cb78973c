"""The tab in a real headless browser, on every gradio that our hosts bring: harvest, reject, train, reload, generate, see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, make_driver, needs_browser
from conftest import DATA, ROOT, CommandLine, random_pictures, serve
from PIL import Image

SCRIPTS = "Scripts" if os.name == "nt" else "bin"
PYTHONS = {
    "gradio 3.41.2": ROOT / ".venv-gradio3" / SCRIPTS / "python",
    "gradio 4.40.0": ROOT / ".venv-gradio4" / SCRIPTS / "python",
    "standalone": Path(sys.executable),
}

pytestmark = [pytest.mark.browser, needs_browser]
# of what our JavaScript draws and gradio has hardly a part in: with the others when there is time
ours_alone = pytest.mark.parametrize(
    "page",
    ["standalone", *(pytest.param(name, marks=pytest.mark.long) for name in PYTHONS if name != "standalone")],
    indirect=True,
)


# of what gradio draws much alike since 4: with the oldest and the newest, and with the other when there is time
oldest_and_newest = pytest.mark.parametrize(
    "page",
    [pytest.param(name, marks=pytest.mark.long if name.startswith("gradio 4") else ()) for name in PYTHONS],
    indirect=True,
)


@pytest.fixture(scope="module")
def browsers() -> Iterator[list[Any]]:
    """The one browser of these tests, once one has been started."""
    started: list[Any] = []
    yield started
    for driver in started:
        driver.quit()


def fresh(browsers: list[Any]) -> Any:
    """A browser as if just started: every test has an address of its own, so that nothing is stored for it."""
    from selenium.common.exceptions import WebDriverException

    try:
        driver = browsers[0]
        driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
        driver.set_window_size(1280, 1000)
        driver.get_log("browser")  # of the test before
    except (IndexError, WebDriverException):  # none yet, or it has died
        browsers[:] = [make_driver()]
    return browsers[0]


@pytest.fixture(params=PYTHONS)
def page(request: pytest.FixtureRequest, tmp_path: Path, browsers: list[Any]) -> Iterator[Page]:
    python = PYTHONS[request.param]
    if not python.exists():
        pytest.skip(f"skipped: {python} is not set up; ./test.sh does it")
    process, url = serve(python, tmp_path / "served" / "ws")
    try:
        yield Page(fresh(browsers), url, request.param)
    finally:
        browsers[0].get("about:blank")
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log = (tmp_path / "served" / "server.log").read_text()
        # gradio 3 writes one when the page goes away in the middle of an answer
        ours = [part for part in log.split("Traceback")[1:] if "websockets_sansio_impl" not in part]
        assert not ours, log


def test_the_whole_work_in_the_browser(page: Page, few: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = page.driver
    page.open()

    # bad input: one sentence in the tab
    page.write("#ddpm_dataset_name", "faces")
    page.write("#ddpm_dataset_folders", "/does/not/exist")
    page.click("#ddpm_harvest")
    page.wait(lambda: "does not exist" in page.text(), "the message about a missing folder")

    # harvest
    page.write("#ddpm_dataset_folders", str(few))
    page.click("#ddpm_harvest")
    page.wait(
        lambda: page.js("return (document.querySelector('.ddpm-kept-count') || {}).textContent") == "60", "sixty kept"
    )
    page.wait(
        lambda: page.js(
            "const i = [...document.querySelectorAll('.ddpm-item img')].slice(0, 8); return i.length == 8 && i.every(x => x.naturalWidth > 0)"
        ),
        "thumbnails",
    )
    assert "portrait of a person" in page.text()

    # reject one by keyboard, undo, reject again
    review = driver.find_element("css selector", "[data-ddpm=review]")
    page.js("arguments[0].focus()", review)
    kept = lambda: page.js("return (document.querySelector('.ddpm-kept-count') || {}).textContent")  # noqa: E731
    review.send_keys(Keys.ARROW_RIGHT)
    review.send_keys("x")
    page.wait(lambda: kept() == "59", "one rejected")
    review.send_keys("z")
    page.wait(lambda: kept() == "60", "the undo")
    review.send_keys("x")
    page.wait(lambda: kept() == "59", "one rejected again")
    page.shot("dataset-light")

    # train 12 steps, reload in the middle
    page.tab("Train")
    page.write("#ddpm_train_model", "faces-model")
    page.write("#ddpm_train_steps", "12")
    page.click("#ddpm_train_estimate")
    page.wait(lambda: "million parameters" in page.text(), "the estimate")
    page.click("#ddpm_train_start")
    page.wait(lambda: page.all("[data-ddpm=train] .ddpm-bar"), "the progress bar")
    driver.refresh()
    page.wait(lambda: page.all("#ddpm_tab"), "the page after a reload")
    page.tab("Train")
    page.wait(lambda: page.all("[data-ddpm=train] .ddpm-progress"), "the running job after a reload")
    assert "Training faces-model" in page.text()
    page.wait(
        lambda: "finished" in driver.find_element("css selector", "[data-ddpm=train]").text,
        "the end of the training",
        180,
    )
    page.wait(lambda: page.all(".ddpm-chart"), "the loss curve")
    page.wait(
        lambda: page.js("const i = document.querySelector('.ddpm-strip'); return i && i.naturalWidth > 0"),
        "the preview strip",
    )
    page.shot("train-light")

    # generate
    page.tab("Generate")
    page.wait(
        lambda: page.js("return document.querySelector('#ddpm_model input').value") == "faces-model",
        "the model in the list",
    )
    page.write("#ddpm_seed", "7")
    page.write("#ddpm_count", "4")
    page.js("arguments[0].scrollIntoView()", page.all("#ddpm_generate")[0])
    page.click("#ddpm_generate")
    page.wait(
        lambda: page.js(
            "const i = [...document.querySelectorAll('#ddpm_gallery img')]; return i.length >= 4 && i.every(x => x.naturalWidth > 0)"
        ),
        "four pictures in the gallery",
        120,
    )
    page.wait(lambda: "Seed: 7" in driver.find_element("css selector", "#ddpm_infotext").text, "the generation text")
    page.shot("generate-light")

    assert page.own_errors() == []

    # the dark theme
    for name in ("Dataset", "Train", "Generate"):
        if name == "Dataset":
            page.open("dark")
        page.tab(name)
        if name == "Dataset":
            page.wait(lambda: kept() == "59", "the review after a reload")
        time.sleep(1.5)
        page.shot(f"{name.lower()}-dark")
    assert page.own_errors() == []

    # what the server refuses is told in its own words, and not as a connection that is lost
    page.js(
        "window.ownFetch = window.fetch;"
        "window.fetch = async () => new Response(JSON.stringify({error: 'Sign in to the page first.'}), {status: 403})"
    )
    said = lambda: page.js("return (document.querySelector('.ddpm-offline') || {}).textContent")  # noqa: E731
    page.wait(lambda: said() == "Sign in to the page first.", "the server's sentence")
    page.js("window.fetch = () => Promise.reject(new TypeError('gone'))")
    page.wait(lambda: "No connection" in (said() or ""), "that the connection is lost")
    page.js("window.fetch = window.ownFetch")
    page.wait(lambda: said() is None, "the connection again")

    # and a narrow window: nothing sticks out sideways
    driver.set_window_size(400, 900)
    time.sleep(0.5)
    for name in ("Dataset", "Train", "Generate"):
        page.tab(name)
        time.sleep(0.7)
        wide = page.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 1, f"{name} is {wide} px too wide at 400 px"


@ours_alone
def test_pictures_that_come_into_sight_come_together(page: Page, few: Path, tmp_path: Path) -> None:
    page.open()
    page.write("#ddpm_dataset_name", "faces")
    page.write("#ddpm_dataset_folders", str(few))
    page.js("performance.clearResourceTimings()")
    page.click("#ddpm_harvest")

    def asked(route: str) -> int:
        return int(
            page.js(
                "return performance.getEntriesByType('resource').filter(e => e.name.includes(arguments[0])).length",
                f"/ddpm/ui/{route}?",
            )
        )

    def shown() -> int:
        """Of the review's pictures; -1 while one in sight has not come."""
        return int(
            page.js(
                "const all = [...document.querySelectorAll('.ddpm-review img')];"
                "const seen = all.filter(x => { const r = x.getBoundingClientRect(); return r.top < innerHeight && r.bottom > 0; });"
                "return seen.length && seen.every(x => x.complete && x.src) ? all.filter(x => x.naturalWidth > 0).length : -1"
            )
        )

    page.wait(lambda: page.all(".ddpm-item"), "the review")
    page.js("document.querySelector('.ddpm-review').scrollIntoView()")
    page.wait(lambda: shown() == 61, "sixty pictures and the large one")
    assert 1 <= asked("thumbs") <= 4 and asked("thumb") == 0
    page.shot("review")

    # what has been shown is kept: turning the order about asks for nothing
    page.js("performance.clearResourceTimings(); document.querySelector('[data-view=all]').click()")
    page.wait(lambda: asked("items") == 1 and shown() == 61, "the same pictures in another order")
    page.driver.find_element("css selector", "[data-ddpm=review]").send_keys("x")
    page.wait(lambda: page.all(".ddpm-rejected"), "one rejected")
    page.wait(lambda: shown() == 61, "the same pictures still")
    assert asked("thumbs") == asked("thumb") == 0

    # of a new page, one whose copy is gone does not take the others with it
    copy = sorted((tmp_path / "served" / "ws" / "datasets" / "faces" / "images").glob("*/*.webp"))[0]
    copy.unlink()
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    page.open()
    page.write("#ddpm_dataset_name", "faces")
    page.wait(lambda: page.all(".ddpm-item"), "the review again")
    page.js("document.querySelector('.ddpm-review').scrollIntoView()")
    page.wait(lambda: shown() in (58, 59), "all but the missing one, which may be the large one, too")
    broken = "return [...document.querySelectorAll('.ddpm-item img')].filter(x => !x.naturalWidth).map(x => x.alt)"
    page.wait(lambda: page.js(broken) and page.js(broken)[0].endswith(".webp"), "the name of the missing one")
    assert len(page.js(broken)) == 1

    # an answer that is cut short, or none, or a proxy's page: what did not come is asked for alone, and nothing is kept of it
    for answer in (
        "new Response(new Uint8Array(0), {headers: {'Content-Type': 'application/octet-stream'}})",
        "new Response(new Uint8Array([0, 0, 9, 9, 1]), {headers: {'Content-Type': 'application/octet-stream'}})",
        "new Response('<!DOCTYPE html> sign in', {headers: {'Content-Type': 'text/html'}})",
        "await Promise.reject(new TypeError('gone'))",
    ):
        page.open()
        page.js(
            "const own = window.fetch; performance.clearResourceTimings();"
            f"window.fetch = async (a, b) => String(a).includes('/thumbs?') ? {answer} : own(a, b);"
        )
        page.write("#ddpm_dataset_name", "faces")
        page.wait(lambda: page.all(".ddpm-item"), "the review once more")
        page.js("document.querySelector('.ddpm-review').scrollIntoView()")
        page.wait(lambda: shown() in (58, 59), "the pictures one by one")
        assert asked("thumb") >= 59


@ours_alone
def test_markup_in_a_prompt_is_shown_as_text(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    shutil.copy(DATA / "bad-inputs" / "html-in-prompt.png", folder)
    shutil.copy(
        DATA / "bad-inputs" / "html-in-prompt.png",
        folder / "<img src=x onerror=window.broken=1>.png" if os.name != "nt" else folder / "b.png",
    )
    page.open()
    page.write("#ddpm_dataset_name", "evil")
    page.write("#ddpm_dataset_folders", str(folder))
    page.click("#ddpm_harvest")
    page.wait(lambda: "<script>alert(2)</script>" in page.text(), "the prompt as text")
    assert page.js("return document.querySelectorAll('.ddpm-live script, .ddpm-live img[src=\"x\"]').length") == 0
    assert page.js("return window.broken === undefined")


@ours_alone
def test_a_deleted_dataset_comes_back_from_the_trash_and_leaves_it_only_on_request(page: Page, tmp_path: Path) -> None:
    source = random_pictures(tmp_path / "in", 12)
    before = {path: path.read_bytes() for path in source.iterdir()}
    page.open()
    page.write("#ddpm_dataset_name", "passing")
    page.write("#ddpm_dataset_folders", str(source))
    page.click("#ddpm_harvest")
    kept = lambda: page.js("return (document.querySelector('.ddpm-kept-count') || {}).textContent")  # noqa: E731
    page.wait(lambda: kept() == "12", "twelve kept")
    harvest = page.driver.find_element("css selector", "[data-ddpm=harvest]")
    page.wait(lambda: "finished" in harvest.text, "the end of the harvest")  # while it is written to it is not deleted
    page.click("#ddpm_trash_dataset .label-wrap")
    press = lambda text: page.wait(  # noqa: E731
        lambda: page.js(
            "const b = [...document.querySelectorAll('[data-ddpm=trash_dataset] button')].find(b => b.textContent == arguments[0]);"
            "if (b) { b.click(); b.click(); } return Boolean(b)",  # as hasty people do; it counts once
            text,
        ),
        f"the button {text}",
    )
    workspace = tmp_path / "served" / "ws"
    press("Move to trash")
    page.wait(lambda: not (workspace / "datasets" / "passing").exists(), "the dataset in the trash")
    page.wait(lambda: "Choose a dataset above." in page.text(), "that it is gone")
    page.wait(lambda: kept() is None, "the review without its pictures")
    page.shot("trash")
    press("Restore")
    page.wait(lambda: (workspace / "datasets" / "passing" / "dataset.sqlite").exists(), "the dataset again")
    page.wait(lambda: kept() == "12", "its pictures again")
    page.wait(lambda: "Done:" in page.text(), "that it is back")
    assert page.all("[data-ddpm=trash_dataset] .ddpm-failure") == []
    press("Move to trash")
    page.js("window.confirm = () => false")
    press("Empty trash")
    time.sleep(1)
    assert len(list((workspace / "trash").iterdir())) == 1  # who said no has lost nothing
    page.js("window.confirm = () => true")
    press("Empty trash")
    page.wait(lambda: not list((workspace / "trash").iterdir()), "the empty trash")
    assert page.own_errors() == []
    assert {path: path.read_bytes() for path in source.iterdir()} == before


@ours_alone
def test_understand(page: Page, tmp_path: Path) -> None:
    """Every page draws something, a slider is answered, the address says what is seen and opens it again, and nothing is asked elsewhere."""
    from selenium.webdriver.common.keys import Keys

    with zipfile.ZipFile(sorted((DATA / "formats").glob("*.zip"))[-1]) as archive:
        archive.extractall(tmp_path / "served" / "ws")  # a dataset, a model with words, its run
    page.open()
    asked = "return performance.getEntriesByType('resource').filter((e) => e.name.includes('/understand?')).length"
    time.sleep(2)  # it has asked for its status meanwhile
    assert page.js(asked) == 0, "nothing is asked while the tab is closed"
    page.tab("Understand")
    choose = "const s = document.querySelector('[aria-label=Model].ddpm-select'); s.value = 'm'; s.dispatchEvent(new Event('change'))"
    page.js(choose)

    def drawn(least: int) -> bool:
        """Whether so many images of the page are there, each loaded."""
        return bool(
            page.js(
                "const all = [...document.querySelectorAll('.ddpm-understand figure:not([hidden]) img')].filter((i) => i.src && i.offsetParent);"
                "return all.length >= arguments[0] && all.every((i) => i.naturalWidth > 0)",
                least,
            )
        )

    def turn(number: int, least: int) -> None:
        page.js("document.querySelectorAll('.ddpm-pages button')[arguments[0] - 1].click()", number)
        page.wait(lambda: drawn(least), f"the images of page {number}")
        assert not page.all(".ddpm-says .ddpm-failure"), page.text()

    turn(1, 4)
    before = page.js("return document.querySelectorAll('.ddpm-understand img')[2].src")
    slider = page.all(".ddpm-understand input[aria-label=Timestep]")[0]
    slider.send_keys(Keys.HOME)
    page.wait(
        lambda: page.js("return document.querySelectorAll('.ddpm-understand img')[2].src") != before, "the moved slider"
    )
    assert "t=0" in page.driver.current_url and "page=noise" in page.driver.current_url
    page.shot("understand-noise")
    for number, least, name in ((2, 10, "pair"), (3, 4, "path"), (4, 1, "film"), (5, 6, "memory"), (6, 5, "words")):
        turn(number, least)
        if number == 2:
            page.js(
                "[...document.querySelectorAll('.ddpm-understand button')].find((b) => b.textContent === 'Show a noised image').click()"
            )
            page.wait(lambda: drawn(11), "the image to guess")
            page.js(
                "[...document.querySelectorAll('.ddpm-understand button')].find((b) => b.textContent === 'Check').click()"
            )
            page.wait(lambda: "you were off by" in page.text(), "how far the guess was off")
        if number == 5:
            page.js(
                "[...document.querySelectorAll('.ddpm-understand button')].find((b) => b.textContent === 'Deal nine cards').click()"
            )
            page.wait(lambda: page.all(".ddpm-card"), "the cards")
            for _ in range(9):
                page.js("document.querySelector('.ddpm-card button').click()")
            page.wait(lambda: "/ 9" in page.text(), "how many were right")
        page.shot(f"understand-{name}")
    turn(7, 3)
    parts = page.all(".ddpm-plan button")
    parts[-1].click()
    assert parts[-1].get_attribute("aria-pressed") == "true"
    page.shot("understand-network")
    page.js("document.querySelectorAll('.ddpm-pages button')[7].click()")
    page.wait(lambda: "DreamBooth" in page.text(), "the chapters")
    page.shot("understand-chapters")

    # the address opens the page and what it showed
    page.driver.get("about:blank")
    page.driver.get(f"{page.url}#ddpm_tab_understand?page=memory&model=m&t=123")
    page.wait(lambda: drawn(6), "the page of the address")
    assert page.all(".ddpm-understand input[aria-label=Timestep]")[0].get_attribute("value") == "123"
    named = "return [...document.querySelectorAll('.ddpm-understand input, .ddpm-understand select, .ddpm-understand img')].every((n) => n.getAttribute('aria-label') || n.alt)"
    assert page.js(named), "every control and image has a name"

    # narrow: nothing sticks out sideways
    page.driver.set_window_size(400, 900)
    for number in range(1, 9):
        page.js("document.querySelectorAll('.ddpm-pages button')[arguments[0] - 1].click()", number)
        time.sleep(0.7)
        wide = page.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 1, f"page {number} is {wide} px too wide at 400 px"
    assert page.own_errors() == []


@oldest_and_newest
def test_words_and_prompts(page: Page, few: Path, tmp_path: Path) -> None:
    """A word is left out and taken again; the words of a model are written by clicks, completed, and asked for."""
    line = CommandLine(tmp_path / "served" / "ws")
    line.run("harvest", "--dataset", "faces", few)
    small = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")
    options = [word for setting in small for word in ("--set", setting)]
    line.run("train", "--model", "m", "--dataset", "faces", "--preset", "tiny-32", "--size", 16, "--steps", 2, *options)
    page.open()
    page.write("#ddpm_dataset_name", "faces")
    page.click("#ddpm_words .label-wrap")
    chips = page.wait(lambda: page.all("#ddpm_words .ddpm-word"), "the words")
    first, count = chips[0].text, len(chips)
    assert count >= 4 and chips[0].get_attribute("aria-pressed") == "true"
    page.shot("words")
    page.click("#ddpm_words .ddpm-word")
    page.wait(lambda: page.all("#ddpm_words .ddpm-word")[0].text != first, "the word to be left out")
    page.js("[...document.querySelectorAll('#ddpm_words .ddpm-button')].find((b) => b.textContent === 'Undo').click()")
    page.wait(lambda: page.all("#ddpm_words .ddpm-word")[0].text == first, "the word to be back")

    # words of single images: typed beside the review, shown there and counted in the panel, taken back by its Undo
    page.wait(lambda: page.all(".ddpm-detail .ddpm-name"), "the field for words")
    typed = page.all(".ddpm-detail .ddpm-name")[0]
    typed.send_keys("Straw_hat, " + first.rsplit(" ", 1)[0])
    press = "[...document.querySelectorAll('.ddpm-detail .ddpm-button')].find((b) => b.textContent === arguments[0]).click()"
    page.js(press, "Add words")
    page.wait(lambda: "Words added: straw hat" in page.text(), "the words that were added")
    page.shot("words-of-an-image")
    page.js("[...document.querySelectorAll('#ddpm_words .ddpm-button')].find((b) => b.textContent === 'Undo').click()")

    page.tab("Generate")
    page.write("#ddpm_model", "m")
    here = ".ddpm-words .ddpm-word"
    words = [one.text for one in page.wait(lambda: page.all(here), "the model's words")]
    page.click(here)
    field = page.all("#ddpm_prompt textarea, #ddpm_prompt input")[0]
    page.wait(lambda: field.get_attribute("value") == words[0], "the word in the prompt")
    page.wait(lambda: page.all(here)[0].get_attribute("aria-pressed") == "true", "the word to be marked")
    # what is being typed is completed by a click
    field.send_keys(", zebra, " + words[1][:4])
    page.wait(
        lambda: words[1] in [one.text for one in page.all(here)] and len(page.all(here)) < len(words), "fewer words"
    )
    page.js(
        "[...document.querySelectorAll('.ddpm-words .ddpm-word')].find((b) => b.textContent === arguments[0]).click()",
        words[1],
    )
    page.wait(lambda: field.get_attribute("value") == f"{words[0]}, zebra, {words[1]}", "the word to be completed")
    page.wait(lambda: [one.get_attribute("aria-pressed") for one in page.all(here)[:2]] == ["true"] * 2, "both marked")
    page.shot("prompt")
    page.write("#ddpm_count", "2")
    page.click("#ddpm_generate")
    page.wait(lambda: "does not know 'zebra'" in page.text(), "the unknown word to be named")
    page.wait(lambda: f"{words[0]}, zebra, {words[1]}\nSteps" in page.text(), "the text with the prompt")
    assert "CFG scale: 2" in page.text()
    assert not page.own_errors()
    page.tab("Dataset")
    page.js(press, "Add words")
    page.wait(lambda: "Write the words to add" in page.text(), "the sentence for no words")


def test_an_image_is_edited(page: Page, few: Path, tmp_path: Path) -> None:
    """A result is taken, drawn over and drawn anew there alone; another is varied; the address opened the sub-tab."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    workspace = tmp_path / "served" / "ws"
    line = CommandLine(workspace)
    line.run("harvest", "--dataset", "faces", few)
    small = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")
    options = [word for setting in small for word in ("--set", setting)]
    line.run("train", "--model", "m", "--dataset", "faces", "--preset", "tiny-32", "--steps", 2, *options)
    page.driver.get(f"{page.url}?__theme=light#ddpm_tab_generate")
    page.wait(lambda: page.all("#ddpm_generate"), "the Generate sub-tab")
    page.click("#ddpm_edit .label-wrap")
    page.click("#ddpm_variations .label-wrap")
    page.wait(lambda: page.all("#ddpm_edit_last"), "its buttons")
    page.click("#ddpm_edit_last")
    page.wait(lambda: "There is no result yet" in page.text(), "the sentence for no result")
    page.wait(lambda: page.all("#ddpm_model input")[0].get_attribute("value") == "m", "the model to be chosen")

    def generated(count: int) -> list[Path]:
        page.click("#ddpm_generate")
        page.wait(lambda: len(list(workspace.rglob("outputs/*/*.png"))) == count, "the images")
        page.wait(
            lambda: page.js("return document.querySelectorAll('#ddpm_gallery .thumbnail-item').length") > 1, "them"
        )
        time.sleep(1.5)
        return sorted(workspace.rglob("outputs/*/*.png"))

    page.write("#ddpm_count", "3")
    first = generated(3)
    assert "Denoising strength:" not in page.text()
    page.js("document.querySelectorAll('#ddpm_gallery .thumbnail-item')[1].click()")
    page.wait(lambda: page.js("return window.ddpm.selected()") == 1, "the second to be selected")
    page.click("#ddpm_vary")
    second = first[1].stem.split("-")[1]
    field = "#ddpm_seed input"
    page.wait(lambda: page.all(field)[0].get_attribute("value") == second, "its seed")
    strength = page.all("#ddpm_variation_strength input[type=number]")[0]
    page.wait(lambda: strength.get_attribute("value") == "0.2", "the strength of the variation")
    page.click("#ddpm_edit_last")
    canvas = page.wait(lambda: page.all(".ddpm-mask canvas"), "the image to be drawn on")[0]
    page.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    stroke = ActionChains(page.driver).move_to_element(canvas).click_and_hold()
    for x, y in ((6, 0), (6, 6), (0, 6), (-6, 0), (-6, -6)):
        stroke = stroke.move_by_offset(x, y).pause(0.05)
    stroke.release().perform()
    written = "return document.querySelector('#ddpm_mask_data textarea, #ddpm_mask_data input').value"
    page.wait(lambda: str(page.js(written)).startswith("data:image/png"), "the mask")
    once = page.js(written)
    for key in (Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.SPACE):  # with the keyboard, too
        canvas.send_keys(key)
    page.wait(lambda: page.js(written) != once, "the mask to grow")
    page.js("[...document.querySelectorAll('#ddpm_edit .ddpm-button')].find((b) => b.textContent === 'Undo').click()")
    page.wait(lambda: page.js(written) == once, "the last stroke to be undone")
    time.sleep(0.5)
    page.shot("edit")
    after = generated(6)
    page.wait(
        lambda: "Mask blur: 4" in page.text() and "Denoising strength: 0.75" in page.text(), "the text of an edit"
    )
    assert "Variation seed strength: 0.2" in page.text()
    with Image.open(first[1]) as original, Image.open(after[3]) as changed:
        old, new = (np.asarray(one.convert("RGB")).astype(int) for one in (original.resize(changed.size, 1), changed))
    same = (np.abs(old - new).max(2) == 0).mean()
    assert 0.3 < same < 0.999, "outside of what was drawn nothing changes"
    page.click("#ddpm_edit_none")
    time.sleep(1)
    generated(9)
    page.wait(lambda: "Mask blur:" not in page.text(), "a plain sample again")
    page.click("#ddpm_interpolate .label-wrap")
    page.write("#ddpm_frames", "3")
    page.click("#ddpm_interpolate_start")
    page.wait(lambda: len(list(workspace.rglob("outputs/*/*.png"))) == 12, "the frames")
    page.wait(lambda: page.all(".ddpm-animation"), "the animation of them")
    page.shot("interpolate")
    assert not page.own_errors()


@oldest_and_newest
def test_a_model_is_fine_tuned(page: Page, few: Path, tmp_path: Path) -> None:
    """An adapter with a new word is trained from the tab, put into the prompt from its list, and used."""
    from selenium.webdriver.common.keys import Keys

    workspace = tmp_path / "served" / "ws"
    line = CommandLine(workspace)
    line.run("harvest", "--dataset", "faces", few)
    few_new = tmp_path / "new"
    few_new.mkdir()
    for path in sorted(few.iterdir())[:4]:
        (few_new / path.name).write_bytes(path.read_bytes())
    line.run("harvest", "--dataset", "new", few_new)
    small = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")
    options = [word for setting in small for word in ("--set", setting)]
    line.run("train", "--model", "m", "--dataset", "faces", "--preset", "tiny-32", "--steps", 2, *options)
    page.driver.get(f"{page.url}?__theme=light#ddpm_tab_train")
    page.wait(lambda: page.all("#ddpm_fine_tune .label-wrap"), "the Train sub-tab")
    page.click("#ddpm_fine_tune .label-wrap")
    page.wait(lambda: page.all("#ddpm_base input"), "its fields")
    chosen = "#ddpm_train_dataset input"
    page.wait(lambda: page.all(chosen)[0].get_attribute("value") == "faces", "the lists")
    page.write("#ddpm_train_dataset", "new")
    page.write("#ddpm_train_model", "crown")
    page.write("#ddpm_base", "m")
    steps = page.all("#ddpm_train_steps input")[0]
    page.wait(lambda: steps.get_attribute("value") == "500", "the steps of an adapter")
    page.write("#ddpm_train_steps", "3")
    page.write("#ddpm_concept", "crown, hat")
    page.click("#ddpm_train_start")
    page.wait(lambda: "one word or a few" in page.text(), "the sentence for a word that is none")
    page.write("#ddpm_concept", "Green Crown")
    page.shot("fine-tune")
    page.click("#ddpm_train_start")
    page.wait(lambda: (workspace / "models" / "crown.safetensors").exists(), "the adapter", 120)
    page.wait(lambda: re.search(r"Training crown\s+finished", page.text()), "the end of the training", 120)
    assert line.run("models", "show", "crown")["concept"] == "green crown"
    page.tab("Generate")
    page.wait(lambda: page.all("#ddpm_model input")[0].get_attribute("value") == "m", "the model, and no adapter")
    page.wait(lambda: page.all("#ddpm_adapter input"), "the list of adapters", 30)
    listed = page.all("#ddpm_adapter input")[0]
    page.js("arguments[0].scrollIntoView({block: 'center'})", listed)
    listed.click()
    listed.send_keys("crown", Keys.ENTER)  # which makes room for the next at once
    field = page.all("#ddpm_prompt textarea, #ddpm_prompt input")[0]
    page.wait(lambda: field.get_attribute("value") == "<ddpm:crown:1> green crown", "the adapter in the prompt")
    page.shot("adapter")
    page.write("#ddpm_count", "2")
    page.click("#ddpm_generate")
    page.wait(lambda: "<ddpm:crown:1> green crown\nSteps" in page.text(), "the text with the adapter")
    assert "does not know" not in page.text()
    # adapters and upscalers are managed from a list of their own
    page.click("#ddpm_trash_model .label-wrap")
    select = page.wait(lambda: page.all("#ddpm_trash_model select"), "the list of them")[0]
    page.js("arguments[0].value = 'crown'; arguments[0].dispatchEvent(new Event('change'))", select)
    press = "[...document.querySelectorAll('#ddpm_trash_model .ddpm-button')].find((b) => b.textContent === 'Move to trash').click()"
    page.wait(lambda: page.js("return document.querySelector('#ddpm_trash_model strong').textContent") == "crown", "it")
    page.js(press)
    page.wait(lambda: not (workspace / "models" / "crown.safetensors").exists(), "the adapter to be in the trash")
    assert (workspace / "models" / "m.safetensors").exists()
    page.wait(lambda: not page.all("#ddpm_adapter input"), "the list of adapters to go")
    assert not page.own_errors()


@ours_alone
def test_a_dataset_is_searched_by_what_its_images_show(page: Page, few: Path, tmp_path: Path) -> None:
    """Without an encoder by an image, and a sentence for words; with one by words, and for words that do not fit. Then a variation of an image."""
    workspace = tmp_path / "served" / "ws"
    line = CommandLine(workspace)
    line.run("harvest", "--dataset", "faces", few)
    page.open()
    page.tab("Dataset")
    page.wait(lambda: len(page.all("#ddpm_tab .ddpm-item")) == 60, "the review")
    assert not page.all("[data-view=misfits]")

    def in_images(text: str) -> None:
        page.js(
            "const s = document.querySelector('.ddpm-searched'); s.value = 'images'; s.dispatchEvent(new Event('change'));"
        )
        field = page.all(".ddpm-search")[0]
        field.clear()
        field.send_keys(text)

    in_images("glasses")
    page.wait(lambda: "train an image-text encoder on this dataset first" in page.text(), "what words want")
    assert page.all(".ddpm-search") and page.all("[data-view=all]")  # the way back
    page.js("document.querySelector('[data-view=all]').click()")
    page.all(".ddpm-search")[0].clear()
    page.js("document.querySelector('.ddpm-search').dispatchEvent(new Event('input'))")
    page.wait(lambda: len(page.all("#ddpm_tab .ddpm-item")) == 60, "all images again")

    def press(text: str) -> None:
        page.js(
            "[...document.querySelectorAll('.ddpm-button')].find((b) => b.textContent === arguments[0]).click()", text
        )

    chosen = page.js("const c = document.querySelectorAll('.ddpm-item')[7]; c.click(); return c.dataset.id")
    press("More like this")
    page.wait(lambda: "Images like this one" in page.text(), "the images like it")
    page.wait(lambda: page.js("return document.querySelector('.ddpm-item').dataset.id") == chosen, "it to be the first")
    page.shot("alike")
    press("Edit this image")
    page.wait(lambda: page.js("return document.querySelector('#ddpm_edited img') !== null"), "it to be begun with")
    page.wait(lambda: page.all("#ddpm_edit_last"), "the open accordion in Generate")
    page.shot("edit-item")
    page.tab("Dataset")
    press("Show all again")
    page.wait(lambda: "Images like this one" not in page.text(), "all images again")

    small = ("image_size=32,32", "block_out_channels=8,16", "grid=2", "prior_channels=16")
    options = [word for setting in small for word in ("--set", setting)]
    line.run("train", "--model", "finder", "--dataset", "faces", "--preset", "contrast", "--steps", 30, *options)
    page.wait(lambda: page.all("[data-view=misfits]"), "the view that an encoder makes possible")
    word = line.run("dataset", "tags", "faces")["tags"][0]["word"]  # type: ignore[index]
    in_images(f"{word}, qwertz")
    page.wait(lambda: "The encoder does not know: qwertz" in page.text(), "what it does not know")
    expected = line.run("search", "--dataset", "faces", "--prompt", word)["items"]
    shown = "return [...document.querySelectorAll('.ddpm-item')].slice(0, 20).map((c) => Number(c.dataset.id))"
    page.wait(lambda: page.js(shown) == [one["id"] for one in expected], "the command line's answer")  # type: ignore[attr-defined]
    page.shot("found")
    press("Words that do not fit")
    page.wait(lambda: "fits it least" in page.text() and page.all(".ddpm-badge"), "words that do not fit")
    page.shot("misfits")

    net = ("block_out_channels=8,16,16", "norm_num_groups=4", "attention_head_dim=8")
    options = [word for setting in net for word in ("--set", setting)]
    like = (
        "train",
        "--model",
        "like",
        "--dataset",
        "faces",
        "--preset",
        "tiny-32",
        "--condition",
        "image",
        "--steps",
        2,
    )
    line.run(*like, *options)
    page.driver.get("about:blank")
    page.driver.get(f"{page.url}?__theme=light#ddpm_tab_generate")
    page.wait(lambda: page.all("#ddpm_generate"), "the Generate sub-tab")
    page.wait(lambda: page.all("#ddpm_model input")[0].get_attribute("value") == "like", "the model to be chosen")
    page.write("#ddpm_count", "2")
    page.click("#ddpm_generate")
    page.wait(lambda: len(list(workspace.rglob("outputs/*/*.png"))) == 2, "the images")
    page.click("#ddpm_variations .label-wrap")
    page.wait(lambda: page.all("#ddpm_like_last"), "its buttons")
    time.sleep(1.5)
    page.click("#ddpm_like_last")
    page.wait(lambda: page.js("return document.querySelector('#ddpm_like img') !== null"), "the image to be taken")
    page.shot("variation")
    page.click("#ddpm_generate")
    page.wait(lambda: len(list(workspace.rglob("outputs/*/*.png"))) == 4, "others like it")
    asked_in_vain = "text=glasses"  # of which the sentence was seen above
    assert not [line for line in page.own_errors() if asked_in_vain not in line]
