"""How the programs that make images write down their prompt and settings, read as the WebUI's generation text.

A1111, Forge, reForge, SD.Next and Civitai write the WebUI's own text; ComfyUI a graph of nodes (see graph.py); InvokeAI,
Fooocus, SwarmUI, NovelAI and Draw Things JSON; Midjourney a description; Easy Diffusion a text for each field. What
cannot be read gives an empty prompt, never raw JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..parsing import parse_json
from . import infotext
from .graph import is_graph, read_graph
from .infotext import Infotext, model_name
from .texts import MAX_TEXT_BYTES

_JSON = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"\]])")  # unlike {red|blue} and [a|b], which prompts begin with
_JOB_ID = re.compile(
    r"Job ID:\s{0,9}[0-9a-fA-F-]{8,40}$"
)  # of stripped text; no part of it may begin anew at every space
_MOST_CAMERA = 64  # characters
_MIDJOURNEY_OPTIONS = re.compile(r"\s--?[a-z]+(?:\s[^\s-]\S*)*")
_CAMERA = re.compile(r"[A-Z0-9 ]*(?:DIGITAL CAMERA|DSC|DCIM|MINOLTA)[A-Z0-9 ]*")  # what cameras call every picture
_DREAM = re.compile(r'"(?P<prompt>(?:[^"\\]|\\.)*)"(?P<options>.*)', re.DOTALL)
_COMFY_PREFIX = re.compile(r"\s*(prompt|workflow)\s*:\s*", re.IGNORECASE)

# names of a field, lower case and without spaces and dashes, in the order of preference
_PROMPT = ("positiveprompt", "prompt", "c")
_NEGATIVE = ("negativeprompt", "negative", "uc")
_SETTINGS = {
    "Steps": ("steps", "numinferencesteps"),
    "Sampler": ("samplername", "sampler"),
    "Schedule type": ("scheduler",),
    "CFG scale": ("cfgscale", "guidancescale", "scale", "cfg"),
    "Seed": ("seed",),
    "Model hash": ("modelhash", "basemodelhash"),
    "Model": ("model", "basemodel", "modelname", "modelweights", "usestablediffusionmodel"),
}


def read(texts: Mapping[str, str]) -> Infotext:
    """Prompt and settings of the texts of a file (:mod:`.texts`); an empty one where there are none."""
    for name in ("parameters", "usercomment", "stealth", "invokeai_metadata", "sd-metadata", "comment"):
        text = texts.get(name, "")
        found = of_text(text)
        if name == "comment" and not _JSON.match(text) and not found.settings:
            continue  # "Created with GIMP": in a comment only what is surely a generation text
        if found != Infotext():
            return found
    return _of_separate_texts(texts)


def of_text(text: str) -> Infotext:
    """Of one text: JSON of any of the programs, or the WebUI's generation text."""
    if not _JSON.match(text):
        return infotext.parse(text) if len(text) <= MAX_TEXT_BYTES else Infotext()
    try:
        found = _of_json(parse_json(text)) or Infotext()
    except (ValueError, RecursionError):
        # "[[cat]], dog" is the WebUI's way to weigh a word less
        return infotext.parse(text) if text.lstrip().startswith("[[") and len(text) <= MAX_TEXT_BYTES else Infotext()
    return found if max(len(found.prompt), len(found.negative_prompt)) <= MAX_TEXT_BYTES else Infotext()


def _of_separate_texts(texts: Mapping[str, str]) -> Infotext:
    for name in ("prompt", "make", "model"):  # ComfyUI: PNG's keyword; WebP's EXIF, where each begins with its name
        prefix = _COMFY_PREFIX.match(texts.get(name, ""))
        graph = texts.get(name, "")[prefix.end() if prefix else 0 :]
        if _JSON.match(graph) and (found := of_text(graph)) != Infotext():
            return found
    if "prompt" in texts and not _JSON.match(texts["prompt"]):
        return _of_fields(texts) or Infotext()
    if dream := _DREAM.match(texts.get("dream", "")):
        return _of_dream(dream)
    for name in ("description", "imagedescription"):
        text = texts.get(name, "").strip()
        if not text or (len(text) <= _MOST_CAMERA and _CAMERA.fullmatch(text)):
            continue
        if len(text) > MAX_TEXT_BYTES and not _JSON.match(text) and not _COMFY_PREFIX.match(text):
            continue
        prefix = _COMFY_PREFIX.match(text)
        if _JSON.match(text[prefix.end() :] if prefix else text):
            if (found := of_text(text[prefix.end() if prefix else 0 :])) != Infotext():
                return found
        elif found_id := _JOB_ID.search(text, max(0, len(text) - 100)):
            return Infotext(_MIDJOURNEY_OPTIONS.sub("", text[: found_id.start()].rstrip()).strip())
        elif len(text) <= MAX_TEXT_BYTES:
            return infotext.parse(text)
    return Infotext()


