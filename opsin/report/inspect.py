"""The page of `opsin inspect`: what the model sees of a stage's samples, and which tokens are learned.

Everything that comes from data passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from opsin.core.errors import OpsinError
from opsin.core.terminal import printable
from opsin.core.types import Clip, Layout, Medium
from opsin.report.document import document, section
from opsin.report.mixture import mixture
from opsin.report.pieces import Piece, folded, pieces, shown_frames
from opsin.report.positions import positions
from opsin.report.sight import FRAME_SIDE, SIDE, Sight, View, patch_lines, sight, svg
from opsin.report.stage_view import StageView
from opsin.report.words import medium_name

MOST_NEIGHBOURS = 12

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


def samples(stage: StageView) -> str:
    """The chosen samples of a stage, as a part of another page, which wants inspect.css."""
    chosen = "".join(_sample(stage, index) for index in stage.chosen)
    return f'<h3>Stage “{_shown(stage.name)}”</h3>{LEGEND}<div class="samples">{chosen}</div>\n'


def _shown(text: str) -> str:
    return escape(printable(text))


def _stage(stage: StageView) -> str:
    samples = "".join(_sample(stage, index) for index in stage.chosen)
    name = f"Stage “{stage.name}”" if stage.budget is not None else stage.name
    return section(name, f'{mixture(stage)}<div class="samples">{samples}</div>')


def _sample(stage: StageView, index: int) -> str:
    example = stage.examples[index]
    told = (
        f"{example.num_tokens:,} tokens, {int(example.visual_T.sum()):,} of them visual, "
        f"{example.num_supervised:,} learned; {example.num_patches:,} patches"
    )
    head = f'<h3>{_shown(example.id)} <span class="soft">{_shown(example.where)}</span></h3><p class="soft">{told}</p>'
    tokens = "".join(map(_piece, pieces(example, stage.prepare.tokenizer)))
    media = "".join(_medium(*seen, medium_name(seen[0], number), stage) for number, seen in enumerate(example.seen, 1))
    body = f'<div class="tokens">{tokens}</div>{media}{positions(example)}{_pack(stage, index)}'
    return f'<article class="card sample">{head}{body}</article>\n'


def _piece(piece: Piece) -> str:
    if piece.kind != "text":
        css = f"{piece.kind} learned" if piece.learned else piece.kind
        return f'<span class="{css}">{_shown(piece.text)}</span>'
    inner = "".join(f"<i{' class=end' if chr(10) in text else ''}>{_shown(text)}</i>" for text in piece.texts if text)
    return f'<span class="text{" learned" if piece.learned else ""}">{inner}</span>'


def _medium(medium: Medium, layout: Layout, name: str, stage: StageView) -> str:
    spliced = layout.tokens if stage.prepare.spliced else 0
    head = f"<h4>{_shown(name)}</h4><p>{escape(folded(medium, layout, spliced))}</p>"
    try:
        seen = sight(medium, layout, stage.prepare, stage.patch)
    except OpsinError as error:
        return f'<div class="seen">{head}<p class="problem">{_shown(str(error))}</p></div>'
    frames = isinstance(medium, Clip)
    views = "".join(_figure(view, number, frames=frames) for number, view in enumerate(seen.views))
    kind = "views frames" if frames else "views"
    return f'<div class="seen">{head}<div class="{kind}">{views}</div>{_numbers(medium, layout, seen)}</div>'


def _figure(view: View, number: int, *, frames: bool) -> str:
    """A view with what becomes of its patches written on it; of frames, which are all the same, on the first."""
    rate = "" if frames and number else f'<span class="rate">{escape(view.rate)}</span>'
    told = "" if frames else f": {view.budget}"
    drawn = svg(view, FRAME_SIDE if frames else SIDE)
    return (
        f'<figure style="--wide:{view.image.width / view.image.height:.3f}"><div class="drawn">{drawn}{rate}</div>'
        f"<figcaption>{escape(view.name + told)}{_thinning(patch_lines(view)[1])}</figcaption></figure>"
    )


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


def _pack(stage: StageView, index: int) -> str:
    if stage.budget is None:  # a file by itself
        return ""
    place = stage.place(index)
    if place is None:
        why = "the stage has none, see what was refused" if not stage.steps else "the stage takes others of its source"
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
