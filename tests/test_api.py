"""The public API on a real application, without a WebUI: what it answers, and that it hands out no path."""

from __future__ import annotations

import base64
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor

from ddpm_core import bundled
from ddpm_core.api import public
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.model.unet import UNet
from ddpm_core.requests import SampleRequest, TrainRequest
from ddpm_core.service import Service


class OpenHost(StandaloneHost):
    """Standalone as it is, but for the name that the test client gives this machine."""

    def api_refusal(self, request: Any) -> tuple[int, dict[str, str]] | None:
        return (401, {"WWW-Authenticate": "Basic"}) if request.headers.get("x-stranger") else None


@pytest.fixture
def client(tmp_path: Path, few: Path) -> Iterator[TestClient]:
    service = Service(OpenHost(tmp_path / "ws", {"pictures": few}))
    app = FastAPI()
    public.add_routes(app, service)
    try:
        yield TestClient(app)
    finally:
        service.shutdown()


def done(client: TestClient, answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    import time

    for _ in range(1200):
        job = client.get(f"/ddpm/v1/jobs/{answer.json()['job']}").json()
        if job["state"] in ("done", "failed", "stopped"):
            return job
        time.sleep(0.1)
    raise AssertionError("the job did not end")


def test_the_whole_work(client: TestClient, few: Path) -> None:
    assert client.get("/ddpm/v1/folders").json() == {"folders": ["pictures"]}
    job = done(client, client.post("/ddpm/v1/harvest", json={"dataset": "faces", "folders": ["pictures"]}))
    assert job["result"]["kept"] == 60
    page = client.get("/ddpm/v1/datasets/faces/items", params={"size": 5}).json()
    assert page["total"] == 60 and len(page["items"]) == 5
    ids = [item["id"] for item in page["items"][:2]]
    assert client.post("/ddpm/v1/datasets/faces/decide", json={"ids": ids, "action": "reject"}).json() == {"changed": 2}
    assert client.get("/ddpm/v1/datasets").json()["datasets"][0]["kept"] == 58
    settings = {
        "block_out_channels": "32",
        "attention_levels": "false",
        "layers_per_block": "1",
        "attention_head_dim": "32",
    }
    body = {"model": "m", "dataset": "faces", "preset": "tiny-32", "steps": 2, "batch_size": 4, "settings": settings}
    assert done(client, client.post("/ddpm/v1/train", json=body))["state"] == "done"
    assert [m["name"] for m in client.get("/ddpm/v1/models").json()["models"]] == [*bundled.names(), "m"]
    nothing = client.post("/ddpm/v1/train", json={"model": "m", "resume": True, "steps": 2, "minutes": 30})
    assert nothing.status_code == 400 and "m already has 2 steps" in nothing.json()["detail"]
    made = client.post("/ddpm/v1/sample", json={"model": "m", "count": 2, "steps": 2, "seed": 7}).json()
    assert len(made["images"]) == 2 and "Seed: 7" in made["infotexts"][0]
    assert Image.open(io.BytesIO(base64.b64decode(made["images"][1]))).size == (32, 32)
    larger = {"model": "m", "steps": 2, "seed": 8, "upscaler": "Nearest", "factor": 3}
    enlarged = client.post("/ddpm/v1/sample", json=larger).json()
    big, small = (Image.open(io.BytesIO(base64.b64decode(a["images"][-1]))) for a in (enlarged, made))
    assert big.size == (96, 96) and big.resize((32, 32), Image.Resampling.NEAREST).tobytes() == small.tobytes()
    assert "Size: 96x96" in enlarged["infotexts"][0] and "DDPM upscaler: Nearest" in enlarged["infotexts"][0]
    way = {"model": "m", "steps": 2, "seed": 7, "to_seed": 8, "frames": 3}
    between = client.post("/ddpm/v1/interpolate", json=way).json()
    assert [between["images"][i] for i in (0, 2)] == made["images"], (
        "from the sample of the one seed to that of the other"
    )
    assert "DDPM frame: 2 of 3, DDPM to seed: 8" in between["infotexts"][1]
    raw = client.post("/ddpm/v1/interpolate", json={**way, "weights": "raw"}).json()
    assert raw["images"] != between["images"] and "DDPM weights: raw" in raw["infotexts"][0], raw["infotexts"]
    for bad, said in (
        ({"frames": 1}, "Frames must be"),
        ({"sampler": "ddpm"}, "flicker"),
        ({"sampler": "x"}, "no sampler"),
    ):
        refused = client.post("/ddpm/v1/interpolate", json={**way, **bad})
        assert refused.status_code == 400 and said in refused.json()["detail"]
    everything = client.get("/ddpm/v1/status").text + client.get("/ddpm/v1/models").text + str(page)
    assert str(few) not in everything and str(few.parent) not in everything


def test_an_estimate_ends_with_what_comes_first(tmp_path: Path) -> None:
    service = Service(StandaloneHost(tmp_path))
    try:
        by_steps = service.estimate(TrainRequest("m", preset="tiny-32", steps=50, minutes=1e6))
        assert by_steps["steps"] == 50 and by_steps["minutes"] < 60
        by_minutes = service.estimate(TrainRequest("m", preset="tiny-32", steps=10**6, minutes=30.0))
        assert by_minutes["steps"] < 10**5 and by_minutes["minutes"] == pytest.approx(30.0, rel=0.1)
    finally:
        service.shutdown()


def test_an_animation_is_of_one_batch_also_where_the_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(sorted((DATA / "formats").glob("*.zip"))[-1]) as archive:
        archive.extractall(tmp_path)
    # on the CPU in float32 a picture does not depend on its batch, but for the last bit
    monkeypatch.setattr(StandaloneHost, "device", lambda self: torch.device("cpu"))
    service = Service(StandaloneHost(tmp_path))
    real, calls = UNet.forward, []

    def starved(self: UNet, x: Tensor, *values: Any, **named: Any) -> Tensor:
        calls.append(len(x))
        if len(x) > 4 and len(calls) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, x, *values, **named)

    try:
        wanted_ones = SampleRequest("m", 8, "ddim", 5, 3)
        plain = service.start_sampling(wanted_ones)
        assert plain.finished.wait(60)
        monkeypatch.setattr(UNet, "forward", starved)
        halved = service.start_sampling(wanted_ones)
        assert halved.finished.wait(60) and calls == [8, 8, 8] + 10 * [4]
        wanted, found = plain.artifacts["frames"], halved.artifacts["frames"]
        assert len(wanted) == len(found) == 5
        for of_four, of_eight in zip(found, wanted):
            assert len(of_four) == 4 and (of_four.int() - of_eight[:4].int()).abs().max() <= 1
        assert service.watch.animation(halved).startswith(b"RIFF")
    finally:
        service.shutdown()


