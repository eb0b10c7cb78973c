"""The orders in which a dataset is reviewed, and a page of one: quick also where a hundred thousand lie in it."""

from __future__ import annotations

import threading
from typing import Any

from ..errors import UserError
from . import KEPT, REJECTED
from .store import Store

VIEWS: dict[str, dict[str, Any]] = {
    "unusual": {"status": KEPT, "by_suspicion": True},
    "twins": {"status": KEPT, "twins": True},
    "all": {},
    "kept": {"status": KEPT},
    "rejected": {"status": REJECTED},
}


class Views:
    """What the pages of one dataset ask for again and again, remembered until the dataset changes.

    It holds no store, so that it may live as long as its store does.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._changes = ""
        self._ids: dict[str, list[int]] = {}
        self._counts: dict[str, Any] = {}

    def page(self, store: Store, view: str, page: int, size: int) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
        """The items of a page, how many the view has in all, and the dataset's counts. UserError for what there is not."""
        if view not in VIEWS:
            raise UserError(f"There is no view {view!r}.")
        if not 1 <= size <= 200 or not 0 <= page < 10**9:
            raise UserError("A page holds 1 to 200 items, and its number is not negative.")
        with self._guard:  # who comes second finds what the first has read
            changes = store.changes()
            if changes != self._changes or not changes:
                self._ids, self._counts = {}, store.counts()
                self._changes = changes
            if view not in self._ids:
                self._ids[view] = store.ids(**VIEWS[view])
            ids, counts = self._ids[view], self._counts
        wanted = ids[page * size : (page + 1) * size]
        found = {item["id"]: item for item in store.items(ids=wanted)}
        return [found[id] for id in wanted if id in found], len(ids), counts
