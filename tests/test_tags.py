"""From prompts to words: the hosts' grammar, the rules of a vocabulary, and what a person decides."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ddpm_core.dataset import words
from ddpm_core.dataset.tags import (
    LEAST_COUNT,
    MOST_WORDS,
    Vocabulary,
    alone,
    emphasis,
    resolved,
    tags_of,
    vocabulary,
    written,
)
from ddpm_core.errors import UserError
from ddpm_core.workspace import Workspace

# what AUTOMATIC1111's own tests say of its parser (prompt_parser.py), after the last of ten steps
EDITED = {
    "test": "test",
    "a [b:3]": "a b",
    "a [b: 3]": "a b",
    "a [[[b]]:2]": "a [[b]]",
    "[(a:2):3]": "(a:2)",
    "a [b : c : 1] d": "a  c  d",
    "a[b:[c:d:2]:1]e": "ade",
    "a [unbalanced": "a [unbalanced",
    "a [b:.5] c": "a b c",
    "a [{b|d{:.5] c": "a {b|d{ c",
    "((a][:b:c [d:3]": "((a][:b:c d",
    "[a|(b:1.1)]": "(b:1.1)",
    "[fe|]male": "male",
    "[a:b:10]": "a",
    "[a:b:1.0]": "a",
    "[a::4]c": "c",
    "[a:b]": "[a:b]",
    r"\[a:b:3\]": r"\[a:b:3\]",
}


@pytest.mark.parametrize("text", EDITED)
def test_prompt_editing_is_read_as_the_host_reads_it(text: str) -> None:
    assert resolved(text, 10) == EDITED[text]


def test_emphasis_is_read_as_the_host_reads_it() -> None:
    """The examples of AUTOMATIC1111's ``parse_prompt_attention``."""

    def joined(text: str) -> list[tuple[str, float]]:
        runs: list[tuple[str, float]] = []
        for part, weight in emphasis(text):
            if runs and abs(runs[-1][1] - weight) < 1e-4:
                runs[-1] = (runs[-1][0] + part, runs[-1][1])
            else:
                runs.append((part, round(weight, 4)))
        return runs

    assert joined("normal text") == [("normal text", 1.0)]
    assert joined("an (important) word") == [("an ", 1.0), ("important", 1.1), (" word", 1.0)]
    assert joined("(unbalanced") == [("unbalanced", 1.1)]
    assert joined(r"\(literal\]") == [("(literal]", 1.0)]
    assert joined("(unnecessary)(parens)") == [("unnecessaryparens", 1.1)]
    assert joined("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("Red_Hair,  smile ,", {"red hair": 1, "smile": 1}),
        ("(1girl, smile:1.2), <lora:thing:0.8> hat", {"1girl": 1.2, "smile": 1.2, "hat": 1}),
        ("^_^, a_b", {"^_^": 1, "a b": 1}),
        (r"miku \(vocaloid\)", {"miku (vocaloid)": 1}),
        ("a dog AND a cat :-1 AND a bird :0.5", {"a dog": 1, "a bird": 1}),
        ("one BREAK two\nthree", {"one": 1, "two": 1, "three": 1}),
        ("red # not this, nor that\nblue", {"red": 1, "blue": 1}),
        ("(faint:0.1), (loud:9)", {"loud": 1.5}),
        ("ＦＵＬＬ　ＷＩＤＴＨ", {"full width": 1}),
        ("[old:new:0.5] car, [cow|horse]", {"new car": 1, "horse": 1}),
        ("", {}),
        (" , ,;., ()", {}),
    ],
)
def test_a_prompt_becomes_words(prompt: str, expected: dict[str, float]) -> None:
    assert {word: round(weight, 3) for word, weight in tags_of(prompt).items()} == expected


def test_a_sentence_becomes_its_words_and_pairs() -> None:
    found = tags_of("a photo of the red cat that sits on a mat")
    assert {"photo", "red", "cat", "mat", "red cat"} <= found.keys()
    assert not {"a", "of", "the", "a photo", "cat that"} & found.keys()


NASTY = {
    "open brackets": "(a" * 10_000,
    "square": "[a:" * 7_000,
    "nested": "(" * 10_000 + "x" + ")" * 10_000,
    "scheduled": "[" * 3_000 + "x" + ":1]" * 3_000,
    "alternatives": "[a|b]" * 4_000,
    "bars": "a|" * 10_000,
    "colons": ":" * 20_000,
    "backslashes": "\\" * 20_000,
    "commas": "x," * 10_000,
    "prose": "word " * 4_000,
    "long": "x" * 100_000,
    "nothing": "\0" * 1_000 + "\ud800" + "\u202e",
    "mixed": "([" * 3_000 + ")]" * 3_000,
    "unmatched": "(" * 10_000 + "]" * 10_000,
    "huge number": "[a:b:-" + "9" * 400 + "] [c:d:" + "9" * 5_000 + "] [e:f:." + "9" * 5_000 + "]",
    "what grows": "㍿" * 20_000,
}


