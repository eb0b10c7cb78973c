"""What open pages read again and again is answered before the frameworks' layers, and no differently than behind them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ddpm_core.api import page
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


def test_a_disk_that_is_slow_is_read_in_threads(
    served: tuple[TestClient, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, service = served
    thumbs, values = page.QuickThumbs(), {"dataset": "d", "id": "1"}
    assert thumbs.at_once(service, values) is None, "nothing is known of the disk yet"
    for _ in range(page.QuickThumbs.ENOUGH):
        assert thumbs.read(service, values).status_code == 200
    assert thumbs.at_once(service, values) is not None
    assert thumbs.at_once(service, {**values, "size": "64"}) is None, "to change a picture takes time"
    read = service.workspace.thumbnail

    def slow(*asked: Any) -> bytes:
        time.sleep(1.5 * page.QuickThumbs.SECONDS)
        return read(*asked)

    monkeypatch.setattr(service.workspace, "thumbnail", slow)
    assert thumbs.at_once(service, values) is not None  # which is how it is found out
    for _ in range(page.QuickThumbs.ENOUGH):
        assert thumbs.at_once(service, values) is None
        thumbs.read(service, values)
    monkeypatch.undo()
    for _ in range(page.QuickThumbs.ENOUGH):
        assert thumbs.at_once(service, values) is None
        thumbs.read(service, values)
    assert thumbs.at_once(service, values) is not None, "it is quick again"
