"""What a host waits for at its start because of us: importing, and building the tab; torch and gradio are there already."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import common

BAR_MILLISECONDS = 150.0
_CODE = """
import json, sys, time
import torch, gradio as gr
began = time.perf_counter()
import ddpm_core.service, ddpm_core.host.standalone
imported = time.perf_counter()
from pathlib import Path
from ddpm_core.ui.tab import build_tab
service = ddpm_core.service.Service(ddpm_core.host.standalone.StandaloneHost(Path(sys.argv[1])))
with gr.Blocks(analytics_enabled=False):
    build_tab(service)
built = time.perf_counter()
print(json.dumps({"import": 1000 * (imported - began), "tab": 1000 * (built - imported), "gradio": gr.__version__}))
"""


# the hosts' gradio releases, in the environments that ./test.sh makes; standalone's own is shown, the bar is the hosts'
ENVIRONMENTS = {"3.41 (A1111, reForge)": ".venv-gradio3", "4.40 (Forge)": ".venv-gradio4", "standalone": ".venv"}


def run(argv: list[str] | None = None) -> int:
    options = common.parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5)
    a = options.parse_args(argv)
    root = Path(__file__).resolve().parents[1]
    rows, worst = {}, 0.0
    for name, folder in ENVIRONMENTS.items():
        python = next((root / folder).glob("[bS][ic][nr]*/python*"), None)
        if python is None:
            continue
        found = []
        with tempfile.TemporaryDirectory() as workspace:
            for _ in range(a.rounds + 1):  # the first writes the bytecode
                command = [str(python), "-c", _CODE, workspace]
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        total = common.summary([one["import"] + one["tab"] for one in found[1:]])
        rows[name] = {
            "milliseconds": total,
            "import": common.summary([one["import"] for one in found[1:]])["median"],
            "tab": common.summary([one["tab"] for one in found[1:]])["median"],
            "gradio": found[0]["gradio"],
        }
        if name != "standalone":
            worst = max(worst, total["median"])
    if not worst:
        common.say("No environment with a host's gradio: ./test.sh makes them.")
    result = {
        "what": "importing the package and building the tab, milliseconds",
        "ratio": round(worst / BAR_MILLISECONDS, 3),
        "bar": 1.0,
        "passed": bool(worst) and worst <= BAR_MILLISECONDS,
        "rows": rows,
        **common.machine(torch.device("cpu")),
    }
    return common.answer(a, result)


if __name__ == "__main__":
    sys.exit(run())
