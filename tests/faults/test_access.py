"""The standalone server lets in this machine's own page and nobody else, and hands out no file that is not the page's."""

from __future__ import annotations

import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, serve
from fastapi.testclient import TestClient

from ddpm_core.host.server import build_app
from ddpm_core.host.standalone import StandaloneHost

SECRET = "a secret that no answer may hold"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    root = tmp_path_factory.mktemp("access")
    (root / "secret.txt").write_text(SECRET)
    app, service = build_app(StandaloneHost(root / "ws"))
    assert service.workspace.models_folder == root / "ws" / "models"
    (root / "ws" / "models" / "inside.txt").write_text(SECRET)  # of the workspace, too, only what a route of ours gives
    with TestClient(app, base_url="http://127.0.0.1:7870", raise_server_exceptions=False) as client:
        yield client, root
    service.shutdown()


def routes(client: TestClient) -> list[tuple[str, str]]:
    """Every route of the application with each of its methods, gradio's included, found by enumeration."""
    found: list[tuple[str, str]] = []
    waiting = [("", route) for route in client.app.routes]  # type: ignore[attr-defined]
    while waiting:
        prefix, route = waiting.pop()
        path = prefix + getattr(route, "path", "")
        included = getattr(route, "original_router", None)  # newer FastAPI includes routers when they are first asked
        below = getattr(included or getattr(route, "app", None), "routes", None) or getattr(route, "routes", None) or []
        waiting += [(path, inner) for inner in below]
        for method in getattr(route, "methods", None) or []:
            found.append((method, re.sub(r"\{\w+(:path)?\}", "x", path) or "/"))
    return found


def test_a_name_that_is_not_this_machines_is_refused_everywhere(served: tuple[TestClient, Path]) -> None:
    client, _ = served
    found = routes(client)
    assert (
        len(found) > 40 and any("queue/join" in path for _, path in found) and any("/ddpm/ui/" in p for _, p in found)
    )
    for method, path in found:
        answer = client.request(method, path, headers={"Host": "evil.example:7870"})
        assert answer.status_code == 403, (method, path, answer.status_code)


def test_another_sites_page_changes_nothing(served: tuple[TestClient, Path]) -> None:
    client, _ = served
    for method, path in routes(client):
        if method in ("GET", "HEAD"):
            continue
        for origin in ("https://evil.example", "http://127.0.0.1:9999", "null"):
            headers = {"Origin": origin, "X-Forwarded-Host": "evil.example"}
            answer = client.request(method, path, headers=headers, json={})
            assert answer.status_code == 403, (method, path, origin, answer.status_code)
            # nor does its browser get leave to send our header
            asking = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-ddpm"}
            leave = client.options(path, headers=asking)
            assert leave.status_code == 403 and "access-control-allow-origin" not in leave.headers, path
    # and the page itself may
    origin = {"Origin": "http://127.0.0.1:7870"}
    assert client.post("/ddpm/ui/stop", json={"kind": "train"}, headers={**origin, "X-DDPM": "1"}).status_code == 200
    assert client.post("/ddpm/ui/stop", json={"kind": "train"}, headers=origin).status_code == 403  # not by a form


PLACES = [
    "/file=",
    "/file/",
    "/gradio_api/file=",
    "/gradio_api/file/",
    "/static/",
    "/assets/",
    "/gradio_api/static/",
    "/theme/",
]
PLACES += ["/proxy=", "/gradio_api/proxy=", "/stream/", "/gradio_api/stream/", "/ddpm/", "/custom_component/x/"]


