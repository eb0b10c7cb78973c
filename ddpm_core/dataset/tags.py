"""From prompts to words: what of a prompt shows in the image it made, as a list of tags.

The rules follow the hosts' own grammar: extra networks ``<lora:name:1>`` are cut, prompt editing ``[from:to:when]`` and alternation
``[a|b]`` are resolved to what the last step was told, emphasis ``(word:1.3)`` is read before commas, ``AND`` and ``BREAK`` separate.
Brackets that do not match are letters, as in the hosts' own parser.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

MOST_TEXT = 20_000  # characters of a prompt that are read
MOST_WORDS = 128  # of a vocabulary
MOST_UNKNOWN = 20  # that a person is told of
LEAST_COUNT = 8  # images that share a word, so that a model names nobody's secret
LEAST_SHARE, MOST_SHARE = 0.01, 0.95
SAME = 0.98  # correlation from which two words are one
MOST_LETTERS = 100  # of a word
PROSE = 5  # a piece of more words is a sentence
FAINT = 0.3  # weight under which the host hardly paints it
LOWEST, HIGHEST = 0.5, 1.5
MOST_NAMES = 20  # of words that are one
JOIN = " | "  # between words that always occur together, and are one

# words of a sentence that name nothing
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by for from has have he her his in into is it its of on or over she that the their them they this "
        "to under up very was were wearing while who whose with without",
    )
)

Told = dict[str, float]  # word: weight


def tags_of(prompt: str, steps: int = 20) -> Told:
    """The words of a prompt with their weights (0.5 to 1.5), in order; ``steps`` of the generation, for prompt editing."""
    found: Told = {}
    for piece, weight in _read(prompt, steps):
        for word in _words(piece):
            found[word] = max(found.get(word, 0.0), weight)
    return found


def plain_text(prompt: str, steps: int = 20, left_out: Collection[str] = ()) -> str:
    """A prompt as a text encoder is told it: its pieces without the hosts' grammar, in lower case, between commas; without those
    ``left_out``."""
    return ", ".join(piece for piece, _ in _read(prompt, steps) if piece not in left_out)


def _read(prompt: str, steps: int) -> list[tuple[str, float]]:
    """The pieces of a prompt between commas, plain, with their weights; the faint ones left out."""
    text = unicodedata.normalize("NFKC", prompt[:MOST_TEXT].replace("\0", " "))
    text = re.sub(r"#[^\n]*", "", text)
    text = re.sub(r"<[^<>\n]*>", " ", text)
    found = []
    for part in re.split(r"\bAND\b", resolved(text, max(1, steps))):
        # a part of a composition may end in its weight: "a dog :0.5"
        ending = re.search(r":\s*(-?\d+(?:\.\d+)?)\s*$", part)
        if ending is not None and part.count("(") == part.count(")"):
            if float(ending[1]) <= 0:
                continue
            part = part[: ending.start()]
        for piece, weight in _pieces(part):
            plain = _plain(piece)
            if plain and weight >= FAINT and len(plain) <= MOST_TEXT:
                found.append((plain, min(max(weight, LOWEST), HIGHEST)))
    return found


# -- the hosts' grammar -------------------------------------------------------------------------------------------------


def resolved(text: str, steps: int) -> str:
    """The text that the last of so many steps was told: ``[from:to:when]`` and ``[a|b]`` replaced, brackets of emphasis left; those
    that do not match are letters like any other, as in the hosts' own parser."""
    # a stack instead of recursion: somebody may open ten thousand brackets
    stack: list[_Open] = [_Open("")]
    opened = {"(": 0, "[": 0}
    for token in re.findall(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\$", text, re.DOTALL):
        if token in "([":
            stack.append(_Open(token))
            opened[token] += 1
        elif token in ")]" and opened[_OPENS[token]]:
            while stack[-1].bracket != _OPENS[token]:
                flat = stack.pop()
                opened[flat.bracket] -= 1
                stack[-1].parts[-1] += flat.written()
            closed = stack.pop()
            opened[closed.bracket] -= 1
            stack[-1].parts[-1] += _closed(closed, steps)
        elif token in (":", "|"):
            stack[-1].separators.append(token)
            stack[-1].parts.append("")
        else:
            stack[-1].parts[-1] += token
    return "".join(one.written() for one in stack)


_OPENS = {")": "(", "]": "["}


@dataclass
class _Open:
    """A bracket that was opened, and what stands in it between : and |."""

    bracket: str
    parts: list[str] = field(default_factory=lambda: [""])
    separators: list[str] = field(default_factory=list)

    def written(self) -> str:
        """As it stands in the text, as far as it goes."""
        rest = "".join(separator + part for separator, part in zip(self.separators, self.parts[1:]))
        return self.bracket + self.parts[0] + rest


def _closed(one: _Open, steps: int) -> str:
    if one.bracket == "(":
        return one.written() + ")"
    between = one.parts[:1]  # of colons; a bar beside them is a letter
    for separator, part in zip(one.separators, one.parts[1:]):
        if separator == ":":
            between.append(part)
        else:
            between[-1] += separator + part
    when = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*", between[-1])
    if when is not None and len(between) in (2, 3):
        number = float(when[1][:20]) * (steps if "." in when[1] else 1)  # a fraction is one of the steps
        before, after = ("", between[0]) if len(between) == 2 else (between[0], between[1])
        return after if min(number, steps) < steps else before
    if len(between) == 1 and one.separators:
        return one.parts[(steps - 1) % len(one.parts)]
    return one.written() + "]"


def _pieces(text: str) -> list[tuple[str, float]]:
    """Text between commas, line ends and BREAK, each with its weight by the rules of emphasis."""
    found: list[tuple[str, float]] = []
    piece, total, letters = "", 0.0, 0
    for part, weight in [*emphasis(text), (",", 1.0)]:
        for i, bit in enumerate(re.split(r"[,\n]|\bBREAK\b", part)):
            if i:
                if piece.strip():
                    found.append((piece, total / letters if letters else 1.0))
                piece, total, letters = "", 0.0, 0
            piece += bit
            count = len(bit.strip())
            total, letters = total + weight * count, letters + count
    return found


def emphasis(text: str) -> list[tuple[str, float]]:
    """Runs of text with their weights: (x) 1.1, [x] 1/1.1, (x:1.3), backslash escapes, open brackets end at the end."""
    found: list[str] = []
    opened: list[tuple[str, int]] = []
    # sums of logarithms at the ends of each range, so that ten thousand nested brackets take no longer than as many plain ones
    steps: dict[int, float] = {}
    pattern = r"\\[()\[\]\\]|\\|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:"

    def multiply(start: int, factor: float) -> None:
        value = math.log(max(factor, 1e-6))
        steps[start] = steps.get(start, 0.0) + value
        steps[len(found)] = steps.get(len(found), 0.0) - value

    for token in re.finditer(pattern, text):
        part, weight = token[0], token[1]
        if part in ("(", "["):
            opened.append((part, len(found)))
        elif weight is not None and opened and opened[-1][0] == "(":
            multiply(opened.pop()[1], _number(weight))
        elif part in (")", "]") and opened and opened[-1][0] == {")": "(", "]": "["}[part]:
            multiply(opened.pop()[1], 1.1 if part == ")" else 1 / 1.1)
        else:
            found.append(part[1:] if len(part) == 2 and part[0] == "\\" else part)
    for bracket, start in opened:
        multiply(start, 1.1 if bracket == "(" else 1 / 1.1)
    result, total = [], 0.0
    for i, part in enumerate(found):
        total += steps.get(i, 0.0)
        result.append((part, round(math.exp(min(total, 50.0)), 6)))
    return result


def _number(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 100.0)
    except ValueError:
        return 1.0


def _plain(piece: str) -> str:
    folded = piece.casefold()
    if any(c.isalnum() for c in folded.replace("_", "")):  # ^_^ keeps its line
        folded = folded.replace("_", " ")
    folded = "".join(c if not unicodedata.category(c).startswith("C") else " " for c in folded)
    return " ".join(folded.replace("|", " ").replace("{", " ").replace("}", " ").split()).strip(".;:!?\"'` ")


def _words(plain: str) -> list[str]:
    parts = plain.split()
    if len(parts) <= PROSE:
        return [plain]
    # a sentence: its words, and pairs of neighbours
    words = [part.strip(".,;:!?\"'()") for part in parts]
    singles = [word for word in words if word and word not in _STOP]
    pairs = [f"{a} {b}" for a, b in zip(words, words[1:]) if a and b and a not in _STOP and b not in _STOP]
    return list(dict.fromkeys([*singles, *pairs]))


# -- a vocabulary ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """A word that images share: ``names``, more than one where they always occur together; in how many images."""

    names: tuple[str, ...]
    count: int

    @property
    def entry(self) -> str:
        """As a model keeps it."""
        return JOIN.join(self.names)


def vocabulary(
    told: Sequence[Told],
    left_out: Iterable[str] = (),
    kept: Iterable[str] = (),
    merged: Iterable[Sequence[str]] = (),
) -> list[Word]:
    """The words that a model learns from these images, the most telling first.

    A word counts that at least 8 images and 1 % of them share and at most 95 %; words that always occur together are one; of very
    many the 128 that divide the images best. ``left_out`` never, ``kept`` also where fewer or more images share it (but 8 it must
    be), the words of each of ``merged`` count as one.
    """
    groups_of = {name: tuple(group) for group in merged for name in group}
    left_out = [groups_of.get(word, (word,))[0] for word in left_out]
    kept = [groups_of.get(word, (word,))[0] for word in kept]
    if groups_of:
        told = [{groups_of.get(word, (word,))[0]: weight for word, weight in words.items()} for words in told]
    n = len(told)
    counts = Counter(word for words in told for word in words)
    out, wanted = set(left_out), set(kept)
    least = max(LEAST_COUNT, round(LEAST_SHARE * n))
    chosen = [
        word
        for word, count in counts.items()
        if word not in out
        and len(word) <= MOST_LETTERS
        and count >= LEAST_COUNT
        and (word in wanted or least <= count <= MOST_SHARE * n)
    ]
    chosen.sort(key=lambda word: (word not in wanted, -_tells(counts[word], n), word))
    chosen = chosen[
        : 4 * MOST_WORDS
    ]  # the most that can become MOST_WORDS without comparing everything with everything
    has = _matrix(told, chosen)
    groups = _groups(has)
    found = []
    for group in groups[:MOST_WORDS]:
        names = sorted({name for i in group for name in groups_of.get(chosen[i], (chosen[i],))})[:MOST_NAMES]
        found.append(Word(tuple(names), counts[chosen[group[0]]]))
    return found


def _tells(count: int, n: int) -> float:
    share = count / max(1, n)
    return share * (1.0 - share)


def _matrix(told: Sequence[Told], words: Sequence[str]) -> np.ndarray:
    place = {word: i for i, word in enumerate(words)}
    has = np.zeros((len(told), len(words)), dtype=bool)
    for row, found in enumerate(told):
        for word in found:
            if word in place:
                has[row, place[word]] = True
    return has


def _groups(has: np.ndarray) -> list[list[int]]:
    """Indices of columns, those that are all but equal together, in the order of their first."""
    n = len(has)
    if not n:
        return []
    columns = has.astype(np.float32)
    columns = columns - columns.mean(0, keepdims=True)
    sizes = np.sqrt((columns**2).sum(0)).clip(1e-6)
    alike = (columns.T @ columns) / np.outer(sizes, sizes) > SAME
    # columns that are true everywhere have no correlation; they are alike, too
    full = has.sum(0) == n
    alike |= np.outer(full, full)
    groups: list[list[int]] = []
    taken: set[int] = set()
    for i in range(has.shape[1]):
        if i not in taken:
            group = [j for j in range(i, has.shape[1]) if j == i or (alike[i, j] and j not in taken)]
            taken.update(group)
            groups.append(group)
    return groups


@dataclass(frozen=True)
class Match:
    """A prompt in a model's words: a weight for each entry of its vocabulary, or 0; and what it does not know, each with the nearest
    word that it does, or ""."""

    values: tuple[float, ...]
    words: tuple[str, ...]
    unknown: tuple[tuple[str, str], ...]


def written(word: str) -> str:
    """A word as a prompt says it: brackets, which are emphasis there, behind backslashes."""
    return re.sub(r"([\\()\[\]])", r"\\\1", word)


class Vocabulary:
    """The words of a model, in its order."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = tuple(entries)
        self._place = {name: i for i, entry in enumerate(entries) for name in entry.split(JOIN)}
        # who writes hatsune miku (vocaloid) without backslashes means the word, and not its emphasis
        for name, i in list(self._place.items()):
            self._place.setdefault(" ".join(re.sub(r"[()\[\]\\]", " ", name).split()), i)

    def values(self, told: Told) -> list[float]:
        """The weight of each entry among an image's words, or 0."""
        row = [0.0] * len(self.entries)
        for word, weight in told.items():
            if word in self._place:
                row[self._place[word]] = max(row[self._place[word]], weight)
        return row

    def match(self, prompt: str) -> Match:
        """What a person wrote. A piece that is no word is searched for words, the longest first."""
        told: Told = {}
        unknown: list[str] = []
        for plain, weight in _read(prompt, 20):
            known, rest = ([plain], []) if plain in self._place else self._within(plain)
            for word in known:
                told[word] = max(told.get(word, 0.0), weight)
            unknown += [word for word in rest if word not in unknown]
        row = self.values(told)
        words = tuple(self.entries[i] for i, value in enumerate(row) if value)
        return Match(tuple(row), words, tuple((word, self.nearest(word)) for word in unknown[:MOST_UNKNOWN]))

    def _within(self, piece: str) -> tuple[list[str], list[str]]:
        words = [word.strip(".,;:!?\"'()") for word in piece.split()][:200]
        known: list[str] = []
        i = 0
        longest = max((len(name.split()) for name in self._place), default=1)
        left: list[str] = []  # neighbours that are no word
        while i < len(words):
            for length in range(min(longest, len(words) - i), 0, -1):
                phrase = " ".join(words[i : i + length])
                if phrase in self._place:
                    known.append(phrase)
                    i += length
                    break
            else:
                left.append(words[i])
                i += 1
        rest = [word for word in left if word and word not in _STOP]
        if not known and len(words) <= PROSE:  # as it was written
            rest = [piece]
        return known, rest

    def nearest(self, word: str) -> str:
        """The known word that is spelt most like this one, or ""; by difflib's ratio."""
        found = difflib.get_close_matches(word[:100], list(self._place), n=1, cutoff=0.6)
        if found:
            return found[0]
        # "red" for "red shirt": a word of which this is a part
        parts = set(word.split())
        return next((name for name in self._place if parts & set(name.split()) - _STOP), "")


def alone(rows: np.ndarray, most: int = 2000) -> tuple[int, float]:
    """How many images are the only ones with their words, and the median number of images that have all words of an image.

    ``rows`` (N, K) bool. Of more than ``most`` images so many are looked at, evenly spread, and the count is scaled.
    """
    n = len(rows)
    if not n:
        return 0, 0.0
    looked = np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))
    needed = rows[looked].sum(1)
    chosen = rows[looked].astype(np.float32)
    others = np.zeros(len(looked), dtype=int)  # the image itself among them
    for part in np.array_split(rows, max(1, n // 10_000)):
        others += (chosen @ part.T.astype(np.float32) >= needed[:, None] - 0.5).sum(1)
    return round(float((others == 1).sum()) * n / len(looked)), float(np.median(others))
