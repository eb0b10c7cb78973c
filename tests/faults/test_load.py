"""Fifty pages on one server while it trains: no error, quick answers, the training hardly slower, memory flat."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
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

import numpy as np
import pytest
from conftest import CommandLine, random_pictures, serve
from PIL import Image

from ddpm_core.dataset.store import NewItem, Store

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

CLIENTS = 50
TOGETHER = 30  # pictures that a page asks for together; all sixty of one are in sight, or nearly
ITEMS = 100_000
LISTS = ["many", "few", "", "m", "m", "few"]  # what the page's lists show
SECONDS = float(os.environ.get("DDPM_LOAD_SECONDS", "300"))
ROUNDS, CALM_SECONDS = 5, 40.0
KEPT_SECONDS = 4.5  # the server hangs up on who has asked nothing for five; a browser opens a new connection then


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


def press(connection: http.client.HTTPConnection, session: str, event: int, values: list[Any]) -> str:
    """Press a button as gradio's own page does; what the event then says."""
    order = {"data": values, "fn_index": event, "session_hash": session, "event_data": None}
    connection.request("POST", "/gradio_api/queue/join", json.dumps(order), {"Content-Type": "application/json"})
    joined = connection.getresponse().read().decode()
    connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    return joined + connection.getresponse().read().decode()


def click_of(address: str, button: str) -> tuple[int, list[Any]]:
    """gradio's number for what a button does, and the values a page just opened sends along."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/config")
    config = json.loads(connection.getresponse().read())
    connection.close()
    pressed = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == button)
    event = next(d for d in config["dependencies"] if [pressed, "click"] in d["targets"])
    values = {c["id"]: c["props"].get("value") for c in config["components"]}
    return int(event["id"]), [values[number] for number in event["inputs"]]


def event_of(address: str, button: str) -> int:
    """gradio's number for what a button does."""
    return click_of(address, button)[0]


class Client(threading.Thread):
    """A page: asks for the status as often as ours does, pages through thumbnails, and wants a sample once."""

    def __init__(self, url: str, number: int, until: float, refresh: int, generate: int) -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(url).netloc
        self.chance, self.until, self.refresh, self.generate = random.Random(number), until, refresh, generate
        self.session = f"page{number}"
        self.status_seconds: list[float] = []
        self.samples = 0
        self.wait = 0.5
        self.items: list[dict[str, Any]] = []
        self.wanted = [self.until - self.chance.uniform(0.2, 0.9) * (SECONDS + ROUNDS * CALM_SECONDS)]
        self.errors: list[str] = []
        self.going = threading.Event()
        self.connection = http.client.HTTPConnection(self.address, timeout=30)
        self.answered = 0.0

    def connect(self) -> http.client.HTTPConnection:
        """The connection, opened anew where the server may have closed it."""
        if time.monotonic() - self.answered > KEPT_SECONDS:
            self.connection.close()
        return self.connection

    def ask(self, method: str, path: str, values: dict[str, Any]) -> float:
        began = time.perf_counter()
        body, target = None, f"/ddpm/{path}?{urlencode(values)}"
        if method == "POST":
            body, target = json.dumps(values), f"/ddpm/{path}"
        try:
            self.connect().request(method, target, body, {"X-DDPM": "1", "Content-Type": "application/json"})
            answer = self.connection.getresponse()
            content = answer.read()
            self.answered = time.monotonic()
            if answer.status != 200:
                self.errors.append(f"{target}: {answer.status} {content[:200]!r}")
            elif path == "ui/status":
                self.wait = max(0.5, json.loads(content)["wait"] / 1000)  # as our page's script
            elif path == "ui/items":
                self.items = json.loads(content)["items"]
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"{target}: {error}")
            self.connection.close()
        return time.perf_counter() - began

    def press(self, event: int, values: list[Any]) -> None:
        said = ""
        try:
            said = press(self.connect(), self.session, event, values)
            self.answered = time.monotonic()
        except (OSError, http.client.HTTPException) as error:
            said = str(error)
            self.connection.close()
        if '"success":true' not in said or "ddpm-failure" in said:
            self.errors.append(f"pressing a button: {said[-300:]}")

    def sample(self) -> None:
        self.press(self.generate, ["m", "DPM++ 2M", 4, 1, self.chance.randrange(2**32), 0, "ema", True, None, 4])
        self.samples += 1

    def run(self) -> None:
        time.sleep(self.chance.random())
        self.press(self.refresh, LISTS)  # as our script does in a page that has just been opened
        while time.monotonic() < self.until:
            if not self.going.is_set():
                self.going.wait()
                time.sleep(self.chance.uniform(0, self.wait))  # fifty pages do not ask at one moment
            self.status_seconds.append(self.ask("GET", "ui/status", {"page": self.name}))
            if self.wanted and time.monotonic() > self.wanted[0]:
                self.wanted.pop(0)
                self.sample()
            if self.chance.random() < self.wait / 10:  # every ten seconds, and what its screen shows of it
                page = {"dataset": "many", "view": "all", "page": self.chance.randrange(1600), "size": 60}
                self.ask("GET", "ui/items", page)
                for start in range(0, len(self.items), TOGETHER):
                    ids = ",".join(str(item["id"]) for item in self.items[start : start + TOGETHER])
                    self.ask("GET", "ui/thumbs", {"dataset": "many", "ids": ids, "size": 0})
            time.sleep(self.wait)


def resident(pid: int) -> float:
    """MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(pid: int, until: float, moments: list[float], sizes: list[float]) -> None:
    """Note a process's memory twice a second."""
    with contextlib.suppress(OSError):  # it has ended
        while time.monotonic() < until:
            sizes.append(resident(pid))
            moments.append(time.monotonic())
            time.sleep(0.5)


