"""Samples that say nearly the same as an earlier one: MinHash with banding finds them, exact Jaccard decides.

A text is the set of its word triples. Broder's MinHash (1997): the share of equal minima of two sets under random
hashes is their Jaccard similarity; minima in bands of `rows` make two sets meet in at least one of `bands` with
probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4). What meets is
compared exactly, so nothing is refused that is not similar; a few similar pairs are missed.

Samples about one picture are always compared. Samples about different pictures only if their answers are long: "Is
there a dog? Yes." is right of thousands of pictures, and is no duplicate there, while forty words in the same order
come from a teacher that says the same whatever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from opsin.synthesize.checks.words import number_of_words, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opsin.synthesize.outcome import Outcome

NEAR_DUPLICATE = "near-duplicate"

LONG = 30
"""Words of all answers together from which samples about different pictures are compared."""
HASHES = 126
RECALL = 0.997
"""Of pairs that are exactly as similar as the threshold; of more similar ones it is higher."""
SHINGLE = 3
MARGIN = 0.15
"""Texts that meet are compared if their minima make them so little less similar than the threshold: six deviations."""

_BATCH = 2_000
"""Texts whose triples are hashed at once: some tens of megabytes."""
_SEED = 20230417  # of the hashes; any will do, but always the same


@dataclass(frozen=True, slots=True)
class Text:
    """What is compared: a text, the picture or pictures it is about, and whether it is compared across pictures."""

    text: str
    picture: str
    long: bool


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A text that is similar to an earlier one, by their indices."""

    index: int
    first: int
    similarity: float


def without_near_duplicates(outcomes: Sequence[Outcome], threshold: float | None) -> list[Outcome]:
    """The outcomes, with the samples quarantined that nearly repeat an earlier one; no threshold: as they are."""
    if threshold is None:
        return list(outcomes)
    made = [index for index, outcome in enumerate(outcomes) if outcome.state == "made"]
    found = {made[one.index]: one for one in near_duplicates([_text(outcomes[index]) for index in made], threshold)}
    return [
        _refused(outcome, outcomes[made[found[index].first]], found[index].similarity) if index in found else outcome
        for index, outcome in enumerate(outcomes)
    ]


def _text(outcome: Outcome) -> Text:
    subject = outcome.task.subject
    said = "\n".join(f"{exchange.question}\n{exchange.answer}" for exchange in outcome.exchanges)
    answered = sum(number_of_words(exchange.answer) for exchange in outcome.exchanges)
    return Text(said, subject.video or "\n".join(subject.images) or subject.id, answered >= LONG)


def _refused(outcome: Outcome, first: Outcome, similarity: float) -> Outcome:
    finding = Finding(NEAR_DUPLICATE, f"it repeats {first.task.id}; similarity {similarity:.2f} of word triples")
    last = replace(outcome.attempts[-1], findings=(*outcome.attempts[-1].findings, finding))
    return replace(outcome, state="quarantined", attempts=(*outcome.attempts[:-1], last), exchanges=())


def near_duplicates(texts: Sequence[Text], threshold: float) -> list[NearDuplicate]:
    """Texts whose similarity with an earlier one that is kept reaches the threshold (0.5 to 1), in order."""
    if len(texts) < 2:
        return []
    rows, bands = banding(threshold)
    signatures = _signatures(texts, rows * bands)
    kept: dict[int, list[int]] = {}
    sets: dict[int, frozenset[int]] = {}
    found = []
    for index, meetings in enumerate(_meetings(texts, signatures, rows)):
        met = np.array(sorted({other for key in meetings for other in kept.get(key, ())}), dtype=np.intp)
        estimates = (signatures[met] == signatures[index]).mean(axis=1)
        likely = [int(other) for other in met[estimates >= threshold - MARGIN]]
        for one in (index, *likely) if likely else ():
            sets.setdefault(one, frozenset(_shingles(texts[one].text).tolist()))
        best = max((_compared(sets, index, other) for other in likely), key=lambda pair: pair.similarity, default=None)
        if best is not None and best.similarity >= threshold:
            found.append(best)
        else:
            for key in meetings:
                kept.setdefault(key, []).append(index)
    return found


def _compared(sets: Mapping[int, frozenset[int]], index: int, other: int) -> NearDuplicate:
    own, others = sets[index], sets[other]
    return NearDuplicate(index, other, len(own & others) / len(own | others))


@lru_cache
def banding(threshold: float) -> tuple[int, int]:
    """Rows and bands of at most `HASHES`: as many rows, and so as few candidates, as the recall allows."""
    fitting = [
        (rows, HASHES // rows)
        for rows in range(1, HASHES + 1)
        if 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL
    ]
    return fitting[-1]


def _meetings(texts: Sequence[Text], signatures: NDArray[np.uint64], rows: int) -> Iterator[list[int]]:
    """Of each text, the keys of the places where it meets others; those where it would be alone are left out."""
    numbers: dict[str, int] = {}
    pictures = np.array([numbers.setdefault(text.picture, len(numbers) + 1) for text in texts], dtype=np.uint64)
    long = np.array([text.long for text in texts])
    bands = np.split(signatures, signatures.shape[1] // rows, axis=1)
    met = [keys for number, minima in enumerate(bands) for keys in _band(minima, number, pictures, long)]
    for index in range(len(texts)):
        yield [int(keys[index]) for keys in met if keys[index]]


def _band(
    minima: NDArray[np.uint64], band: int, pictures: NDArray[np.uint64], long: NDArray[np.bool_]
) -> Iterator[NDArray[np.uint64]]:
    """Keys of one band, within pictures and, of long texts, across them; 0 where nothing else has the key."""
    place = np.full(len(minima), band + 1, dtype=np.uint64)
    for column in minima.T:
        place = _mixed(place ^ column)
    yield _shared(_mixed(place ^ _mixed(pictures)), np.ones_like(long))
    yield _shared(place, long)


def _shared(keys: NDArray[np.uint64], valid: NDArray[np.bool_]) -> NDArray[np.uint64]:
    _, inverse, numbers = np.unique(keys[valid], return_inverse=True, return_counts=True)
    kept = np.zeros_like(keys)
    kept[valid] = np.where(numbers[inverse] > 1, keys[valid], 0)
    return kept


def _signatures(texts: Sequence[Text], count: int) -> NDArray[np.uint64]:
    """The minima of `count` hashes over the triples of each text."""
    salts = np.random.default_rng(_SEED).integers(0, 2**63, size=count, dtype=np.uint64)
    signatures = np.empty((len(texts), count), dtype=np.uint64)
    for at in range(0, len(texts), _BATCH):
        shingles = [_shingles(text.text) for text in texts[at : at + _BATCH]]
        starts = np.cumsum([0, *(len(one) for one in shingles[:-1])])
        joined = np.concatenate(shingles)
        for column, salt in enumerate(salts):
            signatures[at : at + _BATCH, column] = np.minimum.reduceat(_mixed(joined ^ salt), starts)
    return signatures


def _shingles(text: str) -> NDArray[np.uint64]:
    """Hashes of a text's word triples; a shorter text is one."""
    said = words(text)
    hashes = np.array([_hash(word) for word in said] + [0] * max(0, SHINGLE - len(said)), dtype=np.uint64)
    length = len(hashes) - SHINGLE + 1
    joined = np.zeros(length, dtype=np.uint64)
    for at in range(SHINGLE):
        joined = _mixed(joined ^ hashes[at : at + length])
    return joined


@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return crc32(data) | (crc32(data, 1) << 32)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): every bit of the result hangs on every bit given."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
