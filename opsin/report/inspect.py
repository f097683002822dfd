"""The page of `opsin inspect`: what the model sees of a stage's samples, and which tokens are learned.

Everything that comes from data passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from opsin.core.errors import OpsinError
from opsin.core.terminal import printable
from opsin.core.types import Clip, Example, Layout, Medium
from opsin.report.document import counts, document, section
from opsin.report.pieces import Piece, Span, folded, pieces, shown_frames, spans
from opsin.report.plots import bar_plot
from opsin.report.sight import FRAME_SIDE, SIDE, Sight, patch_lines, sight, svg
from opsin.report.stage_view import StageView

BINS = 12
MOST_NEIGHBOURS = 12
OPEN_UP_TO = 20
"""Longer lists of refused samples are folded at first."""

AXES = ("t", "h", "w")

LEGEND = (
    '<p class="legend"><span class="text learned"><i>learned</i></span> <span class="text"><i>read, not learned</i>'
    '</span> <span class="control">control token</span> <span class="control learned">learned control token</span> '
    '<span class="medium">picture or video</span></p>'
    '<ul class="facts soft"><li><b class="line patches"></b> patches</li><li><b class="line tiles"></b> tiles</li>'
    '<li><b class="line edge"></b> edge of the picture, beyond it is padding</li>'
    '<li><b class="line kept"></b> what is kept of the tiles</li></ul>'
)


def page(name: str, stages: Sequence[StageView]) -> str:
    """The HTML."""
    header = f'<header>\n<h1>{_shown(name)}</h1>\n<p class="soft">What the model sees.</p>{LEGEND}</header>\n'
    return document(f"{name}: what the model sees", header + "".join(map(_stage, stages)), "inspect.css")


def _shown(text: str) -> str:
    return escape(printable(text))


def _stage(stage: StageView) -> str:
    samples = "".join(_sample(stage, index) for index in stage.chosen)
    return section(f"Stage “{stage.name}”", f'{_statistics(stage)}<div class="samples">{samples}</div>')


def _statistics(stage: StageView) -> str:
    text = stage.tokens - stage.visual
    packs = stage.packs
    told = {
        "Samples": len(stage.examples),
        "Tokens": stage.tokens,
        "of them text": text,
        "of them visual": stage.visual,
        "of them learned": stage.learned,
        "Encoder patches": int(stage.examples.costs.patches.sum()),
        "Packs, all epochs": len(packs),
        "Steps": len(stage.steps),
    }
    lengths = stage.examples.costs.tokens.tolist()
    plots = _figure("Tokens of a sample", *_histogram(lengths), "tokens")
    if packs:
        fill = stage.fill()
        mean = f"How full the packs are: {np.mean(fill):.1%} on average"
        plots += _figure(mean, *_histogram([100 * share for share in fill], (0, 100)), "% of batch_tokens")
    blocks = counts("What there is", told.items()) + counts(
        "Samples by source", [(printable(part.name), len(part)) for part in stage.examples.parts]
    )
    return f'<div class="columns">{blocks}</div><div class="plots">{plots}</div>{_refused(stage.refused)}'


def _histogram(values: Sequence[float], ends: tuple[float, float] | None = None) -> tuple[list[float], list[int]]:
    numbers, edges = np.histogram(values, bins=BINS if ends else min(BINS, max(1, len(set(values)))), range=ends)
    return edges.tolist(), numbers.tolist()


def _figure(name: str, edges: Sequence[float], numbers: Sequence[int], unit: str) -> str:
    return f'<figure class="card"><h3>{escape(name)}</h3>{bar_plot(name, edges, numbers, unit)}</figure>'


def _refused(problems: Sequence[str]) -> str:
    if not problems:
        return '<p class="soft">No sample was refused.</p>'
    items = "".join(f"<li>{_shown(problem)}</li>" for problem in problems)
    shown = " open" if len(problems) <= OPEN_UP_TO else ""
    return (
        f'<details class="card refused"{shown}><summary>Refused: {len(problems):,}</summary><ol>{items}</ol></details>'
    )


def _sample(stage: StageView, index: int) -> str:
    example = stage.examples[index]
    told = (
        f"{example.num_tokens:,} tokens, {int(example.visual_T.sum()):,} of them visual, "
        f"{example.num_supervised:,} learned; {example.num_patches:,} patches"
    )
    head = f'<h3>{_shown(example.id)} <span class="soft">{_shown(example.where)}</span></h3><p class="soft">{told}</p>'
    tokens = "".join(map(_piece, pieces(example, stage.prepare.tokenizer)))
    media = "".join(_medium(medium, layout, stage) for medium, layout in example.seen)
    body = f'<div class="tokens">{tokens}</div>{media}{_positions(example)}{_pack(stage, index)}'
    return f'<article class="card sample">{head}{body}</article>\n'


def _piece(piece: Piece) -> str:
    if piece.kind != "text":
        css = f"{piece.kind} learned" if piece.learned else piece.kind
        return f'<span class="{css}">{_shown(piece.text)}</span>'
    inner = "".join(f"<i{' class=end' if chr(10) in text else ''}>{_shown(text)}</i>" for text in piece.texts if text)
    return f'<span class="text{" learned" if piece.learned else ""}">{inner}</span>'


def _medium(medium: Medium, layout: Layout, stage: StageView) -> str:
    spliced = layout.tokens if stage.prepare.spliced else 0
    head = f"<h4>{_shown(medium.name)}</h4><p>{escape(folded(medium, layout, spliced))}</p>"
    try:
        seen = sight(medium, layout, stage.prepare, stage.patch)
    except OpsinError as error:
        return f'<div class="seen">{head}<p class="problem">{_shown(str(error))}</p></div>'
    side = FRAME_SIDE if isinstance(medium, Clip) else SIDE
    views = "".join(
        f'<figure style="--wide:{view.image.width / view.image.height:.3f}">{svg(view, side)}'
        f"<figcaption>{escape(view.name)}{_thinning(patch_lines(view)[1])}</figcaption></figure>"
        for view in seen.views
    )
    kind = "views frames" if isinstance(medium, Clip) else "views"
    return f'<div class="seen">{head}<div class="{kind}">{views}</div>{_numbers(medium, layout, seen)}</div>'


def _thinning(every: int) -> str:
    return "" if every == 1 else f"; 1 of {every} grid lines drawn"


def _numbers(medium: Medium, layout: Layout, seen: Sight) -> str:
    """The layout in words, for a video also the moments of its frames."""
    grid, canvas = layout.grid, layout.canvas
    told = {
        "size": f"{layout.source[0]}×{layout.source[1]} pixels (height × width)",
        "the encoder is given": f"{layout.frames} × {canvas[0]}×{canvas[1]} pixels",
        "patches": f"{layout.patches:,} = {grid.t} × {grid.h}×{grid.w}",
        "tokens": " + ".join(_block_text(layout)),
    }
    if isinstance(medium, Clip):
        count = shown_frames(medium, layout)
        drawn = "" if len(seen.views) == seen.of else f"; {len(seen.views)} are drawn"
        told["frames taken"] = f"{count}{drawn}"
        if medium.taken is not None:
            moments = zip(medium.taken, seen.seconds, strict=False)
            told["frame at seconds"] = ", ".join(f"{number} at {when:.2f}" for number, when in moments)
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in told.items())
    return f"<dl>{rows}</dl>"


def _block_text(layout: Layout) -> list[str]:
    """Every block's tokens, equal neighbours counted: what a clip with one block per frame needs."""
    found: dict[str, int] = {}
    for block in layout.blocks:
        width = f"({block.cols} + newline)" if block.newline else f"{block.cols}"
        text = f"{block.t} × " * (block.t > 1) + f"{block.rows}×{width}" + " + 1 at the end" * (block.tail > 0)
        found[text] = found.get(text, 0) + 1
    return [text if times == 1 else f"{times} × ({text})" for text, times in found.items()]


