"""A stage's samples for the terminal: the same tokens in the same colours as on the page, a line for every medium."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from opsin.core.terminal import printable
from opsin.report.pieces import Piece, pieces
from opsin.report.stage_view import StageView

STYLES = {"control": "yellow", "medium": "bold magenta"}
LEARNED, READ = "bold black on green", "dim"


def lines(stage: StageView) -> Iterator[Text]:
    """A summary, then the chosen samples."""
    text = stage.tokens - stage.visual
    fill = stage.fill()
    full = f", {sum(fill) / len(fill):.1%} full" if fill else ""
    yield Text(f"stage {stage.name}: {len(stage.examples):,} samples, {len(fill):,} packs{full}", style="bold")
    yield Text(f"  {stage.tokens:,} tokens = {text:,} text + {stage.visual:,} visual; {stage.learned:,} learned")
    for problem in stage.refused:
        yield Text(f"  refused: {printable(problem)}", style="red")
    yield Text.assemble("  ", ("learned", LEARNED), "  ", ("read", READ), "  ", *_marks())
    for index in stage.chosen:
        yield from _sample(stage, index)


def _marks() -> Iterator[tuple[str, str] | str]:
    yield ("control", STYLES["control"])
    yield "  "
    yield ("picture or video", STYLES["medium"])


def _sample(stage: StageView, index: int) -> Iterator[Text]:
    example = stage.examples[index]
    yield Text("")
    yield Text.assemble((printable(example.id), "bold"), f"  {printable(example.where)}")
    place = stage.place(index)
    where = "in no pack" if place is None else f"pack {place.index + 1:,} with {len(place.pack.samples) - 1:,} others"
    yield Text(f"  {example.num_tokens:,} tokens, {example.num_supervised:,} learned; {where}")
    for medium, layout in example.seen:
        canvas = f"{layout.frames} x {layout.canvas[0]}x{layout.canvas[1]} pixels, {layout.patches:,} patches"
        yield Text(f"  {printable(medium.name)}: {layout.source[0]}x{layout.source[1]} (HxW) as {canvas}")
    yield Text.assemble(*map(_piece, pieces(example, stage.prepare.tokenizer)))


def _piece(piece: Piece) -> tuple[str, str]:
    if piece.kind == "text":
        return printable(piece.text).replace("\n", "↵\n"), LEARNED if piece.learned else READ
    return printable(piece.text), STYLES[piece.kind] + " on green" * piece.learned
