"""The orders in which a dataset is reviewed, and a page of one: quick also where a hundred thousand lie in it."""

from __future__ import annotations

import threading
from typing import Any

from ..errors import UserError
from . import KEPT, REJECTED
from .store import Store
from .wanted import words_of

_MOST_SEARCH = 1000  # characters
_MOST_REMEMBERED = 20  # orders of one state of a dataset

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
        self._ids: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        self._counts: dict[str, Any] = {}

    def page(
        self, store: Store, view: str, page: int, size: int, search: str = ""
    ) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
        """The items of a page, how many the view has in all, and the dataset's counts. UserError for what there is not.

        ``search``: words, separated by commas, that prompt or file name must all have.
        """
        words = words_of(search)
        if len(search) > _MOST_SEARCH:
            raise UserError(f"A search can have at most {_MOST_SEARCH} characters.")
        if view not in VIEWS:
            raise UserError(f"There is no view {view!r}.")
        if not 1 <= size <= 200 or not 0 <= page < 10**9:
            raise UserError("A page holds 1 to 200 items, and its number is not negative.")
        with self._guard:  # who comes second finds what the first has read
            changes = store.changes()
            if changes != self._changes or not changes:
                self._ids, self._counts = {}, store.counts()
                self._changes = changes
            key = (view, words)
            if key not in self._ids:
                if len(self._ids) >= _MOST_REMEMBERED:
                    self._ids.clear()
                self._ids[key] = store.ids(**VIEWS[view], words=words)
            ids, counts = self._ids[key], self._counts
        wanted = ids[page * size : (page + 1) * size]
        found = {item["id"]: item for item in store.items(ids=wanted)}
        return [found[id] for id in wanted if id in found], len(ids), counts
