"""The training loop of one stage: steps over planned packs, token-normalised loss, clipping, metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
from opsin.train.metrics import StepMetrics
from opsin.train.optimiser import Audit, audit_gradients, rate_factor, rising_steps, set_rates
from opsin.train.recipe import Stage
from opsin.train.stream import StreamSteps, packs_from


@dataclass
class StageLoop:
    """Everything a stage needs to take its steps; `step` is the next one to take.

    With `skip_bad`, samples with a medium that is damaged are left out; `on_bad` is told the step (from 1) and which.
    """

    model: Vlm
    stage: Stage
    data: StageData
    steps: Sequence[tuple[Pack, ...]]
    optimiser: torch.optim.Optimizer
    features: Features | None = None
    step: int = 0
    on_audit: Callable[[Audit], None] = field(default=lambda _audit: None)
    skip_bad: bool = False
    on_bad: Callable[[int, str], None] = field(default=lambda _step, _line: None)
    _audited: bool = False
    _seen_pictures: bool = False
    _loader: Loader | None = None

    def take_step(self) -> StepMetrics:
        """One optimiser step; none if nothing is left of its packs, but it is counted all the same.

        The loss is the sum over the supervised tokens of all the step's packs, divided by their number, so it does not
        depend on how they are packed.

        Raises:
            DamagedError: a medium of a sample cannot be decoded, unless `skip_bad`.
            TrainError: the audit fails, or the loss or a gradient is not finite (the samples are named).
        """
        started = time.perf_counter()
        made = [self._batch() for _ in self.steps[self.step]]  # all of them: what is left of them divides the loss
        skipped = [line for batch in made for line in batch.skipped]
        for line in skipped:
            self.on_bad(self.step + 1, line)
        batches = [batch for batch in made if batch.lengths]
        loss, norm = self._learn(batches) if batches else (None, None)
        rates = set_rates(self.optimiser, self._factor())
        if batches:
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if isinstance(self.steps, StreamSteps):
            self.steps.forget(self.step)
        return StepMetrics(
            step=self.step,
            loss=loss,
            grad_norm=norm,
            rates=rates,
            tokens=sum(batch.num_tokens for batch in batches),
            supervised=sum(batch.num_supervised for batch in batches),
            pictures=sum(len(batch.layouts) for batch in batches),
            seconds=time.perf_counter() - started,
            skipped=len(skipped),
        )

    def _learn(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Loss of a step and the norm of its gradients, which are audited, clipped and left at the parameters."""
        supervised = sum(batch.num_supervised for batch in batches)
        pictures = any(batch.layouts for batch in batches)
        total = 0.0
        for count, batch in enumerate(batches, start=1):
            loss = self.loss(to_device(batch, self.model.device))
            total += loss.item()
            if not math.isfinite(total):
                raise self._not_finite("loss", total, batches[:count])
            if loss.requires_grad:  # text alone reaches no weight of a stage that trains the connector only
                (loss / supervised).backward()  # type: ignore[no-untyped-call]
        if not self._audited or (pictures and not self._seen_pictures):
            self.on_audit(audit_gradients(self.model, self.stage, self.optimiser, pictures=pictures))
            self._audited, self._seen_pictures = True, pictures
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.stage.clip).item()
        if not math.isfinite(norm):
            raise self._not_finite("gradient norm", norm, batches)
        return total / supervised, norm

    @property
    def planned(self) -> dict[str, str]:
        """What a resumed run compares its plan with, where it is made on the way."""
        return {"planned": self.steps.digest(self.step)} if isinstance(self.steps, StreamSteps) else {}

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
                pick=self.data.examples.pick,
                skip_bad=self.skip_bad,
            )
        return next(self._loader)

    def _factor(self) -> float:
        """The share of the peak rates in the next step."""
        total = len(self.steps)
        return rate_factor(self.step, total, rising_steps(self.stage, total), self.stage.schedule)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Sum of the cross entropies at the batch's supervised positions."""
        with self.model.computing():
            return supervised_loss(self.model(batch), self.model.decoder.head_weight, batch.targets_T)

    def _not_finite(self, what: str, value: float, batches: Sequence[Batch]) -> TrainError:
        ids = [name for batch in batches for name in batch.ids]
        return TrainError(
            f"stage {self.stage.name!r}, step {self.step + 1}: the {what} is {value}; the weights are unchanged and "
            f"nothing was saved. Samples of the step: {', '.join(ids[:50])}. Lower the learning rate, or look at them"
        )
