"""Our extension in a real WebUI: WEBUI_DIR names a working installation, WEBUI_PYTHON its Python.

The tests share one running host and go through the work in the order a person would.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from browser import Page, make_driver, needs_browser
from running import (
    NAME,
    SMALL,
    WEBUI_DIR,
    WEBUI_PYTHON,
    WebUI,
    begun,
    family,
    inpaint,
    open_tab,
    outputs,
    picture,
    plain_lines,
    reload_ui,
    same_bytes,
    train,
)

pytestmark = [
    needs_browser,
    pytest.mark.skipif(
        not (WEBUI_DIR and WEBUI_PYTHON),
        reason="skipped: no real WebUI; name one with WEBUI_DIR and its Python with WEBUI_PYTHON",
    ),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("webui") / "data"


@pytest.fixture(scope="module")
def without(data: Path) -> dict[str, Any]:
    """The host as it is without us: its log, its browser console, a seeded picture."""
    host = WebUI(data)
    host.install_probe()
    host.start()
    try:
        host.txt2img()
        made = host.txt2img(seed=77, batch_size=2)
        return {
            "lines": plain_lines(host.log()),
            "console": console(host),
            "image": same_bytes(made),
            "seconds": [timed(lambda i=i: host.txt2img(seed=100 + i)) for i in range(3)],
        }
    finally:
        host.kill()


@pytest.fixture(scope="module")
def host(data: Path, without: dict[str, Any]) -> Iterator[WebUI]:
    webui = WebUI(data)
    webui.install()
    webui.start()
    try:
        yield webui
    finally:
        webui.kill()


@pytest.fixture(scope="module")
def page(host: WebUI) -> Iterator[Page]:
    driver = make_driver()
    try:
        found = Page(driver, host.url, f"webui-{family()}")
        open_tab(found)
        yield found
    finally:
        driver.quit()


_hashes: dict[Path, str] = {}


@pytest.fixture(autouse=True)
def the_hosts_own_pictures_stay_as_they_are(data: Path) -> Iterator[None]:
    """After each test: every file that was ever in the host's output tree is there, byte for byte."""
    yield
    now = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in outputs(data).rglob("*")
        # Forge saves under a temporary name first
        if path.suffix != ".tmp" and path.is_file() and "ddpm" not in str(path.relative_to(data))
    }
    assert not [path for path, was in _hashes.items() if now.get(path) != was], "one of the host's pictures was touched"
    _hashes.update(now)


def timed(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def console(host: WebUI) -> set[str]:
    driver = make_driver()
    try:
        driver.get(host.url)
        page = Page(driver, host.url, "console")
        page.wait(
            lambda: page.js("return document.querySelectorAll('#tabs button').length > 4"), "the host's page", 120
        )
        time.sleep(3)
        return plain_lines("\n".join(line["message"] for line in driver.get_log("browser")))
    finally:
        driver.quit()


def way(page: Page, name: str, marker: str) -> None:
    """Open one of the ways into a dataset."""
    press = (
        "const b = [...document.querySelectorAll('#ddpm_ways button')].find(b => b.textContent.trim() === arguments[0]);"
        "b.click()"
    )
    page.js(press, name)
    page.wait(lambda: page.all(marker), name)


def test_no_line_in_log_or_console_is_ours(host: WebUI, without: dict[str, Any]) -> None:
    host.txt2img()
    host.txt2img(seed=77, batch_size=2)
    assert not [line for line in plain_lines(host.log()) - without["lines"] if "ddpm" in line.lower()]
    strange = [line for line in plain_lines(host.log()) - without["lines"] if "rror" in line or "arning" in line]
    assert not strange, strange
    assert not console(host) - without["console"]


def test_a_seeded_picture_is_the_same_with_us_installed(host: WebUI, without: dict[str, Any]) -> None:
    assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]


