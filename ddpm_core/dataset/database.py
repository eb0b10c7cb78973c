"""A dataset's SQLite file: opened without harm, upgraded with a backup, shared by threads and processes, let go of."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import UserError
from ..files import replace_with, sweep
from . import schema

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", bound="Database")

_ONE_CHANGE_MORE = (
    "INSERT INTO meta VALUES ('changes', 1) ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
)


def plainly(read: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """A damaged or foreign file becomes one sentence, whatever part of it is asked for."""

    @functools.wraps(read)
    def reading(self: D, /, *values: P.args, **named: P.kwargs) -> R:
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


_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


class Database:
    """The file of one dataset folder, ``dataset.sqlite``. Safe for several threads and processes (WAL)."""

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

    def connection(self) -> sqlite3.Connection:
        """This thread's own; UserError where the dataset was moved away or the file is none of ours."""
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
        db = self.connection()
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
