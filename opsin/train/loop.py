"""The training loop of one stage: steps over planned packs, token-normalised loss, clipping, metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from opsin.core.errors import TrainError
from opsin.core.types import Batch
from opsin.data.collate import Features, to_device
from opsin.data.loader import Loader
from opsin.data.plan import Pack
from opsin.model.loss import supervised_loss
from opsin.model.vlm import Vlm
from opsin.train.data import StageData
from opsin.train.optimiser import Audit, audit_gradients, rate_factor, set_rates
from opsin.train.recipe import Stage
from opsin.train.stream import packs_from


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimiser step did."""

    step: int
    loss: float
    grad_norm: float
    rates: dict[str, float]
    tokens: int
    supervised: int
    pictures: int
    seconds: float

    def as_dict(self, stage: str) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        return {
            "stage": stage,
            "step": self.step,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.rates,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "pictures": self.pictures,
            "seconds": round(self.seconds, 4),
        }


@dataclass
class StageLoop:
    """Everything a stage needs to take its steps; `step` is the next one to take."""

    model: Vlm
    stage: Stage
    data: StageData
    steps: Sequence[tuple[Pack, ...]]
    optimiser: torch.optim.Optimizer
    features: Features | None = None
    step: int = 0
    on_audit: Callable[[Audit], None] = field(default=lambda _audit: None)
    _seen_pictures: bool = False
    _loader: Loader | None = None

    def take_step(self) -> StepMetrics:
        """One optimiser step.

        The loss is the sum over the supervised tokens of all the step's packs, divided by their number, so it does not
        depend on how they are packed.

        Raises:
            TrainError: the audit fails, or the loss or a gradient is not finite (the samples are named).
        """
        started = time.perf_counter()
        packs = self.steps[self.step]
        supervised = sum(pack.supervised for pack in packs)
        total, pictures = 0.0, 0
        ids: list[str] = []
        for _ in packs:
            batch = self._batch()
            ids += batch.ids
            pictures += len(batch.layouts)
            loss = self.loss(batch)
            total += loss.item()
            if not math.isfinite(total):
                raise self._not_finite("loss", total, ids)
            if loss.requires_grad:  # text alone reaches no weight of a stage that trains the connector only
                (loss / supervised).backward()  # type: ignore[no-untyped-call]
        if self.step == 0 or (pictures and not self._seen_pictures):
            self.on_audit(audit_gradients(self.model, self.stage, self.optimiser, pictures=pictures > 0))
            self._seen_pictures = pictures > 0
        norm = nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.grad is not None], self.stage.clip
        ).item()
        if not math.isfinite(norm):
            raise self._not_finite("gradient norm", norm, ids)
        rates = set_rates(self.optimiser, rate_factor(self.step, len(self.steps), self.stage.warmup))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return StepMetrics(
            step=self.step,
            loss=total / supervised,
            grad_norm=norm,
            rates=rates,
            tokens=sum(pack.tokens for pack in packs),
            supervised=supervised,
            pictures=pictures,
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._loader is not None:
            self._loader.close()

    def _batch(self) -> Batch:
        """The next pack, from the first one of the step that is next when this is called first."""
        if self._loader is None:
            self._loader = Loader(
                self.data.examples,
                self.data.preparation,
                packs_from(self.steps, self.step),
                workers=self.stage.workers,
                timeout=self.stage.worker_timeout,
                features=self.features,
                name_of=self.data.examples.name,
            )
        return to_device(next(self._loader), self.model.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Sum of the cross entropies at the batch's supervised positions."""
        with self.model.computing():
            return supervised_loss(self.model(batch), self.model.decoder.head_weight, batch.targets_T)

    def _not_finite(self, what: str, value: float, ids: list[str]) -> TrainError:
        return TrainError(
            f"stage {self.stage.name!r}, step {self.step + 1}: the {what} is {value}; the weights are unchanged and "
            f"nothing was saved. Samples of the step: {', '.join(ids[:50])}. Lower the learning rate, or look at them"
        )