def test_start_up_and_idleness_cost_nothing(host: WebUI) -> None:
    records = host.get("internal/profile-startup")["records"]
    ours = {key: value for key, value in records.items() if "ddpm.py" in key and "probe" not in key}
    callbacks = host.get("probe")["starts"]
    tab = sum(callbacks.values())
    install = min(
        timed(lambda: subprocess.run([WEBUI_PYTHON, str(host.extension / "install.py")], check=True)) for _ in range(3)
    )
    bare = min(timed(lambda: subprocess.run([WEBUI_PYTHON, "-c", ""], check=True)) for _ in range(3))
    total = sum(ours.values()) + tab + install - bare
    print(f"start-up: scripts {ours}, callbacks {callbacks}, install.py {install:.3f} of which Python {bare:.3f}")
    host.get("probe?clear=true")
    for i in range(5):
        host.txt2img(seed=200 + i)
    costs = host.get("probe")["costs"]
    print(f"idle: {1000 * sum(costs) / 5:.3f} ms an image")
    assert len(costs) >= 10, "each picture: before and after"
    assert sum(costs) / 5 < 0.001
    if family() == "a1111":
        assert total < 0.150, (ours, callbacks, install - bare)


def test_collect_as_i_generate_takes_samples_alone(host: WebUI, page: Page) -> None:
    page.write("#ddpm_dataset_name", "live")
    way(page, "Collect as I generate", "#ddpm_collect")
    page.write("#ddpm_collect_words", "cat, Portrait")
    page.click("#ddpm_collect")
    page.wait(lambda: page.all(".ddpm-collecting"), "collecting to be on")
    host.post(
        "sdapi/v1/options",
        {"save_mask": True, "save_mask_composite": True, "return_mask": True, "save_init_img": True, "grid_save": True},
    )
    host.txt2img(seed=1, batch_size=2, n_iter=2, do_not_save_grid=False)
    made = host.txt2img(seed=50)
    host.txt2img(seed=60, prompt="a dog")  # has not the words
    mask = picture(made).convert("L").point(lambda v: 255 if v > 100 else 0)
    inpaint(host, made, mask, seed=9)
    collected = host.wait_for(
        lambda: (c := host.status()["collecting"])["collected"] + c["rejected"] >= 6 and not c["waiting"] and c,
        "six pictures",
    )
    time.sleep(1)
    items = host.get("ddpm/v1/datasets/live/items?size=100")["items"]
    names = [item["file"] for item in items]
    assert len(items) == 6, names
    assert not any("mask" in n or "grid" in n or "init" in n for n in names)
    assert all("cat" in item["prompt"] for item in items)
    assert collected["overflow"] == 0

    # saving off: from memory, the mask that is returned behind each picture left out
    host.post("sdapi/v1/options", {"samples_save": False})
    host.txt2img(seed=300, batch_size=2, save_images=True)
    inpaint(host, made, mask, seed=10, batch_size=2)
    host.txt2img(seed=400, save_images=False)  # not to be saved, not to be collected
    host.wait_for(lambda: host.get("ddpm/v1/datasets/live/items")["total"] >= 10, "four unsaved pictures")
    time.sleep(1)
    assert host.get("ddpm/v1/datasets/live/items")["total"] == 10
    host.post("sdapi/v1/options", {"samples_save": True, "save_mask": False, "save_mask_composite": False})
    host.post("sdapi/v1/options", {"return_mask": False, "save_init_img": False})
    page.click("#ddpm_collect_set")
    page.wait(lambda: "Not collecting." in page.text(), "collecting to be off")
    host.txt2img(seed=500)
    time.sleep(1)
    assert host.get("ddpm/v1/datasets/live/items")["total"] == 10