Windows = list[tuple[float, float]]  # from when to when, by the clock


def paces(metrics: Path, windows: Windows) -> list[float]:
    """Steps a second of a training in each window, by what it wrote of itself, while it steps.

    The time of its looks (held-out loss and preview) is left out: it looks more often in its first minutes, and later at
    times of its own, which would be counted for or against whoever asks just then.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    told = [(line["time"], line["step"]) for line in lines if line["kind"] == "train"]
    looked = np.array([line["time"] for line in lines if line["kind"] == "heldout"])
    found = []
    for begin, end in windows:
        seconds = steps = 0.0
        for (before, first), (after, last) in itertools.pairwise(told):
            share = (min(end, after) - max(begin, before)) / (after - before)
            if share > 0 and not ((before <= looked) & (looked <= after)).any():
                seconds += share * (after - before)
                steps += share * (last - first)
        assert seconds > (end - begin) / 2, "it hardly trained"
        found.append(steps / seconds)
    return found


def window(seconds: float) -> tuple[float, float]:
    """So long from now, but for the first seconds, in which what was asked before is still being answered."""
    time.sleep(min(3.0, seconds / 4))
    began = time.time()
    time.sleep(seconds - min(3.0, seconds / 4))
    return began, time.time()


def slope(moments: list[float], sizes: list[float]) -> float:
    """MiB a minute, by least squares: a training's own memory goes up and down by some ten MiB from second to second."""
    return 60 * statistics.linear_regression(moments, sizes).slope


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fifty_pages_while_it_trains(tmp_path: Path) -> None:
    workspace = tmp_path / "served" / "ws"
    line = CommandLine(workspace)
    line.run("harvest", "--dataset", "few", random_pictures(tmp_path / "few", 60))
    many_items(workspace / "datasets" / "many")
    line.run("train", "--dataset", "few", "--model", "m", "--preset", "tiny-32", "--steps", 1)
    process, url = serve(Path(sys.executable), workspace)
    try:
        address = urlsplit(url).netloc
        connection = http.client.HTTPConnection(address, timeout=30)
        headers = {"X-DDPM": "1", "Content-Type": "application/json"}
        line_of_run = workspace / "runs" / "m" / "run.json"
        line_of_run.write_text(json.dumps({**json.loads(line_of_run.read_text()), "steps": 10**8}))
        connection.request("POST", "/ddpm/ui/resume", json.dumps({"model": "m"}), headers)
        assert connection.getresponse().read()
        time.sleep(20)
        refresh, generate = event_of(address, "ddpm_refresh"), event_of(address, "ddpm_generate")
        until = time.monotonic() + SECONDS + (ROUNDS + 1) * CALM_SECONDS
        clients = [Client(url, number, until, refresh, generate) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        moments: list[float] = []
        sizes: list[float] = []
        measuring = threading.Thread(target=watch, args=(process.pid, until, moments, sizes), daemon=True)
        calm: Windows = [window(CALM_SECONDS)]
        loaded: Windows = []
        for number in range(ROUNDS):
            for client in clients:
                client.going.set()
            loaded.append(window(SECONDS / ROUNDS))
            if number == ROUNDS // 3:  # every thread that there will be is there, and the model has sampled
                measuring.start()
            for client in clients:
                client.going.clear()
            calm.append(window(CALM_SECONDS))
        for client in clients:
            client.going.set()
            client.join(60)
        measuring.join()
        asked = sorted(seconds for client in clients for seconds in client.status_seconds)
        metrics = workspace / "runs" / "m" / "metrics.jsonl"
        # of the calm before and after: what else this machine does changes the pace from minute to minute
        fast = [statistics.mean(pair) for pair in itertools.pairwise(paces(metrics, calm))]
        slow = paces(metrics, loaded)
        slowed = 1 - statistics.mean(slow) / statistics.mean(fast)
        grows = slope(moments, sizes)
        late = asked[int(0.95 * len(asked))]
        print(
            f"{len(asked)} status answers, 95 % within {1000 * late:.0f} ms; training {slowed:.1%} slower "
            f"({', '.join(f'{1 - b / a:.1%}' for a, b in zip(fast, slow))}); "
            f"{sizes[0]:.0f} to {sizes[-1]:.0f} MiB, {grows:+.1f} MiB a minute"
        )
        assert not [error for client in clients for error in client.errors]
        assert all(client.samples == 1 and client.status_seconds for client in clients)
        assert late < 0.1 and slowed < 0.1 and grows < 5  # the training's own swings leave about 2 either way
    finally:
        process.terminate()
        process.wait(60)


def test_pages_that_were_closed_cost_no_memory_for_ever(tmp_path: Path) -> None:
    process, url = serve(Path(sys.executable), tmp_path / "served" / "ws")
    try:
        address = urlsplit(url).netloc
        refresh, values = click_of(address, "ddpm_refresh")
        connection = http.client.HTTPConnection(address, timeout=30)

        def open_pages(first: int, last: int) -> float:
            for number in range(first, last):
                assert '"success":true' in press(connection, f"page{number}", refresh, values)
            return resident(process.pid)

        full = open_pages(0, 210)
        grown = open_pages(210, 360) - full
        assert grown < 12, f"{grown:.0f} MiB for 150 pages"  # 30 where each is kept
        assert '"success":true' in press(connection, "page0", refresh, values), "a page left open long ago still works"
    finally:
        process.terminate()
        process.wait(60)
