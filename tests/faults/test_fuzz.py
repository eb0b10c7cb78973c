"""Hostile files, requests and events: our own sentence or nothing; no crash, hang, growth, and nothing outside the workspace."""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import gradio as gr
import pytest
import targets
from conftest import ROOT, random_pictures
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image
from starlette.routing import Mount

from ddpm_core.api import page as page_routes
from ddpm_core.api import public
from ddpm_core.dataset import infotext
from ddpm_core.host.server import build_app
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.service import Service
from ddpm_core.ui import ids
from ddpm_core.workspace import Workspace

NAMES = list(targets.TARGETS)
HERE = Path(__file__).parent
SECONDS = float(os.environ.get("DDPM_FUZZ_SECONDS", "600"))  # of each target in the long form


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_get_a_sentence(name: str) -> None:
    """What broke it before, and two seconds of new ones, the same at every run."""
    count, _ = targets.fuzz(name, 2.0, seed=7)
    assert count > 10


Fuzzers = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzers]:
    """The targets' programs, as many at a time as there are cores; they run beside this module's other long tests."""
    folder = tmp_path_factory.mktemp("fuzz")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(HERE / "fuzz.py"), name, str(SECONDS)]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS + 300
        )

    pool = ThreadPoolExecutor(os.cpu_count())
    yield {name: pool.submit(run, name) for name in NAMES}
    pool.shutdown(cancel_futures=True)


def test_our_own_texts_come_back_whatever_stands_in_them() -> None:
    chance = random.Random(3)
    for _ in range(300):
        values = {
            f"DDPM k{i}": "".join(chance.choices('ab,:"\\\n é', k=chance.randrange(1, 20))).strip() or "x"
            for i in range(4)
        }
        text = infotext.build(infotext.Infotext("p", "n", {"Steps": "1", "Sampler": "x", "Seed": "1", **values}))
        assert infotext.parse(text).settings.items() >= values.items()


# -- requests and events ------------------------------------------------------------------------------------------------

SECRET = "a secret that no answer may hold"


class Guarded:
    """A workspace beside a file that is nobody's business, and all that lies around it."""

    def __init__(self, root: Path) -> None:
        self.workspace = root / "ws"
        self.secret = root / "secret.txt"
        self.secret.write_text(SECRET)
        random_pictures(root / "pictures", 6)
        (root / "evil.safetensors").write_bytes(b"x" * 100)
        self.root = root
        (root / "here").mkdir()  # the current folder
        self.before = self.outside()

    def outside(self) -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.root.rglob("*")
            if path.is_file() and self.workspace not in path.parents
        }


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    found = Guarded(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield found
    assert found.outside() == found.before, "something outside the workspace was changed"


def values_for(guarded: Guarded, chance: random.Random) -> Any:
    pool: list[Any] = [
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            3,
            2**31,
            2**53,
            2**63,
            -(2**70),
            0.5,
            1e308,
            float("nan"),
            "",
            " ",
            "d",
            "m",
            "x" * 600,
        ),
        *(
            "..",
            "../secret.txt",
            str(guarded.secret),
            str(guarded.root),
            "/etc/passwd",
            "d/../../x",
            "CON",
            "aux.",
            "\x00",
            "\ud800",
            "a" + "\u0301\u0327" * 3000,  # which takes long to normalise
        ),
        *(
            "<script>alert(1)</script>",
            "%2e%2e%2f",
            "١٢",
            "1e9",
            "ema",
            "raw",
            "dataset",
            "model",
            "keep",
            "reject",
            "unusual",
            "all",
        ),
        *([], [1, 2], ["x"], [[]], {}, {"a": 1}, [0] * 2000, "[" * 500, "file:///etc/passwd", "https://127.0.0.1:1/x"),
    ]
    return chance.choice(pool)


def _image() -> str:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


