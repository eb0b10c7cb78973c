"""A dataset on disk: one SQLite file with a row for each item, and a lossless copy of each picture."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import features

from ..errors import UserError
from ..files import replace_with, sweep
from ..parsing import parse_json, read_regular
from . import KEPT, REJECTED, schema
from .checks import USUAL_SMALLEST
from .reading import MAX_COPY_BYTES
from .suspects import STANDS_OUT, TEXTURE, THUMB, Bytes, difference_hash, near_duplicates, suspicion

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    P = ParamSpec("P")
R = TypeVar("R")

_ONE_CHANGE_MORE = (
    "INSERT INTO meta VALUES ('changes', 1) ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
)
_OF_ITS_SET = frozenset({"id", "suspicion", "twin_group"})  # columns that say nothing in another dataset
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


@functools.cache
def _writes_webp() -> bool:
    return bool(features.check("webp"))


def _plainly(read: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[Store, P], R]:
    """A damaged or foreign file becomes one sentence, whatever part of it is asked for."""

    @functools.wraps(read)
    def reading(self: Store, /, *values: P.args, **named: P.kwargs) -> R:
        with self._guard:
            self._at_work += 1
        try:
            return read(self, *values, **named)
        except sqlite3.OperationalError as error:
            raise UserError(
                f"The dataset in {self.folder} cannot be read ({error}); try again, or restore it."
            ) from None
        except (sqlite3.Error, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            if self._closed:
                raise self._moved_away() from None
            raise UserError(
                f"The dataset in {self.folder} is damaged ({error}); restore dataset.sqlite from a copy, or harvest again."
            ) from None
        finally:
            with self._guard:
                self._at_work -= 1

    return reading


def _mode(path: str) -> int:
    """Of what lies there itself, not of what it leads to; 0 where nothing does."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


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


_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


