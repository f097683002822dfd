"""What a person sees of a run: lines on stderr, and a bar with rate and time left while something takes long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.text import Text

from opsin.core.terminal import printable
from opsin.data.held import Held
from opsin.data.plan import Plan
from opsin.model.vlm import Vlm
from opsin.report.words import amounts, counted, duration
from opsin.train.flops import peak
from opsin.train.hooks import Hooks
from opsin.train.loop import StageLoop
from opsin.train.metrics import StepMetrics
from opsin.train.recipe import Stage
from opsin.train.world import World

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
        self._peak: float | None = None

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
            on_check=lambda stage, step, checked: self.on_line(f"{stage.name} {step}: {checked}"),
            before_stages=lambda model: self.before(model),
            after_stage=lambda stage, model: self.after(stage, model),
        )

    def on_line(self, line: str) -> None:
        """Print one line above any bar; nobody may be reading any more (`| head`, a terminal that is closed)."""
        with suppress(OSError):
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
        self._peak = _peak(loop.world, loop.model)
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
        text = told(self._since, self._peak)
        self._advance(stage.name, metrics.step, total, text)
        due = time.monotonic() - self._told >= PLAIN_SECONDS
        if due or metrics.step % PLAIN_EVERY == 0 or metrics.step == total:
            if not self.console.is_terminal or metrics.step == total:  # a bar is gone when it is full
                left = sum(step.seconds for step in self._since) / len(self._since) * (total - metrics.step)
                left_text = f"  {duration(left)} left" if metrics.step < total else ""
                self.on_line(f"{stage.name} {metrics.step}/{total}  {text}{left_text}")
            self._told = time.monotonic()
            self._since.clear()

    def _advance(self, name: str, done: int, total: int | None, text: str) -> None:
        if not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = _Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeLeftColumn(),
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


class _Bar(Progress):
    """A bar with a line of numbers below it, cut off where the terminal ends."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and its line."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["text"]:
                yield Text(task.fields["text"], no_wrap=True, overflow="ellipsis", style="dim")


def told(steps: Sequence[StepMetrics], peak: float | None = None) -> str:
    """What some steps did together, since numbers of one step jump; `peak` is what all devices can do in a second.

    The loss of a supervised token, tokens (and supervised ones) and pictures of a second, the share of the time that
    was spent waiting for data, memory, and model FLOPs utilisation.
    """
    seconds = sum(step.seconds for step in steps)
    learned = [step for step in steps if step.loss is not None]
    supervised = sum(step.supervised for step in learned)
    loss = sum(step.loss * step.supervised for step in learned if step.loss is not None)
    parts = [f"loss {loss / supervised:.3f}" if supervised else "nothing to learn"]
    rate, learning = (sum(getattr(step, name) for step in steps) / seconds for name in ("tokens", "supervised"))
    parts.append(f"{rate:,.0f} tok/s ({learning:,.0f} learned)")
    if pictures := sum(step.pictures for step in steps):
        parts.append(f"{pictures / seconds:,.1f} img/s")
    if waited := sum(step.waited for step in steps):
        parts.append(f"data {waited / seconds:.0%}")
    if memory := max(step.memory for step in steps):
        parts.append(f"{memory / 1e9:.1f} GB")
    if peak is not None:
        parts.append(f"MFU {sum(step.flops for step in steps) / seconds / peak:.0%}")
    if skipped := sum(1 for step in steps if step.trouble):
        parts.append(f"{counted(skipped, 'step')} skipped")
    return "  ".join(parts)


def _peak(world: World, model: Vlm) -> float | None:
    """What all devices can do in a second, where that is known."""
    if world.device.type != "cuda":
        return None
    one = peak(torch.cuda.get_device_name(world.device), model.precision)
    return None if one is None else one * world.size
