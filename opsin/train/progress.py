"""What a person sees of a run: lines on stderr, and a bar with rate and time left while something takes long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from opsin.core.terminal import printable
from opsin.data.held import Held
from opsin.data.plan import Plan
from opsin.model.vlm import Vlm
from opsin.report.words import amounts, counted
from opsin.train.hooks import Hooks
from opsin.train.loop import StageLoop
from opsin.train.metrics import StepMetrics
from opsin.train.recipe import Stage

PLAIN_EVERY = 20
"""Steps between printed lines where there is no terminal to draw a bar on."""

PLAIN_SECONDS = 30.0
"""The longest time between them, but for a step that takes longer."""

READ_EVERY = 200
"""Samples read between two looks at the clock."""


class ProgressHooks:
    """Hooks that print; `before` and `after` are for the caller's own work around the stages.

    Leaving its `with` block closes the bar, so that an error or Ctrl-C leaves the terminal with its cursor.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.before: Callable[[Vlm], None] = lambda _model: None
        self.after: Callable[[Stage, Vlm], None] = lambda _stage, _model: None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._read: Counter[str] = Counter()
        self._told = time.monotonic()
        self._since: list[StepMetrics] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def hooks(self) -> Hooks:
        """The value that a run takes."""
        return Hooks(
            on_line=self.on_line,
            on_read=self.on_read,
            on_features=self.on_features,
            on_stage=self._on_stage,
            on_step=self._on_step,
            before_stages=lambda model: self.before(model),
            after_stage=lambda stage, model: self.after(stage, model),
        )

    def on_line(self, line: str) -> None:
        """Print one line above any bar."""
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def on_read(self, name: str, more: int) -> None:
        """Progress of reading a source, of which nobody knows how many samples it has."""
        before = self._read[name]
        self._read[name] += more
        if before // READ_EVERY != self._read[name] // READ_EVERY:
            self._advance(f"reading {name}", self._read[name], None, "samples")

    def on_features(self, done: int, total: int) -> None:
        """Progress of the feature cache."""
        self._advance("features", done, total, "")

    @contextmanager
    def bar(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for something that reports (done, total)."""
        try:
            yield lambda done, total: self._advance(name, done, total, "")
        finally:
            self._close()

    def _on_stage(self, stage: Stage, loop: StageLoop) -> None:
        self._close()
        trained = ", ".join(f"{group.name} {group.plan.lr:g}" for group in stage.train.groups)
        if stage.order == "stream":
            self.on_line(f"stage {stage.name!r}: {len(loop.steps):,} steps over samples as they come; trains {trained}")
            return
        plan = Plan(tuple(pack for step in loop.steps for pack in step), stage.budget)
        held = Held.by(plan.packs, loop.data.examples.costs)
        told = amounts(held.available, sum(loop.data.amounts), len(held.samples), len(plan.packs), plan.efficiency)
        steps = counted(len(loop.steps), "step")
        self.on_line(f"stage {stage.name!r}: {told}, {steps}, {plan.tokens:,} tokens; trains {trained}")

    def _on_step(self, stage: Stage, metrics: StepMetrics, total: int) -> None:
        self._since.append(metrics)
        text = _mean(self._since)
        self._advance(stage.name, metrics.step, total, text)
        due = time.monotonic() - self._told >= PLAIN_SECONDS
        if due or metrics.step % PLAIN_EVERY == 0 or metrics.step == total:
            if not self.console.is_terminal:
                self.on_line(f"{stage.name} {metrics.step}/{total}  {text}")
            self._told = time.monotonic()
            self._since.clear()

    def _advance(self, name: str, done: int, total: int | None, text: str) -> None:
        if not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeLeftColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(name, total=total, text=text)
        if self._task is not None:
            self._progress.update(self._task, description=name, completed=done, total=total, text=text)
        if total is not None and done >= total:
            self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None


def _mean(steps: Sequence[StepMetrics]) -> str:
    """The loss of a supervised token of some steps, and the tokens of a second: those of one step jump."""
    loss = sum(step.loss * step.supervised for step in steps if step.loss is not None)
    learned, seconds = sum(step.supervised for step in steps), sum(step.seconds for step in steps)
    told = f"loss {loss / learned:.3f}" if learned else "nothing to learn"
    return f"{told}  {sum(step.tokens for step in steps) / seconds:,.0f} tokens/s"