class Store:
    """One dataset folder. Safe for several threads and processes: each call is a transaction of its own (WAL)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._local = threading.local()
        self._guard = threading.Lock()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()  # of every thread; each ends with its thread
        self._at_work = 0
        self._closed = False
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            for place in (folder, folder / "images", folder / "packed"):
                sweep(place)
            with self.transaction() as db:
                if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                    schema.create(db)
                version = schema.version(db)
                schema.check(db, version)
            if version < schema.VERSION:
                self._upgrade_with_a_backup()
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            if isinstance(error, sqlite3.OperationalError):
                raise UserError(
                    f"The dataset in {folder} cannot be opened ({error}); make room, or check that the folder "
                    "may be written."
                ) from None
            raise UserError(
                f"The file dataset.sqlite in {folder} is damaged or not one of ours; restore it from a copy."
            ) from None
        except OSError as error:
            raise UserError(f"The dataset folder {folder} cannot be written ({error.strerror}).") from None
        if version > schema.VERSION:
            raise UserError(f"The dataset in {folder} was made by a newer version; update this extension to open it.")
        self._identity = self._on_disk()

    def _upgrade_with_a_backup(self) -> None:
        """To today's format, all or nothing; the file as it was stays beside it."""
        with self.transaction() as db:  # nobody else writes meanwhile
            version = schema.version(db)
            if version >= schema.VERSION:
                return  # another process was quicker

            def copy(target: Path) -> None:
                path = self.folder / "dataset.sqlite"
                with (
                    contextlib.closing(sqlite3.connect(path)) as now,
                    contextlib.closing(sqlite3.connect(target)) as out,
                ):
                    now.backup(out)

            replace_with(self.folder / f"dataset.format-{version}.sqlite", copy)
            schema.upgrade(db, version)

    def _on_disk(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / "dataset.sqlite").stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _moved_away(self) -> UserError:
        return UserError(f"The dataset {self.folder.name!r} was moved away meanwhile; restore it from the trash.")

    def is_current(self) -> bool:
        """Whether the file that this opened is still the one in its place: another process may have put it in the trash."""
        return self._on_disk() == self._identity

    def _harmless_file(self) -> Path:
        """``dataset.sqlite``; UserError where to open it would touch what lies elsewhere."""
        path = self.folder / "dataset.sqlite"
        parts = [path, *(path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm"))]
        for part in parts:
            try:
                is_file = stat.S_ISREG(part.lstat().st_mode)
            except OSError:
                continue
            if not is_file:
                raise UserError(f"The dataset in {self.folder} is damaged ({part.name} is a link, or no file).")
        with contextlib.suppress(OSError), open(parts[1], "rb") as journal:
            # of several databases changed at once, which ours never is: SQLite deletes the file that such a journal names
            # (https://www.sqlite.org/fileformat2.html#the_rollback_journal)
            if journal.seek(0, os.SEEK_END) >= 8 and journal.seek(-8, os.SEEK_END) and journal.read() == _JOURNAL_MAGIC:
                raise UserError(
                    f"The dataset in {self.folder} is damaged ({parts[1].name} is none of ours); delete that file if you "
                    "do not know where it came from."
                )
        return path

    # -- connections --------------------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if self._closed:
            raise self._moved_away()
        if db is None:
            path = self._harmless_file()
            db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False, factory=_Connection)
            with self._guard:
                self._open.add(db)
            db.row_factory = sqlite3.Row
            db.create_function("casefold", 1, lambda text: str(text).casefold(), deterministic=True)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA cache_size = -512")  # KiB of each thread's connection; a server has dozens of threads
            self._local.db = db
        return db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change several things or none; yields the connection."""
        db = self._connection()
        try:
            db.execute("BEGIN IMMEDIATE")
            before = db.total_changes
            yield db
            if db.total_changes != before:
                db.execute(_ONE_CHANGE_MORE)
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise UserError(
                    f"The dataset in {self.folder} cannot be written ({error}); make room, or check that the folder may be written. "
                    "What was saved before is intact."
                ) from None
            raise

    def close(self) -> None:
        """Let go of the file, for every thread; whoever uses it afterwards is told."""
        deadline = time.monotonic() + 5.0
        with self._guard:
            self._closed = True
        while self._at_work and time.monotonic() < deadline:  # who is just reading or writing shall end
            time.sleep(0.005)
        with self._guard:
            if not self._at_work:
                for db in list(self._open):
                    with contextlib.suppress(sqlite3.Error):
                        db.close()

    # -- adding -------------------------------------------------------------------------------------------------------

    def copy_path(self, sha256: str) -> Path:
        """Where the shrunken lossless copy of a picture lies, or shall lie.

        WebP; PNG where Pillow came without WebP. UserError for what is no SHA-256, as in a forged file, and for a link.
        """
        return Path(self._copy_path(sha256, {}))

    def _copy_path(self, sha256: str, modes: dict[str, int]) -> str:
        """``modes``: of the folders asked about so far."""
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise UserError(f"The dataset in {self.folder} is damaged (no SHA-256: {sha256!r:.60}).")
        # plain texts: Paths would take longer than the disk, and a page of the review asks for sixty
        images = f"{self.folder}{os.sep}images"
        shelf = f"{images}{os.sep}{sha256[:2]}"
        copy, png = (f"{shelf}{os.sep}{sha256[:32]}{end}" for end in (".webp", ".png"))
        mode = _mode(copy)
        if not mode and ((of_png := _mode(png)) or not _writes_webp()):
            copy, mode = png, of_png
        for folder in (images, shelf):
            if folder not in modes:
                modes[folder] = _mode(folder)
        # it could lead anywhere, and what a copy holds is handed out
        if stat.S_ISLNK(mode) or stat.S_ISLNK(modes[shelf]) or stat.S_ISLNK(modes[images]):
            name = Path(copy).name
            raise UserError(f"The dataset in {self.folder} is damaged ({name} is a link, or lies behind one).")
        return copy

    @_plainly
    def copy_of(self, item_id: int) -> Path:
        """Where the copy of an item lies; UserError where it has none."""
        row = self._connection().execute("SELECT sha256, has_copy FROM items WHERE id = ?", (item_id,)).fetchone()
        if row is None or not row["has_copy"]:
            raise UserError(f"Item {item_id} has no image.")
        return self.copy_path(row["sha256"])

    @_plainly
    def copies_of(self, ids: Sequence[int]) -> dict[int, str]:
        """Where the copies of items lie, of those that have one."""
        query = f"SELECT id, sha256 FROM items WHERE has_copy AND id IN ({','.join('?' * len(ids))})"
        found: dict[int, str] = {}
        modes: dict[str, int] = {}
        for item_id, sha256 in self._connection().execute(query, tuple(ids)):
            with contextlib.suppress(UserError):  # a forged row, a link: it has none, and the others have theirs
                found[item_id] = self._copy_path(sha256, modes)
        return found

    @_plainly
    def knows(self, source: str, size: int, mtime_ns: int) -> bool:
        """Whether this very file (path, size, time) has been harvested as today, and the copy made of it is there."""
        query = "SELECT sha256, has_copy FROM items WHERE source = ? AND bytes = ? AND mtime_ns = ? AND read_as >= ?"
        row = self._connection().execute(query, (source, size, mtime_ns, READ_AS)).fetchone()
        return row is not None and (not row["has_copy"] or self._has_copy(str(row["sha256"])))

    @_plainly
    def outdated_thumb(self, sha256: str) -> Buffer | None:
        """The thumbnail of a file that an older version has read and made a copy of; None where there is no such."""
        query = "SELECT thumb FROM items WHERE sha256 = ? AND has_copy AND read_as < ? LIMIT 1"
        row = self._connection().execute(query, (sha256, READ_AS)).fetchone()
        return None if row is None else row["thumb"] if isinstance(row["thumb"], bytes) else b""

    def _has_copy(self, sha256: str) -> bool:
        """Whether there is more than an empty file, as a power loss leaves; without :meth:`copy_path`'s checks, for it is quick."""
        stem = f"{self.folder}{os.sep}images{os.sep}{sha256[:2]}{os.sep}{sha256[:32]}"
        for end in (".webp", ".png"):
            with contextlib.suppress(OSError, ValueError):
                if os.stat(stem + end).st_size:
                    return True
        return False

    @_plainly
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
                db.execute(
                    "INSERT INTO items (source, bytes, mtime_ns, sha256, width, height, prompt, negative_prompt, settings, status,"
                    " reason, message, decided_by, hash, thumb, has_copy, added, read_as, pixels, revision,"
                    " texture) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        item.source,
                        item.bytes,
                        item.mtime_ns,
                        item.sha256,
                        item.width,
                        item.height,
                        item.prompt,
                        item.negative_prompt,
                        json.dumps(item.settings or {}, ensure_ascii=False),
                        REJECTED if item.reason else KEPT,
                        item.reason,
                        item.message,
                        "check",
                        _hash_of(item.thumb),
                        item.thumb,
                        int(item.has_copy),
                        time.time(),
                        READ_AS,
                        item.pixels,
                        int(item.off > 0),
                        item.texture,
                    ),
                )
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
            "UPDATE items SET bytes = ?, mtime_ns = ?, width = COALESCE(?, width), height = COALESCE(?, height), prompt = ?,"
            " negative_prompt = ?, settings = ?, hash = COALESCE(?, hash), thumb = COALESCE(?, thumb),"
            " has_copy = MAX(has_copy, ?), read_as = ?, pixels = ?, revision = MAX(revision, ?),"
            " texture = COALESCE(?, texture) WHERE id = ?",
            (
                item.bytes,
                item.mtime_ns,
                item.width,
                item.height,
                item.prompt,
                item.negative_prompt,
                json.dumps(item.settings or {}, ensure_ascii=False),
                _hash_of(item.thumb),
                item.thumb,
                int(item.has_copy),
                READ_AS,
                item.pixels,
                int(item.off > 0),
                item.texture,
                row["id"],
            ),
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

    @_plainly
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

    @_plainly
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

    @_plainly
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
        rows = self._connection().execute(
            f"SELECT {_PUBLIC} FROM items {'WHERE ' + ' AND '.join(where) if where else ''} ORDER BY {order} LIMIT ? OFFSET ?",
            (*values, -1 if limit is None else limit, offset),
        )
        return [_item(row) for row in rows]

    @_plainly
    def changes(self) -> str:
        """Another text after every change, of whatever process; for what is remembered of the items."""
        row = self._connection().execute("SELECT value FROM meta WHERE key = 'changes'").fetchone()
        return str(row["value"]) if row else ""

    @_plainly
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
        rows = self._connection().execute(
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

    @_plainly
    def counts(self) -> dict[str, Any]:
        """Numbers of items by status and of rejected ones by reason."""
        rows = (
            self._connection()
            .execute("SELECT status, reason, COUNT(*) AS n FROM items GROUP BY status, reason")
            .fetchall()
        )
        rejected = {str(row["reason"]): row["n"] for row in rows if row["status"] == REJECTED}
        return {
            "items": sum(row["n"] for row in rows),
            "kept": sum(row["n"] for row in rows if row["status"] == KEPT),
            "rejected": rejected,
        }

    @_plainly
    def kept(self) -> list[Kept]:
        """The kept items, ordered by SHA-256: the order of packing, the same on every machine."""
        query = "SELECT id, sha256, revision FROM items WHERE status = ? ORDER BY sha256, id"
        kept = [Kept(*row) for row in self._connection().execute(query, (KEPT,))]
        if not all(isinstance(item.sha256, str) and type(item.revision) is int for item in kept):
            raise ValueError("an item has no SHA-256")
        return kept

    @_plainly
    def prompts(self) -> dict[int, tuple[str, int]]:
        """Of each kept item the prompt, and the steps it was made with (20 where that is not known)."""
        steps_of = "CASE WHEN json_valid(settings) THEN json_extract(settings, '$.Steps') END"
        query = f"SELECT id, prompt, {steps_of} FROM items WHERE status = ?"
        found = {}
        for item_id, prompt, steps in self._connection().execute(query, (KEPT,)):
            if not isinstance(prompt, str):
                raise ValueError("a prompt is no text")
            known = isinstance(steps, str) and len(steps) <= 4 and steps.isdecimal() and int(steps) > 0
            found[item_id] = (prompt, int(steps) if known else 20)
        return found

    def fingerprint(self) -> str:
        """Names the exact set of kept pictures: SHA-256 over their sorted SHA-256s."""
        return fingerprint_of(self.kept())

    # -- deciding -----------------------------------------------------------------------------------------------------

    @_plainly
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

    @_plainly
    def keep_one_of_each(self) -> int:
        """Of each group of near duplicates, keep the largest (the first of equal ones); one action. How many are rejected."""
        rows = self._connection().execute(
            "SELECT id, twin_group, COALESCE(width * height, 0) AS area FROM items"
            " WHERE status = ? AND twin_group IS NOT NULL ORDER BY twin_group, area DESC, id",
            (KEPT,),
        )
        seen: set[int] = set()
        others = [row["id"] for row in rows if row["twin_group"] in seen or seen.add(row["twin_group"])]  # type: ignore[func-returns-value]
        return self.decide(others, REJECTED, "user", "A near duplicate was kept.") if others else 0

    @_plainly
    def absorb(self, other: Store) -> int:
        """Add the items of another dataset with what was decided there; how many were not here yet.

        What is here already, by its bytes or its pixels, is not added; where nobody has decided about it here, what a person
        decided there counts.
        """
        known = [row["name"] for row in self._connection().execute("PRAGMA table_info(items)")]
        columns = [name for name in known if name not in _OF_ITS_SET]
        names = ", ".join(columns)
        added = 0
        rows = other._connection().execute(f"SELECT {names} FROM items ORDER BY id").fetchall()
        for row in rows:
            with self.transaction() as db:
                here = self._like(db, row)
                if here is None:
                    if row["has_copy"] and not self._take_copy(other, row["sha256"]):
                        continue  # its copy is gone: harvesting its folder makes it again
                    db.execute(f"INSERT INTO items ({names}) VALUES ({','.join('?' * len(columns))})", tuple(row))
                    added += 1
                elif row["decided_by"] == "user" and here["decided_by"] == "check" and row["status"] != here["status"]:
                    db.execute(
                        "UPDATE items SET status = ?, reason = ?, message = ?, decided_by = 'user' WHERE id = ? AND has_copy",
                        (row["status"], row["reason"], row["message"], here["id"]),
                    )
        return added

    @staticmethod
    def _like(db: sqlite3.Connection, row: sqlite3.Row) -> sqlite3.Row | None:
        """The item here that is the same: the same file, or the same picture where that counts."""
        fields = "SELECT id, status, decided_by FROM items"
        same = db.execute(f"{fields} WHERE source = ? AND sha256 = ?", (row["source"], row["sha256"])).fetchone()
        if same is None and row["reason"] != "duplicate":
            query = f"{fields} WHERE (sha256 = ? OR (pixels = ? AND pixels != '')) AND reason != 'duplicate' LIMIT 1"
            same = db.execute(query, (row["sha256"], row["pixels"])).fetchone()
        found: sqlite3.Row | None = same
        return found

    def _take_copy(self, other: Store, sha256: str) -> bool:
        """Have the other dataset's copy of a file here; whether it is."""
        if self._has_copy(sha256):
            return True
        try:
            source = other.copy_path(sha256)
            data = read_regular(source, MAX_COPY_BYTES)
        except OSError:
            return False
        target = self.copy_path(sha256).with_suffix(source.suffix)
        target.parent.mkdir(exist_ok=True)
        replace_with(target, lambda temporary: temporary.write_bytes(data))
        return True

    @_plainly
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

    # -- the unusual --------------------------------------------------------------------------------------------------

    @_plainly
    def rank_suspects(self) -> int:
        """Score every decoded item against the kept ones and group near duplicates; how many stand out."""
        db = self._connection()
        ids = [
            row["id"]
            for row in db.execute("SELECT id FROM items WHERE status = ? AND thumb IS NOT NULL ORDER BY id", (KEPT,))
        ]
        signature = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        known = db.execute("SELECT value FROM meta WHERE key = 'ranked'").fetchone()
        if known and known["value"] == signature:
            return int(
                db.execute(
                    "SELECT COUNT(*) FROM items WHERE status = ? AND suspicion > ?", (KEPT, STANDS_OUT)
                ).fetchone()[0]
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
        scores = suspicion(thumbs, len(ids), self._textures(db, ids))
        groups = self._near_duplicates(db, ids)
        with self.transaction() as write:
            write.execute("UPDATE items SET suspicion = NULL, twin_group = NULL")
            write.executemany(
                "UPDATE items SET suspicion = ?, twin_group = ? WHERE id = ?",
                ((float(score), groups.get(item_id), item_id) for item_id, score in zip(ids, scores)),
            )
            write.execute("INSERT OR REPLACE INTO meta VALUES ('ranked', ?)", (signature,))
        return int((scores > STANDS_OUT).sum())

    @staticmethod
    def _textures(db: sqlite3.Connection, ids: list[int]) -> NDArray[np.float64]:
        """(n, 6), NaN where an item has none that can be read."""
        rows = db.execute("SELECT id, texture FROM items WHERE id BETWEEN ? AND ?", (ids[0], ids[-1]))
        known = {id: data for id, data in rows if isinstance(data, bytes) and len(data) == 4 * TEXTURE}
        none = np.full(TEXTURE, np.nan, np.float32).tobytes()
        data = b"".join(known.get(id, none) for id in ids)
        return np.frombuffer(data, np.float32).reshape(-1, TEXTURE).astype(np.float64)

    @staticmethod
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
