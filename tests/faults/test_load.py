"""Fifty pages on one server while it trains: no error, quick answers, the training hardly slower, memory flat."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from conftest import CommandLine, random_pictures, serve
from PIL import Image

from ddpm_core.dataset.store import NewItem, Store

pytestmark = [pytest.mark.long, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]

CLIENTS = 50
ITEMS = 100_000
SECONDS = float(os.environ.get("DDPM_LOAD_SECONDS", "300"))


def many_items(folder: Path) -> None:
    """A dataset of that many items, whose copies are a few pictures linked again and again."""
    pictures = []
    for path in sorted(random_pictures(folder.parents[1] / "some", ITEMS // 5000).iterdir()):
        with Image.open(path) as image:
            image.save(path.with_suffix(".webp"), lossless=True)
        pictures.append(path.with_suffix(".webp"))
    store = Store(folder)
    thumb = bytes(24 * 24 * 3)
    for start in range(0, ITEMS, 5000):
        items, picture = [], pictures[start // 5000]  # a file system has no endless number of links to one file
        for number in range(start, start + 5000):
            sha = hashlib.sha256(str(number).encode()).hexdigest()
            path = store.copy_path(sha)
            assert path.suffix == picture.suffix
            path.parent.mkdir(exist_ok=True)
            os.link(picture, path)
            items.append(
                NewItem(f"/x/{number}.png", 10, number, sha, 48, 48, f"prompt {number}", thumb=thumb, has_copy=True)
            )
        store.add(items)
    store.close()


class Client(threading.Thread):
    """A page: asks for the status as often as ours does, pages through thumbnails, and wants a sample once."""

    def __init__(self, url: str, number: int, until: float, generate: int) -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(url).netloc
        self.chance, self.until, self.generate = random.Random(number), until, generate
        self.status_seconds: list[float] = []
        self.samples = 0
        self.wait = 0.5
        self.wanted = [self.until - self.chance.uniform(0.1, 0.9) * SECONDS]
        self.errors: list[str] = []

    def ask(self, method: str, path: str, values: dict[str, Any]) -> float:
        began = time.perf_counter()
        body, target = None, f"/ddpm/{path}?{urlencode(values)}"
        if method == "POST":
            body, target = json.dumps(values), f"/ddpm/{path}"
        try:
            self.connection.request(method, target, body, {"X-DDPM": "1", "Content-Type": "application/json"})
            answer = self.connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                self.errors.append(f"{target}: {answer.status} {content[:200]!r}")
            elif path == "ui/status":
                self.wait = max(0.5, json.loads(content)["wait"] / 1000)  # as our page's script
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"{target}: {error}")
            self.connection.close()
        return time.perf_counter() - began

    def sample(self) -> None:
        """The Generate button, as gradio's own page presses it."""
        values = ["m", "DPM++ 2M", 4, 1, self.chance.randrange(2**32), 0, "ema", True, None, 4]
        session = f"page{id(self)}"
        order = {"data": values, "fn_index": self.generate, "session_hash": session, "event_data": None}
        headers = {"Content-Type": "application/json"}
        try:
            self.connection.request("POST", "/gradio_api/queue/join", json.dumps(order), headers)
            joined = self.connection.getresponse().read()
            self.connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
            said = self.connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"sampling: {error}")
            self.connection.close()
            return
        if '"success":true' not in said or "ddpm-failure" in said:
            self.errors.append(f"sampling: {joined!r} {said[-300:]}")
        self.samples += 1

    def run(self) -> None:
        self.connection = http.client.HTTPConnection(self.address, timeout=30)
        time.sleep(self.chance.random())
        while time.monotonic() < self.until:
            self.status_seconds.append(self.ask("GET", "ui/status", {"page": self.name}))
            if self.wanted and time.monotonic() > self.wanted[0]:
                self.wanted.pop(0)
                self.sample()
            if self.chance.random() < self.wait / 10:  # every ten seconds, and what its screen shows of it
                page = {"dataset": "many", "view": "all", "page": self.chance.randrange(1600), "size": 60}
                self.ask("GET", "ui/items", page)
                for _ in range(12):
                    self.ask("GET", "ui/thumb", {"dataset": "many", "id": self.chance.randrange(1, ITEMS), "size": 0})
            time.sleep(self.wait)


def generate_event(address: str) -> int:
    """gradio's number for what the Generate button does."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/config")
    config = json.loads(connection.getresponse().read())
    connection.close()
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "ddpm_generate")
    return next(int(d["id"]) for d in config["dependencies"] if [button, "click"] in d["targets"])


def resident(pid: int) -> float:
    """MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def rate(url: str, seconds: float) -> float:
    """Steps a second of the running training, from what the server says of it."""

    def step() -> int:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.request("GET", "/ddpm/ui/status")
        found = json.loads(connection.getresponse().read())
        connection.close()
        return int(found["jobs"]["train"]["progress"].get("done", 0))

    first, began = step(), time.perf_counter()
    time.sleep(seconds)
    return (step() - first) / (time.perf_counter() - began)


def test_fifty_pages_while_it_trains(tmp_path: Path) -> None:
    workspace = tmp_path / "served" / "ws"
    line = CommandLine(workspace)
    line.run("harvest", "--dataset", "few", random_pictures(tmp_path / "few", 60))
    many_items(workspace / "datasets" / "many")
    line.run("train", "--dataset", "few", "--model", "m", "--preset", "tiny-32", "--steps", 1)
    process, url = serve(Path(sys.executable), workspace)
    try:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        headers = {"X-DDPM": "1", "Content-Type": "application/json"}
        line_of_run = workspace / "runs" / "m" / "run.json"
        line_of_run.write_text(json.dumps({**json.loads(line_of_run.read_text()), "steps": 10**8}))
        connection.request("POST", "/ddpm/ui/resume", json.dumps({"model": "m"}), headers)
        assert connection.getresponse().read()
        time.sleep(20)
        before = rate(url, 30)
        generate = generate_event(urlsplit(url).netloc)
        clients = [Client(url, number, time.monotonic() + SECONDS, generate) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(SECONDS / 2)  # until every thread that there will be is there
        sizes = [resident(process.pid)]
        during = rate(url, SECONDS / 2 - 5)
        sizes.append(resident(process.pid))
        for client in clients:
            client.join(SECONDS)
        after = rate(url, 30)
        asked = sorted(seconds for client in clients for seconds in client.status_seconds)
        slowed = 1 - during / statistics.mean([before, after])
        slope = (sizes[1] - sizes[0]) / ((SECONDS / 2 - 5) / 60)
        late = asked[int(0.95 * len(asked))]
        print(
            f"{len(asked)} status answers, 95 % within {1000 * late:.0f} ms; training {slowed:.1%} slower; {slope:+.1f} MiB a minute"
        )
        assert not [error for client in clients for error in client.errors]
        assert all(client.samples == 1 and client.status_seconds for client in clients)
        assert late < 0.1 and slowed < 0.1 and slope < 5
    finally:
        process.terminate()
        process.wait(60)