@pytest.mark.parametrize("kind", NASTY)
def test_no_prompt_takes_long(kind: str) -> None:
    began = time.monotonic()
    tags_of(NASTY[kind])
    Vocabulary(["red", "blue hat"]).match(NASTY[kind])
    assert time.monotonic() - began < 5.0


def dataset_of(shares: dict[str, float], n: int = 1000, seed: int = 0) -> list[dict[str, float]]:
    draw = np.random.default_rng(seed)
    return [{word: 1.0 for word, share in shares.items() if draw.random() < share} for _ in range(n)]


def test_the_rules_of_a_vocabulary() -> None:
    told = dataset_of({"red": 0.5, "hat": 0.2, "always": 1.0, "rare": 0.02})
    for one in told:
        if "hat" in one:
            one["headwear"] = 1.0  # the same images: one word
    for one in told[:9]:
        one["nine"] = 1.0  # under one in a hundred
    for one in told[: LEAST_COUNT - 1]:
        one["seven"] = 1.0
    names = {word.names for word in vocabulary(told)}
    assert names == {("red",), ("hat", "headwear"), ("rare",)}
    assert ("red",) not in {w.names for w in vocabulary(told, left_out=["red"])}
    kept = {w.names for w in vocabulary(told, kept=["nine", "always", "seven"])}
    assert {("nine",), ("always",)} <= kept and ("seven",) not in kept, "fewer than eight images never share a word"
    merged = vocabulary(told, merged=[("red", "rare")])
    both = sum("red" in one or "rare" in one for one in told)
    assert [w.count for w in merged if set(w.names) == {"red", "rare"}] == [both]


def test_a_vocabulary_has_at_most_so_many_words() -> None:
    told = dataset_of({f"w{i}": 0.02 + 0.4 * i / 400 for i in range(400)})
    found = vocabulary(told)
    assert len(found) == MOST_WORDS
    # those that divide the images best
    assert min(word.count for word in found) > np.mean([sum(f"w{i}" in one for one in told) for i in range(400)])


def test_what_a_person_writes_is_matched() -> None:
    known = Vocabulary(["red shirt", "smile", "hat | headwear"])
    match = known.match("Smile, (red shirt:1.3), HEADWEAR")
    assert match.values == (1.3, 1.0, 1.0) and match.unknown == ()
    assert known.match("a woman in a red shirt with a smile").words == ("red shirt", "smile")
    unknown = dict(known.match("smlie, zebra, red").unknown)
    assert unknown == {"smlie": "smile", "zebra": "", "red": "red shirt"}
    assert known.match("").values == (0.0, 0.0, 0.0)


def test_brackets_of_a_word_are_no_emphasis() -> None:
    told = tags_of(r"hatsune miku \(vocaloid\)")
    (word,) = told
    known = Vocabulary([word, "hat"])
    assert known.match(written(word)).words == (word,), "as the page and the evaluation write it"
    assert known.match(word).words == (word,), "as a person does"


def test_no_word_is_longer_than_a_model_may_hold() -> None:
    told = [{"x" * 5000: 1.0, "red" if i % 2 else "blue": 1.0} for i in range(40)]
    assert {word.names for word in vocabulary(told, kept=["x" * 5000])} == {("red",), ("blue",)}
    same = [{f"word {k}": 1.0 for k in range(60)} if i % 2 else {"red": 1.0} for i in range(40)]
    assert all(len(word.entry) < 3000 for word in vocabulary(same))


def test_what_is_left_out_of_a_pair_is_left_out_whole() -> None:
    told = [{"a": 1.0} if i % 3 == 0 else {"b": 1.0} if i % 3 == 1 else {} for i in range(60)]
    for merged in (("a", "b"), ("b", "a")):
        assert [set(w.names) for w in vocabulary(told, merged=[merged])] == [{"a", "b"}]
        assert vocabulary(told, left_out=["a"], merged=[merged]) == []


def test_who_is_alone_with_their_words() -> None:
    rows = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=bool)
    # of the third alone no other has all its words
    assert alone(rows) == (1, 3.0)
    assert alone(np.zeros((0, 3), dtype=bool)) == (0, 0.0)


def test_a_dataset_without_images_has_no_words(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])
    workspace.reject("d", [item["id"] for item in workspace.show_dataset("d")])
    found = words.words_of(workspace.store("d")).to_json()
    assert found["tags"] == [] and found["pictures"] == 0


