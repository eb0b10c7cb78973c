"""What was deleted: each thing at a place of its own with a word of what it was, until someone empties it or takes it out."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import below, is_alive, machine, sweep, temporary_beside, write_json
from .names import is_name
from .parsing import parse_json, read_regular
from .text import legible


class Trash:
    """A folder of deleted things. Any number of threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sweep(self) -> None:
        """Clear away the places that were begun and never filled, or emptied and never removed."""
        for place in below(self.folder):
            sweep(place)
            if not _in_use(place):
                _remove_empty(place)

    def put(self, kind: str, name: str, paths: list[Path]) -> None:
        """Move the parts of one thing here, all or none; UserError when one cannot be moved."""
        place = (
            self.folder
            / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{machine()}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}"
        )
        record = {"kind": kind, "name": name, "when": time.time(), "paths": [str(path) for path in paths]}
        write_json(
            place / "trash.json", record
        )  # first, so that nothing ever lies there without a word of where it was
        try:
            _move_all(name, [(path, place / f"{number}") for number, path in enumerate(paths)])
        except UserError:
            _remove_empty(place)
            raise

    def records(self) -> list[dict[str, Any]]:
        """What lies here, newest first; what says nothing sensible of itself is left out."""
        found = []
        for place in below(self.folder):
            try:
                record = parse_json(read_regular(place / "trash.json"))
                kind, name, when = record["kind"], record["name"], float(record["when"])
                names = [Path(str(path)).name for path in record["paths"]]
            except (OSError, ValueError, KeyError, TypeError, OverflowError):
                continue
            if not math.isfinite(when) or place.name != legible(place.name):
                continue
            if kind in ("dataset", "model") and isinstance(name, str) and is_name(name) and _parts(place):
                found.append({"kind": kind, "name": name, "when": when, "names": names, "place": place.name})
        return sorted(found, key=lambda record: -record["when"])

    def newest(self, kind: str, name: str) -> dict[str, Any]:
        """The record of what was deleted last of that kind and name; UserError, listing what is here, when there is none."""
        records = [record for record in self.records() if record["kind"] == kind]
        for record in records:
            if record["name"] == name:
                return record
        there = ", ".join(record["name"] for record in records)
        raise UserError(f"There is no {kind} {name!r} in the trash" + (f"; there are: {there}." if there else "."))

    def at(self, place: str) -> dict[str, Any]:
        """The record of what lies at a place; UserError when it is gone."""
        for record in self.records():
            if record["place"] == place:
                return record
        raise UserError("That is not in the trash any more.")

    def take_out(self, record: dict[str, Any], belongs: list[Path]) -> None:
        """Move one thing back, all its parts or none, to those of ``belongs`` that have their names.

        Where such things belong now, not where the record says: the workspace may have been moved, or tampered with.
        """
        name, by_name = record["name"], {path.name: path for path in belongs}
        if not set(record["names"]) <= set(by_name):
            raise UserError(f"The record of {name} in the trash is damaged; its parts lie in {record['place']}.")
        place = self.folder / record["place"]
        # those that are there: moving them may have been cut off, here or there
        parts = [
            (place / f"{number}", by_name[part])
            for number, part in enumerate(record["names"])
            if (place / f"{number}").exists()
        ]
        if any(path.exists() for _, path in parts):
            raise UserError(
                f"{name} cannot be restored: there is another {record['kind']} of that name now; delete or rename it "
                "first."
            )
        _move_all(name, parts)
        _remove_empty(place)

    def empty(self) -> int:
        """Delete for good what lies here; how many things that were."""
        places = [place for place in below(self.folder) if place.is_dir() and not place.is_symlink()]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        left = [place for place in places if place.exists()]
        if left:
            raise UserError(
                f"{len(left)} of {len(places)} items in the trash could not be deleted; close what uses them, or "
                "check the permissions, and try again."
            )
        return len(places)


def _parts(place: Path) -> list[Path]:
    """What lies at a place, besides the word of what it is."""
    return [path for path in below(place) if path.name.isdigit()]


def _in_use(place: Path) -> bool:
    """Whether someone may just be filling or emptying it."""
    where, number = (["", "", *place.name.split("-")])[-3:-1]
    try:
        if time.time() - place.stat().st_mtime > 60.0:
            return False
    except OSError:
        return True
    if where != machine() or not number.isdecimal():
        return True  # of another machine, whose processes we cannot see
    return int(number) == os.getpid() or is_alive(int(number))


def _remove_empty(place: Path) -> None:
    """Remove a place that holds nothing but the word of what it was for; one with anything else stays."""
    with contextlib.suppress(OSError):
        if {path.name for path in place.iterdir()} <= {"trash.json"}:
            (place / "trash.json").unlink(missing_ok=True)
            place.rmdir()


def move(source: Path, target: Path) -> None:
    """Rename; only to another file system is copied, and what was copied from goes last and may stay behind."""
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV and getattr(error, "winerror", None) != 17:  # ERROR_NOT_SAME_DEVICE
            raise
    part = temporary_beside(target)  # cut off, it counts for nothing
    try:
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, part)
        part.rename(target)
    except BaseException:
        _remove(part)
        raise
    _remove(source)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move_all(name: str, moves: list[tuple[Path, Path]]) -> None:
    """Move every pair or, when one fails, none; UserError then."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            move(source, target)
            done.append((source, target))
    except OSError as error:
        for source, target in reversed(done):
            move(target, source)
        raise UserError(
            f"{name} could not be moved ({error.strerror or error}); close what uses it, make room, and try again."
        ) from None
