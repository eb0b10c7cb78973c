"""One dataset's items added to another."""

from __future__ import annotations

import sqlite3

from .database import plainly
from .store import Store

_OF_ITS_SET = frozenset({"id", "suspicion", "twin_group"})  # columns that say nothing in another dataset


@plainly
def absorb(store: Store, other: Store) -> int:
    """Add the items of another dataset with what was decided there; how many were not here yet.

    What is here already, by its bytes or its pixels, is not added; where nobody has decided about it here, what a person
    decided there counts.
    """
    known = [row["name"] for row in store.connection().execute("PRAGMA table_info(items)")]
    columns = [name for name in known if name not in _OF_ITS_SET]
    names = ", ".join(columns)
    added = 0
    rows = other.connection().execute(f"SELECT {names} FROM items ORDER BY id").fetchall()
    for row in rows:
        with store.transaction() as db:
            here = _like(db, row)
            if here is None:
                if row["has_copy"] and not store.copies.take(other.copies, row["sha256"]):
                    continue  # its copy is gone: harvesting its folder makes it again
                db.execute(f"INSERT INTO items ({names}) VALUES ({','.join('?' * len(columns))})", tuple(row))
                added += 1
            elif row["decided_by"] == "user" and here["decided_by"] == "check" and row["status"] != here["status"]:
                db.execute(
                    "UPDATE items SET status = ?, reason = ?, message = ?, decided_by = 'user' WHERE id = ? AND has_copy",
                    (row["status"], row["reason"], row["message"], here["id"]),
                )
    return added


def _like(db: sqlite3.Connection, row: sqlite3.Row) -> sqlite3.Row | None:
    """The item here that is the same: the same file, or the same picture where that counts."""
    fields = "SELECT id, status, decided_by FROM items"
    same = db.execute(f"{fields} WHERE source = ? AND sha256 = ?", (row["source"], row["sha256"])).fetchone()
    if same is None and row["reason"] != "duplicate":
        query = f"{fields} WHERE (sha256 = ? OR (pixels = ? AND pixels != '')) AND reason != 'duplicate' LIMIT 1"
        same = db.execute(query, (row["sha256"], row["pixels"])).fetchone()
    found: sqlite3.Row | None = same
    return found
