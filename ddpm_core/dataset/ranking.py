"""A whole dataset judged: how unusual each kept item is beside the others, and which are nearly equal."""

from __future__ import annotations

import hashlib
import json
import sqlite3

import numpy as np
from numpy.typing import NDArray

from . import KEPT
from .database import plainly
from .store import Store
from .suspects import STANDS_OUT, TEXTURE, THUMB, Bytes, near_duplicates, suspicion


@plainly
def rank(store: Store) -> int:
    """Score every decoded item against the kept ones and group near duplicates; how many stand out."""
    db = store.connection()
    ids = [
        row["id"]
        for row in db.execute("SELECT id FROM items WHERE status = ? AND thumb IS NOT NULL ORDER BY id", (KEPT,))
    ]
    signature = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    known = db.execute("SELECT value FROM meta WHERE key = 'ranked'").fetchone()
    if known and known["value"] == signature:
        return int(
            db.execute("SELECT COUNT(*) FROM items WHERE status = ? AND suspicion > ?", (KEPT, STANDS_OUT)).fetchone()[
                0
            ]
        )

    def thumbs(start: int, stop: int) -> Bytes:
        part = ids[start:stop]
        rows = db.execute("SELECT id, thumb FROM items WHERE id BETWEEN ? AND ? ORDER BY id", (part[0], part[-1]))
        wanted = set(part)  # whatever a person decides meanwhile
        return np.frombuffer(b"".join(row["thumb"] for row in rows if row["id"] in wanted), np.uint8).reshape(
            -1, THUMB, THUMB, 3
        )

    if not ids:
        return 0
    scores = suspicion(thumbs, len(ids), _textures(db, ids))
    groups = _near_duplicates(db, ids)
    with store.transaction() as write:
        write.execute("UPDATE items SET suspicion = NULL, twin_group = NULL")
        write.executemany(
            "UPDATE items SET suspicion = ?, twin_group = ? WHERE id = ?",
            ((float(score), groups.get(item_id), item_id) for item_id, score in zip(ids, scores)),
        )
        write.execute("INSERT OR REPLACE INTO meta VALUES ('ranked', ?)", (signature,))
    return int((scores > STANDS_OUT).sum())


def _textures(db: sqlite3.Connection, ids: list[int]) -> NDArray[np.float64]:
    """(n, 6), NaN where an item has none that can be read."""
    rows = db.execute("SELECT id, texture FROM items WHERE id BETWEEN ? AND ?", (ids[0], ids[-1]))
    known = {id: data for id, data in rows if isinstance(data, bytes) and len(data) == 4 * TEXTURE}
    none = np.full(TEXTURE, np.nan, np.float32).tobytes()
    data = b"".join(known.get(id, none) for id in ids)
    return np.frombuffer(data, np.float32).reshape(-1, TEXTURE).astype(np.float64)


def _near_duplicates(db: sqlite3.Connection, ids: list[int]) -> dict[int, int]:
    most = 4_000  # a larger set is grouped within stretches of this many, which bounds memory
    groups: dict[int, int] = {}
    for start in range(0, len(ids), most):
        part = ids[start : start + most]
        rows = db.execute(
            "SELECT id, thumb, hash FROM items WHERE id BETWEEN ? AND ? ORDER BY id", (part[0], part[-1])
        ).fetchall()
        wanted = set(part)
        rows = [row for row in rows if row["id"] in wanted]
        pixels = np.frombuffer(b"".join(row["thumb"] for row in rows), np.uint8).reshape(-1, THUMB, THUMB, 3)
        groups.update(near_duplicates(part, pixels, [row["hash"] % 2**64 for row in rows]))
    return groups
