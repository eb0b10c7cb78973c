"""Who may come in by which door, and every way to install and start us, in a real WebUI."""

from __future__ import annotations

import http.cookiejar
import json
import subprocess
import sys
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browser import Page, make_driver, needs_browser
from conftest import ROOT, random_pictures
from running import NAME, WEBUI_DIR, WEBUI_PYTHON, WebUI, copy_extension, family, open_tab, options, reload_ui

pytestmark = [
    pytest.mark.skipif(
        not (WEBUI_DIR and WEBUI_PYTHON),
        reason="skipped: no real WebUI; name one with WEBUI_DIR and its Python with WEBUI_PYTHON",
    ),
    pytest.mark.timeout(900),
]

BASIC = {"Authorization": "Basic " + b64encode(b"api:secret").decode()}
WRONG = {"Authorization": "Basic " + b64encode(b"api:wrong").decode()}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[WebUI]:
    webui = WebUI(tmp_path / "data")
    webui.install_probe()
    try:
        yield webui
    finally:
        webui.kill()


def our_routes(host: WebUI, prefix: str) -> list[tuple[str, str]]:
    """Method and path of every route of ours that the running app has, with names filled in."""
    found = []
    for path, methods in host.get("probe")["routes"]:
        filled = path.replace("{name}", "x").replace("{number}", "1")
        found += [(method, filled) for method in methods if filled.startswith(prefix) and method in ("GET", "POST")]
    return found


