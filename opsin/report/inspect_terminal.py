"""Samples for the terminal: the same tokens in the same colours as on the page, a line for every medium.

Where there are no colours, what is learned stands in brackets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.text import Text

from opsin.core.errors import OpsinError
from opsin.core.terminal import printable
from opsin.core.types import Part
from opsin.data.costs import Kind
from opsin.report.file_view import FileView, medium_facts
from opsin.report.pieces import Piece, pieces
from opsin.report.stage_view import StageView
from opsin.report.words import amounts, counted, medium_name, medium_names

STYLES = {"control": "yellow", "medium": "bold magenta"}
LEARNED, READ = "bold black on green", "dim"
BRACKETS = "⟦", "⟧"
"""What is learned stands between them; texts hardly ever have them."""


def lines(stage: StageView, *, colours: bool = True) -> Iterator[Text]:
    """A summary, then the chosen samples; without `colours` what is learned is marked by brackets."""
    held = stage.held
    yield Text(f"{_name(stage)}: {_amounts(stage)}", style="bold")
    told = f"{held.tokens:,} tokens = {held.tokens - held.visual:,} text + {held.visual:,} visual"
    yield Text(f"  {told}; {held.supervised:,} learned")
    yield from _sources(stage)
    for note in stage.notes:
        yield Text(f"  note: {printable(note)}")
    for name, problems in stage.left_out.items():
        for problem in problems:
            yield Text(f"  {name.lower()}: {printable(problem)}", style="red")
    if colours:
        yield Text.assemble("  ", ("learned", LEARNED), "  ", ("read", READ), "  ", *_marks())
    else:
        yield Text(f"  {'learned'.join(BRACKETS)}, all else is read")
    for index in stage.chosen:
        yield from _sample(stage, index, colours=colours)


def _name(stage: StageView) -> str:
    return printable(stage.name) if stage.budget is None else f"stage {stage.name}"


def _amounts(stage: StageView) -> str:
    fill = stage.fill()
    if not fill:
        return counted(stage.held.available, "sample")
    held = len(stage.held.samples)
    told = amounts(stage.held.available, stage.epoch, held, len(fill), sum(fill) / len(fill))
    steps = counted(len(stage.steps), "step")
    return f"{told}, {steps}" if len(stage.steps) == stage.all_steps else f"{told}, the first {steps}"


def _sources(stage: StageView) -> Iterator[Text]:
    for name, own in stage.sources.items():
        drawn, tokens = own.drawn / max(1, stage.held.drawn), own.tokens / max(1, stage.held.tokens)
        kinds = _kinds(own.costs.by_kind())
        shares = f"{drawn:.1%} of the samples, {tokens:.1%} of the tokens"
        yield Text(f"  {printable(name)}: {own.available:,} ({kinds}); {shares}")


def _kinds(kinds: dict[Kind, int]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())


def _marks() -> Iterator[tuple[str, str] | str]:
    yield ("control", STYLES["control"])
    yield "  "
    yield ("picture or video", STYLES["medium"])


def _sample(stage: StageView, index: int, *, colours: bool) -> Iterator[Text]:
    example = stage.examples[index]
    yield Text("")
    yield Text.assemble((printable(example.id), "bold"), f"  {printable(example.where)}")
    yield Text(f"  {example.num_tokens:,} tokens, {example.num_supervised:,} learned{_pack(stage, index)}")
    for number, (medium, layout) in enumerate(example.seen, 1):
        canvas = f"{layout.frames} x {layout.canvas[0]}x{layout.canvas[1]} pixels, {layout.patches:,} patches"
        yield Text(
            f"  {printable(medium_name(medium, number))}: {layout.source[0]}x{layout.source[1]} (HxW) as {canvas}"
        )
    found = pieces(example, stage.prepare.tokenizer)
    yield Text.assemble(*map(_piece, found)) if colours else Text("".join(_bracketed(found)))


def _pack(stage: StageView, index: int) -> str:
    if stage.budget is None:
        return ""
    place = stage.place(index)
    if place is None:
        return "; in no pack"
    return f"; pack {place.index + 1:,} with {counted(len(place.pack.samples) - 1, 'other')}"


def _bracketed(found: Iterable[Piece]) -> Iterator[str]:
    """The pieces' texts, what is learned in brackets."""
    for learned, run in groupby(found, key=lambda piece: piece.learned):
        text = "".join(_piece(piece)[0] for piece in run)
        yield text.join(BRACKETS) if learned else text


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
        names = medium_names(conversation)
        for turn in conversation.turns:
            yield Text.assemble((f"{turn.role}: ", "yellow"), *(_part(part, names) for part in turn.parts))


def _part(part: Part, names: Iterator[str]) -> tuple[str, str]:
    if isinstance(part, str):
        return printable(part), ""
    try:
        told = medium_facts(part).text
    except OpsinError as error:
        told = str(error)
    return printable(f"<{next(names)}: {told}>"), STYLES["medium"]
