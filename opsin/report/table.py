"""The scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from opsin.report.scores import Evaluation, Reference, Score, rows, shown, title

STYLES = {"above": "bold green", "near": "", "below": "red"}
SIGNS = {"above": "▲", "near": "≈", "below": "▼"}
"""Whether a value lies above, near or below its baseline, so that colour is not the only sign."""

CAPTION = (
    "▲ above the baseline, ≈ the baseline lies in the 95% interval, ▼ below it. Recall is calibrated: each caption's "
    "mean score over the asked pictures is subtracted, so it is not the plain R@1 or R@5"
)


def scores_table(evaluations: Sequence[Evaluation], references: Sequence[Reference] = ()) -> Table:
    """A row per task and metric, a column per evaluation, then the baseline and the references."""
    extra = list(dict.fromkeys(reference.name for reference in references))
    table = Table(caption=CAPTION)
    table.add_column("Task")
    for evaluation in evaluations:
        table.add_column(Text(evaluation.name), justify="right")
    table.add_column("Baseline", justify="right")
    for name in extra:
        table.add_column(Text(name), justify="right")
    for task, metric in rows(evaluations):
        found = [evaluation.scores.find(task, metric) for evaluation in evaluations]
        first = next(score for score in found if score is not None)
        values = {r.name: shown(r.value, metric) for r in references if (r.task, r.metric) == (task, metric)}
        table.add_row(
            Text(f"{title(task)}, {metric} ({first.total})"),
            *map(_cell, found),
            Text(f"{shown(first.baseline, metric)} {first.baseline_name}"),
            *(values.get(name, "") for name in extra),
        )
    return table


def _cell(score: Score | None) -> Text:
    if score is None:
        return Text("")
    return Text(f"{shown(score.value, score.metric)} {SIGNS[score.verdict]}", style=STYLES[score.verdict])
