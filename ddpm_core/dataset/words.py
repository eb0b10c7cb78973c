"""The words of a dataset: what its prompts share, and what a person left out, took or made one, which is remembered."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import write_json
from ..parsing import read_json
from .store import Store
from .tags import JOIN, MOST_TEXT, Told, Vocabulary, Word, alone, plain_text, tags_of, vocabulary

FILE = "words.json"  # in a dataset's folder
FORMAT = 1
FEWEST = 4  # words from which a new model learns them unasked
_MOST_STEPS_BACK = 100


@dataclass(frozen=True)
class Choices:
    """What a person decided: words ``left_out``, words ``kept`` against the rules, and those ``merged`` into one each."""

    left_out: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    merged: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_json(cls, values: Any) -> Choices:
        """ValueError where a value is missing or of another kind."""
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        merged = values.get("merged", [])
        if not isinstance(merged, list):
            raise ValueError("its merged words are none")
        return cls(_texts(values.get("left_out", [])), _texts(values.get("kept", [])), tuple(_texts(m) for m in merged))


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


def choices_of(store: Store) -> Choices:
    """What a person decided about a dataset's words; UserError where the record is damaged."""
    return _history(store.folder)[-1]


def told_of(store: Store) -> dict[int, Told]:
    """The words of each kept item's prompt, by its id."""
    read = functools.lru_cache(maxsize=10_000)(tags_of)  # many items have one prompt
    return {item: read(prompt, steps) for item, (prompt, steps) in store.prompts().items()}


def texts_of(store: Store) -> dict[int, str]:
    """The prompt of each kept item as a text encoder is told it, by its id, without the words that a person left out."""
    left_out = frozenset(choices_of(store).left_out)
    read = functools.lru_cache(maxsize=10_000)(plain_text)
    return {item: read(prompt, steps, left_out) for item, (prompt, steps) in store.prompts().items()}


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
    new = Choices(tuple(left_out), tuple(kept), tuple(merged))
    if new != old:
        _write(store.folder, [*_history(store.folder), new])
    return new


def undo(store: Store) -> int:
    """Take the last choice back; how many were."""
    history = _history(store.folder)
    if len(history) < 2:
        return 0
    _write(store.folder, history[:-1])
    return 1


def _spelt(word: str, known: set[str]) -> str:
    plain = " ".join(word.casefold().replace("_", " ").split())
    found = next((one for one in (word, plain) if one in known), None)
    if found is None:
        near = Vocabulary(sorted(known)).nearest(plain)
        hint = f"; did you mean {near!r}?" if near else "."
        raise UserError(f"No prompt of this dataset has the word {word!r}{hint}")
    return found


def _history(folder: Path) -> list[Choices]:
    path = folder / FILE
    if not path.exists() and not path.is_symlink():
        return [Choices()]
    values = read_json(path, "list of words")
    try:
        if values["format"] > FORMAT:
            raise UserError(f"The words in {path} were chosen with a newer version; update this extension.")
        found = [Choices.from_json(one) for one in values["history"]]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"The list of words {path} is damaged; delete that file, and choose again.") from None
    return found or [Choices()]


def _write(folder: Path, history: list[Choices]) -> None:
    kept = [history[0], *history[1:][-_MOST_STEPS_BACK:]]
    write_json(folder / FILE, {"format": FORMAT, "history": [dataclasses.asdict(one) for one in kept]})
