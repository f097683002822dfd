"""What the page of a run tells: read from the run's files, or given by the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.core.errors import OpsinError
from opsin.report.scores import Evaluation, Reference


@dataclass(frozen=True, slots=True)
class Step:
    """The part of one line of metrics.jsonl that the page shows."""

    stage: str
    step: int
    loss: float
    rates: Mapping[str, float]
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Visual tokens included."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the data holds: named counts, pictures per group (train, held out), and what was skipped, by reason."""

    counts: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Everything else: the first evaluation is the model before training, the last one the finished model.

    `machine` is a short text such as "2 CPU cores"; `chat` the command that talks to the model.
    """

    name: str
    date: str
    seconds: float
    machine: str
    chat: str
    evaluations: Sequence[Evaluation]
    image_root: Path
    references: Sequence[Reference] = ()
    data: DataFacts = field(default_factory=DataFacts)


def read_steps(path: Path) -> dict[str, list[Step]]:
    """The steps of metrics.jsonl, by stage, in order, but for those of which no sample was left.

    Raises:
        OpsinError: the file is missing or a line, other than a half-written last one, cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise OpsinError(f"{path}: cannot be read ({error.strerror}); was the run trained?") from None
    stages: dict[str, list[Step]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if value["loss"] is None:
                continue
            step = _step(value)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # a killed run can leave its last line half written
            raise OpsinError(f"{path}:{number}: not a line of training metrics ({error})") from None
        stages.setdefault(step.stage, []).append(step)
    return stages


def _step(value: dict[str, Any]) -> Step:
    return Step(
        stage=str(value["stage"]),
        step=int(value["step"]),
        loss=float(value["loss"]),
        rates={str(name): float(rate) for name, rate in value["lr"].items()},
        tokens=int(value["tokens"]),
        seconds=float(value["seconds"]),
    )