def test_generate_and_collect_eight(host: WebUI, page: Page) -> None:
    page.write("#ddpm_dataset_name", "asked")
    way(page, "Generate and collect", "#ddpm_ask_start")
    page.js("document.querySelector('#txt2img_prompt textarea').value = 'a quiet lake'")
    page.click("#ddpm_ask_take_over")
    page.wait(
        lambda: page.js("return document.querySelector('#ddpm_ask_prompt textarea').value") == "a quiet lake",
        "the prompt taken over",
    )
    page.write("#ddpm_ask_count", "8")
    for label, value in (
        ("Width", 64),
        ("Height", 64),
        ("Sampling steps (Stable Diffusion)", 2),
        ("Batch size", 2),
    ):
        set_slider(page, label, value)
    page.click("#ddpm_ask_start")
    host.wait_for(lambda: (j := host.status()["jobs"].get("collect")) and j["state"] == "done", "eight pictures", 300)
    items = host.get("ddpm/v1/datasets/asked/items")
    assert items["total"] == 8 and all(i["prompt"] == "a quiet lake" for i in items["items"])
    assert items["counts"]["kept"] == 8, items["counts"]
    page.wait(lambda: len(page.all(".ddpm-item img")) == 8, "the pictures in the review")
    page.shot("dataset")
    # reject one by key
    review = page.driver.find_element("css selector", "[data-ddpm=review]")
    page.js("arguments[0].focus()", review)
    review.send_keys("x")
    host.wait_for(lambda: host.counts("asked")["kept"] == 7, "one rejected")


