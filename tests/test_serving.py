"""What open pages read again and again is answered before the frameworks' layers, and no differently than behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ddpm_core.api import page
from ddpm_core.errors import UserError
from ddpm_core.host.server import build_app
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.service import Service

ASKED = [
    "status?page=a",
    "items?dataset=d&view=all&page=0&size=60",
    "items?dataset=d&view=none",
    "items?dataset=gone&view=all",
    "thumb?dataset=d&id=1&size=0",
    "thumb?dataset=d&id=1&v=abc",
    "thumb?dataset=d&id=1&size=32&crop=pad",
    "thumb?dataset=d&id=10000",
    "thumb?dataset=d&id=1&size=33",
    "thumb?dataset=..&id=1",
    "thumb",
]


@pytest.fixture
def served(tmp_path: Path, few: Path) -> Iterator[tuple[TestClient, Service]]:
    app, service = build_app(StandaloneHost(tmp_path / "ws"))
    service.workspace.harvest("d", [few])
    try:
        yield TestClient(app, base_url="http://127.0.0.1:7870"), service
    finally:
        service.shutdown()


def test_what_pages_read_again_and_again_goes_the_short_way(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = page.straight

    def marked(service: Service) -> dict[str, page.Endpoint]:
        def marking(endpoint: page.Endpoint) -> page.Endpoint:
            async def answer(request: Any) -> Any:
                found = await endpoint(request)
                found.headers["x-way"] = "short"
                return found

            return answer

        return {path: marking(endpoint) for path, endpoint in straight(service).items()}

    monkeypatch.setattr(page, "straight", marked)
    app, service = build_app(StandaloneHost(tmp_path / "ws"))
    client = TestClient(app, base_url="http://127.0.0.1:7870")
    try:
        service.workspace.harvest("d", [few])
        for asked in ASKED:
            assert client.get(f"/ddpm/ui/{asked}").headers["x-way"] == "short"
        for method, path in [("POST", "status"), ("HEAD", "status"), ("GET", "status/"), ("GET", "curves?model=m")]:
            assert "x-way" not in client.request(method, f"/ddpm/ui/{path}").headers
        stranger = client.get("/ddpm/ui/status", headers={"Host": "evil.example"})  # refused before the way parts
        assert stranger.status_code == 403 and "x-way" not in stranger.headers
    finally:
        service.shutdown()


def test_the_short_way_answers_as_the_routes_do(served: tuple[TestClient, Service]) -> None:
    client, service = served
    plain = FastAPI()
    page.add_routes(plain, service)
    behind = TestClient(plain, base_url="http://127.0.0.1:7870")
    ours = set(page.straight(service))
    assert ours == {f"/ddpm/ui/{asked.split('?')[0]}" for asked in ASKED}
    for _ in range(3 * page.QuickThumbs.ENOUGH):  # so that pictures are read at once, too
        assert client.get(f"/ddpm/ui/{ASKED[4]}").status_code == 200
    for asked in ASKED:
        short, long = client.get(f"/ddpm/ui/{asked}"), behind.get(f"/ddpm/ui/{asked}")
        assert (short.status_code, short.headers) == (long.status_code, long.headers), asked
        assert short.status_code == 200 or len(short.json()["error"]) > 10
        assert short.content == long.content or asked.startswith("status"), asked
    assert client.post("/ddpm/ui/status").status_code in (404, 405)


class Clock:
    """Stands still, but for what a reading takes and what the test lets pass."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_disk_that_is_slow_is_read_in_threads(
    served: tuple[TestClient, Service], few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, service = served
    service.workspace.harvest("other", [few])
    thumbs, values, clock = page.QuickThumbs(), {"dataset": "d", "id": "1"}, Clock()
    monkeypatch.setattr(page, "time", clock)
    read, takes = service.workspace.thumbnail, 0.001

    def thumbnail(*asked: Any) -> bytes:
        clock.now += takes
        return read(*asked)

    monkeypatch.setattr(service.workspace, "thumbnail", thumbnail)

    def becomes_quick() -> None:
        for _ in range(page.QuickThumbs.ENOUGH):
            assert thumbs.at_once(service, values) is None, "too little is known of the disk yet"
            assert thumbs.read(service, values).status_code == 200
        assert thumbs.at_once(service, values) is not None

    for _ in range(2 * page.QuickThumbs.ENOUGH):
        with pytest.raises(UserError):
            thumbs.read(service, {"dataset": "d", "id": "10000"})  # says nothing of the disk
    becomes_quick()
    assert thumbs.at_once(service, {**values, "size": "64"}) is None, "to change a picture takes time"
    assert thumbs.at_once(service, {**values, "dataset": "other"}) is None, "it may lie on another disk"
    takes = 1.5 * page.QuickThumbs.SECONDS
    assert thumbs.at_once(service, values) is not None  # which is how it is found out
    for _ in range(page.QuickThumbs.ENOUGH):
        assert thumbs.at_once(service, values) is None
        thumbs.read(service, values)
    takes = 0.001
    becomes_quick()
    clock.now += 1.5 * page.QuickThumbs.PAUSE
    assert thumbs.at_once(service, values) is None, "it may sleep by now"
    becomes_quick()
    with service.workspace._guard:  # somebody opens a dataset, which may take long
        assert thumbs.at_once(service, values) is None
    assert thumbs.at_once(service, values) is not None
    service.workspace.delete_dataset("d")
    assert thumbs.at_once(service, values) is None
