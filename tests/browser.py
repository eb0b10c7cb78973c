"""A headless browser on our tab, for the tab's own tests and for those in a real WebUI."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SHOTS = ROOT / "test-results"

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="skipped: no Chromium and chromedriver on this machine (Debian: chromium chromium-driver)",
)


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
        marker = {
            "Dataset": "#ddpm_harvest",
            "Train": "#ddpm_train_start",
            "Generate": "#ddpm_generate",
            "Understand": ".ddpm-pages",
        }[name]
        self.wait(lambda: self.all(marker), f"the {name} sub-tab")

    def click(self, css: str) -> None:
        element = self.wait(lambda: self.all(css), css)[0]
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        self.wait(lambda: self._pressed(element), f"{css} to take a click")

    @staticmethod
    def _pressed(element: Any) -> bool:
        """Click, unless gradio's sign of loading lies over the element, as it does for a moment on a busy machine."""
        from selenium.common.exceptions import ElementClickInterceptedException

        try:
            element.click()
        except ElementClickInterceptedException:
            return False
        return True

    def write(self, css: str, value: str) -> None:
        from selenium.webdriver.common.keys import Keys

        element = self.wait(lambda: self.all(f"{css} input, {css} textarea"), css)[0]
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        self.wait(lambda: self._pressed(element), f"{css} to take a click")
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(Keys.BACKSPACE)
        element.send_keys(value)
        element.send_keys(Keys.TAB)
        self.js("document.activeElement.blur()")  # the next field may be a list that opens over others
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
