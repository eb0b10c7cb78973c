"""How soon the Understand tab answers a moved slider: alone, and beside a training.

The bundled base (32 pixels) and the bundled portraits, over the page's own route. For each page whose slider asks the server the median and
the 95th percentile of so many answers; what asks at the press of a button only is measured once.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from typing import Any

from fastapi.testclient import TestClient

from ddpm_core import bundled
from ddpm_core.host.server import build_app
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.requests import TrainRequest

from . import common

SLIDERS = ("noise", "pair", "memory", "network")
PRESSED = ("pair/levels", "path", "path/compare", "memory/levels", "memory/origin", "memory/quiz", "words")
BARS = {"alone_ms": 200.0, "beside_ms": 1000.0}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--answers", type=int, default=40, help="of each slider")
    options.add_argument("--beside", action="store_true", help="also while the server trains")
    a = options.parse_args(argv)
    device = common.device_of(a)
    common.portraits(32)
    app, service = build_app(StandaloneHost(common.WORK))
    client = TestClient(app, base_url="http://127.0.0.1:7870")
    chance = random.Random(0)

    def seconds(part: str) -> float:
        values = {"part": part, "model": bundled.BASE, "dataset": "portraits", "t": chance.randrange(1000)}
        began = time.perf_counter()
        answer = client.get("/ddpm/ui/understand", params={**values, "image": chance.randrange(900)})
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - began

    def sliders() -> dict[str, dict[str, float]]:
        found = {}
        for part in SLIDERS:
            seconds(part)
            times = sorted(1000 * seconds(part) for _ in range(a.answers))
            most = times[min(len(times) - 1, round(0.95 * len(times)))]
            found[part] = {"median_ms": round(statistics.median(times), 1), "p95_ms": round(most, 1)}
            common.say(f"{part}: {found[part]}")
        return found

    try:
        result: dict[str, Any] = {"what": "understand", "bar": BARS, "alone": sliders()}
        result["pressed_s"] = {part: round(seconds(part), 2) for part in PRESSED}
        common.say(str(result["pressed_s"]))
        if a.beside:
            name = f"beside-{time.time_ns()}"
            job = service.start_training(TrainRequest(dataset="portraits", model=name, preset="tiny-32", minutes=30.0))
            time.sleep(20)  # its first steps
            result["beside"] = sliders()
            result["trained"] = job.progress
            assert job.state == "running" and job.progress["done"] > 20, (job.state, job.error, job.progress)
            service.stop("train")
    finally:
        service.shutdown()
    result["passed"] = all(one["p95_ms"] <= BARS["alone_ms"] for one in result["alone"].values()) and all(
        one["p95_ms"] <= BARS["beside_ms"] for one in result.get("beside", {}).values()
    )
    return common.answer(a, {**result, **common.machine(device)})


if __name__ == "__main__":
    sys.exit(run())