def cookie(host: WebUI) -> dict[str, str]:
    """The cookie of someone who logged in at the page."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.open(host.url + "login", urllib.parse.urlencode({"username": "me", "password": "mine"}).encode())
    # gradio marks one of the two as for https only; over http browsers send the other
    kept = [c for c in jar if not c.secure] or list(jar)
    return {"Cookie": "; ".join(f"{c.name}={c.value}" for c in kept)}


@pytest.mark.parametrize("page_login", [False, True], ids=["open page", "page login"])
@pytest.mark.parametrize("api_login", [False, True], ids=["open api", "api login"])
def test_two_doors(fresh: WebUI, page_login: bool, api_login: bool) -> None:
    fresh.install()
    more = [*(["--gradio-auth", "me:mine"] if page_login else []), *(["--api-auth", "api:secret"] if api_login else [])]
    fresh.start(*more)
    page_routes, api_routes = our_routes(fresh, "/ddpm/ui"), our_routes(fresh, "/ddpm/v1")
    assert len(page_routes) >= 12 and len(api_routes) >= 10
    signed_in = cookie(fresh) if page_login else {}

    def status(method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        body = {} if method == "POST" else None
        code, _, sent = fresh.ask(path, body, {**headers, "X-DDPM": "1"}, method)
        return code, {key.lower(): value for key, value in sent.items()}

    for method, path in page_routes:
        code, sent = status(method, path, {})
        assert "www-authenticate" not in sent, f"{path} would make the browser ask for a password"
        assert (code == 403) == page_login, (path, code)
        if page_login:
            assert status(method, path, BASIC)[0] == 403, f"{path} opened to the API's credentials"
            assert status(method, path, signed_in)[0] not in (401, 403), path
            assert status(method, path, {"Cookie": "access-token=guess; access-token-unsecure=guess"})[0] == 403
        if method == "POST":
            assert fresh.ask(path, {}, signed_in, method)[0] == 403, f"{path} takes requests from other sites"

    for method, path in api_routes:
        code, sent = status(method, path, {})
        assert (code == 401) == (api_login or page_login), (path, code)
        if api_login:
            # A1111 drops the header that asks for a password on its way out, for its own routes too
            assert sent.get("www-authenticate", "") == status("GET", "sdapi/v1/options", {})[1].get(
                "www-authenticate", ""
            )
            assert status(method, path, WRONG)[0] == 401
            assert status(method, path, BASIC)[0] != 401
        elif page_login:
            assert "www-authenticate" not in sent
            assert status(method, path, signed_in)[0] != 401
    documented = fresh.ask("openapi.json", headers=signed_in)[1]
    if isinstance(documented, dict) and "paths" in documented:
        assert {path for path in documented["paths"] if path.startswith("/ddpm/v1")}
        assert not [path for path in documented["paths"] if path.startswith("/ddpm/ui")]


def fire(host: WebUI, pressed: str, values: dict[str, Any]) -> tuple[int, str]:
    """An event of the page, as anyone who reaches the port can fire it: the button pressed, other values of fields."""
    config = host.get("config")
    fields = {part["id"]: part["props"] for part in config["components"]}
    button = next(number for number, props in fields.items() if props.get("elem_id") == pressed)
    number, event = next(
        (event.get("id", number), event)
        for number, event in enumerate(config["dependencies"])
        if any((target[0] if isinstance(target, list) else target) == button for target in event["targets"])
    )
    data = [values.get(fields[part].get("elem_id"), fields[part].get("value")) for part in event["inputs"]]
    code, answer, _ = host.ask("run/predict", {"fn_index": number, "data": data, "session_hash": "x"})
    return code, str(answer)


def test_no_folder_is_named_from_elsewhere(fresh: WebUI, tmp_path: Path) -> None:
    fresh.install()
    given = random_pictures(tmp_path / "given", 3)
    fields = {"ddpm_dataset_name": "d", "ddpm_dataset_folders": str(given), "ddpm_dataset_offered": []}
    fresh.start("--listen")
    assert "not one of the WebUI" in fire(fresh, "ddpm_harvest", fields)[1]
    elsewhere = tmp_path / "elsewhere"
    fresh.get(f"probe/set?key=ddpm_workspace&value={urllib.parse.quote(str(elsewhere))}")
    assert not elsewhere.exists() and fresh.get("probe/set?key=ddpm_workspace")["now"] in ("", None)
    fresh.kill()

    fresh.start()
    code, said = fire(fresh, "ddpm_harvest", fields)
    assert code == 200, said
    fresh.wait_for(lambda: (fresh.counts("d") or {}).get("kept") == 3, "the harvest")
    fresh.get(f"probe/set?key=ddpm_workspace&value={urllib.parse.quote(str(elsewhere))}")
    fresh.wait_for(lambda: fresh.status()["datasets"] == [] and elsewhere.is_dir(), "the other workspace")


def test_without_api_there_is_none_and_folder_names_and_flags(fresh: WebUI, tmp_path: Path) -> None:
    """A ZIP's folder name, models elsewhere, folders hidden, settings frozen, no --api."""
    copy_extension(fresh.data / "extensions" / f"{NAME}-main")
    models = tmp_path / "models elsewhere"
    (fresh.data / "models").rename(models)
    # who freezes settings has chosen a checkpoint before; Forge does not start otherwise
    name = next((models / "Stable-diffusion").glob("*.safetensors")).name
    (fresh.data / "config.json").write_text(json.dumps({**options(), "sd_model_checkpoint": name}), encoding="utf-8")
    flags = [
        "--model-ref" if family() == "neo" else "--models-dir",
        str(models),
        "--hide-ui-dir-config",
        "--freeze-settings",
        "--ddpm-allow-folder",
        str(tmp_path),
    ]
    fresh.start(*flags, api=False)
    routes = [path for path, _ in fresh.get("probe")["routes"]]
    assert "/ddpm/ui/status" in routes and not [path for path in routes if path.startswith("/ddpm/v1")]
    status = fresh.get("ddpm/ui/status")
    assert status["models"] == ["bundled-portraits"] and (models / "DDPM").is_dir()
    assert (fresh.data / "ddpm").is_dir()
    driver = make_driver()
    try:
        page = Page(driver, fresh.url, f"flags-{family()}")
        open_tab(page)
        page.write("#ddpm_dataset_name", "typed")
        (tmp_path / "given").mkdir()
        for folder, words in (
            (str(ROOT), "not one of the WebUI's output folders"),
            (str(tmp_path / "given"), "0 found"),
        ):
            page.write("#ddpm_dataset_folders", folder)
            page.js(
                "const x = document.querySelector('#ddpm_dataset_offered .token-remove, #ddpm_dataset_offered .remove-all'); if (x) x.click()"
            )
            page.click("#ddpm_harvest")
            page.wait(lambda words=words: words in page.text().replace("\n", " "), words)
    finally:
        driver.quit()


