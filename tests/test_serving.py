"""What open pages read again and again is answered before the frameworks' layers, and no differently than behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ddpm_core.api import page
from ddpm_core.dataset import handing_out
from ddpm_core.host.server import build_app
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.service import Service

ASKED = [
    "status?page=a",
    "items?dataset=d&view=all&page=0&size=60",
    "items?dataset=d&view=none",
    "items?dataset=gone&view=all",
    "thumbs?dataset=d&ids=1,2,3&size=0&v=abc,def,012",
    "thumbs?dataset=d&ids=1&size=32&crop=pad",
    "thumbs?dataset=d&ids=1,10000",
    "thumbs?dataset=d&ids=1&size=33",
    "thumbs?dataset=d&ids=1&crop=left",
    "thumbs?dataset=d&ids=1,,2",
    "thumbs?dataset=d&ids=" + ",".join(["1"] * 61),
    "thumbs?dataset=..&ids=1",
    "thumbs",
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
    for asked in ASKED:
        short, long = client.get(f"/ddpm/ui/{asked}"), behind.get(f"/ddpm/ui/{asked}")
        assert (short.status_code, short.headers) == (long.status_code, long.headers), asked
        assert short.status_code == 200 or len(short.json()["error"]) > 10
        assert short.content == long.content or asked.startswith("status"), asked
    assert client.post("/ddpm/ui/status").status_code in (404, 405)


def parts(data: bytes) -> list[bytes]:
    """What an answer with several pictures holds, as the page reads it."""
    found, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : end])
        at = end
    assert at == len(data)
    return found


@pytest.mark.parametrize("shown", ["size=0", "size=32&crop=pad", "size=64"])
def test_pictures_asked_for_together_are_those_asked_for_alone(served: tuple[TestClient, Service], shown: str) -> None:
    client, service = served
    ids = [item["id"] for item in service.workspace.store("d").items() if item["has_copy"]][:6]
    ids = [ids[3], *ids, ids[3]]  # the order is that of the request, not of the ids
    together = client.get(f"/ddpm/ui/thumbs?dataset=d&ids={','.join(map(str, ids))}&{shown}")
    assert together.status_code == 200 and "immutable" in together.headers["cache-control"]
    alone = [client.get(f"/ddpm/ui/thumb?dataset=d&id={i}&{shown}") for i in ids]
    assert parts(together.content) == [answer.content for answer in alone]
    assert len(set(parts(together.content))) == 6


def test_a_picture_that_is_missing_leaves_the_others(served: tuple[TestClient, Service]) -> None:
    client, service = served
    store = service.workspace.store("d")
    first, gone, damaged, last = [item["id"] for item in store.items() if item["has_copy"]][:4]
    store.copy_of(gone).unlink()
    path = store.copy_of(damaged)
    path.unlink()
    path.mkdir()
    for size in (0, 32):
        answer = client.get(f"/ddpm/ui/thumbs?dataset=d&ids={first},{gone},987654,{damaged},{last}&size={size}")
        found = parts(answer.content)
        assert [bool(part) for part in found] == [True, False, False, False, True]
        assert answer.headers["cache-control"] == "no-store", "it may come back"


@pytest.fixture
def six(served: tuple[TestClient, Service]) -> tuple[list[int], Callable[[list[int]], list[bytes]]]:
    """Items, and how the page asks for the pictures of some."""
    client, service = served
    ids = [item["id"] for item in service.workspace.store("d").items() if item["has_copy"]][:6]
    return ids, lambda some: parts(client.get(f"/ddpm/ui/thumbs?dataset=d&ids={','.join(map(str, some))}").content)


def test_large_pictures_come_a_few_at_a_time(six: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, ask = six
    whole = ask(ids)
    for enough, count in [(1, 1), (len(whole[0]), 1), (len(whole[0]) + 1, 2), (10**9, 6)]:
        monkeypatch.setattr(handing_out, "_ENOUGH_BYTES", enough)
        asked, found = list(ids), []
        while asked:
            came = ask(asked)
            assert len(came) >= 1 and (len(came) == count or found)
            found += came
            asked = asked[len(came) :]
        assert found == whole


def test_slow_pictures_come_a_few_at_a_time(six: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, ask = six
    whole = ask(ids)
    monkeypatch.setattr(handing_out, "_ENOUGH_SECONDS", 0.0)
    assert ask(ids) == whole[:1]
