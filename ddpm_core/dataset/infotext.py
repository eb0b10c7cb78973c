"""The WebUI's generation text ("infotext"): read as the WebUI's own parser reads it, and written for our samples.

<prompt, any number of lines>
Negative prompt: <any number of lines>
Steps: 20, Sampler: DPM++ 2M, Seed: 1, Size: 512x512, ...
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from ..parsing import parse_json
from ..text import legible

NEGATIVE = "Negative prompt:"
OWN_KEY = "DDPM model"  # marks pictures sampled from our models, so that a dataset never eats its own output

# `key: value` pairs: a key begins with a word character; a value is a JSON string or runs to the next comma. Every
# repetition ends soon or is followed by what it cannot hold, so that no text takes more than time in proportion to it.
_QUOTED = r'"(?:[^"\\]|\\.)+"'
_PAIR = re.compile(rf"(?P<key>\w[\w \-/]{{1,100}}):\s*(?P<value>{_QUOTED}|[^,]*)(?:,|$)")
_FEWEST_PAIRS = 3  # a last line with fewer is taken for prompt


@dataclass(frozen=True)
class Infotext:
    """A parsed generation text; ``settings`` keeps the order of the text."""

    prompt: str = ""
    negative_prompt: str = ""
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether one of our own models made the image."""
        return OWN_KEY in self.settings


def parse(text: str) -> Infotext:
    """Parse a generation text; any text is accepted, and what is not settings is prompt."""
    lines = legible(text).strip().split("\n")
    pairs = _pairs(lines[-1])
    if pairs:
        lines.pop()
    else:  # extensions add lines of their own: the templates of sd-dynamic-prompts
        for number in range(len(lines) - 1, 0, -1):
            if lines[number].startswith("Steps: ") and (pairs := _pairs(lines[number])):
                lines = lines[:number]
                break
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in (raw.strip() for raw in lines):
        if line.startswith(NEGATIVE):
            target = negative
            line = line[len(NEGATIVE) :].strip()
        # as in the WebUI, leading empty lines vanish and inner ones stay
        if target or line:
            target.append(line)
    return Infotext("\n".join(prompt), "\n".join(negative), {key: _unquote(value) for key, value in pairs})


def _pairs(line: str) -> list[tuple[str, str]]:
    """The settings of a line; none where there are so few that it is prompt."""
    pairs = [(m["key"], m["value"]) for m in _PAIR.finditer(line)]
    return pairs if len(pairs) >= _FEWEST_PAIRS else []


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            return str(parse_json(value))
        except ValueError:
            return value
    return value


def _quote(value: str) -> str:
    """Quote what a comma, a colon or a line break would break, as the WebUI does."""
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ',\n:"') else value


def build(info: Infotext) -> str:
    """The text of an :class:`Infotext`; ``parse(build(x)) == x`` for texts the format can hold."""
    parts = [info.prompt] if info.prompt else []
    if info.negative_prompt:
        parts.append(f"{NEGATIVE} {info.negative_prompt}")
    if info.settings:
        parts.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in info.settings.items()))
    return "\n".join(parts)


def model_name(text: str) -> str:
    """The name of a checkpoint file, as the WebUI gives it."""
    for ending in (".safetensors", ".ckpt", ".gguf", ".sft", ".pt"):
        if text.lower().endswith(ending):
            return re.split(r"[/\\]", text[: -len(ending)])[-1]
    return text
