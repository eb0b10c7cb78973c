"""The words of a dataset: what its prompts share, and what a person left out, took or made one, which is remembered."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from ..errors import UserError
from ..files import write_json
from ..parsing import read_json
from .store import Store
from .tags import JOIN, MOST_LETTERS, MOST_TEXT, PROSE, Told, Vocabulary, Word, alone, plain_text, tags_of, vocabulary

FILE = "words.json"  # in a dataset's folder
FORMAT = 2  # 1: without edits of single images, which is still written so
FEWEST = 4  # words from which a new model learns them unasked
MOST_EDITED = 100  # words at a time
MOST_EDITS = 500_000  # of single images, all together: the record is read whole
_MOST_STEPS_BACK = 100


@dataclass(frozen=True)
class Choices:
    """What a person decided: words ``left_out``, words ``kept`` against the rules, and those ``merged`` into one each; ``edits``: how many
    of the record's edits of single images count."""

    left_out: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    merged: tuple[tuple[str, ...], ...] = ()
    edits: int = 0

    @classmethod
    def from_json(cls, values: Any) -> Choices:
        """ValueError where a value is missing or of another kind."""
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        merged = values.get("merged", [])
        if not isinstance(merged, list):
            raise ValueError("its merged words are none")
        edits = values.get("edits", 0)
        if not isinstance(edits, int) or isinstance(edits, bool) or edits < 0:
            raise ValueError("its number of edits is none")
        texts = [_texts(values.get(name, [])) for name in ("left_out", "kept")]
        return cls(texts[0], texts[1], tuple(_texts(m) for m in merged), edits)


@dataclass(frozen=True)
class Edit:
    """Words that a person added to images, by their ids, or took from them."""

    ids: tuple[int, ...]
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Any) -> Edit:
        """ValueError where a value is missing or of another kind."""
        if not isinstance(values, dict) or not isinstance(values.get("ids"), list):
            raise ValueError("an edit is none")
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in values["ids"]):
            raise ValueError("an edit is of no images")
        return cls(tuple(values["ids"]), _texts(values.get("add", [])), _texts(values.get("remove", [])))


@dataclass(frozen=True)
class Changed:
    """What edits make of an image's words: those that were added and removed in the end."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Record:
    history: list[Choices]
    edits: list[Edit]


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) and len(v) <= MOST_TEXT for v in values):
        raise ValueError("its words are none")
    return tuple(values)


@dataclass(frozen=True)
class Words:
    """The words that a model would learn from a dataset.

    ``images`` kept, ``unique``: of them so many are the only ones with all their words; ``median_group``: the median number of
    images that have all words of one. ``others``: the most frequent words that the rules or a person leave out, with their counts.
    """

    words: list[Word]
    images: int
    unique: int
    median_group: float
    others: list[Word]
    choices: Choices

    def to_json(self) -> dict[str, Any]:
        """JSON of it, as ``dataset tags --json`` prints it."""
        return {
            "tags": [{"word": word.entry, "count": word.count} for word in self.words],
            "pictures": self.images,
            "unique": self.unique,
            "median_group": self.median_group,
            "left_out": [{"word": word.entry, "count": word.count} for word in self.others],
        }


Action = TypeVar("Action", bound=Callable[..., Any])
_guard = threading.Lock()


def _one_at_a_time(action: Action) -> Action:
    """Two pages may change the record at once: each reads it and writes it whole."""

    @functools.wraps(action)
    def alone_there(*values: Any, **named: Any) -> Any:
        with _guard:
            return action(*values, **named)

    return cast(Action, alone_there)


def choices_of(store: Store) -> Choices:
    """What a person decided about a dataset's words; UserError where the record is damaged."""
    return _record(store.folder).history[-1]


def changed_of(store: Store) -> dict[int, Changed]:
    """Of the images whose words a person edited what came of it, by their ids."""
    record = _record(store.folder)
    found: dict[int, tuple[dict[str, None], dict[str, None]]] = {}
    for edit in record.edits[: record.history[-1].edits]:
        for one in edit.ids:
            added, removed = found.setdefault(one, ({}, {}))
            for word in edit.add:
                removed.pop(word, None)
                added[word] = None
            for word in edit.remove:
                added.pop(word, None)
                removed[word] = None
    return {one: Changed(tuple(added), tuple(removed)) for one, (added, removed) in found.items()}


