"""The training loop of one stage: steps over planned packs, token-normalised loss, clipping, metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from opsin.core.errors import OpsinError, OutOfMemoryError, TrainError
from opsin.core.types import Batch
from opsin.data.collate import Features, to_device
from opsin.data.loader import Loader
from opsin.data.plan import Pack, rank_share
from opsin.model.vlm import Vlm
from opsin.train.audit import Audit, audit_gradients
from opsin.train.data import StageData
from opsin.train.flops import Operations
from opsin.train.metrics import StepMetrics
from opsin.train.objective import Objective, Weighing, idle, names
from opsin.train.optimiser import rate_factor, rising_steps, set_rates
from opsin.train.parts import PartName, part_of
from opsin.train.recipe import Stage
from opsin.train.sharding import add_up, local, square_sum
from opsin.train.stream import StreamSteps, packs_from
from opsin.train.tally import Learned, all_finite, count, joined, parts_left_out, peak_memory
from opsin.train.world import World, alone, answering

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch says so, in errors of no class of their own."""


@dataclass
class Told:
    """Whom a loop tells what happens; none of them can change the training."""

    audited: Callable[[Audit], None] = lambda _audit: None
    damaged: Callable[[int, str], None] = lambda _step, _line: None
    trouble: Callable[[int, str, Sequence[Batch], Sequence[str]], None] = lambda _step, _why, _batches, _ids: None


