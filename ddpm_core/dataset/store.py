"""A dataset on disk: one SQLite file with a row for each item, and a lossless copy of each picture."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..parsing import parse_json
from . import KEPT, REJECTED
from .checks import USUAL_SMALLEST
from .copies import Copies
from .database import Database, plainly
from .suspects import THUMB, difference_hash

_PUBLIC = (
    "id, source, width, height, prompt, negative_prompt, settings, status, reason, message, decided_by, "
    "suspicion, twin_group, sha256, has_copy, revision"
)


Buffer = bytes  # NewItem has a field of that name


@dataclass(frozen=True)
class NewItem:
    """An item about to be stored; ``thumb`` is None where nothing could be decoded."""

    source: str
    bytes: int
    mtime_ns: int
    sha256: str
    width: int | None = None
    height: int | None = None
    prompt: str = ""
    negative_prompt: str = ""
    settings: dict[str, str] | None = None
    reason: str = ""
    message: str = ""
    thumb: Buffer | None = None
    has_copy: bool = False
    pixels: str = ""  # size and hash of the pixels: the same picture in another container
    texture: Buffer | None = None
    off: float = 0.0  # how far the copy that an older version made was off, 0..255


# What a file is read as; raised when the same bytes give other pixels, texts or verdicts, so that harvesting again mends
# what lies in a dataset. 2: colours converted to sRGB, prompts of more programs, checks that spare what is only rare.
READ_AS = 2


def _row(item: NewItem) -> dict[str, Any]:
    """The columns of a new item by name."""
    values = {name: getattr(item, name) for name in _AS_THEY_ARE}
    return {
        **values,
        "settings": json.dumps(item.settings or {}, ensure_ascii=False),
        "status": REJECTED if item.reason else KEPT,
        "decided_by": "check",
        "hash": _hash_of(item.thumb),
        "has_copy": int(item.has_copy),
        "added": time.time(),
        "read_as": READ_AS,
        "revision": int(item.off > 0),
    }


_AS_THEY_ARE = tuple(f.name for f in dataclasses.fields(NewItem) if f.name not in ("settings", "has_copy", "off"))


class Kept(NamedTuple):
    """A kept item: its id, its file's SHA-256, and how often its copy was made again with other pixels."""

    id: int
    sha256: str
    revision: int = 0


def fingerprint_of(kept: Sequence[Kept]) -> str:
    """SHA-256 over the sorted SHA-256s of kept items, and over their revisions where they have any."""
    digest = hashlib.sha256()
    for item in kept:
        digest.update((item.sha256 + (f"+{item.revision}" if item.revision else "")).encode())
    return digest.hexdigest()


def _hash_of(thumb: Buffer | None) -> int | None:
    """The difference hash of a thumbnail, as the signed number that SQLite can hold."""
    if thumb is None:
        return None
    unsigned = difference_hash(np.frombuffer(thumb, np.uint8).reshape(THUMB, THUMB, 3))
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("source", "prompt", "negative_prompt", "status", "reason", "message", "decided_by", "sha256"), (str,)
    ),
    **dict.fromkeys(("width", "height", "twin_group"), (int, type(None))),
    "suspicion": (float, type(None)),
}


def _item(row: sqlite3.Row) -> dict[str, Any]:
    """A row as :meth:`Store.items` gives it; ValueError for a forged one, for SQLite keeps anything in any column."""
    item = dict(row)
    for name, kinds in _KINDS.items():
        if type(item[name]) not in kinds:
            raise ValueError(f"item {item['id']} holds what no item can")
    if not math.isfinite(item["suspicion"] or 0):
        raise ValueError(f"item {item['id']} holds what no item can")
    item["settings"], item["has_copy"] = parse_json(item["settings"]), bool(item["has_copy"])
    return item