def set_slider(page: Page, label: str, value: int) -> None:
    from selenium.webdriver.common.keys import Keys

    found = page.js(
        "return [...document.querySelectorAll('#ddpm_way_ask .block, #ddpm_tab .block')].filter(b => {"
        " const l = b.querySelector('label span, span[data-testid=block-info]');"
        " return l && l.textContent.trim() === arguments[0] })"
        ".map(b => b.querySelector('input[type=number]')).filter(Boolean)[0]",
        label,
    )
    page.js("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()
    found.send_keys(Keys.CONTROL, "a")
    found.send_keys(str(value), Keys.TAB)
    time.sleep(0.4)


def test_stopped_generating_goes_on_where_it_was(host: WebUI) -> None:
    body = {"dataset": "asked", "prompt": "a hill", "steps": 2, "width": 64, "height": 64, "count": 6, "seed": 1000}
    job = host.post("ddpm/v1/collect", body)["job"]
    begun(host, job, 1)
    host.post("ddpm/v1/stop", {"kind": "collect"})
    assert host.job_done(job)["state"] == "stopped"
    left = next(x for x in host.status()["uncollected"] if x["dataset"] == "asked")
    assert 1 <= left["done"] < 6
    job = host.post("ddpm/v1/collect", {"dataset": "asked", "resume": True})["job"]
    assert host.job_done(job)["state"] == "done"
    assert not host.status()["uncollected"]
    found = [i for i in host.get("ddpm/v1/datasets/asked/items?size=100")["items"] if i["prompt"] == "a hill"]
    assert len(found) == 6
    # with the sampler's numbers that were asked for, each picture with its own seed, also those made after the stop
    settings = sqlite_settings(host, "asked", "a hill")
    assert sorted(int(s["Seed"]) for s in settings) == list(range(1000, 1006))
    assert {s["Steps"] for s in settings} == {"2"}


def sqlite_settings(host: WebUI, dataset: str, prompt: str) -> list[dict[str, str]]:
    with closing(sqlite3.connect(host.data / "ddpm" / "datasets" / dataset / "dataset.sqlite")) as db:
        rows = db.execute("SELECT settings FROM items WHERE prompt = ?", (prompt,)).fetchall()
    return [json.loads(row[0]) for row in rows]


def test_harvest_by_label_and_filter(host: WebUI) -> None:
    assert "txt2img" in host.get("ddpm/v1/folders")["folders"]
    job = host.job_done(host.post("ddpm/v1/harvest", {"dataset": "all", "folders": ["txt2img"]})["job"])
    assert job["state"] == "done", job
    assert job["result"]["kept"] >= 20, job["result"]
    assert host.ask("ddpm/v1/harvest", {"dataset": "all", "folders": [str(host.data)]})[0] == 400


def test_txt2img_during_a_training(host: WebUI, page: Page, without: dict[str, Any]) -> None:
    """All requests finish, wait little, give the bytes they gave without us; the training gives the same model."""
    alone = host.job_done(train(host, "alone", 120))
    assert alone["state"] == "done", alone["error"]
    host.get("probe?clear=true")
    job = train(host, "beside", 120)
    begun(host, job)
    step = 1 / host.get(f"ddpm/v1/jobs/{job}")["progress"]["images_per_second"] * 8
    page.tab("Train")
    images = []
    for i in range(10):  # one after the other: a wait is for us, not for another generation
        images.append(same_bytes(host.txt2img(seed=77, batch_size=2)))
        time.sleep(0.05)
        if i == 4:  # the page is loaded anew in the middle
            page.driver.refresh()
    was_running = host.get(f"ddpm/v1/jobs/{job}")["state"] == "running"
    waits = sorted(host.get("probe")["waits"])
    done = host.job_done(job)
    assert done["state"] == "done", done["error"]
    print(f"queue waits: median {statistics.median(waits):.3f} s, largest {waits[-1]:.3f} s, one step {step:.3f} s")
    assert len(images) == 10 and set(images) == {without["image"]}
    assert was_running or family() != "a1111", "the training ended before the requests: nothing was measured"
    assert waits[int(0.95 * (len(waits) - 1))] <= 1.0 + step, waits
    assert same_model(host, "alone", "beside")
    open_tab(page)
    page.tab("Train")
    page.write("#ddpm_train_model", "beside")
    page.wait(lambda: page.all(".ddpm-chart"), "the curve after a reload")
    page.shot("train")


def test_a_sampling_beside_a_training_takes_hardly_longer(host: WebUI) -> None:
    """A person's sampling goes first: at most 1.5 times its time alone (it took fourteen times that)."""
    body = {"model": "alone", "count": 16, "steps": 20}

    def seconds() -> float:
        times = [timed(lambda: host.post("ddpm/v1/sample", body)) for _ in range(3)]
        return statistics.median(times)

    seconds()  # what is loaded once
    alone = seconds()
    job = train(host, "meanwhile", 100_000)
    begun(host, job)
    beside = seconds()
    reached = host.get(f"ddpm/v1/jobs/{job}")["progress"]["done"]
    time.sleep(3)
    assert host.get(f"ddpm/v1/jobs/{job}")["progress"]["done"] > reached
    host.post("ddpm/v1/stop", {"kind": "train"})
    assert host.job_done(job)["state"] == "stopped"
    print(f"sampling 16 images: {alone:.2f} s alone, {beside:.2f} s beside a training")
    assert beside <= 1.5 * alone + 0.3, (alone, beside)  # a slice that has begun is let end


def same_model(host: WebUI, first: str, second: str) -> bool:
    from safetensors.torch import load_file

    folder = host.data / "models" / "DDPM"
    a, b = (load_file(folder / f"{name}.safetensors") for name in (first, second))
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def test_memory_is_given_back(host: WebUI, without: dict[str, Any]) -> None:
    """With the policy *always* the host's model is put aside for the training, and back for each generation."""
    host.post("sdapi/v1/options", {"ddpm_memory": "always"})
    job = train(host, "parked", 60)
    begun(host, job)
    for _ in range(2):
        assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]
    assert host.job_done(job)["state"] == "done"
    assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]
    host.post("sdapi/v1/options", {"ddpm_memory": "automatic"})
    # after a failure too: no kept picture, so it fails at once
    status, _, _ = host.ask("ddpm/v1/train", {"model": "none", "dataset": "nothing"})
    assert status in (200, 400)
    assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]


