"""What an evaluation found, as plain values: evaluation fills them, the page and the terminal table show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Metric = Literal["accuracy", "CIDEr-D", "recall@1", "recall@5"]

SHARES: tuple[Metric, ...] = ("accuracy", "recall@1", "recall@5")
"""Metrics that are shares of questions, 0 to 1. CIDEr-D runs from 0 to 10."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one task, and what can be had without looking at any picture.

    `low` and `high` bound a share's 95% interval. `baseline` is what `baseline_name` gets: chance, or the best answer
    that is always the same.
    """

    task: str
    metric: Metric
    value: float
    total: int
    baseline: float
    baseline_name: str
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Literal["above", "near", "below"]:
        """Where the baseline lies: outside of the interval or in it; without an interval, the bare comparison."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if low > self.baseline:
            return "above"
        return "below" if high < self.baseline else "near"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question and what the model said. Captions are not right or wrong: they have a CIDEr-D score instead."""

    id: str
    task: str
    image: str
    question: str
    truth: str
    answer: str
    correct: bool | None = None
    cider: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """One evaluation: its numbers, every answer in the order of the questions, and how long it took."""

    scores: tuple[Score, ...]
    predictions: tuple[Prediction, ...]
    seconds: float

    def find(self, task: str, metric: Metric) -> Score | None:
        """The score of a task, if it was evaluated."""
        return next((score for score in self.scores if (score.task, score.metric) == (task, metric)), None)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Scores:
        """What `as_dict` wrote."""
        return Scores(
            scores=tuple(Score(**score) for score in value["scores"]),
            predictions=tuple(Prediction(**prediction) for prediction in value["predictions"]),
            seconds=value["seconds"],
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores with the name of the moment they were taken, such as "before" or "after instruct"."""

    name: str
    scores: Scores


@dataclass(frozen=True, slots=True)
class Reference:
    """A number to compare a task's score with, such as what the encoder's features tell by nearest neighbour."""

    task: str
    metric: Metric
    name: str
    value: float


def rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, Metric]]:
    """Every (task, metric) of some evaluations, once, in order, a task's metrics together."""
    found = list(dict.fromkeys((s.task, s.metric) for evaluation in evaluations for s in evaluation.scores.scores))
    tasks = list(dict.fromkeys(task for task, _ in found))
    return sorted(found, key=lambda row: tasks.index(row[0]))


def shown(value: float, metric: Metric) -> str:
    """A value as people read it: shares in percent."""
    return f"{100 * value:.1f}%" if metric in SHARES else f"{value:.2f}"


TASK_NAMES = {"category": "Category", "yes_no": "Yes or no", "count": "Counting", "caption": "Captions"}


def title(task: str) -> str:
    """A task as a heading."""
    return TASK_NAMES.get(task, task)