class Store(Database):
    """One dataset folder's items. Safe for several threads and processes: each call is a transaction of its own (WAL)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.copies = Copies(folder)

    # -- adding -------------------------------------------------------------------------------------------------------

    def copy_path(self, sha256: str) -> Path:
        """Where the shrunken lossless copy of a picture lies, or shall lie (``Copies.path``)."""
        return Path(self.copies.path(sha256))

    @plainly
    def copy_of(self, item_id: int) -> Path:
        """Where the copy of an item lies; UserError where it has none."""
        row = self.connection().execute("SELECT sha256, has_copy FROM items WHERE id = ?", (item_id,)).fetchone()
        if row is None or not row["has_copy"]:
            raise UserError(f"Item {item_id} has no image.")
        return self.copy_path(row["sha256"])

    @plainly
    def copies_of(self, ids: Sequence[int]) -> dict[int, str]:
        """Where the copies of items lie, of those that have one."""
        query = f"SELECT id, sha256 FROM items WHERE has_copy AND id IN ({','.join('?' * len(ids))})"
        found: dict[int, str] = {}
        modes: dict[str, int] = {}
        for item_id, sha256 in self.connection().execute(query, tuple(ids)):
            with contextlib.suppress(UserError):  # a forged row, a link: it has none, and the others have theirs
                found[item_id] = self.copies.path(sha256, modes)
        return found

    @plainly
    def knows(self, source: str, size: int, mtime_ns: int) -> bool:
        """Whether this very file (path, size, time) has been harvested as today, and the copy made of it is there."""
        query = "SELECT sha256, has_copy FROM items WHERE source = ? AND bytes = ? AND mtime_ns = ? AND read_as >= ?"
        row = self.connection().execute(query, (source, size, mtime_ns, READ_AS)).fetchone()
        return row is not None and (not row["has_copy"] or self.copies.has(str(row["sha256"])))

    @plainly
    def outdated_thumb(self, sha256: str) -> Buffer | None:
        """The thumbnail of a file that an older version has read and made a copy of; None where there is no such."""
        query = "SELECT thumb FROM items WHERE sha256 = ? AND has_copy AND read_as < ? LIMIT 1"
        row = self.connection().execute(query, (sha256, READ_AS)).fetchone()
        return None if row is None else row["thumb"] if isinstance(row["thumb"], bytes) else b""

    @plainly
    def add(self, items: Sequence[NewItem], mended: list[NewItem] | None = None) -> list[NewItem]:
        """Store items in order; what has the bytes or the pixels of one that is known becomes a rejected duplicate.

        Returns the new ones as stored. Those that an older version had read are mended, and appended to ``mended``.
        """
        stored: list[NewItem] = []
        with self.transaction() as db:
            for item in items:
                same_file = db.execute(
                    "SELECT id, read_as, decided_by FROM items WHERE source = ? AND sha256 = ?",
                    (item.source, item.sha256),
                ).fetchone()
                if same_file and same_file["read_as"] >= READ_AS:  # touched, not changed
                    db.execute(
                        "UPDATE items SET mtime_ns = ?, bytes = ? WHERE id = ?",
                        (item.mtime_ns, item.bytes, same_file["id"]),
                    )
                    continue
                item = self._judged_beside(db, item, same_file["id"] if same_file else None)
                if same_file:
                    self._mend(db, item, same_file)
                    if mended is not None:
                        mended.append(item)
                    continue
                row = _row(item)
                names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
                db.execute(f"INSERT INTO items ({names}) VALUES ({places})", row)
                stored.append(item)
                if item.off > 0:
                    self._new_pixels(db, item)
        return stored

    @staticmethod
    def _judged_beside(db: sqlite3.Connection, item: NewItem, known: int | None) -> NewItem:
        """The item, rejected where one before it has the same bytes, or the same pixels in another container.

        One that is ``known`` already is so only beside one that is kept: a person may have rejected the other.
        """
        if item.reason not in ("", "too_small"):  # the latter may be taken back for all
            return item
        first = db.execute(
            "SELECT id, source, sha256, prompt FROM items WHERE (sha256 = ? OR (pixels = ? AND pixels != '')) AND reason != 'duplicate'"
            " AND (? IS NULL OR (id < ? AND status = ?)) ORDER BY id LIMIT 1",
            (item.sha256, item.pixels, known, known, KEPT),
        ).fetchone()
        if not first:
            return item
        same_bytes = first["sha256"] == item.sha256
        if item.prompt and not first["prompt"]:  # whoever wrote it without, it was made with this
            db.execute(
                "UPDATE items SET prompt = ?, negative_prompt = ?, settings = ? WHERE id = ?",
                (item.prompt, item.negative_prompt, json.dumps(item.settings or {}, ensure_ascii=False), first["id"]),
            )
        what = "file" if same_bytes else "image"
        return dataclasses.replace(
            item,
            reason="duplicate",
            has_copy=item.has_copy and not same_bytes,
            message=f"Exactly the same {what} as {Path(first['source']).name}.",
        )

    def _mend(self, db: sqlite3.Connection, item: NewItem, row: sqlite3.Row) -> None:
        """What an older version has read, as it is read today; what a person has decided stays."""
        db.execute(
            # what is kept or was decided by a person keeps its picture, whatever is thought of it now
            "UPDATE items SET bytes = :bytes, mtime_ns = :mtime_ns, width = COALESCE(:width, width),"
            " height = COALESCE(:height, height), prompt = :prompt, negative_prompt = :negative_prompt, settings = :settings,"
            " hash = COALESCE(:hash, hash), thumb = COALESCE(:thumb, thumb), has_copy = MAX(has_copy, :has_copy),"
            " read_as = :read_as, pixels = :pixels, revision = MAX(revision, :revision), texture = COALESCE(:texture, texture)"
            " WHERE id = :id",
            {**_row(item), "id": row["id"]},
        )
        if row["decided_by"] == "check":
            db.execute(
                "UPDATE items SET status = ?, reason = ?, message = ? WHERE id = ?",
                (REJECTED if item.reason else KEPT, item.reason, item.message, row["id"]),
            )
        if item.off > 0:
            self._new_pixels(db, item)
        db.execute("DELETE FROM meta WHERE key = 'ranked'")

    @staticmethod
    def _new_pixels(db: sqlite3.Connection, item: NewItem) -> None:
        """The copy belongs to every item of those bytes."""
        db.execute(
            "UPDATE items SET revision = 1, thumb = ?, hash = ?, texture = ? WHERE sha256 = ? AND thumb IS NOT NULL",
            (item.thumb, _hash_of(item.thumb), item.texture, item.sha256),
        )

    @plainly
    def settle_duplicates(self) -> int:
        """Of kept items with equal pixels, reject all but the first, whatever order they were mended in; how many."""
        query = (
            "SELECT later.id, first.source, MIN(first.id) FROM items AS later JOIN items AS first ON first.pixels = later.pixels AND"
            " first.id < later.id AND first.status = ? WHERE later.pixels != '' AND later.status = ? AND"
            " later.decided_by = 'check' GROUP BY later.id"
        )
        with self.transaction() as db:
            rows = db.execute(query, (KEPT, KEPT)).fetchall()
            db.executemany(
                "UPDATE items SET status = ?, reason = 'duplicate', message = ? WHERE id = ?",
                [(REJECTED, f"Exactly the same image as {Path(row['source']).name}.", row["id"]) for row in rows],
            )
        return len(rows)

    @plainly
    def settle_sizes(self) -> int:
        """Keep the small pictures (below 32 pixels) of a dataset that is mostly of such: sprites, digits. Reject them else.

        Only those that no person has decided about. Returns how many are kept from now on, less how many are rejected.
        """
        small = f"MIN(width, height) < {USUAL_SMALLEST} AND has_copy AND decided_by = 'check'"
        with self.transaction() as db:
            row = db.execute(
                f"SELECT COUNT(*) AS n, SUM(MIN(width, height) < {USUAL_SMALLEST}) AS small FROM items WHERE has_copy"
            ).fetchone()
            if not row["small"]:
                return 0
            if 2 * row["small"] > row["n"]:
                return db.execute(
                    f"UPDATE items SET status = ?, reason = '', message = '' WHERE reason = 'too_small' AND {small}",
                    (KEPT,),
                ).rowcount
            message = f"The image is smaller than {USUAL_SMALLEST} pixels; keep it to train at its size."
            return -db.execute(
                f"UPDATE items SET status = ?, reason = 'too_small', message = ? WHERE status = ? AND {small}",
                (REJECTED, message, KEPT),
            ).rowcount

    # -- reading ------------------------------------------------------------------------------------------------------

    @plainly
    def items(
        self,
        *,
        status: str | None = None,
        by_suspicion: bool = False,
        twins: bool = False,
        offset: int = 0,
        limit: int | None = None,
        ids: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """Items as dictionaries, a page at a time: oldest first, most suspicious first, or near duplicates by group."""
        where: list[str] = []
        values: list[Any] = []
        if status is not None:
            where.append("status = ?")
            values.append(status)
        if ids is not None:
            where.append(f"id IN ({','.join('?' * len(ids))})")
            values += ids
        if twins:
            where.append("twin_group IS NOT NULL")
        order = "twin_group, id" if twins else "suspicion IS NULL, suspicion DESC, id" if by_suspicion else "id"
        rows = self.connection().execute(
            f"SELECT {_PUBLIC} FROM items {'WHERE ' + ' AND '.join(where) if where else ''} ORDER BY {order} LIMIT ? OFFSET ?",
            (*values, -1 if limit is None else limit, offset),
        )
        return [_item(row) for row in rows]

    @plainly
    def changes(self) -> str:
        """Another text after every change, of whatever process; for what is remembered of the items."""
        row = self.connection().execute("SELECT value FROM meta WHERE key = 'changes'").fetchone()
        return str(row["value"]) if row else ""

    @plainly
    def ids(
        self,
        *,
        status: str | None = None,
        by_suspicion: bool = False,
        twins: bool = False,
        words: Sequence[str] = (),
    ) -> list[int]:
        """All ids in the order of :meth:`items`; read from the indexes alone, where :meth:`items` reads whole rows.

        ``words``: only those whose prompt, negative prompt or file has all of them.
        """
        where = ["status = ?"] if status is not None else []
        where += ["twin_group IS NOT NULL"] if twins else []
        where += ["instr(casefold(prompt || char(10) || negative_prompt || char(10) || source), ?)"] * len(words)
        columns = "id, twin_group" if twins else "id, suspicion" if by_suspicion else "id"
        rows = self.connection().execute(
            f"SELECT {columns} FROM items {'WHERE ' + ' AND '.join(where) if where else ''}",
            ((status,) if status is not None else ()) + tuple(words),
        )
        if twins:
            return [id for id, _ in sorted(map(tuple, rows), key=lambda row: (row[1], row[0]))]
        if by_suspicion:
            return [
                id for id, _ in sorted(map(tuple, rows), key=lambda row: (row[1] is None, -(row[1] or 0.0), row[0]))
            ]
        return sorted(row[0] for row in rows)

    @plainly
    def counts(self) -> dict[str, Any]:
        """Numbers of items by status and of rejected ones by reason."""
        rows = (
            self.connection()
            .execute("SELECT status, reason, COUNT(*) AS n FROM items GROUP BY status, reason")
            .fetchall()
        )
        rejected = {str(row["reason"]): row["n"] for row in rows if row["status"] == REJECTED}
        return {
            "items": sum(row["n"] for row in rows),
            "kept": sum(row["n"] for row in rows if row["status"] == KEPT),
            "rejected": rejected,
        }

    @plainly
    def kept(self) -> list[Kept]:
        """The kept items, ordered by SHA-256: the order of packing, the same on every machine."""
        query = "SELECT id, sha256, revision FROM items WHERE status = ? ORDER BY sha256, id"
        kept = [Kept(*row) for row in self.connection().execute(query, (KEPT,))]
        if not all(isinstance(item.sha256, str) and type(item.revision) is int for item in kept):
            raise ValueError("an item has no SHA-256")
        return kept

    @plainly
    def prompts(self) -> dict[int, tuple[str, int]]:
        """Of each kept item the prompt, and the steps it was made with (20 where that is not known)."""
        steps_of = "CASE WHEN json_valid(settings) THEN json_extract(settings, '$.Steps') END"
        query = f"SELECT id, prompt, {steps_of} FROM items WHERE status = ?"
        found = {}
        for item_id, prompt, steps in self.connection().execute(query, (KEPT,)):
            if not isinstance(prompt, str):
                raise ValueError("a prompt is no text")
            known = isinstance(steps, str) and len(steps) <= 4 and steps.isdecimal() and int(steps) > 0
            found[item_id] = (prompt, int(steps) if known else 20)
        return found

    def fingerprint(self) -> str:
        """Names the exact set of kept pictures: SHA-256 over their sorted SHA-256s."""
        return fingerprint_of(self.kept())

    # -- deciding -----------------------------------------------------------------------------------------------------

    @plainly
    def decide(self, ids: Iterable[int], status: str, reason: str = "", message: str = "") -> int:
        """Keep or reject items by a person's word; remembered for :meth:`undo`. Returns how many changed."""
        changed = 0
        with self.transaction() as db:
            batch = db.execute("SELECT COALESCE(MAX(batch), 0) + 1 FROM decisions").fetchone()[0]
            for item_id in ids:
                if abs(item_id) >= 2**63:
                    raise UserError(f"There is no item {item_id} in this dataset; 'dataset show' lists them.")
                row = db.execute(
                    "SELECT status, reason, message, decided_by, has_copy FROM items WHERE id = ?", (item_id,)
                ).fetchone()
                if row is None:
                    raise UserError(f"There is no item {item_id} in this dataset; 'dataset show' lists them.")
                if status == KEPT and not row["has_copy"]:
                    raise UserError(f"Item {item_id} cannot be kept: {row['message']}")
                if row["status"] == status and (status == KEPT or row["reason"] == reason):
                    continue
                db.execute(
                    "INSERT INTO decisions (batch, item, status, reason, message, decided_by) VALUES (?,?,?,?,?,?)",
                    (batch, item_id, row["status"], row["reason"], row["message"], row["decided_by"]),
                )
                db.execute(
                    "UPDATE items SET status = ?, reason = ?, message = ?, decided_by = 'user' WHERE id = ?",
                    (status, reason, message, item_id),
                )
                changed += 1
        return changed

    @plainly
    def keep_one_of_each(self) -> int:
        """Of each group of near duplicates, keep the largest (the first of equal ones); one action. How many are rejected."""
        rows = self.connection().execute(
            "SELECT id, twin_group, COALESCE(width * height, 0) AS area FROM items"
            " WHERE status = ? AND twin_group IS NOT NULL ORDER BY twin_group, area DESC, id",
            (KEPT,),
        )
        seen: set[int] = set()
        others = [row["id"] for row in rows if row["twin_group"] in seen or seen.add(row["twin_group"])]  # type: ignore[func-returns-value]
        return self.decide(others, REJECTED, "user", "A near duplicate was kept.") if others else 0

    @plainly
    def undo(self) -> list[int]:
        """Take the last action back, also one of an earlier session; the ids it touched, none when there is nothing left."""
        with self.transaction() as db:
            last = db.execute("SELECT MAX(batch) FROM decisions").fetchone()[0]
            rows = db.execute("SELECT * FROM decisions WHERE batch = ? ORDER BY id DESC", (last,)).fetchall()
            for row in rows:
                db.execute(
                    "UPDATE items SET status = ?, reason = ?, message = ?, decided_by = ? WHERE id = ?",
                    (row["status"], row["reason"], row["message"], row["decided_by"], row["item"]),
                )
            db.execute("DELETE FROM decisions WHERE batch = ?", (last,))
        return [row["item"] for row in rows]