def test_bad_requests_get_a_sentence(client: TestClient, few: Path) -> None:
    for path, body in (
        ("harvest", {"dataset": "faces", "folders": [str(few)]}),
        ("harvest", {"dataset": "../x", "folders": ["pictures"]}),
        ("train", {"model": "m"}),
        ("train", {"model": "m", "dataset": "d", "init_from": str(few)}),
        ("sample", {"model": str(few), "count": 1}),
        ("sample", {"model": "m", "sampler": "none"}),
        ("sample", {"model": "m", "eta": 5}),
        ("sample", {"model": "m", "seed": -7}),
        ("sample", {"model": "m", "upscaler": "Lanczos", "factor": 99}),
        ("sample", {"model": "m", "upscaler": "../x"}),
        ("collect", {"dataset": "d", "prompt": "x"}),
        ("datasets/none/decide", {"ids": [1], "action": "reject"}),
        ("datasets/none/decide", {"ids": [2**70], "action": "reject"}),
    ):
        answer = client.post(f"/ddpm/v1/{path}", json=body)
        if answer.status_code == 200:  # accepted as a job, which then says it
            job = done(client, answer)
            assert job["state"] == "failed" and job["error"].endswith("."), (path, job)
        else:
            assert answer.status_code == 400 and answer.json()["detail"].endswith((".", "?")), (path, answer.text)
    for path, body, said in (  # what does not even have the right form
        ("train", '{"model": "m", "steps": "many"}', "The request's steps is wrong: "),
        ("train", '{"model": "m", "steps": NaN}', "The request holds a number that is not finite"),
        ("train", '{"model": "m", "minutes": 1e999}', "The request holds a number that is not finite"),
        ("sample", '{"model": "m", "count": "\\ud800"}', "The request holds a number that is not finite, or text"),
        ("collect", '{"dataset": "d", "prompt": "\\ud800"}', "The request holds a number that is not finite, or text"),
        ("train", '{"model": "m", "settings": {"a": []}}', "The request's settings"),
        ("sample", '{"model": "m"', "The request is no valid JSON."),
        ("sample", "[]", "The request's "),
    ):
        answer = client.post(f"/ddpm/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        detail = answer.json()["detail"]
        assert answer.status_code == 422 and detail.startswith(said) and detail.endswith("."), (body, answer.text)
    assert client.get("/ddpm/v1/jobs/999").status_code == 404
    for kind in ({"Content-Type": "text/plain"}, {}):  # what a page of another site can send without asking
        assert client.post("/ddpm/v1/stop", content=b'{"kind": "train"}', headers=kind).status_code == 415


def test_seeds_are_random_or_exact_or_refused(client: TestClient, few: Path) -> None:
    done(client, client.post("/ddpm/v1/harvest", json={"dataset": "d", "folders": ["pictures"]}))
    small = {
        "block_out_channels": "32",
        "attention_levels": "false",
        "layers_per_block": "1",
        "attention_head_dim": "32",
    }
    training = {
        "model": "m",
        "dataset": "d",
        "preset": "tiny-32",
        "size": 16,
        "steps": 2,
        "batch_size": 4,
        "settings": small,
    }
    done(client, client.post("/ddpm/v1/train", json=training))

    def seed(**asked: Any) -> int:
        answer = client.post("/ddpm/v1/sample", json={"model": "m", "steps": 2, **asked})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["infotexts"][0].split("Seed: ")[1].split(",")[0])

    assert len({seed(), seed(), seed(seed=-1), seed(seed=None)}) == 4
    for exact in (0, 2**53 + 1, 2**63 - 1):
        assert seed(seed=exact) == exact
    for refused in (-5, 2**63, 2**64):
        answer = client.post("/ddpm/v1/sample", json={"model": "m", "seed": refused})
        assert answer.status_code == 400 and "-1 (random)" in answer.json()["detail"]


