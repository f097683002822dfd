"""What is measured while a stage trains: the loss on data of its own, always of the same samples, and small benchmarks.

Nothing of it changes the training: modes, gradients and random draws are as they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from opsin.core.errors import DamagedError, TrainError
from opsin.core.ranks import ALONE, Ranks
from opsin.core.types import Batch, Example
from opsin.data.collate import Features, collate, to_device
from opsin.data.plan import Pack, plan_epoch
from opsin.model.config import ModelConfig
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import StageData, read_stage
from opsin.train.objective import Objective, idle
from opsin.train.recipe import Checks, Stage
from opsin.train.sharding import gathered
from opsin.train.stream import Progress, quiet

Benchmarks = Mapping[str, Callable[[Vlm], Mapping[str, float]]]
"""Ways to ask a model, by name; each gives named scores. All ranks ask alike."""


@dataclass(frozen=True)
class Checked:
    """One check: the loss of a supervised token of the data kept apart, if there are any, and scores by benchmark."""

    loss: float | None
    benchmarks: Mapping[str, Mapping[str, float]]
    seconds: float

    def as_dict(self, stage: str, step: int) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        benchmarks = {name: dict(scores) for name, scores in self.benchmarks.items()}
        check = {"loss": self.loss, "benchmarks": benchmarks, "seconds": round(self.seconds, 3)}
        return {"stage": stage, "step": step, "check": check}

    def __str__(self) -> str:
        told = [] if self.loss is None else [f"validation loss {self.loss:.4f}"]
        told += [
            f"{name} {score} {value:.3f}" for name, scores in self.benchmarks.items() for score, value in scores.items()
        ]
        return ", ".join(told)


@dataclass
class Checker:
    """A stage's checks. `features` hold every medium of `samples`, if the stage's encoder does not run."""

    checks: Checks
    benchmarks: Benchmarks = field(default_factory=dict)
    data: StageData | None = None
    packs: Sequence[Pack] = ()
    ranks: Ranks = ALONE
    skip_bad: bool = False
    features: Features | None = None

    @property
    def samples(self) -> list[Example]:
        """What the loss is of."""
        return [] if self.data is None else [self.data.examples[i] for pack in self.packs for i in pack.samples]

    def is_due(self, step: int, steps: int) -> bool:
        """After so many of a stage's steps."""
        return step % self.checks.every == 0 or step == steps

    def check(self, objective: Objective) -> Checked:
        """Measure a model; a call of all ranks.

        Raises:
            DamagedError: a picture or video cannot be decoded, unless damaged ones are left out.
        """
        began = time.perf_counter()
        with _unchanging(objective):
            loss = self.loss(objective)
            with gathered(objective):
                scores = {name: ask(objective.model) for name, ask in self.benchmarks.items()}
        return Checked(loss, scores, time.perf_counter() - began)

    def loss(self, objective: Objective) -> float | None:
        """Mean loss of all supervised tokens, as training measures it but without dropout; None without data."""
        total, count = 0.0, 0
        error: DamagedError | None = None
        for turn in range(math.ceil(len(self.packs) / self.ranks.size)):
            batch = None
            try:
                batch = self._batch(turn * self.ranks.size + self.ranks.rank)
            except DamagedError as damaged:  # told when no rank waits for this one any more
                error = error or damaged
            moved = to_device(batch or idle(objective.model), objective.model.device)
            _, losses_S = objective(moved, torch.ones(moved.num_tokens, device=moved.tokens_T.device))
            total += float(losses_S.double().sum())
            count += len(losses_S)
        told = self.ranks.gather([total, count, None if error is None else str(error)])
        if error is not None:
            raise error
        for _, _, problem in told:
            if problem is not None:
                raise TrainError(problem)
        supervised = sum(one[1] for one in told)
        return sum(one[0] for one in told) / supervised if supervised else None

    def _batch(self, place: int) -> Batch | None:
        """A pack's batch, if there is such a pack and something of it is left."""
        if self.data is None or place >= len(self.packs):
            return None
        examples = [self.data.examples[i] for i in self.packs[place].samples]
        batch = collate(examples, self.data.preparation, self.features, skip_bad=self.skip_bad)
        return batch if batch.lengths else None


def read_checker(
    stage: Stage,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    benchmarks: Benchmarks | None = None,
    ranks: Ranks = ALONE,
    skip_bad: bool = False,
    on_progress: Progress = quiet,
) -> Checker | None:
    """The checks that a stage asks for, if any; their data are read as those of the stage are.

    Raises:
        DataError: with every problem of every record, as `read_stage`.
    """
    checks = stage.checks
    if checks is None:
        return None
    checker = Checker(checks, benchmarks or {}, ranks=ranks, skip_bad=skip_bad)
    if checks.data is not None:
        alike = {"data": checks.data, "order": "shuffled", "epochs": 1.0, "steps": None, "checks": None}
        own = stage.model_copy(update=alike)
        checker.data = read_stage(own, config, tokenizer, skip_bad=skip_bad, on_progress=on_progress)
        examples = checker.data.examples
        chosen = np.random.default_rng(seed).permutation(len(examples))[: checks.samples]
        checker.packs = plan_epoch(examples.costs, own.budget, seed=seed, epoch=0, samples=chosen).packs
    return checker


@contextmanager
def _unchanging(objective: Objective) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random draws are as before when it ends."""
    modes = {module: module.training for module in objective.modules()}
    device = objective.model.device
    objective.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