def test_choices_are_remembered_and_undone(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("faces", [few])
    store = workspace.store("faces")
    before = words.words_of(store)
    first = before.words[0].entry
    words.choose(store, [], [first.upper()])
    after = words.words_of(store)
    assert first not in [w.entry for w in after.words] and first in [w.entry for w in after.others]
    second, third = after.words[0].entry, after.words[1].entry
    words.choose(store, [], [], [second, third])
    assert any(set(w.names) >= {second, third} for w in words.words_of(store).words)
    assert words.undo(store) == 1 and words.undo(store) == 1 and words.undo(store) == 0
    assert words.words_of(store).to_json() == before.to_json()
    words.choose(store, [], [first])
    words.choose(store, [], [], [first, second])  # who makes words one wants them
    assert any(set(w.names) >= {first, second} for w in words.words_of(store).words)
    with pytest.raises(UserError, match="did you mean"):
        words.choose(store, [], [first + "x"])
    (store.folder / words.FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        words.words_of(store)


# -- words of single images -----------------------------------------------------------------------------------------------------


def test_words_of_single_images_are_edited_and_taken_back(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])
    store = workspace.store("d")
    before, texts = words.told_of(store), words.texts_of(store)
    first, second, *_ = before
    gone = next(iter(before[first]))
    assert words.edit(store, [first, second, 999], ["Straw_Hat, (smiling:1.2)"], [gone]) == 2
    told = words.told_of(store)
    assert gone not in told[first] and told[first]["straw hat"] == 1.0 and told[second]["smiling"] == 1.0
    assert {one: told[one] for one in told if one not in (first, second)} == {
        one: before[one] for one in before if one not in (first, second)
    }
    assert words.texts_of(store)[first].endswith("straw hat, smiling")
    assert gone not in words.texts_of(store)[first].split(", ")
    assert words.changed_of(store)[second] == words.Changed(("straw hat", "smiling"), (gone,))
    # a choice and an edit are taken back in their order; what was added is removed, and the other way round
    words.choose(store, [], ["straw hat"])
    assert "straw hat" not in words.texts_of(store)[first].split(", ")
    words.edit(store, [first], [gone], ["straw hat"])
    assert gone in words.told_of(store)[first] and "straw hat" not in words.told_of(store)[first]
    assert words.undo(store) == 1 and words.told_of(store) == told
    assert words.undo(store) == 1 and not words.choices_of(store).left_out and words.told_of(store) == told
    assert words.undo(store) == 1 and words.told_of(store) == before and words.texts_of(store) == texts
    words.edit(store, [second], ["hat"], [])
    assert words.changed_of(store) == {second: words.Changed(("hat",), ())}, "what was undone is gone"


def test_edits_that_make_no_sense_change_nothing(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])
    store = workspace.store("d")
    one = next(iter(store.prompts()))
    for ids, add, problem in (
        ([one], [], "Write the words"),
        ([one], [" , "], "Write the words"),
        ([999], ["hat"], "None of these images"),
        ([one], [", ".join(f"w{i}" for i in range(200))], "At most"),
        ([one], ["x" * 500], "At most"),
    ):
        with pytest.raises(UserError, match=problem):
            words.edit(store, ids, add, [])
    assert not (store.folder / words.FILE).exists()
    words.choose(store, [], [next(iter(words.told_of(store)[one]))])
    assert '"format": 1' in (store.folder / words.FILE).read_text(), "as older versions read it"
    words.edit(store, [one], ["hat"], [])
    whole = (store.folder / words.FILE).read_text()
    for old, new in (('"edits": 1', '"edits": 7'), ('"ids": [', '"ids": ["x",'), ('"format": 2', '"format": 3')):
        assert old in whole
        (store.folder / words.FILE).write_text(whole.replace(old, new))
        with pytest.raises(UserError):
            words.told_of(store)


def test_two_pages_may_edit_at_once(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])
    one, *_ = workspace.store("d").prompts()
    failures: list[BaseException] = []

    def page(number: int) -> None:
        try:
            for i in range(6):
                words.edit(workspace.store("d"), [one], [f"word {number} {i}"], [])
        except BaseException as error:
            failures.append(error)

    pages = [threading.Thread(target=page, args=(number,)) for number in range(3)]
    for thread in pages:
        thread.start()
    for thread in pages:
        thread.join()
    assert not failures
    assert len(words.changed_of(workspace.store("d"))[one].add) == 18, "an edit was lost"


def test_words_are_taken_out_of_sentences_and_only_where_they_are(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    workspace.harvest("d", [few])
    store = workspace.store("d")
    one, other, *_ = store.prompts()
    with contextlib.closing(sqlite3.connect(store.folder / "dataset.sqlite")) as db, db:
        prompt = "a girl with a red hat is sitting on a hatbox, smiling"
        db.execute("UPDATE items SET prompt = ? WHERE id = ?", (prompt, one))
    words.edit(store, [one], [], ["hat"])
    assert words.texts_of(store)[one] == "a girl with a red is sitting on a hatbox, smiling"
    assert "hat" not in words.told_of(store)[one] and "hatbox" in words.told_of(store)[one]
    with pytest.raises(UserError, match="None of these images has the word 'smilng'; did you mean 'smiling'"):
        words.edit(store, [one], [], ["smilng"])
    with pytest.raises(UserError, match="at most 5 words"):
        words.edit(store, [one], ["a long dress with small white flowers"], [])
    words.edit(store, [other], ["cap | beanie"], [])
    assert words.changed_of(store)[other].add == ("cap", "beanie")