IMAGE = _image()
# what a page would send: beside it one hostile value reaches what lies behind the first check
PLAIN: dict[str, Any] = {
    **{"dataset": "d", "model": "m", "name": "d", "view": "unusual", "page": 0, "size": 32, "id": 1, "ids": [1, 2]},
    **{
        "crop": "center",
        "step": 1,
        "job": 1,
        "number": 1,
        "kind": "dataset",
        "action": "reject",
        "folders": ["pictures"],
    },
    **{"prompt": "a prompt", "preset": "tiny-32", "steps": 2, "count": 1, "sampler": "ddim", "weights": "ema"},
    **{"spacing": "leading", "clip": False, "condition": "none", "words": ["red"], "add": "hat", "remove": ""},
    **{"batch_size": 2, "width": 64, "height": 64, "precision": "fp32", "settings": {}, "minutes": 0.01, "place": "x"},
    **{"eta": 0.0, "seed": 1, "factor": 2.0, "learning_rate": 1e-3, "cfg_scale": 7.0, "negative_prompt": ""},
    **{"image": IMAGE, "mask": IMAGE, "denoising_strength": 0.5, "mask_blur": 1, "resamples": 1, "mask_padding": 4},
    **{"variation_strength": 0.1, "upscaler_steps": 2, "masked_content": "fill", "resize_mode": "fill"},
    **{"dynamic_threshold": 0.99, "base": "m", "concept": "crown", "prior": "none"},
    **{"part": "noise", "t": 5, "schedule": "cosine"},
    **{"best_of": 1, "variation_of": IMAGE, "text": "red", "like": 1, "misfits": "1", "search": "red"},
    **{"to_seed": 2, "to_prompt": "", "frames": 2, "loop": False},
    **{"only_masked": True, "invert_mask": True, "variation_seed": 3, "upscaler_noise": 0.2},
}
OPTIONAL = {
    "size",
    "scheduler",
    "steps",
    "preset",
    "resume",
    "init_from",
    "upscaler",
    "precision",
    "crop",
    "minutes",
    "settings",
    "dynamic_threshold",
    "spacing",
    "clip",
    "checkpoint_step",
    "checkpoint_every",
    "condition",
    "image",
    "mask",
    "denoising_strength",
    "resize_mode",
    "mask_blur",
    "masked_content",
    "only_masked",
    "mask_padding",
    "invert_mask",
    "resamples",
    "variation_seed",
    "variation_strength",
    "upscaler_steps",
    "upscaler_noise",
    "stop_before_copying",
    "base",
    "concept",
    "prior",
    "best_of",
    "variation_of",
    "text",
    "like",
    "misfits",
    "to_seed",
    "to_prompt",
    "frames",
    "loop",
}


def likely(name: str, guarded: Guarded, chance: random.Random) -> Any:
    """Mostly what a page would send for that name, now and then a hostile value."""
    return PLAIN[name] if name in PLAIN and chance.random() < 0.88 else values_for(guarded, chance)


def fields_of(route: APIRoute) -> list[str]:
    """Names that a route asks for: of its source, where requests are read by hand, and of its body."""
    handlers = {**page_routes.GETS, **page_routes.POSTS}
    handler = handlers.get(route.path.rsplit("/", 1)[1])
    found = []
    if handler and "/ui/" in route.path:
        source = inspect.getsource(handler)
        for helper in (page_routes.job_of, page_routes.shown_as):  # which read some for several handlers
            source += inspect.getsource(helper) if f"{helper.__name__}(" in source else ""
        found = re.findall(r'(?:\(values, |values\.get\()"(\w+)"', source)
        if handler is page_routes.get_understand:  # read by the pages; theirs are in tests/test_understand.py, too
            found = ["part", "model", "dataset", "image", "t", "seed", "schedule", "sampler", "steps", "prompt"]
    for field in [*route.dependant.query_params, *route.dependant.body_params]:
        model = field.field_info.annotation
        found += list(getattr(model, "model_fields", {})) or [field.name]
    return found


LONGEST_QUERY = 60_000  # the client itself refuses to send more than 65,536, and a server to read it


