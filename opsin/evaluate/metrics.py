"""Metrics: exact match with an interval, constant baselines, retrieval recall, nearest neighbours.

Captions have their own file, `opsin.evaluate.cider`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of how many are right."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        """Refuse counts that cannot be."""
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f"{self.correct} correct of {self.total}; expected 0 <= correct <= total and total >= 1")

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% score interval, which stays inside 0..1 and has a width even at 0 and 1 (Wilson 1927)."""
        squared = Z_95**2
        centre = (self.correct + squared / 2) / (self.total + squared)
        variance = self.share * (1 - self.share) * self.total + squared / 4
        half = Z_95 * math.sqrt(variance) / (self.total + squared)
        return max(0.0, centre - half), min(1.0, centre + half)


def normalised(answer: str) -> str:
    """An answer as it is compared: without case, surrounding spaces and one full stop at its end."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def matches(answer: str, truth: str) -> bool:
    """Exact match after normalisation."""
    return normalised(answer) == normalised(truth)


def accuracy(answers: Sequence[str], truths: Sequence[str]) -> Accuracy:
    """Exact matches, pair by pair."""
    return Accuracy(sum(matches(a, t) for a, t in zip(answers, truths, strict=True)), len(truths))


def always(answer: str, truths: Sequence[str]) -> Accuracy:
    """What giving one answer to every question gets."""
    return accuracy([answer] * len(truths), truths)


def most_frequent(truths: Sequence[str]) -> str:
    """The most frequent answer, the first of equals.

    Of the evaluated questions themselves it is the best constant answer; of the training data, the majority baseline.
    """
    counts = Counter(map(normalised, truths))
    return max(truths, key=lambda truth: counts[normalised(truth)])


def recall_at(scores_GG: np.ndarray, k: int) -> Accuracy:
    """Rows whose own column (the diagonal) is among their `k` best; a tie counts against it.

    Ties, and scores that are not numbers, must not look like knowledge: a model that scores all alike gets 0.
    """
    rows, columns = scores_GG.shape
    if rows != columns or k < 1:
        raise ValueError(f"recall at {k} of {rows} x {columns} scores; expected a square matrix and k >= 1")
    own_G1 = np.diagonal(scores_GG)[:, None]
    ranks_G = (~(scores_GG < own_G1)).sum(axis=1)
    return Accuracy(int((ranks_G <= k).sum()), rows)


def nearest_neighbour(
    known_NC: np.ndarray, known_labels: Sequence[str], asked_MC: np.ndarray, asked_labels: Sequence[str]
) -> Accuracy:
    """Accuracy of the label of the most similar known vector (cosine): what features tell without any training."""
    nearest = (_unit(asked_MC) @ _unit(known_NC).T).argmax(axis=1)
    return accuracy([known_labels[i] for i in nearest], asked_labels)


def leave_one_out(features_NC: np.ndarray, labels: Sequence[str]) -> Accuracy:
    """Nearest-neighbour accuracy among vectors that are each compared with all others."""
    if len(labels) < 2:
        raise ValueError(f"leave-one-out of {len(labels)} vectors; it takes at least 2")
    similarity_NN = _unit(features_NC) @ _unit(features_NC).T
    np.fill_diagonal(similarity_NN, -np.inf)
    return accuracy([labels[i] for i in similarity_NN.argmax(axis=1)], labels)


def _unit(vectors_NC: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(vectors_NC, axis=1, keepdims=True)
    unit: np.ndarray = vectors_NC / np.maximum(norms, np.finfo(vectors_NC.dtype).tiny)
    return unit
