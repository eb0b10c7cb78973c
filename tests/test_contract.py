"""The host contract: every name of the WebUI that our adapter uses, for each host, in ``host_contract.json``.

When the adapter uses a new name, or a host changes, ``python tests/contract.py FOLDER NAME`` writes it anew.
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from contract import ADAPTER, CONTRACT, offered, used

HOSTS = json.loads(CONTRACT.read_text(encoding="utf-8"))
# looked for before use; older or other hosts lack them
OPTIONAL = {"sd_schedulers.schedulers", "sd_models.forge_model_reload", "always_cpu"}
# its memory management moves models by itself, and says --cpu
LACKING = {"neo": {"sd_models.send_model_to_cpu", "sd_models.send_model_to_device", "use_cpu"}}


def test_all_hosts_are_there() -> None:
    assert set(HOSTS) == {"a1111", "a1111-1.8", "forge", "neo", "reforge"}
    assert all(len(host["commit"]) == 40 for host in HOSTS.values())


@pytest.mark.parametrize("host", HOSTS)
def test_everything_we_use_is_there(host: str) -> None:
    use = used()
    assert len(use.names) > 40 and len(use.options) > 10, "the adapter's use was not found"
    found = HOSTS[host]
    unlisted = sorted(set(use.names) - set(found["names"]))
    assert not unlisted, f"not in the contract: {unlisted}; write it anew"
    missing = [name for name in use.names if found["names"][name] is None]
    optional = OPTIONAL | LACKING.get(host, set())
    assert not set(missing) - optional, f"{host} has no {missing}"
    theirs = {o for o in use.options if not o.startswith("ddpm_")}
    assert all(found["options"].get(option) for option in theirs), (host, theirs)
    flags = {f for f in use.flags if not f.startswith("ddpm_")} - optional
    assert all(found["flags"].get(flag) for flag in flags), (host, flags)


@pytest.mark.parametrize("host", HOSTS)
def test_everything_we_call_takes_what_we_give(host: str) -> None:
    checked = 0
    for name, calls in used().names.items():
        known = HOSTS[host]["names"][name]
        parameters = known["class"] if isinstance(known, dict) else known
        if not isinstance(parameters, list):
            continue
        for count, keywords in calls:
            named = [p for p in parameters if not p.startswith("*")]
            open_ended = any(p.startswith("*") for p in parameters)
            assert count <= len(named) or open_ended, f"{host}: {name} takes {parameters}"
            assert set(keywords) <= set(named) or open_ended, f"{host}: {name} takes {parameters}, not {keywords}"
            checked += 1
    assert checked > 15


@pytest.mark.parametrize("host", HOSTS)
def test_the_generation_has_the_fields_we_fill(host: str) -> None:
    tree = ast.parse((ADAPTER / "generation.py").read_text(encoding="utf-8"))
    filled = next(
        [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "fields" and isinstance(node.value, ast.Dict)
    )
    known = HOSTS[host]["names"]["processing.StableDiffusionProcessingTxt2Img"]["class"]
    assert filled and set(filled) <= set(known)


@pytest.mark.skipif(not os.environ.get("WEBUI_DIR"), reason="skipped: no real WebUI; name one with WEBUI_DIR")
def test_the_contract_is_what_this_host_offers() -> None:
    root = Path(os.environ["WEBUI_DIR"])
    now = offered(root, used())
    known = [h for h in HOSTS.values() if {k: h[k] for k in now} == now]
    assert known, "this WebUI offers something else than the contract says; look at the difference, then write it anew"