def bombard(
    app: FastAPI, service: Service, guarded: Guarded, going_on: Callable[[int], bool], seed: int
) -> tuple[int, dict[str, bool]]:
    """Rounds of hostile requests to every route, while ``going_on`` (asked with the requests sent): how many were sent,
    and for each route whether one was answered as a page's would be."""
    client = TestClient(app, raise_server_exceptions=False)
    chance = random.Random(seed)
    routes = [
        r
        for r in app.routes
        if isinstance(r, APIRoute) and r.path.startswith("/ddpm/") and not r.path.endswith((".js", ".css"))
    ]
    assert len(routes) > 10
    sent, before = 0, -1
    answered: dict[str, bool] = {}

    def mend() -> None:
        """What there was to ask for may have been deleted."""
        if "d" not in service.workspace.dataset_names():
            service.workspace.harvest("d", [guarded.root / "pictures"])
        add_a_model(service.workspace)

    while going_on(sent):
        assert sent > before, "nothing could be sent"
        before = sent
        for route in routes:
            path = re.sub(r"\{(\w+)(:path)?\}", lambda m: _in_path(likely(m[1], guarded, chance)), route.path)
            values = {
                name: likely(name, guarded, chance)
                for name in [*fields_of(route), "odd"]
                if chance.random() < (0.3 if name in OPTIONAL else 0.95)
            }
            if path.endswith("/train") and values.get("model") == PLAIN["model"] and chance.random() < 0.5:
                values["model"] = "n"  # that there is not yet: a model that is there is refused at once
            method = next(iter(route.methods))
            began = time.monotonic()
            if method == "GET":
                values = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in values.items()}
                texts = {k: v.encode("utf-8", "replace").decode() for k, v in values.items()}
                while len(urlencode(texts)) > LONGEST_QUERY:
                    longest = max(texts, key=lambda name: len(texts[name]))
                    texts[longest] = texts[longest][: len(texts[longest]) // 2]
                answer = client.get(path, params=texts)
            else:
                body = json.dumps(values) if chance.random() < 0.9 else "[" * chance.choice([1, 100_000])
                headers = {"X-DDPM": "1", "Content-Type": "application/json"}
                answer = client.request(method, path, content=body.encode("utf-8", "replace"), headers=headers)
            place = f"seed {seed}: {method} {path} {str(values)[:500]}: {answer.status_code} {answer.text[:500]}"
            assert answer.status_code < 500, place
            assert time.monotonic() - began < (60 if path.endswith(("/sample", "/interpolate")) else 5), (
                place
            )  # which answers with pictures
            answered[route.path] = answered.get(route.path, False) or answer.status_code == 200
            assert SECRET not in answer.text and "Traceback" not in answer.text, place
            if answer.status_code >= 400:
                assert "json" in answer.headers["content-type"], place
            sent += 1
        mend()
    return sent, answered


def _in_path(value: Any) -> str:
    return quote(str(value).encode("utf-8", "replace"), safe="") or "x"


def add_a_model(workspace: Workspace) -> None:
    path = workspace.models_folder / "m.safetensors"
    if not path.exists():
        path.write_bytes(targets._models()[0])


class FarHost(StandaloneHost):
    """Reachable from elsewhere, so that no folder may be typed; the API without a password; generating as in a WebUI."""

    local = False
    generates = True

    def page_allows(self, request: Any) -> bool:
        return True

    def api_refusal(self, request: Any) -> tuple[int, dict[str, str]] | None:
        return None


def apps(guarded: Guarded) -> Iterator[tuple[FastAPI, Service]]:
    host = FarHost(guarded.workspace, {"pictures": guarded.root / "pictures"})
    host.local = False
    for add in (page_routes.add_routes, public.add_routes):
        service = Service(host)
        service.workspace.harvest("d", [guarded.root / "pictures"])
        add_a_model(service.workspace)
        app = FastAPI()
        add(app, service)
        try:
            yield app, service
        finally:
            service.shutdown()


def for_seconds(seconds: float) -> Callable[[int], bool]:
    ends = time.monotonic() + seconds
    return lambda done: time.monotonic() < ends


def test_every_route_survives_hostile_values(guarded: Guarded) -> None:
    for app, service in apps(guarded):
        _, answered = bombard(app, service, guarded, lambda sent: sent < 800, seed=5)
        # of a job, a preview and the trash there is nothing here, and no new name to give
        without = ("rename", "emerging", "animation", "neighbours", "preview", "restore", "collect", "resume")
        never = [path for path, was in answered.items() if not was and not path.endswith(without)]
        assert not never, f"only refusals: {never}"


@pytest.mark.long
@pytest.mark.timeout(0)
def test_every_route_for_ten_minutes(guarded: Guarded, fuzzers: Fuzzers) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    for app, service in apps(guarded):
        before = targets.megabytes()
        sent, _ = bombard(app, service, guarded, for_seconds(SECONDS / 2), seed)
        grown = targets.megabytes() - before
        print(f"{sent} requests (seed {seed}) to {type(service.host).__name__}, {grown:.0f} MiB more at the most")
        assert grown < targets.MOST_MEGABYTES


OF_THE_TAB = {ids.DATASET_NAME: "d", ids.TRAIN_DATASET: "d", ids.TRAIN_MODEL: "n", ids.MODEL: "m"}


def arguments_for(event: Any, guarded: Guarded, chance: random.Random) -> list[Any]:
    """Mostly what stands in the page's fields, now and then something hostile."""
    found: list[Any] = []
    for name in inspect.signature(event.fn).parameters:
        if name == "event":
            found.append(
                gr.SelectData(None, {key: values_for(guarded, chance) for key in ("index", "value", "selected")})
            )
    for field in event.inputs:
        plain = OF_THE_TAB.get(field.elem_id, getattr(field, "value", None))
        found.append(plain if chance.random() < 0.88 else values_for(guarded, chance))
    return found


def trigger(guarded: Guarded, going_on: Callable[[int], bool], seed: int) -> int:
    """The tab's events are public functions to anyone who reaches the port: rounds of hostile arguments to each."""
    host = FarHost(guarded.workspace, {"pictures": guarded.root / "pictures"})
    host.local = False
    app, service = build_app(host)
    blocks = next(r.app.get_blocks() for r in app.routes if isinstance(r, Mount) and hasattr(r.app, "get_blocks"))
    chance, called, before = random.Random(seed), 0, -1
    service.workspace.harvest("d", [guarded.root / "pictures"])
    add_a_model(service.workspace)
    try:
        while going_on(called):
            assert called > before, "nothing could be called"
            before = called
            for event in blocks.fns.values():
                if event.fn is None:
                    continue
                began = time.monotonic()
                answer = event.fn(*arguments_for(event, guarded, chance))
                pressed = {blocks.blocks[number].elem_id for number, _ in event.targets if number is not None}
                assert time.monotonic() - began < (60 if ids.TRAIN_ESTIMATE in pressed else 5), (seed, pressed)
                assert SECRET not in str(answer) and "<script>" not in str(answer), (seed, event.fn)
                called += 1
    finally:
        service.shutdown()
    return called


def test_every_event_survives_hostile_values(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    trigger(guarded, lambda called: called < 200, seed=11)
    assert not [record for record in caplog.records if record.exc_info], caplog.text[-3000:]


@pytest.mark.long
@pytest.mark.timeout(0)
def test_every_event_for_ten_minutes(guarded: Guarded, fuzzers: Fuzzers, caplog: pytest.LogCaptureFixture) -> None:
    seed, before = int.from_bytes(os.urandom(4), "big"), targets.megabytes()
    called = trigger(guarded, for_seconds(SECONDS), seed)
    grown = targets.megabytes() - before
    print(f"{called} events (seed {seed}), {grown:.0f} MiB more at the most")
    assert grown < targets.MOST_MEGABYTES
    assert not [record for record in caplog.records if record.exc_info], caplog.text[-3000:]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
def test_ten_minutes_each(name: str, fuzzers: Fuzzers) -> None:
    done = fuzzers[name].result()
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith((f"{name}:", "stat::"))]
    print(name, *said, sep="\n  ")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
