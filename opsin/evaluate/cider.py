"""CIDEr-D: how much a caption has in common with reference captions (Vedantam et al., arXiv 1411.5726, section 6).

Captions are vectors of n-gram counts weighted by rarity (tf-idf) for n = 1..4; rarity is counted over the references
of the set that is evaluated, so values of different sets cannot be compared, and a set of one picture scores 0.
"D": counts are clipped at the reference's, and a length difference is punished by a Gaussian.
Values equal those of pycocoevalcap's `CiderScorer` on captions that are tokenised alike.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
"""Width, in words, of the Gaussian that punishes another length."""

SCALE = 10.0

Words = tuple[str, ...]
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def words_of(caption: str) -> Words:
    """Lower-case words without punctuation: what the Penn Treebank tokeniser of the original leaves, nearly."""
    return tuple(_WORD.findall(caption.lower()))


def ngrams(words: Words) -> Counter[Words]:
    """How often each run of one to four words occurs."""
    return Counter(words[start : start + n] for n in ORDERS for start in range(len(words) - n + 1))


@dataclass(frozen=True)
class Vector:
    """A caption as tf-idf weights."""

    length: int
    weights: dict[Words, float]

    @cached_property
    def norms(self) -> dict[int, float]:
        """Euclidean norm per order."""
        squares = dict.fromkeys(ORDERS, 0.0)
        for ngram, weight in self.weights.items():
            squares[len(ngram)] += weight**2
        return {n: math.sqrt(square) for n, square in squares.items()}


class CiderD:
    """The scorer of one set: the references of all its pictures."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """`references[i]` are the captions, one or more, that people gave picture i."""
        if empty := [index for index, captions in enumerate(references) if not captions]:
            raise ValueError(f"pictures {empty[:10]} have no reference caption; each needs at least one")
        self._pictures = len(references)
        counted = [[ngrams(words_of(caption)) for caption in captions] for captions in references]
        self._frequency = Counter(ngram for captions in counted for ngram in set().union(*captions))
        self._references = [[self._vector(words_of(caption)) for caption in captions] for captions in references]

    def scores(self, captions: Iterable[str]) -> list[float]:
        """One score per picture, 0 to 10, higher is better."""
        vectors = (self._vector(words_of(caption)) for caption in captions)
        return [self._score(vector, own) for vector, own in zip(vectors, self._references, strict=True)]

    def constant(self, caption: str) -> float:
        """Mean score of one caption given to every picture."""
        vector = self._vector(words_of(caption))
        return sum(self._score(vector, own) for own in self._references) / self._pictures

    def _vector(self, words: Words) -> Vector:
        counts = ngrams(words)
        # An n-gram that no reference holds counts as if one did.
        rarity = {ngram: math.log(self._pictures / max(1, self._frequency[ngram])) for ngram in counts}
        return Vector(len(words), {ngram: count * rarity[ngram] for ngram, count in counts.items()})

    def _score(self, caption: Vector, references: Sequence[Vector]) -> float:
        return SCALE * sum(_similarity(caption, reference) for reference in references) / len(references)


def _similarity(caption: Vector, reference: Vector) -> float:
    """Mean over the orders of the clipped cosine, times the length penalty."""
    shared = dict.fromkeys(ORDERS, 0.0)
    for ngram, weight in caption.weights.items():
        if ngram in reference.weights:
            shared[len(ngram)] += min(weight, reference.weights[ngram]) * reference.weights[ngram]
    products = {n: caption.norms[n] * reference.norms[n] for n in ORDERS}
    cosines = sum(shared[n] / products[n] for n in ORDERS if products[n])
    penalty = math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
    return penalty * cosines / len(ORDERS)


def mean(scores: Sequence[float]) -> float:
    """The score of a set."""
    return sum(scores) / len(scores)
