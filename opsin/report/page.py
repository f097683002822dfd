"""The report of a run: one HTML file that needs nothing else, no network and no JavaScript.

Everything that comes from data or a model passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from opsin.core.files import write_json, write_text
from opsin.report.document import counts, document, section
from opsin.report.gallery import gallery
from opsin.report.run import DataFacts, RunFacts, RunFiles, StageRecord, facts_of, read_facts, read_run
from opsin.report.scores import SHARES, Evaluation, Metric, Reference, Score, rows, shown, title
from opsin.report.training import stage_section
from opsin.report.words import duration

REPORT = "report.html"
FACTS = "report.json"
CIDER_BEST = 10.0
SIGNS = {"above": ("▲", "above the baseline"), "near": ("≈", "near the baseline"), "below": ("▼", "below the baseline")}


def write_report(run: Path, facts: RunFacts) -> Path:
    """Write RUN/report.html from the run's files and what the caller knows, which is kept in RUN/report.json.

    Raises:
        OpsinError: metrics or a picture cannot be read.
    """
    text = page(facts, read_run(run))
    write_json(run / FACTS, facts.as_dict())
    write_text(run / REPORT, text)
    return run / REPORT


def rewrite(run: Path, out: Path | None = None) -> Path:
    """Write RUN/report.html, or another file, from the run's files alone; returns its path.

    Raises:
        OpsinError: there is no run, or one of its files or pictures cannot be read.
    """
    files = read_run(run)
    out = out or run / REPORT
    facts = read_facts(run / FACTS, files.evaluations) if (run / FACTS).exists() else facts_of(files)
    write_text(out, page(facts, files))
    return out


def page(facts: RunFacts, files: RunFiles) -> str:
    """The HTML."""
    budgets = {stage.get("name"): stage.get("batch_tokens") for stage in files.recipe.get("stages", [])}
    training = "".join(stage_section(name, record, budgets.get(name)) for name, record in files.stages.items())
    answers = "" if facts.image_root is None else gallery(facts.evaluations, facts.image_root)
    sections = [
        _header(facts, files.stages),
        section("Scores on held-out pictures", _score_table(facts.evaluations, facts.references)),
        section("What it answers", answers),
        section("Training", training or '<p class="none">No step has been taken yet.</p>'),
        section("What it sees", files.samples),
        section("Data", _data(facts.data)),
        section("Talk to it", f"<pre><code>{escape(facts.chat)}</code></pre>"),
    ]
    return document(facts.name, "".join(sections), *(["inspect.css"] if files.samples else []))


def _header(facts: RunFacts, stages: Mapping[str, StageRecord]) -> str:
    tokens = sum(step.tokens for record in stages.values() for step in record.steps)
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
