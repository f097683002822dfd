"""The report of a run: one HTML file that needs nothing else, no network and no JavaScript.

Everything that comes from data or a model passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from opsin.core.files import write_text
from opsin.report.document import counts, document, section
from opsin.report.gallery import gallery
from opsin.report.plots import Line, line_plot, smoothed
from opsin.report.run import DataFacts, RunFacts, Step, read_steps
from opsin.report.scores import SHARES, Evaluation, Metric, Reference, Score, rows, shown, title
from opsin.report.words import duration

REPORT = "report.html"
CIDER_BEST = 10.0
SIGNS = {"above": ("▲", "above the baseline"), "near": ("≈", "near the baseline"), "below": ("▼", "below the baseline")}
COLOURS = ("one", "two", "three")


def write_report(run: Path, facts: RunFacts) -> Path:
    """Write RUN/report.html from RUN/metrics.jsonl and what the caller knows; returns its path.

    Raises:
        OpsinError: metrics or a picture cannot be read.
    """
    path = run / REPORT
    write_text(path, page(facts, read_steps(run / "metrics.jsonl")))
    return path


def page(facts: RunFacts, stages: Mapping[str, Sequence[Step]]) -> str:
    """The HTML."""
    sections = [
        _header(facts, stages),
        section("Scores on held-out pictures", _score_table(facts.evaluations, facts.references)),
        section("What it answers", gallery(facts.evaluations, facts.image_root)),
        section("Training", "".join(_stage(stage, steps) for stage, steps in stages.items())),
        section("Data", _data(facts.data)),
        section("Talk to it", f"<pre><code>{escape(facts.chat)}</code></pre>"),
    ]
    return document(facts.name, "".join(sections))


def _header(facts: RunFacts, stages: Mapping[str, Sequence[Step]]) -> str:
    tokens = sum(step.tokens for steps in stages.values() for step in steps)
    told = {
        "Date": facts.date,
        "Took": duration(facts.seconds),
        "Machine": facts.machine,
        "Trained on": f"{tokens:,} tokens",
    }
    items = "".join(f"<li>{name} <b>{escape(value)}</b></li>" for name, value in told.items())
    return f'<header>\n<h1>{escape(facts.name)}</h1>\n<ul class="facts soft">{items}</ul>\n</header>\n'


def _score_table(evaluations: Sequence[Evaluation], references: Sequence[Reference]) -> str:
    if not evaluations:
        return ""
    extra = list(dict.fromkeys(reference.name for reference in references))
    names = [*(evaluation.name for evaluation in evaluations), "without looking", *extra]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        _score_row(
            task,
            metric,
            evaluations,
            {r.name: r.value for r in references if (r.task, r.metric) == (task, metric)},
            extra,
        )
        for task, metric in rows(evaluations)
    )
    return (
        f'<div class="card"><table class="scores"><thead><tr><th scope="col">Task</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{SCORE_NOTES}"
    )


def _score_row(
    task: str, metric: Metric, evaluations: Sequence[Evaluation], values: Mapping[str, float], extra: Iterable[str]
) -> str:
    found = [(evaluation.name, evaluation.scores.find(task, metric)) for evaluation in evaluations]
    first = next(score for _, score in found if score is not None)
    cells = [_score_cell(name, score) for name, score in found]
    cells.append(
        f'<td data-name="without looking"><span>{shown(first.baseline, metric)}'
        f"<small>{escape(first.baseline_name)}</small></span></td>"
    )
    for name in extra:
        cells.append(
            f'<td data-name="{escape(name)}"><span>{shown(values[name], metric)}</span></td>'
            if name in values
            else '<td class="empty"></td>'
        )
    unit = "question" if metric == "accuracy" else "picture"
    plural = "" if first.total == 1 else "s"
    head = f"{escape(title(task))}<small>{metric}, {first.total} {unit}{plural}</small>"
    return f'<tr><th scope="row">{head}</th>{"".join(cells)}</tr>\n'


def _score_cell(name: str, score: Score | None) -> str:
    if score is None:
        return '<td class="empty"></td>'
    sign, meaning = SIGNS[score.verdict]
    interval = "" if score.low is None or score.high is None else f"{100 * score.low:.0f} to {100 * score.high:.0f}%"
    best = 1.0 if score.metric in SHARES else CIDER_BEST
    width, mark = (100 * min(1.0, max(0.0, value / best)) for value in (score.value, score.baseline))
    meter = f'<span class="meter"><i style="width:{width:.1f}%"></i><u style="left:{mark:.1f}%"></u></span>'
    return (
        f'<td class="score {score.verdict}" data-name="{escape(name)}"><span><b>{shown(score.value, score.metric)}</b> '
        f'<span class="sign" title="{meaning}">{sign}</span>{meter}<small>{interval}</small></span></td>'
    )


SCORE_NOTES = """\
<p class="soft">▲ above what can be had without looking at the picture (by chance, or with one and the same answer; the
upright mark on the bar), ≈ no clear difference, ▼ below. The ranges are 95% intervals. Accuracy counts answers that
equal the truth but for case, spaces and a full stop. CIDEr-D (0 to 10) compares captions by the rare words they share.
Recall@k: the right caption is among the k that fit a picture best, of all captions in the comparison. The fit is
calibrated: from each caption's score its mean over the asked pictures is subtracted, since a caption that is likely
whatever is seen would win otherwise. So these are not the plain R@1 and R@5.</p>"""


def _stage(name: str, steps: Sequence[Step]) -> str:
    at = [float(step.step) for step in steps]
    losses = [step.loss for step in steps]
    seconds = sum(step.seconds for step in steps)
    speeds = [step.tokens_per_second for step in steps]
    loss = [
        Line("each step", tuple(zip(at, losses, strict=True)), "raw"),
        Line("smoothed", tuple(zip(at, smoothed(losses), strict=True)), "one"),
    ]
    parts = list(dict.fromkeys(part for step in steps for part in step.rates))
    rates = [
        Line(part, tuple((float(s.step), s.rates[part]) for s in steps if part in s.rates), COLOURS[i % len(COLOURS)])
        for i, part in enumerate(parts)
    ]
    speed = [
        Line("each step", tuple(zip(at, speeds, strict=True)), "raw"),
        Line("smoothed", tuple(zip(at, smoothed(speeds), strict=True)), "one"),
    ]
    mean_speed = sum(step.tokens for step in steps) / seconds if seconds else 0.0
    told = f"{len(steps):,} steps in {duration(seconds)}, {mean_speed:,.0f} tokens a second"
    return (
        f'<h3>Stage “{escape(name)}” <span class="soft">{told}</span></h3><div class="plots">'
        f"{_figure('Loss', loss)}{_figure('Learning rate', rates, from_zero=True)}"
        f"{_figure('Tokens a second', speed, from_zero=True)}</div>\n"
    )


def _figure(name: str, lines: Sequence[Line], *, from_zero: bool = False) -> str:
    keys = "".join(
        f'<svg class="key" viewBox="0 0 26 10" aria-hidden="true">'
        f'<polyline class="{line.css}" points="0,5 26,5"/></svg>{escape(line.name)}'
        for line in lines
    )
    plot = line_plot(name, lines, from_zero=from_zero)
    return f'<figure class="card"><h3>{escape(name)}</h3>{plot}<figcaption>{keys}</figcaption></figure>'


def _data(data: DataFacts) -> str:
    blocks = []
    if data.counts:
        blocks.append(counts("What there is", data.counts.items()))
    if data.groups:
        most = max(1, *(train + held_out for train, held_out in data.groups.values()))
        bars = "".join(_group_bar(name, train, held_out, most) for name, (train, held_out) in data.groups.items())
        heading = '<h3>Pictures per group <span class="soft">trained on + held out</span></h3>'
        blocks.append(f'<div class="card">{heading}<div class="groups">{bars}</div></div>')
    if data.skipped:
        blocks.append(counts(f"Skipped: {sum(data.skipped.values()):,}, and why", data.skipped.items()))
    return f'<div class="columns">{"".join(blocks)}</div>' if blocks else ""


def _group_bar(name: str, train: int, held_out: int, most: int) -> str:
    width = 100 * (train + held_out) / most
    return (
        f'<span>{escape(name)}</span><span class="meter"><i style="width:{width:.1f}%"></i></span>'
        f'<span class="count">{train} + {held_out}</span>'
    )
