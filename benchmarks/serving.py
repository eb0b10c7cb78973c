"""What an open page costs the server, milliseconds of processor time: pictures together or one by one, and what is read again and
again by the short way or behind the frameworks' layers.

Two servers of one workspace, asked in turn by one client. Linux only, for it reads the servers' times from /proc.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import torch

from ddpm_core.demo import unpack
from ddpm_core.workspace import Workspace

from . import common

BAR = 5.0  # a screen's pictures one by one over all together
SEEN = 30
_CODE = """
import sys
from ddpm_core.api import page
if sys.argv.pop(1) == "long":
    page.straight = lambda service: {}
from ddpm_core.cli import main
sys.exit(main(sys.argv[1:]))
"""
ASKED = {  # by name: the path, and how many of it are asked for at a time
    "status": ("status?page=a", 1),
    "items": ("items?dataset=d&view=all&page=0&size=60", 1),
    "pictures together": ("thumbs?dataset=d&ids={ids}&size=0", 1),
    "pictures one by one": ("thumb?dataset=d&id={id}&size=0", SEEN),
}


class Served:
    """One server, and what it has taken of the processor."""

    def __init__(self, way: str, workspace: Path, log: IO[str]) -> None:
        command = [sys.executable, "-c", _CODE, way, "--workspace", str(workspace), "serve", "--port", "0"]
        root, environment = Path(__file__).resolve().parents[1], {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
        self.process = subprocess.Popen(command, cwd=root, stderr=log, stdout=subprocess.DEVNULL, env=environment)
        for _ in range(600):
            found = re.search(r"http://\S+", Path(log.name).read_text())
            if found:
                break
            time.sleep(0.1)
        assert found, "the server did not start"
        self.connection = http.client.HTTPConnection(urlsplit(found[0]).netloc, timeout=30)

    def seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure(self, name: str, ids: list[int], requests: int) -> float:
        """Milliseconds of processor time for what is asked for at a time; of so many requests, or a few more."""
        path, together = ASKED[name]
        times = -(-requests // together)
        began = self.seconds()
        for number in range(times * together):
            seen = ",".join(str(ids[(number + i) % len(ids)]) for i in range(SEEN))
            self.connection.request("GET", f"/ddpm/ui/{path.format(id=ids[number % len(ids)], ids=seen)}")
            answer = self.connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
        return 1000 * (self.seconds() - began) / times


def _measuring(served: Served, name: str, ids: list[int], requests: int) -> Callable[[], float]:
    return lambda: served.measure(name, ids, requests)


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--requests", type=int, default=1000, help="of each kind, each way, in each round")
    a = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace = Workspace(root / "ws", root / "ws" / "models")
        workspace.harvest("d", [unpack(root / "pictures")])
        ids = [item["id"] for item in workspace.store("d").items() if item["has_copy"]]
        servers: dict[str, Served] = {}
        try:
            for way in ("short", "long"):
                with open(root / f"{way}.log", "w") as log:
                    servers[way] = Served(way, root / "ws", log)
                servers[way].measure("pictures together", ids, 100)
            rows, ratios = {}, {}
            for name in ("status", "items", "pictures together"):
                rates = common.alternate(
                    {way: _measuring(served, name, ids, a.requests) for way, served in servers.items()},
                    a.rounds,
                    common.say,
                )
                rows[name] = {way: common.summary(values)["median"] for way, values in rates.items()}
                ratios[name] = round(common.paired_ratio(rates["long"], rates["short"]), 3)
            one_by_one, together = "pictures one by one", "pictures together"
            rates = common.alternate(
                {name: _measuring(servers["short"], name, ids, a.requests) for name in (one_by_one, together)},
                a.rounds,
                common.say,
            )
            rows[one_by_one] = {name: common.summary(values)["median"] for name, values in rates.items()}
            ratios[one_by_one] = round(common.paired_ratio(rates[one_by_one], rates[together]), 3)
        finally:
            for served in servers.values():
                served.process.terminate()
                served.process.wait(30)
    result = {
        "what": f"what an open page asks for, milliseconds of processor time; {SEEN} pictures one by one over all together",
        "ratio": ratios[one_by_one],
        "bar": BAR,
        "passed": ratios[one_by_one] >= BAR,
        "ratios": ratios,
        "milliseconds": rows,
        **common.machine(torch.device("cpu")),
    }
    return common.answer(a, result)


if __name__ == "__main__":
    sys.exit(run())
