"""What a stage is mixed of, as plots: sources by share, kinds of samples, lengths, and how full the packs are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from opsin.core.terminal import printable
from opsin.data.costs import Kind
from opsin.report.document import counts, folded_list
from opsin.report.plots import bar_plot, histogram
from opsin.report.stage_view import SourceView, StageView

MOST_SOURCES = 24
"""Sources whose lengths are drawn by themselves."""


def mixture(stage: StageView) -> str:
    """The HTML."""
    sources = stage.sources()
    by_source = f'<div class="card sources"><h3>{_heading(stage)}</h3>{_sources(sources)}</div>'
    lists = "".join(folded_list(name, lines) for name, lines in stage.left_out.items())
    notes = f'<p class="soft">{escape(printable("; ".join(stage.notes)))}</p>' if stage.notes else ""
    none = "" if lists else '<p class="soft">No sample was refused.</p>'
    return (
        f'<div class="columns">{counts("What there is", _told(stage))}{by_source}</div>'
        f'<div class="plots">{_plots(stage)}</div>{_lengths(sources)}{notes}{lists}{none}'
    )


def _heading(stage: StageView) -> str:
    return "What the packs hold of each source" if stage.packs else "Sources"


def _told(stage: StageView) -> Iterable[tuple[str, int]]:
    told = {
        "Samples": len(stage.examples),
        "Tokens": stage.tokens,
        "of them text": stage.tokens - stage.visual,
        "of them visual": stage.visual,
        "of them learned": stage.learned,
        "Encoder patches": int(stage.costs.patches.sum()),
    }
    if stage.budget is not None:
        told |= {"Packs, all epochs": len(stage.packs), "Steps": len(stage.steps)}
    return told.items()


def _sources(sources: Sequence[SourceView]) -> str:
    drawn = sum(source.drawn for source in sources)
    tokens = sum(source.tokens for source in sources)
    return "".join(
        f'<h4>{escape(printable(source.name))} <span class="soft">{source.samples:,} samples</span></h4>'
        f'<div class="groups">{_share("samples", source.drawn, drawn)}{_share("tokens", source.tokens, tokens)}'
        f"<span>kinds</span>{kind_bar(source.kinds)}</div>"
        for source in sources
    )


def _share(name: str, number: int, whole: int) -> str:
    share = 100 * number / max(1, whole)
    return (
        f'<span>{name}</span><span class="meter"><i style="width:{share:.1f}%"></i></span>'
        f'<span class="count">{share:.1f}% <small>{number:,}</small></span>'
    )


def kind_bar(kinds: dict[Kind, int]) -> str:
    """One bar with a stretch for every kind, and their numbers below it: two cells of a `groups` grid."""
    whole = max(1, sum(kinds.values()))
    parts = "".join(
        f'<i class="{kind}" style="width:{100 * number / whole:.2f}%"></i>' for kind, number in kinds.items()
    )
    told = " ".join(f'<span><b class="dot {kind}"></b>{number:,} {kind}</span>' for kind, number in kinds.items())
    return f'<span class="stack"><span class="meter">{parts}</span><span class="told">{told}</span></span>'


def figure(name: str, values: Sequence[float], unit: str, ends: tuple[float, float] | None = None) -> str:
    """A card with a histogram."""
    return f'<figure class="card"><h3>{escape(name)}</h3>{bar_plot(name, *histogram(values, ends), unit)}</figure>'


def _plots(stage: StageView) -> str:
    plots = figure("Tokens of a sample", stage.costs.tokens.tolist(), "tokens")
    for name, unit, fill in (
        ("tokens", "batch_tokens", stage.fill()),
        ("patches", "batch_patches", stage.patch_fill()),
    ):
        if any(fill):
            mean = f"How full of {name} the packs are: {np.mean(fill):.1%} on average"
            plots += figure(mean, [100 * share for share in fill], f"% of {unit}", (0, 100))
    return plots


def _lengths(sources: Sequence[SourceView]) -> str:
    """Every source's lengths by themselves, on one scale."""
    if len(sources) < 2:
        return ""
    longest = max((int(source.costs.tokens.max()) for source in sources if source.samples), default=1)
    drawn = "".join(
        figure(printable(source.name), source.costs.tokens.tolist(), "tokens", (0, longest))
        for source in sources[:MOST_SOURCES]
    )
    more = len(sources) - MOST_SOURCES
    rest = f'<p class="soft">and {more:,} more sources</p>' if more > 0 else ""
    head = "<summary>Tokens of a sample, by source</summary>"
    return f'<details>{head}<div class="plots">{drawn}</div>{rest}</details>'
