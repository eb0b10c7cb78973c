"""All pages' answers, by page and part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError
from . import chapters, memory, network, noise, pair, path, words
from .desk import Desk
from .query import Query

Answer = Callable[[Desk, Query], dict[str, Any]]

ANSWERS: dict[str, Answer] = {
    "noise": noise.answer,
    "pair": pair.answer,
    "pair/levels": pair.levels,
    "path": path.answer,
    "path/compare": path.compare,
    "path/animation": path.animation,
    "memory": memory.answer,
    "memory/levels": memory.levels,
    "memory/origin": memory.origin,
    "memory/quiz": memory.quiz,
    "words": words.answer,
    "network": network.answer,
    "chapters/words": chapters.words,
    "chapters/cascade": chapters.cascade,
    "chapters/adapter": chapters.adapter,
}


def answer(desk: Desk, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a page asks for (``part``, and the values that it needs), as JSON; UserError where that cannot be."""
    query = Query(values)
    part = query.text("part")
    if part not in ANSWERS:
        raise UserError(f"There is no page {part[:50]!r} to understand.")
    with desk.turn():
        return ANSWERS[part](desk, query)
