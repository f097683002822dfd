"""What a stage is mixed of, as plots: sources by share, kinds of samples, lengths, and how full the packs are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import islice

import numpy as np

from opsin.core.terminal import printable
from opsin.data.costs import Kind
from opsin.data.held import Held
from opsin.report.document import counts, folded_list
from opsin.report.plots import bar_plot, histogram
from opsin.report.stage_view import StageView
from opsin.report.words import counted

MOST_SOURCES = 24
"""Sources whose lengths are drawn by themselves."""


def mixture(stage: StageView) -> str:
    """The HTML."""
    sources = stage.sources
    by_source = f'<div class="card sources"><h3>{_heading(stage)}</h3>{_sources(sources)}</div>'
    lists = "".join(folded_list(name, lines) for name, lines in stage.left_out.items())
    notes = f'<p class="soft">{escape(printable("; ".join(stage.notes)))}</p>' if stage.notes else ""
    none = "" if lists else '<p class="soft">No sample was refused.</p>'
    return (
        f'<div class="columns">{counts(_head(stage), _told(stage))}{by_source}</div>'
        f'<div class="plots">{_plots(stage)}</div>{_lengths(sources)}{notes}{lists}{none}'
    )


def _heading(stage: StageView) -> str:
    return "What the packs hold of each source" if stage.packs else "Sources"


def _head(stage: StageView) -> str:
    """What the numbers below are of."""
    if not stage.packs:
        return "What there is"
    return "What all epochs take" if stage.epoch is not None else f"What {counted(len(stage.steps), 'step')} take"


def _told(stage: StageView) -> Iterator[tuple[str, int]]:
    held = stage.held
    if not stage.packs:
        yield "Samples", held.available
    elif stage.epoch is None:
        yield "Samples of the stream read", held.available
        yield "of them in packs", len(held.samples)
    else:
        yield "Samples available", held.available
        yield "Samples an epoch", stage.epoch
        yield "Different samples in packs", len(held.samples)
    yield "Tokens", held.tokens
    yield "of them text", held.tokens - held.visual
    yield "of them visual", held.visual
    yield "of them learned", held.supervised
    yield "Encoder patches", held.patches
    if stage.packs:
        yield "Packs", len(stage.packs)
        yield "Steps", len(stage.steps)
        if stage.all_steps > len(stage.steps):
            yield "of all steps", stage.all_steps


def _sources(sources: Mapping[str, Held]) -> str:
    drawn = sum(held.drawn for held in sources.values())
    tokens = sum(held.tokens for held in sources.values())
    return "".join(
        f'<h4>{escape(printable(name))} <span class="soft">{counted(held.available, "sample")} available</span></h4>'
        f'<div class="groups">{_share("samples", held.drawn, drawn)}{_share("tokens", held.tokens, tokens)}'
        f"<span>available</span>{kind_bar(held.costs.by_kind())}</div>"
        for name, held in sources.items()
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
    plots = figure("Tokens of a sample", stage.held.lengths.tolist(), "tokens")
    for name, unit, fill in (
        ("tokens", "batch_tokens", stage.fill()),
        ("patches", "batch_patches", stage.patch_fill()),
    ):
        if any(fill):
            mean = f"How full of {name} the packs are: {np.mean(fill):.1%} on average"
            plots += figure(mean, [100 * share for share in fill], f"% of {unit}", (0, 100))
    return plots


def _lengths(sources: Mapping[str, Held]) -> str:
    """Every source's lengths by themselves, on one scale."""
    if len(sources) < 2:
        return ""
    longest = max((int(held.lengths.max()) for held in sources.values() if held.drawn), default=1)
    drawn = "".join(
        figure(printable(name), held.lengths.tolist(), "tokens", (0, longest))
        for name, held in islice(sources.items(), MOST_SOURCES)
    )
    more = len(sources) - MOST_SOURCES
    rest = f'<p class="soft">and {more:,} more sources</p>' if more > 0 else ""
    head = "<summary>Tokens of a sample, by source</summary>"
    return f'<details>{head}<div class="plots">{drawn}</div>{rest}</details>'
