"""How the training of a stage went, as plots: what metrics.jsonl tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from opsin.report.document import folded_list
from opsin.report.plots import Line, Point, line_plot, smoothed
from opsin.report.run import StageRecord, Step
from opsin.report.words import counted, duration

COLOURS = ("one", "two", "three", "four", "five", "six")


def stage_section(name: str, record: StageRecord, budget: int | None = None) -> str:
    """A stage's plots; `budget` is what a pack holds of tokens, if it is known."""
    steps = record.steps
    head = f'<h3>Stage “{escape(name)}” <span class="soft">{escape(_told(record))}</span></h3>'
    validation = tuple((float(check.step), check.loss) for check in record.checks if check.loss is not None)
    loss = each_step([step.step for step in steps], [step.loss for step in steps])
    loss += [Line("validation", validation, "two")] if validation else []
    rates = by_name(steps, lambda step: step.rates)
    norms = by_name(steps, lambda step: step.norms)
    plots = figure("Loss", loss) + figure("Learning rate", rates, from_zero=True)
    plots += figure("Tokens a second", _speeds(steps), from_zero=True)
    if norms:
        plots += figure("Gradient norm, smoothed", list(map(_smooth, norms)), from_zero=True)
    plots += _sources(steps) + _more(steps, budget) + _benchmarks(record)
    troubles = [f"step {step}: {why}" for step, why in record.troubles]
    listed = folded_list("Steps that were skipped", troubles) if troubles else ""
    return f'{head}<div class="plots">{plots}</div>{listed}\n'


def figure(name: str, lines: Sequence[Line], *, from_zero: bool = False) -> str:
    """A plot with its key."""
    keys = "".join(
        f'<span class="named"><svg class="key" viewBox="0 0 26 10" aria-hidden="true">'
        f'<polyline class="{line.css}" points="0,5 26,5"/></svg>{escape(line.name)}</span>'
        for line in lines
    )
    plot = line_plot(name, lines, from_zero=from_zero)
    return f'<figure class="card"><h3>{escape(name)}</h3>{plot}<figcaption>{keys}</figcaption></figure>'


def each_step(at: Sequence[int], values: Sequence[float]) -> list[Line]:
    """Values as they are, and smoothed."""
    places = [float(step) for step in at]
    return [
        Line("each step", tuple(zip(places, values, strict=True)), "raw"),
        Line("smoothed", tuple(zip(places, smoothed(values), strict=True)), "one"),
    ]


def by_name(steps: Sequence[Step], values: Callable[[Step], Mapping[str, float]]) -> list[Line]:
    """A line for every name that some step has a value for."""
    points: dict[str, list[Point]] = {}
    for step in steps:
        for name, value in values(step).items():
            points.setdefault(name, []).append((float(step.step), value))
    return [Line(name, tuple(own), COLOURS[number % len(COLOURS)]) for number, (name, own) in enumerate(points.items())]


def _told(record: StageRecord) -> str:
    """How much was done, in words."""
    told = f"{counted(len(record.steps), 'step')} in {duration(record.seconds)}"
    told += f", {record.tokens_per_second or 0:,.0f} tokens a second"
    waited = [step.waited for step in record.steps if step.waited is not None]
    if waited and record.seconds:
        told += f", {sum(waited) / record.seconds:.0%} of the time waiting for data"
    if memory := max((step.memory for step in record.steps), default=0):
        told += f", {memory / 1e9:.1f} GB at the peak"
    if record.skipped:
        told += f"; {counted(record.skipped, 'sample')} left out, damaged"
    return told


def _speeds(steps: Sequence[Step]) -> list[Line]:
    at = [step.step for step in steps]
    lines = each_step(at, [step.tokens_per_second for step in steps])
    if any(step.supervised for step in steps):
        learned = smoothed([step.supervised / step.seconds if step.seconds > 0 else 0.0 for step in steps])
        lines.append(Line("supervised", tuple(zip(map(float, at), learned, strict=True)), "two"))
    return lines


def _sources(steps: Sequence[Step]) -> str:
    """The loss of a supervised token by source, smoothed, where there are several."""
    lines = by_name(steps, lambda step: {name: total / n for name, (total, n) in step.sources.items() if n})
    return figure("Loss by source, smoothed", list(map(_smooth, lines))) if len(lines) > 1 else ""


def _smooth(line: Line) -> Line:
    """The same line without its noise, which would hide others."""
    values = smoothed([value for _, value in line.points])
    return Line(line.name, tuple(zip((at for at, _ in line.points), values, strict=True)), line.css)


def _more(steps: Sequence[Step], budget: int | None) -> str:
    """Waiting, memory and packing, of runs that tell them."""
    plots = ""
    waits = [
        (step.step, 100 * step.waited / step.seconds) for step in steps if step.waited is not None and step.seconds
    ]
    if waits:
        lines = each_step([step for step, _ in waits], [share for _, share in waits])
        plots += figure("Waiting for data, % of a step", lines, from_zero=True)
    if any(step.memory for step in steps):
        memory = tuple((float(step.step), step.memory / 1e9) for step in steps)
        plots += figure("Memory at the peak so far, GB", [Line("memory", memory, "one")], from_zero=True)
    packed = [step for step in steps if step.packs]
    if packed:
        at = [step.step for step in packed]
        plots += figure(
            "Samples of a pack", each_step(at, [step.samples / step.packs for step in packed]), from_zero=True
        )
        if budget:
            full = [100 * step.tokens / step.packs / budget for step in packed]
            plots += figure("Packs are full, %", each_step(at, full), from_zero=True)
    return plots


def _benchmarks(record: StageRecord) -> str:
    """A plot for every score's name, with a line for every benchmark that has it."""
    found: dict[str, dict[str, list[Point]]] = {}
    for check in record.checks:
        for name, scores in check.benchmarks.items():
            for score, value in scores.items():
                found.setdefault(score, {}).setdefault(name, []).append((float(check.step), value))
    return "".join(
        figure(
            f"Benchmarks: {score}",
            [Line(name, tuple(points), COLOURS[i % len(COLOURS)]) for i, (name, points) in enumerate(lines.items())],
            from_zero=True,
        )
        for score, lines in found.items()
    )
