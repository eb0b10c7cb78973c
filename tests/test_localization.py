"""Every text that a person sees in the tab has its Simplified Chinese, under each name that language packs use."""

from __future__ import annotations

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from conftest import ROOT

from ddpm_core.dataset.reading import Rejected
from ddpm_core.host.standalone import StandaloneHost
from ddpm_core.requests import NATIVE
from ddpm_core.service import Service
from ddpm_core.training.settings import PRESETS

FOLDER = ROOT / "localizations"
# names of samplers, presets and precisions, and units, are the same in every language
SAME = {"DDPM", "KID", "DPM++ 2M", "DDIM", "UniPC", "512x512", "2026-01-31", "flip_probability=0.5, dropout=0.1"}
# what the WebUI shows itself: its language pack translates these, and ours must not change its words
HOSTS = {
    "Batch size",
    "CFG scale",
    "Cancel",
    "Checkpoint",
    "Generate",
    "Height",
    "Interrupt",
    "Merge",
    "Model",
    "Negative prompt",
    "Prompt",
    "Refresh",
    "Sampling method",
    "Sampling steps",
    "Scale by",
    "Schedule type",
    "Seed",
    "Show results",
    "Size",
    "Skip",
    "Steps",
    "Styles",
    "Train",
    "Upscaler",
    "Width",
}


class InAWebUI(StandaloneHost):
    """Standalone, but offering what a WebUI offers, so that the tab shows all it has."""

    generates = True

    def generation_choices(self) -> dict[str, list[str]]:
        return {"samplers": ["Euler a"], "schedulers": ["Karras"], "styles": ["a style"]}


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append(data.strip())


def texts_of_the_page(workspace: Path) -> set[str]:
    import gradio as gr

    from ddpm_core.ui.tab import build_tab

    folders = {"txt2img": workspace}
    with gr.Blocks() as page:
        build_tab(Service(InAWebUI(workspace, folders)))
    found: set[str] = set()
    for block in page.blocks.values():
        kind = type(block).__name__
        for name in ("label", "info", "placeholder"):
            value = getattr(block, name, None)
            if isinstance(value, str) and getattr(block, "show_label", True) is not False:
                found.add(value)
        if kind == "Button":
            found.add(block.value)
        if kind == "HTML" and block.value:
            parser = _Texts()
            parser.feed(block.value)
            found |= set(parser.found)
    return found


def texts_of_the_scripts() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "javascript").glob("*.js"):
        source = path.read_text(encoding="utf-8")
        found |= {json.loads(f'"{text}"') for text in re.findall(r'\bT\("((?:[^"\\]|\\.)*)"\)', source)}
    return found


def texts_of_progress() -> set[str]:
    """What jobs say they are doing, and what rejected items say: constants that the page translates."""
    found: set[str] = set()
    for path in (ROOT / "ddpm_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values)
                found |= {v.value for k, v in pairs if ast.unparse(k or v) == "'text'" and isinstance(v, ast.Constant)}
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).split(".")[-1]
            if name == "progress" and len(node.args) == 3 and isinstance(node.args[2], ast.Constant):
                found.add(node.args[2].value)
            if name == Rejected.__name__ and isinstance(node.args[-1], ast.Constant):
                found.add(node.args[-1].value)
    return found


def texts_of_settings() -> set[str]:
    found: set[str] = set()
    tree = ast.parse((ROOT / "ddpm_core" / "host" / "webui" / "settings.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "OptionInfo":
            found.add(ast.literal_eval(node.args[1]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "info":
            found.add(f"({ast.literal_eval(node.args[0])})")
    return found


def texts_in_the_hosts_pages() -> set[str]:
    """Labels, hints and titles of what we put into txt2img and img2img."""
    found: set[str] = set()
    for path in (ROOT / "ddpm_core" / "host" / "webui" / "pages").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("label", "info", "tooltip"):
                found |= {
                    v.value for v in ast.walk(node.value) if isinstance(v, ast.Constant) and isinstance(v.value, str)
                }
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "gr.Button":
                found.add(ast.literal_eval(node.args[0]))
            if isinstance(node, ast.FunctionDef) and node.name == "title":
                found |= {ast.literal_eval(n.value) for n in ast.walk(node) if isinstance(n, ast.Return) and n.value}
    return found


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def shown(tmp_path: Path) -> set[str]:
    presets = {preset.summary for preset in PRESETS.values()}
    texts = presets | texts_of_the_page(tmp_path) | texts_of_the_scripts() | texts_of_progress() | texts_of_settings()
    texts |= texts_in_the_hosts_pages() | {NATIVE}
    return {text for text in texts if re.search(r"[A-Za-z]{2}", text)} - SAME - HOSTS


def test_every_text_has_its_chinese(tmp_path: Path) -> None:
    known = load(FOLDER / "zh_CN.json")
    texts = shown(tmp_path)
    assert len(texts) > 100, "the texts were not found"
    missing = sorted(texts - known.keys())
    assert not missing, "without an entry in localizations/zh_CN.json: " + json.dumps(missing, ensure_ascii=False)
    assert not sorted(known.keys() - texts), "no longer shown anywhere"
    untranslated = [text for text, chinese in known.items() if not re.search(r"[一-鿿]", chinese)]
    assert not untranslated, untranslated


def test_no_text_of_the_host_is_translated() -> None:
    assert not HOSTS & load(FOLDER / "zh_CN.json").keys()


def test_the_packs_names_hold_the_same() -> None:
    known = load(FOLDER / "zh_CN.json")
    for name in ("zh-Hans (Stable)", "zh-Hans (Testing)"):
        assert load(FOLDER / f"{name}.json") == known, f"copy zh_CN.json to {name}.json"


def test_the_scripts_show_no_text_untranslated() -> None:
    """A text handed to an element without T() would stay English."""
    for path in (ROOT / "javascript").glob("*.js"):
        source = path.read_text(encoding="utf-8")
        for call in re.findall(r'\bel\("[a-z0-9]+", "[^"]*", ("[^"]*[A-Za-z]{2}[^"]*")', source):
            raise AssertionError(f"{path.name}: {call} without T()")
        for call in re.findall(r'\bbutton\(("[^"]*[A-Za-z]{2}[^"]*")', source):
            raise AssertionError(f"{path.name}: {call} without T()")
