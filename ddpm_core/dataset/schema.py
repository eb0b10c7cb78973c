"""The tables of dataset.sqlite, their format, and the way from each earlier format to today's."""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3

VERSION = 3

# of format 1; a new file is made so and then upgraded, as an old one is
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,           -- absolute path the picture was harvested from
    bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    width INTEGER, height INTEGER,
    prompt TEXT NOT NULL, negative_prompt TEXT NOT NULL,
    settings TEXT NOT NULL,         -- JSON object of the generation text's settings
    status TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
    decided_by TEXT NOT NULL,       -- 'check' or 'user'
    suspicion REAL, twin_group INTEGER,
    hash INTEGER,                   -- difference hash, as a signed 64-bit number
    thumb BLOB,                     -- (24, 24, 3) uint8
    has_copy INTEGER NOT NULL,
    added REAL NOT NULL
);
CREATE INDEX items_source ON items (source);
CREATE INDEX items_sha256 ON items (sha256);
CREATE INDEX items_status ON items (status, suspicion DESC);
CREATE TABLE decisions (            -- what a person decided, for undo; one batch is one action
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, item INTEGER NOT NULL,
    status TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL, decided_by TEXT NOT NULL  -- as they were before
);
"""

# from each format to the next
_UPGRADES: dict[int, tuple[str, ...]] = {
    # indexes for counts and pages of a review, a count of changes; from here copies may be WebP
    1: (
        "CREATE INDEX items_reason ON items (status, reason)",
        "CREATE INDEX items_twins ON items (status, twin_group) WHERE twin_group IS NOT NULL",
        "INSERT INTO meta VALUES ('changes', '1')",
    ),
    # what a file is read as (READ_AS), its pixels' hash, whether its copy was made again with other pixels, its texture (6 float32)
    2: (
        "ALTER TABLE items ADD COLUMN read_as INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE items ADD COLUMN pixels TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE items ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE items ADD COLUMN texture BLOB",
        "CREATE INDEX items_pixels ON items (pixels) WHERE pixels != ''",
    ),
}


def create(db: sqlite3.Connection) -> None:
    """Make the tables in an empty file, within the caller's transaction."""
    _create(db)
    upgrade(db, 1)


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";\n"):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('schema', '1')")


def version(db: sqlite3.Connection) -> int:
    """The format of an open file; ValueError for one that never was, or whose table of it is none."""
    if _what_is_in(db).get("meta") != _tables_of(1)["meta"]:
        raise ValueError("it does not say its format")
    found = int(db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])
    if found < 1:
        raise ValueError(f"there was no format {found}")
    return found


def check(db: sqlite3.Connection, found: int) -> None:
    """ValueError where the file holds other tables than those of that format.

    Such a file is forged: a view in a table's place may never end, a trigger may change what nobody asked for.
    """
    if found <= VERSION and _what_is_in(db) != _tables_of(found):
        raise ValueError("its tables are not ours")


@functools.cache
def _tables_of(found: int) -> dict[str, tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        _create(db)
        upgrade(db, 1, found)
        return _what_is_in(db)


def _what_is_in(db: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    """Kind and definition of each table, index, view and trigger by name, comments and spaces aside; SQLite's own are not."""
    rows = db.execute("SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {
        str(name): (str(kind), "".join(re.sub(r"--[^\n]*", "", str(sql)).split()))
        for name, kind, sql in rows
        if not (str(name).startswith("sqlite_stat") and kind == "table")  # of ANALYZE
    }


def upgrade(db: sqlite3.Connection, found: int, target: int = VERSION) -> None:
    """From that format to another, today's as a rule, within the caller's transaction."""
    for step in range(found, target):
        for statement in _UPGRADES[step]:
            db.execute(statement)
    db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(target),))