def test_odd_names_on_disk_are_no_obstacle(client: TestClient, tmp_path: Path) -> None:
    """A person copies a folder as a backup, or a model in a file manager."""
    done(client, client.post("/ddpm/v1/harvest", json={"dataset": "faces", "folders": ["pictures"]}))
    workspace = tmp_path / "ws"
    shutil.copytree(workspace / "datasets" / "faces", workspace / "datasets" / "faces (copy)")
    (workspace / "models" / "model (1).safetensors").write_bytes(b"x")
    status = client.get("/ddpm/v1/status").json()
    assert status["datasets"] == ["faces"] and status["models"] == [bundled.BASE]
    shutil.rmtree(workspace / "runs")
    assert client.get("/ddpm/v1/status").status_code == 200


def test_every_route_asks_who_it_is(client: TestClient) -> None:
    routes = [r for r in client.app.routes if getattr(r, "path", "").startswith("/ddpm/v1")]  # type: ignore[attr-defined]
    assert len(routes) >= 12
    for route in routes:
        path = route.path.replace("{name}", "x").replace("{number}", "1")
        for method in route.methods:
            answer = client.request(method, path, headers={"x-stranger": "1"})
            assert answer.status_code == 401, path


def test_it_is_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert all(one.get("summary") for path in paths.values() for one in path.values())