def _of_dream(match: re.Match[str]) -> Infotext:
    """InvokeAI 1: ``"prompt [negative]" -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms``."""
    prompt = match["prompt"].replace('\\"', '"')
    plain, negative = _split_brackets(prompt)
    options = dict(re.findall(r"-([sSWHCA])\s*(\S{1,40})", match["options"][:2000]))
    names = {"s": "Steps", "A": "Sampler", "C": "CFG scale", "S": "Seed"}
    settings = {label: options[name] for name, label in names.items() if name in options}
    if "W" in options and "H" in options:
        settings["Size"] = f"{options['W']}x{options['H']}"
    return Infotext(plain, negative, settings)


def _split_brackets(prompt: str) -> tuple[str, str]:
    """InvokeAI to 2.x: what stands in square brackets is the negative prompt."""
    negative = [part.partition("]")[0].strip() for part in prompt.split("[")[1:]]
    first, *others = prompt.split("[")
    plain = first + "".join(part.partition("]")[2] for part in others)
    return " ".join(plain.split()), ", ".join(part for part in negative if part)


def _of_json(values: Any, depth: int = 0) -> Infotext | None:
    """Of the JSON of one of the programs; None where it is of no kind that is known."""
    if not isinstance(values, dict) or depth > 3:
        return None
    if isinstance(values.get("extraMetadata"), str):  # Civitai's generator, beside its graph
        found = _of_json(parse_json(values["extraMetadata"]), depth + 1)
        if found is not None:
            return found
    for name in ("sui_image_params", "image", "Comment", "prompt"):  # SwarmUI, InvokeAI 2, NovelAI, ComfyUI and Easy
        inner = values.get(name)
        if name == "Comment" and isinstance(inner, str) and _JSON.match(inner):
            inner = parse_json(inner)
        if isinstance(inner, dict) and (found := _of_json(inner, depth + 1)) is not None:
            return found
    if is_graph(values):
        return read_graph(values)
    return _of_fields(values)


def _of_fields(values: Mapping[str, Any]) -> Infotext | None:
    """Of a flat object with fields of any of the usual names; None where no prompt is among them."""
    fields = {
        str(name).lower().replace(" ", "").replace("_", "").replace("-", ""): value for name, value in values.items()
    }
    prompt, negative = _first_text(fields, _PROMPT), _first_text(fields, _NEGATIVE)
    if prompt is None:
        return None
    if "appversion" not in fields and isinstance(fields.get("prompt"), list):
        prompt, in_brackets = _split_brackets(prompt)  # InvokeAI 2
        negative = negative or in_brackets
    settings: dict[str, str] = {}
    for label, names in _SETTINGS.items():
        for name in names:
            if text := _plain(fields.get(name)):
                settings[label] = text
                break
    width, height = _plain(fields.get("width")), _plain(fields.get("height"))
    if width and height:
        settings["Size"] = f"{width}x{height}"
    elif match := re.fullmatch(
        r"\D{0,2}(\d{1,5})\D{1,3}(\d{1,5})\D{0,2}", _plain(fields.get("resolution") or fields.get("size"))
    ):
        settings["Size"] = f"{match[1]}x{match[2]}"
    return Infotext(prompt, negative or "", settings)


def _first_text(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = fields.get(name)
        if isinstance(value, list) and value and isinstance(value[0], dict):  # InvokeAI 2: a list of weighted prompts
            value = value[0].get("prompt")
        if isinstance(value, str) and len(value) <= MAX_TEXT_BYTES:
            return value.strip()
    return None


def _plain(value: Any) -> str:
    """A setting as text: of a model its name, without a folder or an ending."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("name", "model_name", "key") if isinstance(value.get(name), str)), "")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return model_name(str(value))[:200].strip()
