"""The prompt of a ComfyUI graph: what leads into the sampler whose picture was saved.

The graph is the API's: ``{id: {"class_type": ..., "inputs": {name: value or [id, output]}}}``. Nodes are told apart by
their inputs and not by a list of classes, since most of them come from extensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .infotext import Infotext, model_name

_MOST_STEPS = 50_000  # from node to node for one picture, however the graph refers to itself
_ROLES = ("positive", "negative")
# inputs that hold a prompt, in the order in which they are joined
_TEXTS = (
    "text", "populated_text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "prompt", "positive_prompt", "string", "value",
    "text_positive", "string_a", "string_b", "text1", "text2", "text_a", "text_b", "text_c", "text_d", "prefix", "suffix",
)  # fmt: skip
_SETTINGS = {
    "Steps": ("steps",),
    "Sampler": ("sampler_name",),
    "Schedule type": ("scheduler",),
    "CFG scale": ("cfg", "guidance"),
    "Seed": ("seed", "noise_seed"),
    "Model": ("ckpt_name", "unet_name", "model_name"),
}


def is_graph(values: Mapping[str, Any]) -> bool:
    """Whether this is a graph: every value a node, or at least most (some programs add a field of theirs)."""
    nodes = sum(isinstance(node, dict) and "class_type" in node for node in values.values())
    return nodes > 0 and 2 * nodes > len(values)


def read_graph(values: Mapping[str, Any]) -> Infotext:
    """Prompt, negative prompt and settings of the sampler nearest to what the graph saves; empty where there is none."""
    return _Graph(values).read()


class _TooLong(Exception):
    """More steps than any graph takes that somebody drew."""


class _Graph:
    """The inputs of every node by its id."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = _MOST_STEPS
        self._nodes: dict[str, dict[str, Any]] = {}
        self._classes: dict[str, str] = {}
        for name, node in values.items():
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
                self._nodes[str(name)] = node["inputs"]
                self._classes[str(name)] = str(node.get("class_type", ""))

    def read(self) -> Infotext:
        used = {link for inputs in self._nodes.values() for value in inputs.values() if (link := self._link(value))}
        ends = [name for name in self._nodes if name not in used]
        ends.sort(key=lambda name: not re.search("save|preview|output", self._classes[name], re.IGNORECASE))
        try:
            for end in ends:
                upstream = list(self._upstream(end))
                for name in filter(self._samples, upstream):
                    inputs = self._nodes[name]
                    prompt = ", ".join(self._texts(inputs.get("positive", inputs.get("conditioning")), "positive"))
                    if prompt:
                        negative = ", ".join(self._texts(inputs.get("negative"), "negative"))
                        return Infotext(prompt, negative, self._settings(name, upstream))
        except _TooLong:
            pass
        return Infotext()

    def _samples(self, name: str) -> bool:
        """Whether a node is told what to make: a sampler, a guider, a loader that takes the prompts as text."""
        inputs = self._nodes[name]
        told = any(isinstance(inputs.get(role), str) or self._link(inputs.get(role)) for role in _ROLES)
        return told or ("model" in inputs and bool(self._link(inputs.get("conditioning"))))

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooLong

    def _link(self, value: Any) -> str:
        """The id of the node that an input is linked to, or an empty string."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and type(value[1]) is int:
            return str(value[0]) if str(value[0]) in self._nodes else ""
        return ""

    def _upstream(self, start: str) -> Iterator[str]:
        """``start`` and all that leads to it, nearest first."""
        seen, row = {start}, [start]
        while row:
            yield from row
            after: list[str] = []
            for name in row:
                for value in self._nodes[name].values():
                    self._step()
                    link = self._link(value)
                    if link and link not in seen:
                        seen.add(link)
                        after.append(link)
            row = after

    def _texts(self, value: Any, role: str) -> list[str]:
        """The distinct prompts that lead into an input, in order. Where a node has both roles, only its own is followed."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        todo = [value]
        while todo:
            self._step()
            value = todo.pop()
            if isinstance(value, str):
                if text := value.strip():
                    found[text] = None
                continue
            name = self._link(value)
            if not name or name in seen:
                continue
            seen.add(name)
            inputs = self._nodes[name]
            self._left -= len(inputs)
            if any(other in inputs for other in _ROLES):
                todo.append(inputs.get(role))
                continue
            texts = [inputs[key] for key in _TEXTS if isinstance(inputs.get(key), str) or self._link(inputs.get(key))]
            others = [inputs[key] for key in inputs if key not in _TEXTS and self._link(inputs[key])]
            # a node with a text of its own makes the condition of it: its model and its CLIP lead elsewhere
            todo += reversed(texts or others)
        return list(found)

    def _settings(self, sampler: str, upstream: list[str]) -> dict[str, str]:
        """Settings of the sampler, or of the nodes that lead to the picture where it has them from others."""
        order = [sampler, *(name for name in upstream if name != sampler)]
        settings: dict[str, str] = {}
        for label, keys in _SETTINGS.items():
            for name in order:
                value = next((self._nodes[name][key] for key in keys if key in self._nodes[name]), None)
                if isinstance(value, (str, int, float)) and not isinstance(value, bool):
                    settings[label] = model_name(str(value))[:200]
                    break
        for name in order:
            width, height = self._nodes[name].get("width"), self._nodes[name].get("height")
            if type(width) is int and type(height) is int and "batch_size" in self._nodes[name]:
                settings["Size"] = f"{width}x{height}"
                break
        return settings