def test_generate_in_the_tab_saves_where_the_host_does(host: WebUI, page: Page) -> None:
    open_tab(page)
    page.tab("Generate")
    page.wait(lambda: page.js("return document.querySelector('#ddpm_model input').value") != "", "a model")
    page.write("#ddpm_seed", "7")
    before = set(host.outputs.rglob("*.png"))
    earlier = host.status()["jobs"].get("sample", {}).get("id", 0)  # whose images the page shows, too
    page.click("#ddpm_generate")
    host.wait_for(
        lambda: (j := host.status()["jobs"].get("sample")) and j["id"] > earlier and j["state"] == "done", "it", 120
    )
    page.wait(
        lambda: page.js("return document.querySelectorAll('#ddpm_gallery img').length >= 16"), "sixteen pictures", 120
    )
    new = set(host.outputs.rglob("*.png")) - before
    assert len(new) == 16 and all("txt2img-images" in str(path) for path in new)
    page.shot("generate")
    # and they are never harvested, not even without their text
    one = sorted(new)[0]
    with Image.open(one) as image:
        assert "DDPM model" in image.info["parameters"]
        image.convert("RGB").save(one.with_name("stripped.png"))
    earlier_ones = 0  # of the tests before
    for path in before:
        with Image.open(path) as image:
            earlier_ones += "DDPM model" in image.info.get("parameters", "")
    job = host.job_done(host.post("ddpm/v1/harvest", {"dataset": "all", "folders": ["txt2img"]})["job"])
    assert job["result"]["skipped"].get("own", 0) == earlier_ones + 17, job["result"]
    # names that speak of the model: ours, without asking the host's
    host.post("sdapi/v1/options", {"samples_filename_pattern": "[model_name]-[seed]-[model_hash]"})
    host.post("ddpm/v1/sample", {"model": "beside", "count": 1, "seed": 4242, "steps": 2})
    assert list(host.outputs.rglob("*beside-4242*.png"))
    host.post("sdapi/v1/options", {"samples_filename_pattern": ""})


