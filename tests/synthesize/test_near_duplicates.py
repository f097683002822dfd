"""Near-duplicates: what brute force finds is found, nothing else is, and the first one stays."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.synthesize.checks.words import words
from opsin.synthesize.context import Context
from opsin.synthesize.near_duplicates import Text, banding, near_duplicates, without_near_duplicates
from opsin.synthesize.outcome import Attempt, Outcome
from opsin.synthesize.request import Usage
from opsin.synthesize.subject import Exchange, Subject, Task

VOCABULARY = [f"w{n}" for n in range(3000)]
PAIRS = 600


def shingles(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {said[at : at + 3] for at in range(len(said) - 2)} or {said}


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def sentence(rng: random.Random, length: int) -> list[str]:
    return rng.choices(VOCABULARY, k=length)


def changed(text: list[str], rng: random.Random, times: int) -> list[str]:
    text = list(text)
    for _ in range(times):
        text[rng.randrange(len(text))] = rng.choice(VOCABULARY)
    return text


def long(text: list[str], picture: str) -> Text:
    return Text(" ".join(text), picture, long=True)


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_it_finds_what_brute_force_finds(threshold: float) -> None:
    rng = random.Random(0)
    originals = [sentence(rng, rng.choice([60, 120, 240])) for _ in range(PAIRS)]
    copies = [changed(one, rng, rng.randint(0, 4 if threshold > 0.8 else 12)) for one in originals]
    texts = [long(one, f"picture {n}") for n, one in enumerate([*originals, *copies])]
    similar = {
        n + PAIRS: jaccard(texts[n].text, texts[n + PAIRS].text)
        for n in range(PAIRS)
        if jaccard(texts[n].text, texts[n + PAIRS].text) >= threshold
    }
    found = near_duplicates(texts, threshold)
    assert len(similar) > PAIRS / 3
    assert {one.index for one in found} <= similar.keys()  # nothing that is not similar
    assert all(one.first == one.index - PAIRS for one in found)
    assert all(one.similarity == pytest.approx(similar[one.index]) for one in found)
    assert len(found) / len(similar) >= 0.99


def test_the_recall_is_what_the_banding_promises() -> None:
    for threshold in (0.5, 0.7, 0.9, 1.0):
        rows, bands = banding(threshold)
        assert rows * bands <= 126
        assert 1 - (1 - threshold**rows) ** bands >= 0.997


def test_short_answers_are_compared_only_within_a_picture() -> None:
    said = "Is there a dog? Yes. Is there a cat? No."
    texts = [Text(said, f"picture {n // 2}", long=False) for n in range(6)]
    assert [(one.index, one.first) for one in near_duplicates(texts, 0.9)] == [(1, 0), (3, 2), (5, 4)]


def test_long_and_short_ones_of_a_picture_meet() -> None:
    text = [f"w{n}" for n in range(60)]
    texts = [long(text, "a"), Text(" ".join(text), "a", long=False), Text(" ".join(text), "b", long=False)]
    assert [(one.index, one.first) for one in near_duplicates(texts, 0.9)] == [(1, 0)]


def test_what_was_refused_is_not_compared_with() -> None:
    """Of a chain, in which only neighbours are similar, every other one stays."""
    rng = random.Random(1)
    chain = [sentence(rng, 200)]
    for _ in range(5):
        chain.append(changed(chain[-1], rng, 3))
    similar = jaccard(" ".join(chain[0]), " ".join(chain[1]))
    found = near_duplicates([long(text, f"{n}") for n, text in enumerate(chain)], similar - 0.02)
    assert [one.index for one in found] == [1, 3, 5]


@given(st.lists(st.text(alphabet="ab c.!犬🐕", max_size=12), max_size=8))
def test_any_texts(said: list[str]) -> None:
    texts = [Text(text, "one picture", long=False) for text in said]
    found = near_duplicates(texts, 1.0)
    assert found == near_duplicates(texts, 1.0)
    first: dict[tuple[str, ...], int] = {}
    for one in found:
        assert one.first < one.index
        assert jaccard(said[one.first], said[one.index]) == 1.0
    for index, text in enumerate(said):
        first.setdefault(words(text), index)
    refused = {one.index for one in found}
    assert all(index in refused or first[words(text)] == index for index, text in enumerate(said))


def outcome(identity: str, answer: str) -> Outcome:
    context = Context(("A dog.",), ())
    subject = Subject(identity, (f"{identity}.png",), (context,), Path(), "captions.json")
    attempt = Attempt(answer, "stop", Usage(1, 1), ())
    task = Task(f"{identity}#detail", "detail", subject, "seed")
    return Outcome(task, "made", (attempt,), (Exchange("Describe it.", answer),))


def test_a_near_duplicate_goes_to_quarantine_with_its_reason() -> None:
    answer = " ".join(f"word{n}" for n in range(80))
    nothing = Outcome(outcome("c", "x").task, "nothing")
    outcomes = [outcome("a", answer), nothing, outcome("b", answer + " indeed"), outcome("d", "A short one.")]
    kept = without_near_duplicates(outcomes, 0.9)
    assert [one.state for one in kept] == ["made", "nothing", "quarantined", "made"]
    assert kept[2].exchanges == ()
    (finding,) = kept[2].attempts[-1].findings
    assert finding.check == "near-duplicate"
    assert "a#detail" in finding.text
    assert without_near_duplicates(outcomes, None) == outcomes


@pytest.mark.slow
def test_as_many_samples_as_llava_has() -> None:
    rng = random.Random(0)
    texts: list[Text] = []
    for n in range(150_000):
        if n % 4 == 0:
            texts.append(Text("Is there a dog? Yes. Is there a cat? No.", f"{n // 3}", long=False))
        elif n % 40 == 1:
            texts.append(long(changed(texts[rng.randrange(n)].text.split(), rng, 1), f"{n // 3}"))
        else:
            texts.append(long(sentence(rng, rng.choice([40, 120, 200])), f"{n // 3}"))
    began = time.monotonic()
    found = near_duplicates(texts, 0.9)
    assert time.monotonic() - began < 60
    assert len(found) > 1000
    tracemalloc.start()
    near_duplicates(texts[:15_000], 0.9)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000  # a tenth of the samples, a tenth of a gigabyte
    tracemalloc.stop()
