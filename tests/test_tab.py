"""The tab in a real headless browser, on every gradio that our hosts bring: harvest, reject, train, reload, generate, see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DATA, ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
PYTHONS = {
    "gradio 3.41.2": ROOT / ".venv-gradio3" / SCRIPTS / "python",
    "gradio 4.40.0": ROOT / ".venv-gradio4" / SCRIPTS / "python",
    "standalone": Path(sys.executable),
}
SHOTS = ROOT / "test-results"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="skipped: no Chromium and chromedriver on this machine (Debian: chromium chromium-driver)",
    ),
]


class Page:
    """A served workspace and a browser on it."""

    def __init__(self, driver: Any, url: str, label: str) -> None:
        self.driver = driver
        self.url = url
        self.label = label

    def open(self, theme: str = "light") -> None:
        self.driver.get(f"{self.url}?__theme={theme}")
        self.wait(lambda: self.all("#ddpm_tab [role=tab], #ddpm_tab .tab-nav button"), "the tab")
        self.wait(lambda: self.js("return document.querySelector('#ddpm_tab .ddpm-live') !== null"), "the live parts")

    def js(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(code, *values)

    def all(self, css: str) -> list[Any]:
        return [e for e in self.driver.find_elements("css selector", css) if e.is_displayed()]

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = condition()
            except Exception as error:  # the page redraws itself between finding and asking
                if "stale" not in str(error).lower():
                    raise
                found = None
            if found:
                return found
            time.sleep(0.1)
        self.shot("failure")
        raise AssertionError(f"{what} did not come within {seconds:.0f} s; the page says: {self.text()[:2000]}")

    def text(self) -> str:
        return str(self.js("return document.body.innerText"))

    def tab(self, name: str) -> None:
        found = self.driver.find_elements(
            "xpath", f"//button[@role='tab' or ancestor::*[contains(@class, 'tab-nav')]][normalize-space(.)='{name}']"
        )
        self.js("arguments[0].click()", next(b for b in reversed(found) if b.is_displayed()))
        marker = {"Dataset": "#ddpm_harvest", "Train": "#ddpm_train_start", "Generate": "#ddpm_generate"}[name]
        self.wait(lambda: self.all(marker), f"the {name} sub-tab")

    def click(self, css: str) -> None:
        element = self.wait(lambda: self.all(css), css)[0]
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def write(self, css: str, value: str) -> None:
        from selenium.webdriver.common.keys import Keys

        element = self.wait(lambda: self.all(f"{css} input, {css} textarea"), css)[0]
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(Keys.BACKSPACE)
        element.send_keys(value)
        element.send_keys(Keys.TAB)
        self.wait(lambda: element.get_attribute("value") == value, f"{css} to hold {value}")
        time.sleep(0.3)  # gradio sends the value on a later tick

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        width = self.driver.get_window_size()["width"]
        height = int(self.js("return Math.max(document.body.scrollHeight, document.documentElement.scrollHeight)"))
        self.driver.set_window_size(width, max(700, min(height + 140, 2400)))
        time.sleep(0.4)
        self.driver.save_screenshot(str(SHOTS / f"{self.label.replace(' ', '-')}-{name}.png"))
        self.driver.set_window_size(width, 1000)

    def own_errors(self) -> list[str]:
        """Console lines that are ours; gradio's fonts and its frame script come from the network, which need not be there."""
        foreign = (
            "fonts.googleapis.com",
            "fonts.gstatic.com",
            "cdnjs.cloudflare.com",
            "net::ERR_NAME_NOT_RESOLVED",
            "net::ERR_INTERNET_DISCONNECTED",
            "/assets/",
            "manifest.json",
            "favicon",
            "huggingface.co",
        )
        return [
            line["message"]
            for line in self.driver.get_log("browser")
            if line["level"] == "SEVERE" and not any(f in line["message"] for f in foreign)
        ]


def make_driver(width: int = 1280) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--window-size={width},1000",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(str(DRIVER)))


def serve(python: Path, workspace: Path) -> tuple[subprocess.Popen[str], str]:
    log = workspace.parent / "server.log"
    workspace.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [str(python), "-m", "ddpm_core", "--workspace", str(workspace), "serve", "--port", "0"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=open(log, "w"),  # noqa: SIM115 - closed with the process
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    end = time.monotonic() + 90
    while time.monotonic() < end:
        match = re.search(r"http://\S+", log.read_text())
        if match:
            return process, match[0]
        if process.poll() is not None:
            break
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the server did not start: {log.read_text()}")


@pytest.fixture(params=PYTHONS)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    python = PYTHONS[request.param]
    if not python.exists():
        pytest.skip(f"skipped: {python} is not set up; ./test.sh does it")
    process, url = serve(python, tmp_path / "served" / "ws")
    driver = make_driver()
    try:
        yield Page(driver, url, request.param)
    finally:
        driver.quit()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log = (tmp_path / "served" / "server.log").read_text()
        assert "Traceback" not in log, log


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

    # train 20 steps, reload in the middle
    page.tab("Train")
    page.write("#ddpm_train_model", "faces-model")
    page.write("#ddpm_train_steps", "20")
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
    page.js("arguments[0].scrollIntoView()", page.all("#ddpm_generate")[0])
    page.click("#ddpm_generate")
    page.wait(
        lambda: page.js(
            "const i = [...document.querySelectorAll('#ddpm_gallery img')]; return i.length >= 16 && i.every(x => x.naturalWidth > 0)"
        ),
        "sixteen pictures in the gallery",
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

    # and a narrow window: nothing sticks out sideways
    driver.set_window_size(400, 900)
    time.sleep(0.5)
    for name in ("Dataset", "Train", "Generate"):
        page.tab(name)
        time.sleep(0.7)
        wide = page.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 1, f"{name} is {wide} px too wide at 400 px"


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
