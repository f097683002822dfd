"""Runs side by side: what differs in recipe, data and versions, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from opsin.core.terminal import printable
from opsin.report.document import document, section
from opsin.report.plots import Line, smoothed
from opsin.report.run import RunFiles, StageRecord
from opsin.report.training import COLOURS, figure
from opsin.report.words import duration

LAST = 10
"""Steps of which the final loss is the mean: single steps jump."""

UNSHOWN = ("recipe", "samples")
"""What run.json says of things that are compared by themselves, or follow from them."""

Row = tuple[str, tuple[Any, ...]]
"""A name, and the value of each run; None where it has none."""


@dataclass(frozen=True)
class Comparison:
    """Two or more runs by their names; `differences` of recipe, data and versions; `results` by stage."""

    runs: tuple[RunFiles, ...]
    names: tuple[str, ...]
    differences: tuple[Row, ...]
    results: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "differences": {name: list(values) for name, values in self.differences},
            "results": {name: list(values) for name, values in self.results},
        }


def compare(runs: Sequence[RunFiles]) -> Comparison:
    """What differs between runs, and their results."""
    told = [_flat(run.recipe) | {f"run: {key}": value for key, value in _provenance(run).items()} for run in runs]
    keys = dict.fromkeys(key for one in told for key in one)
    rows = [(key, tuple(one.get(key) for one in told)) for key in keys]
    results = [dict(_results(run)) for run in runs]
    found = dict.fromkeys(name for one in results for name in one)
    names = [run.path.name for run in runs]
    return Comparison(
        runs=tuple(runs),
        names=tuple(name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)),
        differences=tuple((key, values) for key, values in rows if any(value != values[0] for value in values)),
        results=tuple((name, tuple(one.get(name) for one in results)) for name in found),
    )


def shown(name: str, value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return duration(value) if name.endswith("time") else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def compare_page(comparison: Comparison) -> str:
    """The HTML, with a plot of the losses of every stage."""
    stages = dict.fromkeys(name for run in comparison.runs for name in run.stages)
    plots = "".join(figure(f"Loss, stage “{stage}”", _losses(comparison, stage)) for stage in stages)
    name = " and ".join(comparison.names)
    body = (
        f"<header>\n<h1>{escape(printable(name))}</h1>\n</header>\n"
        + section("Losses, smoothed", f'<div class="plots">{plots}</div>')
        + section("Results", _table(comparison.names, comparison.results))
        + section("What differs", _table(comparison.names, comparison.differences) or "<p>Nothing.</p>")
    )
    return document(name, body)


def _losses(comparison: Comparison, stage: str) -> list[Line]:
    lines = []
    for number, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True)):
        steps = run.stages[stage].steps if stage in run.stages else []
        values = smoothed([step.loss for step in steps])
        points = tuple((float(step.step), value) for step, value in zip(steps, values, strict=True))
        lines.append(Line(name, points, COLOURS[number % len(COLOURS)]))
    return lines


def _table(names: Sequence[str], rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(printable(name))}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(printable(key))}</th>'
        + "".join(
            f'<td data-name="{escape(printable(name), quote=True)}"><span>{escape(shown(key, value))}</span></td>'
            for name, value in zip(names, values, strict=True)
        )
        + "</tr>\n"
        for key, values in rows
    )
    return (
        f'<div class="card"><table class="scores"><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a recipe by its path: `stages.align.batch_tokens`; stages by name, other lists by number."""
    if isinstance(value, Mapping):
        return {key: leaf for part, inner in value.items() for key, leaf in _flat(inner, _joined(name, part)).items()}
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        parts = [str(inner.get("name", place)) if name == "stages" else str(place) for place, inner in enumerate(value)]
        return {
            key: leaf
            for part, inner in zip(parts, value, strict=True)
            for key, leaf in _flat(inner, _joined(name, part)).items()
        }
    return {name: value}


def _joined(name: str, part: str) -> str:
    return f"{name}.{part}" if name else str(part)


def _provenance(run: RunFiles) -> dict[str, Any]:
    """Versions and hashes of data; a hash is cut, since it only has to differ."""
    kept = {key: value for key, value in run.provenance.items() if key not in UNSHOWN}
    return {key: value[:12] if key.startswith("data.") else value for key, value in _flat(kept).items()}


def _results(run: RunFiles) -> Iterator[tuple[str, float | int]]:
    for name, record in run.stages.items():
        for what, value in _of_stage(record):
            if value is not None:
                yield f"{name}: {what}", value
    for evaluation in run.evaluations:
        for score in evaluation.scores.scores:
            yield f"{evaluation.name}: {score.task} {score.metric}", score.value


def _of_stage(record: StageRecord) -> Iterator[tuple[str, float | int | None]]:
    losses = [step.loss for step in record.steps if math.isfinite(step.loss)]
    yield "steps", len(record.steps)
    yield f"final loss (mean of {LAST} steps)", sum(losses[-LAST:]) / len(losses[-LAST:]) if losses else None
    yield "best loss (smoothed)", min(smoothed(losses), default=None)
    checked = [check.loss for check in record.checks if check.loss is not None]
    yield "final validation loss", checked[-1] if checked else None
    yield "best validation loss", min(checked, default=None)
    last = record.checks[-1].benchmarks if record.checks else {}
    for name, scores in last.items():
        for score, value in scores.items():
            yield f"{name} {score}", value
    yield "tokens a second", record.tokens_per_second
    yield "time", record.seconds
    yield "steps skipped", len(record.troubles) or None
    yield "samples left out", record.skipped or None