def test_keys_reach_our_buttons(host: WebUI, page: Page) -> None:
    """Ctrl+Enter and Esc look for ids in the current tab, and fail without them."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.driver.get_log("browser")
    count = len(list(host.outputs.rglob("*.png")))
    page.js("document.activeElement.blur()")
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    host.wait_for(lambda: len(list(host.outputs.rglob("*.png"))) > count, "pictures by Ctrl+Enter")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    assert not page.own_errors()


def test_reload_ui_twice_doubles_nothing(host: WebUI, page: Page) -> None:
    before = host.get("probe")
    job = train(host, "through", 400)
    begun(host, job)
    for _ in range(2):
        reload_ui(host, page)
    assert host.get(f"ddpm/v1/jobs/{job}")["state"] in ("running", "done"), "a training goes on through Reload UI"
    after = host.get("probe")
    assert after["routes"] == before["routes"]
    assert all(count <= before["callbacks"][kind] for kind, count in after["callbacks"].items()), after["callbacks"]
    ours = [name for name in after["threads"] if name.startswith("ddpm-")]
    assert len(ours) == len(set(ours)), ours
    open_tab(page)
    page.tab("Train")
    page.wait(lambda: page.all("[data-ddpm=train] .ddpm-progress"), "the training after the reload")
    host.post("ddpm/v1/stop", {"kind": "train"})
    host.job_done(job)


def test_killed_and_resumed(host: WebUI, page: Page) -> None:
    """A kill in mid-training loses nothing before the last checkpoint; the tab offers to go on."""
    reference = host.job_done(train(host, "whole", 200))
    assert reference["state"] == "done"
    job = train(host, "cut", 200, settings={**SMALL})
    begun(host, job, 20)
    host.kill()
    host.start()
    page.url = host.url
    open_tab(page)
    page.tab("Train")
    page.wait(lambda: page.all(".ddpm-unfinished .ddpm-button"), "the offer to go on")
    page.shot("resume")
    page.click(".ddpm-unfinished .ddpm-button")
    done = host.wait_for(
        lambda: (j := host.status()["jobs"].get("train")) and j["state"] in ("done", "failed") and j, "the end", 300
    )
    assert done["state"] == "done", done["error"]
    assert same_model(host, "whole", "cut")


def test_it_fits_narrow_and_dark(host: WebUI, page: Page) -> None:
    for theme in ("light", "dark"):
        page.driver.set_window_size(1280, 1000)
        open_tab(page, theme)
        for name in ("Dataset", "Train", "Generate", "Understand"):
            page.tab(name)
            time.sleep(0.5)
            wide = page.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{name} scrolls sideways at 1280 px"
            page.shot(f"{theme}-{name.lower()}")
    page.driver.set_window_size(400, 900)
    open_tab(page)
    for name in ("Dataset", "Train", "Generate", "Understand"):
        page.tab(name)
        ours = page.js("const r = document.querySelector('#ddpm_tab'); return r.scrollWidth - r.clientWidth")
        assert ours <= 0, f"{name} is wider than 400 px"
        page.shot(f"narrow-{name.lower()}")
    page.driver.set_window_size(1280, 1000)


def test_understand(host: WebUI, page: Page, without: dict[str, Any]) -> None:
    """Every page draws what it computes in the host, whose own images stay the same meanwhile; its models are given back."""
    open_tab(page)
    page.tab("Understand")
    listed = "document.querySelector('[aria-label=Model].ddpm-select')"
    page.wait(lambda: page.js(f"const s = {listed}; return s && s.options.length"), "the list of models", 120)
    page.js(  # the newest may have no words
        f"const s = {listed}; s.value = 'bundled-portraits'; s.dispatchEvent(new Event('change'))"
    )
    drawn = (
        "const all = [...document.querySelectorAll('.ddpm-understand figure:not([hidden]) img')].filter((i) => i.src && i.offsetParent);"
        "return all.length >= arguments[0] && all.every((i) => i.naturalWidth > 0)"
    )
    for number, least, name in ((1, 4, "noise"), (2, 10, "pair"), (3, 4, "path"), (6, 5, "words"), (7, 3, "network")):
        page.js("document.querySelectorAll('.ddpm-pages button')[arguments[0] - 1].click()", number)
        page.wait(lambda least=least: page.js(drawn, least), f"the images of page {number}", 120)
        assert not page.all(".ddpm-says .ddpm-failure"), page.text()
        page.shot(f"understand-{name}")
    move = (
        "const s = document.querySelector('.ddpm-understand input[aria-label=Timestep]');"
        "window.moving = setInterval(() => { s.value = Math.floor(Math.random() * 1000); s.dispatchEvent(new Event('input')); }, 50)"
    )
    page.js(move)
    try:
        assert {same_bytes(host.txt2img(seed=77, batch_size=2)) for _ in range(3)} == {without["image"]}
    finally:
        page.js("clearInterval(window.moving)")


def test_a_dataset_is_searched(host: WebUI, page: Page, without: dict[str, Any]) -> None:
    """An encoder trained in the host finds images by words and by an image, in the tab as over the API; the host's own images stay the same."""
    word = host.get("ddpm/ui/words?dataset=all")["tags"][0]["word"]
    settings = {"image_size": "32,32", "block_out_channels": "8,16", "grid": "2", "prior_channels": "16"}
    body = {"model": "finder", "dataset": "all", "preset": "contrast", "steps": 40, "settings": settings}
    job = host.post("ddpm/v1/train", body)["job"]
    assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]
    done = host.job_done(job)
    assert done["state"] == "done", done["error"]
    found = host.post("ddpm/v1/search", {"dataset": "all", "prompt": word, "count": 5})
    assert found["encoder"] == "finder" and len(found["items"]) == 5, found
    status, answer, _ = host.ask("ddpm/v1/search", {"dataset": "all", "prompt": "qwertz"})
    assert status == 400 and "it knows" in str(answer)
    open_tab(page)
    page.write("#ddpm_dataset_name", "all")
    page.wait(lambda: page.all("[data-view=misfits]"), "the view that an encoder makes possible")
    page.js(
        "const s = document.querySelector('.ddpm-searched'); s.value = 'images'; s.dispatchEvent(new Event('change'));"
    )
    field = page.all(".ddpm-search")[0]
    field.clear()
    field.send_keys(word)
    shown = "return [...document.querySelectorAll('.ddpm-item')].slice(0, 5).map((c) => Number(c.dataset.id))"
    page.wait(lambda: page.js(shown) == [one["id"] for one in found["items"]], "the API's answer")
    page.shot("searched")
    assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]


