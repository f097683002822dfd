"""Samples for the terminal: the same tokens in the same colours as on the page, a line for every medium."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from opsin.core.errors import OpsinError
from opsin.core.terminal import printable
from opsin.core.types import Part
from opsin.data.costs import Kind
from opsin.report.file_view import FileView, medium_facts
from opsin.report.pieces import Piece, pieces
from opsin.report.stage_view import StageView

STYLES = {"control": "yellow", "medium": "bold magenta"}
LEARNED, READ = "bold black on green", "dim"


def lines(stage: StageView) -> Iterator[Text]:
    """A summary, then the chosen samples."""
    text = stage.tokens - stage.visual
    fill = stage.fill()
    full = f", {sum(fill) / len(fill):.1%} full" if fill else ""
    packs = "" if stage.budget is None else f", {len(fill):,} packs{full}"
    yield Text(f"{_name(stage)}: {len(stage.examples):,} samples{packs}", style="bold")
    told = f"{stage.tokens:,} tokens, each sample once = {text:,} text + {stage.visual:,} visual"
    yield Text(f"  {told}; {stage.learned:,} learned")
    yield from _sources(stage)
    for note in stage.notes:
        yield Text(f"  note: {printable(note)}")
    for name, problems in stage.left_out.items():
        for problem in problems:
            yield Text(f"  {name.lower()}: {printable(problem)}", style="red")
    yield Text.assemble("  ", ("learned", LEARNED), "  ", ("read", READ), "  ", *_marks())
    for index in stage.chosen:
        yield from _sample(stage, index)


def _name(stage: StageView) -> str:
    return printable(stage.name) if stage.budget is None else f"stage {stage.name}"


def _sources(stage: StageView) -> Iterator[Text]:
    sources = stage.sources()
    drawn, tokens = (max(1, sum(getattr(one, name) for one in sources)) for name in ("drawn", "tokens"))
    for one in sources:
        shares = f"{one.drawn / drawn:.1%} of the samples, {one.tokens / tokens:.1%} of the tokens"
        yield Text(f"  {printable(one.name)}: {one.samples:,} ({_kinds(one.kinds)}); {shares}")


def _kinds(kinds: dict[Kind, int]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())


def _marks() -> Iterator[tuple[str, str] | str]:
    yield ("control", STYLES["control"])
    yield "  "
    yield ("picture or video", STYLES["medium"])


def _sample(stage: StageView, index: int) -> Iterator[Text]:
    example = stage.examples[index]
    yield Text("")
    yield Text.assemble((printable(example.id), "bold"), f"  {printable(example.where)}")
    yield Text(f"  {example.num_tokens:,} tokens, {example.num_supervised:,} learned{_pack(stage, index)}")
    for medium, layout in example.seen:
        canvas = f"{layout.frames} x {layout.canvas[0]}x{layout.canvas[1]} pixels, {layout.patches:,} patches"
        yield Text(f"  {printable(medium.name)}: {layout.source[0]}x{layout.source[1]} (HxW) as {canvas}")
    yield Text.assemble(*map(_piece, pieces(example, stage.prepare.tokenizer)))


def _pack(stage: StageView, index: int) -> str:
    if stage.budget is None:
        return ""
    place = stage.place(index)
    if place is None:
        return "; in no pack"
    return f"; pack {place.index + 1:,} with {len(place.pack.samples) - 1:,} others"


def _piece(piece: Piece) -> tuple[str, str]:
    if piece.kind == "text":
        return printable(piece.text).replace("\n", "↵\n"), LEARNED if piece.learned else READ
    return printable(piece.text), STYLES[piece.kind] + " on green" * piece.learned


def file_lines(view: FileView) -> Iterator[Text]:
    """A file without a model: its counts and problems, then the chosen conversations."""
    counted = ", ".join(f"{number:,} {name}" for name, number in view.checked.counts.items()) or "no usable record"
    yield Text(f"{printable(str(view.path))}: {counted}", style="bold")
    yield Text(f"  samples: {_kinds(view.kinds) or 'none'}")
    for problem in view.checked.problems:
        yield Text(f"  problem: {printable(problem.text)}", style="red")
    for note in view.checked.notes:
        yield Text(f"  note: {printable(note)}")
    for conversation in view.chosen:
        yield Text("")
        yield Text.assemble((printable(conversation.id), "bold"), f"  {printable(conversation.where)}")
        for turn in conversation.turns:
            yield Text.assemble((f"{turn.role}: ", "yellow"), *map(_part, turn.parts))


def _part(part: Part) -> tuple[str, str]:
    if isinstance(part, str):
        return printable(part), ""
    try:
        told = medium_facts(part).text
    except OpsinError as error:
        told = str(error)
    return printable(f"<{part.name}: {told}>"), STYLES["medium"]