def test_without_a_page_there_is_the_api(fresh: WebUI) -> None:
    fresh.install()
    fresh.start("--nowebui", "--api-auth", "api:secret", api=False)
    routes = [path for path, _ in fresh.get("probe")["routes"]]
    assert "/ddpm/v1/status" in routes and not [path for path in routes if path.startswith("/ddpm/ui")]
    assert fresh.ask("ddpm/v1/status")[0] == 401
    assert fresh.ask("ddpm/v1/status", headers=BASIC)[0] == 200


@needs_browser
def test_a_failure_to_load_is_shown_in_the_tab(fresh: WebUI) -> None:
    fresh.install()
    package = fresh.extension / "ddpm_core"
    (package / "errors.py").write_text("raise ImportError('a <b>broken</b> installation')\n", encoding="utf-8")
    fresh.start()
    driver = make_driver()
    try:
        page = Page(driver, fresh.url, f"broken-{family()}")
        driver.get(fresh.url)
        press = (
            "const b = [...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === 'DDPM');"
            "if (b) b.click(); return Boolean(b)"
        )
        page.wait(lambda: page.js(press), "the tab", 120)
        page.wait(lambda: "a <b>broken</b> installation" in page.text(), "what went wrong")
    finally:
        driver.quit()


@needs_browser
@pytest.mark.skipif(
    family() in ("forge", "neo"), reason="skipped: Forge's Extensions tab is A1111's own code, tried there"
)
def test_install_from_url_and_reload_ui(fresh: WebUI, tmp_path: Path) -> None:
    """Extensions tab, Install from URL with a local git URL, Reload UI: a working tab."""
    source = tmp_path / NAME
    copy_extension(source)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], cwd=source, check=True)
    subprocess.run([*git, "add", "-A"], cwd=source, check=True)
    subprocess.run([*git, "commit", "-qm", "as it is"], cwd=source, check=True)
    fresh.start()
    driver = make_driver()
    try:
        page = Page(driver, fresh.url, f"installed-{family()}")
        driver.get(fresh.url)
        click = "const b = [...document.querySelectorAll('#tabs button')].find(b => b.textContent.trim() === arguments[0]); if (b) b.click(); return Boolean(b)"
        page.wait(lambda: page.js(click, "Extensions"), "the Extensions tab", 120)
        page.wait(lambda: page.js(click, "Install from URL"), "Install from URL")
        page.wait(lambda: page.all("#tab_extensions textarea"), "the form")
        field = page.js(
            "return [...document.querySelectorAll('#tab_extensions .block')].filter(b => /URL for extension/.test(b.textContent))"
            ".map(b => b.querySelector('textarea, input')).filter(Boolean)[0]"
        )
        field.send_keys(str(source))
        page.js(
            "[...document.querySelectorAll('#tab_extensions button')].find(b => b.textContent.trim() === 'Install').click()"
        )
        fresh.wait_for(lambda: (fresh.extension / "scripts" / "ddpm.py").exists(), "the clone", 60)
        page.wait(lambda: "Installed into" in page.text(), "Installed into")
        reload_ui(fresh, page)
        open_tab(page)
        assert fresh.get("ddpm/v1/status")["datasets"] == []
        assert json.loads((fresh.data / "config.json").read_text())
    finally:
        driver.quit()
