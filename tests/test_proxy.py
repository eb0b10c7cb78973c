"""The page behind a real proxy that serves it below a path, as people put it beside other things."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, make_driver, needs_browser
from conftest import ROOT, random_pictures

NGINX = shutil.which("nginx") or (shutil.which("/usr/sbin/nginx"))
CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /sd/ {{
            proxy_pass http://127.0.0.1:{behind}/;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_buffering off;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The page's address at the proxy."""
    if NGINX is None:
        pytest.skip("skipped: no nginx on this machine (Debian: nginx-light)")
    port, behind = free_port(), free_port()
    workspace = tmp_path / "ws"
    command = [
        sys.executable,
        "-m",
        "ddpm_core",
        "--workspace",
        workspace,
        "serve",
        "--port",
        behind,
        "--root-path",
        "/sd",
    ]
    (tmp_path / "nginx.conf").write_text(CONFIGURATION.format(folder=tmp_path, port=port, behind=behind))
    harvest = [sys.executable, "-m", "ddpm_core", "--workspace", str(workspace), "harvest", "--dataset", "d"]
    subprocess.run([*harvest, str(random_pictures(tmp_path / "in", 5))], cwd=ROOT, check=True, capture_output=True)
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    server = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    proxy = subprocess.Popen(
        [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}/sd/"
    try:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.3)
        yield url
    finally:
        for process in (proxy, server):
            process.terminate()
            process.wait(30)


def test_every_address_of_the_page_stays_below_the_path(address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    absolute = re.findall(r"(?:src|href)=\"(/[^\"]*)\"", page)
    assert all(path.startswith("/sd/") for path in absolute), absolute
    ours = re.findall(r"(?:src|href)=\"\./(ddpm/[^\"]*)\"", page)
    assert len(ours) >= 8
    for path in ours:
        with urllib.request.urlopen(address + path) as answer:
            assert answer.status == 200


@pytest.mark.browser
@needs_browser
def test_the_page_works_behind_it(address: str) -> None:
    driver = make_driver()
    try:
        page = Page(driver, address, "proxy")
        page.open()
        kept = "return (document.querySelector('.ddpm-kept-count') || {}).textContent"
        page.wait(lambda: page.js(kept) == "5", "five kept")  # our own routes
        page.tab("Train")
        page.click("#ddpm_train_estimate")  # gradio's
        page.write("#ddpm_train_model", "m")
        page.click("#ddpm_train_estimate")
        page.wait(lambda: "million parameters" in page.text(), "the estimate")
    finally:
        driver.quit()


@pytest.mark.parametrize("path", ["sd", "/a b", "javascript:x", "/a?b", "//x"])
def test_a_root_path_that_is_none_is_refused(path: str, tmp_path: Path) -> None:
    from conftest import CommandLine

    said = CommandLine(tmp_path / "ws").run("serve", "--port", 0, "--root-path", path, code=2)["error"]
    assert "--root-path is a path like /ddpm" in str(said)