def test_no_file_by_the_published_attacks_on_gradio(served: tuple[TestClient, Path]) -> None:
    """CVE-2023-34239, CVE-2023-51449, CVE-2024-1561, CVE-2024-0964, CVE-2024-47084 and their kin: paths in every spelling."""
    client, root = served
    for secret in (root / "secret.txt", root / "ws" / "models" / "inside.txt"):
        plain = str(secret)
        up = "../" * 12 + plain.lstrip("/")
        spelled = [
            plain,
            "/" + plain,
            up,
            up.replace("/", "%2f"),
            up.replace("..", "%2e%2e"),
            up.replace("/", "\\"),
            "file://" + plain,
        ]
        spelled += [
            "....//" * 12 + plain.lstrip("/"),
            plain + "%00.png",
            "x/" + up,
            "http://127.0.0.1:7870/file=" + plain,
        ]
        for place in PLACES:
            for path in spelled:
                answer = client.get(place + path)
                assert SECRET not in answer.text, place + path
        bodies = [
            {"component_id": "1", "fn_name": fn, "data": plain, "session_hash": "x"}
            for fn in ("move_resource_to_block_cache", "ls", "get_config", "make_temp_copy_if_needed", "__class__")
        ]
        for body in bodies:
            for path in (
                "/component_server",
                "/gradio_api/component_server",
                "/component_server/",
                "/gradio_api/component_server/",
            ):
                assert SECRET not in client.post(path, json=body).text
        for name in ("../../secret.png", "..\\..\\x.png", "/etc/x.png"):
            for path in ("/upload", "/gradio_api/upload"):
                client.post(path, files={"files": (name, b"x")})
    assert sorted(path.name for path in root.iterdir()) == ["secret.txt", "ws"]
    assert (root / "secret.txt").read_text() == SECRET


def test_a_file_named_in_an_event_is_not_fetched(served: tuple[TestClient, Path]) -> None:
    """A value that claims to be a file of the server, in every event: what comes back holds nothing of it."""
    client, root = served
    config = client.get("/config").json()
    completed = 0
    claimed = {
        "path": str(root / "secret.txt"),
        "url": None,
        "orig_name": "a.png",
        "meta": {"_type": "gradio.FileData"},
    }
    asked = 0
    for event in config["dependencies"]:
        data = [claimed] * len(event["inputs"])
        body = {"data": data, "fn_index": event["id"], "session_hash": "abc"}
        for path in ("/gradio_api/run/predict", "/gradio_api/api/predict", "/gradio_api/queue/join"):
            answer = client.post(path, json=body)
            assert SECRET not in answer.text
            asked += 1
        # and what the event then says, read as the page reads it
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as stream:
            for line in stream.iter_lines():
                assert SECRET not in line
                if "process_completed" in line:
                    completed += 1
                    break
                if "close_stream" in line or "unexpected" in line:
                    break
    assert asked > 20 and completed > 5
    assert SECRET not in client.get("/gradio_api/file=" + str(root / "secret.txt")).text


@pytest.mark.parametrize("generation", ["gradio3", "gradio4", ""])
def test_no_file_below_the_current_folder_on_any_gradio(generation: str, tmp_path: Path) -> None:
    """gradio 3.41 hands out all that lies there (its routes.py), and standalone the workspace does."""
    python = ROOT / f".venv-{generation}" / "bin" / "python" if generation else Path(sys.executable)
    if not python.exists():
        pytest.skip(f"skipped: {python} is not set up; ./test.sh does it")
    process, url = serve(python, tmp_path / "served" / "ws")  # with the project's folder as the current one
    try:
        for place in ("README.md", "ddpm_core/cli.py", str(ROOT / "README.md"), f"{tempfile.gettempdir()}/gradio/../x"):
            for route in ("file=", "file/", "gradio_api/file=", "/file=", "%66ile="):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(url + route + place)
                assert refused.value.code in (403, 404), (route, place)
        assert b"ddpm.js" in urllib.request.urlopen(url).read()  # the page itself is there
    finally:
        process.terminate()
        process.wait(60)


def test_where_no_folder_can_be_named_the_tab_says_how_to_harvest(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path / "ws")
    host.local = False
    app, service = build_app(host)
    try:
        config = TestClient(app).get("/config").text
        assert "No folder can be named here" in config and '"ddpm_harvest"' not in config
    finally:
        service.shutdown()


@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.1:7870", "LocalHost:1", "[::1]", "[::1]:7870"])
def test_this_machines_names_are_let_in_with_and_without_a_port(name: str, served: tuple[TestClient, Path]) -> None:
    assert served[0].get("/ddpm/ui/status", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "name", ["", "[::2]", "::1.evil.example", "[::1].evil.example", "evil[::1]", "localhost.evil:80", "[", "a:b:c"]
)
def test_names_that_only_look_like_them_are_refused(name: str, served: tuple[TestClient, Path]) -> None:
    assert served[0].get("/ddpm/ui/status", headers={"Host": name}).status_code == 403