def _positions(example: Example) -> str:
    """Where M-RoPE puts every run: the range of its positions on each axis."""
    if len(example.positions_AT) == 1:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("run", "tokens", *AXES))
    rows = "".join(_position_row(example, span) for span in spans(example) if span.tokens)
    return (
        '<details open><summary>Positions (M-RoPE): time, height, width</summary><table class="positions">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _position_row(example: Example, span: Span) -> str:
    name = "text" if span.medium is None else ("video" if isinstance(example.media[span.medium], Clip) else "image")
    own = example.positions_AT[:, span.start : span.end]
    ends = zip(own.min(axis=1).tolist(), own.max(axis=1).tolist(), strict=True)
    cells = "".join(f"<td>{low}</td>" if low == high else f"<td>{low}–{high}</td>" for low, high in ends)
    return f'<tr><th scope="row">{name}</th><td>{span.tokens:,}</td>{cells}</tr>'


def _pack(stage: StageView, index: int) -> str:
    place = stage.place(index)
    if place is None:
        why = "the stage has none, see what was refused" if not stage.steps else "a fraction of an epoch leaves it out"
        return f'<p class="soft pack">In no pack: {why}.</p>'
    pack, budget = place.pack, stage.budget
    others = [stage.examples.id(i) for i in pack.samples if i != index]
    more = len(others) - MOST_NEIGHBOURS
    names = ", ".join(map(_shown, others[:MOST_NEIGHBOURS])) + (f" and {more:,} more" if more > 0 else "")
    bars = _bar("tokens", pack.tokens, budget.tokens) + _bar("patches", pack.patches, budget.patches)
    head = f"Pack {place.index + 1:,} of {len(stage.packs):,}, step {place.step + 1:,}"
    return (
        f'<div class="pack"><h4>{head}</h4><div class="groups">{bars}</div>'
        f'<p class="soft">{f"beside {names}" if others else "alone in it"}</p></div>'
    )


def _bar(name: str, taken: int, budget: int) -> str:
    return (
        f'<span>{name}</span><span class="meter"><i style="width:{100 * taken / budget:.1f}%"></i></span>'
        f'<span class="count">{taken:,} of {budget:,}</span>'
    )