def told_of(store: Store) -> dict[int, Told]:
    """The words of each kept item, by its id: its prompt's, as a person edited them."""
    read = functools.lru_cache(maxsize=10_000)(tags_of)  # many items have one prompt
    found = {item: read(prompt, steps) for item, (prompt, steps) in store.prompts().items()}
    for one, changed in changed_of(store).items():
        if one in found:
            kept = {word: weight for word, weight in found[one].items() if word not in changed.remove}
            found[one] = {**dict.fromkeys(changed.add, 1.0), **kept}
    return found


def texts_of(store: Store) -> dict[int, str]:
    """The prompt of each kept item as a text encoder is told it, by its id, without the words that a person left out."""
    left_out = frozenset(choices_of(store).left_out)
    read = functools.lru_cache(maxsize=10_000)(plain_text)
    found = {item: read(prompt, steps, left_out) for item, (prompt, steps) in store.prompts().items()}
    for one, changed in changed_of(store).items():
        if one in found:
            pieces = [_without(piece, changed.remove) for piece in found[one].split(", ")]
            pieces = [piece for piece in pieces if piece]
            found[one] = ", ".join([*pieces, *(word for word in changed.add if word not in {*pieces, *left_out})])
    return found


def _without(piece: str, words: Sequence[str]) -> str:
    """A piece of a prompt without some words, also where it is a sentence that has them in it."""
    for word in words:
        if word in piece:
            piece = " ".join(re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", piece).split())
    return piece


def words_of(store: Store) -> Words:
    """The words that a model would learn from a dataset as it is now."""
    choices = choices_of(store)
    told = list(told_of(store).values())
    found = vocabulary(told, choices.left_out, choices.kept, choices.merged)
    known_words = Vocabulary([word.entry for word in found])
    rows = np.zeros((len(told), len(found)), dtype=bool)
    for row, one in enumerate(told):
        rows[row] = np.asarray(known_words.values(one)) > 0
    unique, median = alone(rows) if found else (0, float(len(told)))
    counts: dict[str, int] = {}
    for one in told:
        for word in one:
            counts[word] = counts.get(word, 0) + 1
    known = {name for word in found for name in word.names}
    rest = sorted((w for w in counts if w not in known and counts[w] > 1), key=lambda w: (-counts[w], w))
    # what a person left out is always to be seen, so that it can be taken again
    rest = list(dict.fromkeys([*(w for w in choices.left_out if w in counts), *rest]))[:60]
    return Words(found, len(told), unique, median, [Word((w,), counts[w]) for w in rest], choices)


@_one_at_a_time
def choose(store: Store, keep: list[str], drop: list[str], merge: list[str] | None = None) -> Choices:
    """Take words that were left out, leave words out, make words one; remembered for :func:`undo`. UserError for unknown ones."""
    known = {word for one in told_of(store).values() for word in one}
    keep, drop, merge = (
        [_spelt(word, known) for text in texts for word in text.split(JOIN)] for texts in (keep, drop, merge or [])
    )
    old = choices_of(store)
    left_out = [word for word in dict.fromkeys([*old.left_out, *drop]) if word not in keep]
    kept = [word for word in dict.fromkeys([*old.kept, *keep]) if word not in drop]
    merged = [group for group in old.merged if not set(group) & set(drop)]
    if merge:
        left_out = [word for word in left_out if word not in merge]
        if len(set(merge)) < 2:
            raise UserError("Name two words or more to make them one.")
        joined = dict.fromkeys([*(w for group in merged if set(group) & set(merge) for w in group), *merge])
        merged = [*(group for group in merged if not set(group) & set(merge)), tuple(joined)]
    new = dataclasses.replace(old, left_out=tuple(left_out), kept=tuple(kept), merged=tuple(merged))
    if new != old:
        record = _record(store.folder)
        _write(store.folder, _Record([*record.history, new], record.edits))
    return new


@_one_at_a_time
def edit(store: Store, ids: Sequence[int], add: Sequence[str], remove: Sequence[str]) -> int:
    """Add words to images, or take some from them, by the images' ids; remembered for :func:`undo`. How many images they were.

    UserError without words or images, or for too many words.
    """
    pieces = [[part for text in texts for part in text.replace(JOIN, ",").split(",")] for texts in (add, remove)]
    if any(len(part.split()) > PROSE for parts in pieces for part in parts):
        raise UserError(
            f"A word to add or to remove can be a phrase of at most {PROSE} words; put commas between words."
        )
    added, removed = (tuple(dict.fromkeys(word for part in parts for word in tags_of(part))) for parts in pieces)
    if not added and not removed:
        raise UserError("Write the words to add or to remove, with commas between them.")
    if len(added) + len(removed) > MOST_EDITED or any(len(word) > MOST_LETTERS for word in (*added, *removed)):
        raise UserError(f"At most {MOST_EDITED} words of at most {MOST_LETTERS} characters can be changed at a time.")
    there = set(store.prompts())
    chosen = tuple(one for one in dict.fromkeys(ids) if one in there)
    if not chosen:
        raise UserError("None of these images is kept in the dataset; choose others.")
    told = told_of(store)
    for word in removed:
        if not any(word in told[one] for one in chosen):
            near = Vocabulary(sorted({name for one in chosen for name in told[one]})).nearest(word)
            hint = f"; did you mean {near!r}?" if near else "."
            raise UserError(f"None of these images has the word {word!r}{hint}")
    record = _record(store.folder)
    last = record.history[-1]
    if sum(len(one.ids) for one in record.edits[: last.edits]) + len(chosen) > MOST_EDITS:
        raise UserError("There are too many edits of single images in this dataset; undo some of them first.")
    edits = [*record.edits[: last.edits], Edit(chosen, added, removed)]  # what was undone is gone
    _write(store.folder, _Record([*record.history, dataclasses.replace(last, edits=len(edits))], edits))
    return len(chosen)


@_one_at_a_time
def undo(store: Store) -> int:
    """Take the last choice or edit back; how many were."""
    record = _record(store.folder)
    if len(record.history) < 2:
        return 0
    _write(store.folder, _Record(record.history[:-1], record.edits))
    return 1


def _spelt(word: str, known: set[str]) -> str:
    plain = " ".join(word.casefold().replace("_", " ").split())
    found = next((one for one in (word, plain) if one in known), None)
    if found is None:
        near = Vocabulary(sorted(known)).nearest(plain)
        hint = f"; did you mean {near!r}?" if near else "."
        raise UserError(f"No prompt of this dataset has the word {word!r}{hint}")
    return found


def _record(folder: Path) -> _Record:
    path = folder / FILE
    if not path.exists() and not path.is_symlink():
        return _Record([Choices()], [])
    values = read_json(path, "list of words")
    return _parsed(path, values)


def _parsed(path: Path, values: Any) -> _Record:
    try:
        if values["format"] > FORMAT:
            raise UserError(f"The words in {path} were chosen with a newer version; update this extension.")
        history = [Choices.from_json(one) for one in values["history"]]
        edits = [Edit.from_json(one) for one in values.get("edits", [])]
        if any(one.edits > len(edits) for one in history):
            raise ValueError("edits are missing")
    except (ValueError, TypeError, KeyError):
        raise UserError(f"The list of words {path} is damaged; delete that file, and choose again.") from None
    return _Record(history or [Choices()], edits)


def _write(folder: Path, record: _Record) -> None:
    kept = [record.history[0], *record.history[1:][-_MOST_STEPS_BACK:]]
    values: dict[str, Any] = {"format": 1, "history": [dataclasses.asdict(one) for one in kept]}
    if record.edits:
        edits = [dataclasses.asdict(one) for one in record.edits[: kept[-1].edits]]
        values.update(
            format=FORMAT,
            edits=edits,
            history=[{**one, "edits": min(one["edits"], len(edits))} for one in values["history"]],
        )
    else:
        for one in values["history"]:
            del one["edits"]
    write_json(folder / FILE, values)