def test_settings_count_at_once(host: WebUI, tmp_path: Path) -> None:
    host.post("sdapi/v1/options", {"ddpm_checkpoints": 1})
    assert json.loads((host.data / "config.json").read_text(encoding="utf-8"))["ddpm_checkpoints"] == 1
    host.job_done(train(host, "single", 12))
    kept = list((host.data / "ddpm" / "runs" / "single" / "checkpoints").glob("*.safetensors"))
    assert 1 <= len(kept) <= 2, "the newest, and the best where it is another"
    host.post("sdapi/v1/options", {"ddpm_checkpoints": 2})
    if family() not in ("forge", "neo"):  # Forge's API sets every option, its own restricted ones too
        host.post("sdapi/v1/options", {"ddpm_workspace": str(tmp_path)})  # the API may not: it would name a path
        assert host.get("ddpm/v1/datasets")["datasets"]


def test_chinese(host: WebUI, page: Page) -> None:
    host.post("sdapi/v1/options", {"localization": "zh_CN"})
    try:
        reload_ui(host, page)
        for theme in ("light", "dark"):
            open_tab(page, theme)
            text = page.js("return document.querySelector('#ddpm_tab').textContent")
            assert "数据集" in text and "训练" in text
            page.shot(f"chinese-{theme}-dataset")
            for number, name in (
                (1, "train"),
                (2, "generate"),
                (3, "understand"),
            ):  # the host's own words are translated by its own pack
                page.js("document.querySelectorAll('#ddpm_tabs > .tab-nav button')[arguments[0]].click()", number)
                time.sleep(1.5)
                page.shot(f"chinese-{theme}-{name}")
    finally:
        host.post("sdapi/v1/options", {"localization": "None"})


def test_removed_it_leaves_its_workspace_alone(host: WebUI, data: Path, without: dict[str, Any]) -> None:
    """Last: the host goes on as before, and of us there is the workspace and the models, nothing else."""
    import shutil

    host.kill()
    shutil.rmtree(data / "extensions" / NAME)
    host.start()
    assert same_bytes(host.txt2img(seed=77, batch_size=2)) == without["image"]
    assert host.ask("ddpm/v1/status")[0] == 404
    ours = [
        path.relative_to(data)
        for path in data.rglob("*ddpm*")
        if not str(path.relative_to(data)).startswith(("extensions/ddpm-probe", "models/Stable-diffusion", "cache"))
        and outputs(data).name not in path.parts
        and "__pycache__" not in path.parts
    ]
    tops = {path.parts[0] for path in ours}
    assert tops <= {"ddpm"}, ours
    assert len(_hashes) > 20  # the host's own pictures, watched since the first test
    assert (data / "models" / "DDPM").is_dir()
    assert not [line for line in plain_lines(host.log()) - without["lines"] if "ddpm_" in line and "rror" in line]
    settings = json.loads((data / "config.json").read_text(encoding="utf-8"))
    assert all(key.startswith("ddpm_") for key in settings if "ddpm" in key)
    host.kill()