@dataclass
class StageLoop:
    """Everything a stage needs to take its steps; `step` is the next one to take.

    - `number`: the stage's, which with `seed` decides every random draw, whatever the number of ranks
    - `saved`: the names of the weights that a checkpoint holds; `operations` counts those of a pack
    - `skip_bad`: samples with a medium that is damaged are left out; `told.damaged` hears the step (from 1) and which
    - `wanted`: the signal that this process was given, if any
    - `can_be_saved`: the error that ended a step is one that all ranks raise, and left the weights whole
    - `is_torn`: the optimiser's step was begun, but not finished
    - `troubles`: steps that were skipped, because the loss or a gradient was not finite
    """

    objective: Objective
    stage: Stage
    data: StageData
    steps: Sequence[tuple[Pack, ...]]
    optimiser: torch.optim.Optimizer
    world: World = field(default_factory=alone)
    number: int = 0
    seed: int = 0
    features: Features | None = None
    saved: Collection[str] | None = None
    operations: Operations | None = None
    step: int = 0
    troubles: int = 0
    skip_bad: bool = False
    told: Told = field(default_factory=Told)
    wanted: Callable[[], int | None] = lambda: None
    _audited: bool = False
    _seen_pictures: bool = False
    _loader: Loader | None = None
    _ended: float = 0.0
    _agreed: int | None = None
    can_be_saved: bool = False
    is_torn: bool = False

    @property
    def model(self) -> Vlm:
        """What is trained."""
        return self.objective.model

    def take_step(self) -> StepMetrics:
        """One optimiser step; counted, but not taken, if nothing is left of its packs or it is not finite.

        The loss is the weighed sum over the supervised tokens of all packs of all ranks, divided by the sum of their
        weights: it does not depend on how they are packed, nor on who makes which.

        Raises:
            DamagedError: a medium of a sample cannot be decoded, unless `skip_bad`.
            TrainError: the audit fails, too many steps were not finite, memory is out, or another rank failed.
        """
        began = self._ended or time.perf_counter()
        packs = rank_share(self.steps[self.step], self.world.rank, self.world.size)
        started = time.perf_counter()
        batches = self._fetch(packs)
        waited = time.perf_counter() - started
        kept = [(pack, batch) for pack, batch in zip(packs, batches, strict=True) if batch.lengths]
        weighings = [Weighing.of(batch, self.stage.loss.average) for _, batch in kept]
        flops = sum(self.operations.of(batch) for batch in batches) if self.operations is not None else 0.0
        own = count(batches, weighings) | {"flops": flops}
        told = self.world.gather(own | {"waited": waited, "stop": self.wanted()})
        sums = {key: sum(one[key] for one in told) for key in told[0] if key not in ("waited", "stop")}
        self._note_stop(told)
        rates = set_rates(self.optimiser, self._factor())
        learned = Learned()
        if sums["mass"]:
            rounds = max(one["packs"] for one in told)
            learned = self._learn(kept, weighings, sums["mass"], rounds, parts_left_out(sums))
            if learned.trouble:
                self._skip(learned.trouble, batches)
            else:
                self._move()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if isinstance(self.steps, StreamSteps):
            self.steps.forget(self.step)
        self._ended = time.perf_counter()
        del sums["mass"], sums["newlines"]
        return StepMetrics(
            step=self.step,
            loss=None if learned.trouble else learned.loss,
            grad_norm=None if learned.trouble else learned.norm,
            norms=learned.norms,
            rates=rates,
            sources=learned.sources,
            seconds=self._ended - began,
            waited=max(one["waited"] for one in told),
            memory=peak_memory(self.world.device),
            trouble=learned.trouble,
            **sums,
        )

    @property
    def stopping(self) -> int | None:
        """A signal that asks the run to end: of several ranks one that all know of, which they heard in the step."""
        return self._agreed if self.world.size > 1 else self.wanted()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What is raised in here is raised on all ranks."""
        self.can_be_saved = True
        yield
        self.can_be_saved = False

    def _move(self) -> None:
        """The optimiser's step; what is raised in it leaves some weights moved, and others not.

        Raises:
            OutOfMemoryError: there is no memory for the optimiser's state.
        """
        self.is_torn = True
        try:
            self.optimiser.step()
        except (RuntimeError, MemoryError) as error:
            if _is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"stage {self.stage.name!r}, step {self.step + 1}: memory ran out in the optimiser, which keeps "
                    "two numbers for every trained weight. Train fewer weights (LoRA, fewer layers), divide them among "
                    "more ranks, or set parallel.cpu_offload"
                ) from None
            raise
        self.is_torn = False

    def _note_stop(self, told: Sequence[Mapping[str, Any]]) -> None:
        self._agreed = next((one["stop"] for one in told if one["stop"] is not None), None)

    def _fetch(self, packs: Sequence[Pack]) -> list[Batch]:
        """All of this rank's packs of a step: what is left of all of them divides the loss."""
        made: list[Batch] = []
        error: OpsinError | None = None
        try:
            made = [self._batch() for _ in packs]
        except OpsinError as problem:
            error = problem
        with self._together():
            self.world.agree(error)
        for batch in made:
            for line in batch.skipped:
                self.told.damaged(self.step + 1, line)
        return made

    def _batch(self) -> Batch:
        """The next pack, from the first one of the step that is next when this is called first."""
        if self._loader is None:
            self._loader = Loader(
                self.data.examples,
                self.data.preparation,
                packs_from(self.steps, self.step, self.world.rank, self.world.size),
                workers=self.stage.workers,
                timeout=self.stage.worker_timeout,
                features=self.features,
                name_of=self.data.examples.name,
                pick=self.data.examples.pick,
                skip_bad=self.skip_bad,
            )
        return next(self._loader)

    def _learn(
        self,
        kept: Sequence[tuple[Pack, Batch]],
        weighings: Sequence[Weighing],
        mass: float,
        rounds: int,
        unreached: Collection[PartName],
    ) -> Learned:
        """Loss of a step and its gradients, which are audited, clipped and left at the parameters.

        Divided weights need every rank in every pass: one that has fewer packs than others makes idle ones.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        losses: list[Tensor] = []
        for turn in range(rounds if self.objective.is_shared else len(kept)):
            if turn < len(kept):
                (pack, batch), weighing = kept[turn], weighings[turn]
                self._seed(pack)
            else:
                batch = idle(self.model)
                weighing = Weighing.of(batch, self.stage.loss.average)
            loss, losses_S = self._backward(batch, weighing, mass)
            total += loss
            losses.append(losses_S)
        self._forget(unreached)
        trained = [p for p in self.model.parameters() if p.grad is not None]
        add_up(trained, self.world)
        sources = self._by_source(kept, weighings, losses)
        own = {"total": float(total), "squares": self._squares(), "sources": sources, "stop": self.wanted()}
        told = self.world.gather(own)
        self._note_stop(told)
        squares = {plan: sum(one["squares"][plan] for one in told) for plan in told[0]["squares"]}
        norm = math.sqrt(sum(squares.values())) if all_finite(squares.values()) else math.nan
        learned = Learned(
            loss=sum(one["total"] for one in told) / mass,
            norm=norm,
            norms={plan: math.sqrt(value) for plan, value in squares.items() if all_finite([value])},
            sources=joined([one["sources"] for one in told]),
        )
        if not learned.trouble:
            self._audit(pictures="vision" not in unreached)
            # As torch's clip_grad_norm_: never a larger gradient than there is.
            factor = min(1.0, self.stage.clip / (norm + 1e-6))
            if trained:
                torch._foreach_mul_([local(p.grad) for p in trained if p.grad is not None], factor)
        return learned

    def _backward(self, batch: Batch, weighing: Weighing, mass: float) -> tuple[Tensor, Tensor]:
        """The weighed loss of one pack, and those of its supervised positions; gradients are added."""
        try:
            with answering():
                moved = to_device(batch, self.model.device)
                loss, losses_S = self.objective(moved, weighing.weights_T.to(self.model.device))
                if loss.requires_grad:  # text alone reaches no weight of a stage that trains the connector only
                    # Divided gradients are averaged over the ranks, but the step's mass is that of all of them.
                    ranks = self.world.size if self.objective.is_divided else 1
                    (loss * (ranks / mass)).backward()
        except (RuntimeError, MemoryError) as error:
            if _is_out_of_memory(error):
                raise self._too_large(batch) from None
            raise
        return loss.detach().double(), losses_S

    def _forget(self, parts: Collection[PartName]) -> None:
        """Drop the zeros that stand for gradients on all ranks, where a process alone would have none.

        The optimiser moves what has a gradient of zero, by its momentum, but not what has none.
        """
        if self.objective.is_shared:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and part_of(name) in parts:
                    parameter.grad = None

    def _audit(self, *, pictures: bool) -> None:
        """Once, and once more in the first step with pictures."""
        if not self._audited or (pictures and not self._seen_pictures):
            with self._together():
                audit = audit_gradients(
                    self.model, self.stage, self.optimiser, pictures=pictures, saved=self.saved, ranks=self.world
                )
            self.told.audited(audit)
            self._audited, self._seen_pictures = True, pictures

    def _squares(self) -> dict[str, float]:
        """This rank's part of the squared gradient norms, by plan; a plan's parameters are in up to two groups."""
        found: dict[str, float] = {}
        for group in self.optimiser.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            found[group["part"]] = found.get(group["part"], 0.0) + square_sum(gradients, self.world)
        return found

    def _by_source(
        self, kept: Sequence[tuple[Pack, Batch]], weighings: Sequence[Weighing], losses: Sequence[Tensor]
    ) -> dict[str, tuple[float, int]]:
        """By source: the sum of the losses of its supervised tokens, and their number."""
        found: dict[str, tuple[float, int]] = {}
        for (pack, batch), weighing, losses_S in zip(kept, weighings, losses[: len(kept)], strict=True):
            sums = weighing.by_document(losses_S)
            for place, total, learned in zip(batch.kept, sums, weighing.supervised, strict=True):
                name = self.data.examples.source(pack.samples[place])
                before = found.get(name, (0.0, 0))
                found[name] = before[0] + total, before[1] + learned
        return found

    def _skip(self, trouble: str, batches: Sequence[Batch]) -> None:
        """Leave the weights as they are, and stop if that is so too often.

        Raises:
            TrainError: this is one step too many.
        """
        self.troubles += 1
        ids = [name for one in self.world.gather(names(batches)) for name in one]
        self.told.trouble(self.step + 1, trouble, batches, ids)
        if self.troubles >= self.stage.non_finite_steps:
            self.can_be_saved = True
            raise TrainError(
                f"stage {self.stage.name!r}, step {self.step + 1}: {trouble}; {self.troubles} steps of the stage were "
                "skipped for that, so the run ends; no weight was changed by them. Lower the learning rate, or look at "
                f"the samples of the last one: {', '.join(ids[:50])}"
            )

    def _seed(self, pack: Pack) -> None:
        """Dropout is a pure function of the pack: the same on any rank, and in a run that is resumed."""
        text = f"{self.seed} {self.number} {self.step} {pack.samples[0]}"
        torch.manual_seed(int.from_bytes(sha256(text.encode()).digest()[:7]))

    def _too_large(self, batch: Batch) -> OutOfMemoryError:
        stage = self.stage
        return OutOfMemoryError(
            f"stage {stage.name!r}, step {self.step + 1}: memory ran out on a pack of {batch.num_tokens:,} tokens, "
            f"{sum(layout.patches for layout in batch.layouts):,} patches and {len(batch.layouts)} pictures (samples "
            f"{', '.join(batch.ids[:50])}). Lower batch_tokens ({stage.batch_tokens:,}) or batch_patches "
            f"({stage.budget.patches:,}), or set activation_checkpointing: full"
        )

    @property
    def planned(self) -> dict[str, str]:
        """What a resumed run compares its plan with, where it is made on the way."""
        return {"planned": self.steps.digest(self.step)} if isinstance(self.steps, StreamSteps) else {}

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._loader is not None:
            self._loader.close()

    def _factor(self) -> float:
        """The share of the peak rates in the next step."""
        total = len(self.steps)
        stage = self.stage
        return rate_factor(self.step, total, rising_steps(stage, total), stage.schedule, stage.least_rate)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)
