"""What `opsin inspect` shows, as JSON values for other programs.

A stage is `{name, available, epoch, samples, tokens, visual, learned, patches, packs, steps, all_steps, fill,
patch_fill, sources, left_out, notes, chosen}`: how many samples it can use, how many of them an epoch takes (null for a
stream, of which the `available` ones were read to plan `steps` of its `all_steps`), how many different ones its packs
hold, and tokens and patches of those packs, as `opsin plan` says them; the mean fill of its packs (null without packs),
for every source `{name, available, kinds, drawn, tokens, visual, learned, patches}` (`drawn` counts a sample as often
as packs hold it), the lines of what was refused, dropped or shortened, and of every chosen sample

- `id`, `where`, `tokens`, `visual`, `learned` (counts), `patches`
- `pieces`: `{kind: text | control | medium, learned, text}`, in order
- `media`: `{kind, name, place, tokens, patches, source, canvas, images, grid, shape, tiles, blocks, frames}`; sizes are
  (height, width), of the grid (maps, height, width); `frames` of a video are `{frame, seconds}`
- `positions`: `{run, start, end, axes}`, ends exclusive; `axes` has the smallest and largest id of each axis
- `pack`: `{index, step, tokens, patches, samples}`, both from 0, or null

A file is `{path, counts, kinds, repeated, problems, notes, chosen}` with the turns of the chosen samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from opsin.core.errors import OpsinError
from opsin.core.types import Clip, Conversation, Example, Layout, Medium, Part
from opsin.data.held import Held
from opsin.report.file_view import FileView, medium_facts
from opsin.report.pieces import pieces, spans
from opsin.report.positions import AXES, ends, run_name
from opsin.report.stage_view import StageView
from opsin.report.words import medium_name, medium_names
from opsin.vision.video import read_frames


def stage_value(stage: StageView) -> dict[str, Any]:
    """A stage.

    Raises:
        OpsinError: a video of a chosen sample cannot be decoded.
    """
    sources = [
        {"name": name, "kinds": own.costs.by_kind(), "drawn": own.drawn} | _held(own)
        for name, own in stage.sources.items()
    ]
    return {
        "name": stage.name,
        "epoch": stage.epoch,
        "samples": len(stage.held.samples),
        **_held(stage.held),
        "packs": len(stage.packs),
        "steps": len(stage.steps),
        "all_steps": stage.all_steps,
        "fill": _mean(stage.fill()),
        "patch_fill": _mean(stage.patch_fill()),
        "sources": sources,
        "left_out": {name.lower(): list(lines) for name, lines in stage.left_out.items()},
        "notes": list(stage.notes),
        "chosen": [_sample(stage, index) for index in stage.chosen],
    }


def _held(held: Held) -> dict[str, int]:
    return {
        "available": held.available,
        "tokens": held.tokens,
        "visual": held.visual,
        "learned": held.supervised,
        "patches": held.patches,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sample(stage: StageView, index: int) -> dict[str, Any]:
    example = stage.examples[index]
    found = pieces(example, stage.prepare.tokenizer)
    runs = spans(example)
    media = {span.medium: span.start for span in runs if span.medium is not None}
    return {
        "id": example.id,
        "where": example.where,
        "tokens": example.num_tokens,
        "visual": int(example.visual_T.sum()),
        "learned": example.num_supervised,
        "patches": example.num_patches,
        "pieces": [{"kind": piece.kind, "learned": piece.learned, "text": piece.text} for piece in found],
        "media": [
            {"kind": "video" if isinstance(medium, Clip) else "image", "name": medium_name(medium, number + 1)}
            | _medium(medium, layout, media[number], layout.tokens if stage.prepare.spliced else 0)
            for number, (medium, layout) in enumerate(example.seen)
        ],
        "positions": _positions(example),
        "pack": _pack(stage, index),
    }


def _medium(medium: Medium, layout: Layout, place: int, tokens: int) -> dict[str, Any]:
    return {
        "place": place,
        "tokens": tokens,
        "patches": layout.patches,
        "source": layout.source,
        "canvas": layout.canvas,
        "images": layout.frames,
        "grid": (layout.grid.t, layout.grid.h, layout.grid.w),
        "shape": layout.shape,
        "tiles": layout.tiles,
        "blocks": [asdict(block) | {"tokens": block.tokens} for block in layout.blocks],
        "frames": _frames(medium),
    }


def _frames(medium: Medium) -> list[dict[str, Any]]:
    """The frames of a video that are taken; others have no moments."""
    if not isinstance(medium, Clip) or medium.path is None or medium.taken is None:
        return []
    shown = zip(medium.taken, read_frames(medium.path, medium.taken), strict=True)
    return [{"frame": number, "seconds": round(seconds, 6)} for number, (seconds, _) in shown]


def _positions(example: Example) -> list[dict[str, Any]]:
    names = AXES if len(example.positions_AT) == len(AXES) else ("position",)
    return [
        {
            "run": run_name(example, span),
            "start": span.start,
            "end": span.end,
            "axes": dict(zip(names, ends(example, span), strict=True)),
        }
        for span in spans(example)
        if span.tokens
    ]


def _pack(stage: StageView, index: int) -> dict[str, Any] | None:
    place = stage.place(index)
    if place is None:
        return None
    pack = place.pack
    ids = [stage.examples.id(sample) for sample in pack.samples]
    return {
        "index": place.index,
        "step": place.step,
        "tokens": pack.tokens,
        "patches": pack.patches,
        "samples": ids,
    }


def file_value(view: FileView) -> dict[str, Any]:
    """A file."""
    checked = view.checked
    return {
        "path": str(view.path),
        "counts": dict(checked.counts),
        "kinds": view.kinds,
        "repeated": view.repeated,
        "problems": [{"kind": problem.kind, "text": problem.text} for problem in checked.problems],
        "notes": list(checked.notes),
        "chosen": [_conversation(one) for one in view.chosen],
    }


def _conversation(conversation: Conversation) -> dict[str, Any]:
    names = medium_names(conversation)
    turns = [{"role": turn.role, "parts": [_part(part, names) for part in turn.parts]} for turn in conversation.turns]
    return {"id": conversation.id, "where": conversation.where, "turns": turns}


def _part(part: Part, names: Iterator[str]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"kind": "text", "text": part}
    value = {"kind": "video" if isinstance(part, Clip) else "image", "name": next(names)}
    try:
        return value | asdict(medium_facts(part))
    except OpsinError as error:
        return value | {"problem": str(error)}
