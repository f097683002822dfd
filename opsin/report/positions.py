"""Where M-RoPE puts the tokens of a sample: a table of ranges, and a small map of ids for every picture and clip.

Everything is read from the ids that training takes; the layouts only say how they lie on the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from opsin.core.types import Block, Clip, Example
from opsin.report.pieces import Span, evenly, spans
from opsin.report.plots import Axis

AXES = ("time", "height", "width")
MOST_BLOCKS = 4
"""Blocks of one medium that are drawn."""

MOST_STEPS = 24
"""Ids of time that are shown of one block."""

SIDE, LEFT, TOP = 84, 28, 18
"""Longest side of a map, and the room for labels at the left of heights and above widths, in pixels."""

Cell = tuple[int, int, int, int, int]
"""Row, column, rows, columns, and the id that all of them have."""


def positions(example: Example) -> str:
    """The HTML; nothing where positions have one axis, since they are 0, 1, 2, ..."""
    if len(example.positions_AT) == 1:
        return ""
    runs = [span for span in spans(example) if span.tokens]
    names = "".join(f'<th scope="col">{name}</th>' for name in ("run", "tokens", *AXES))
    table = (
        f'<div><table class="positions"><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(_row(example, span) for span in runs)}</tbody></table></div>"
    )
    maps = "".join(_maps(example, span) for span in runs if span.medium is not None)
    head = "<summary>Positions (M-RoPE): time, height, width</summary>"
    return f'<details open>{head}<div class="where">{table}{maps}</div></details>'


def run_name(example: Example, span: Span) -> str:
    """What a run is of: text, image or video."""
    if span.medium is None:
        return "text"
    return "video" if isinstance(example.media[span.medium], Clip) else "image"


def ends(example: Example, span: Span) -> list[tuple[int, int]]:
    """The smallest and the largest id of a run, for every axis."""
    own = example.positions_AT[:, span.start : span.end]
    return list(zip(own.min(axis=1).tolist(), own.max(axis=1).tolist(), strict=True))


def _row(example: Example, span: Span) -> str:
    cells = "".join(f"<td>{_range(low, high)}</td>" for low, high in ends(example, span))
    return f'<tr><th scope="row">{run_name(example, span)}</th><td>{span.tokens:,}</td>{cells}</tr>'


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"


def _maps(example: Example, span: Span) -> str:
    blocks = list(_blocks(example, span))
    chosen = evenly(len(blocks), MOST_BLOCKS)
    drawn = "".join(_block(*blocks[i]) for i in chosen)
    more = "" if len(chosen) == len(blocks) else f'<p class="soft">{len(chosen)} of {len(blocks)} blocks are drawn</p>'
    number = f" (medium {(span.medium or 0) + 1})" if len(example.media) > 1 else ""
    name = f"Ids of the {run_name(example, span)}{number} on its grid of tokens"
    return f"<div><h4>{name}</h4>{drawn}{more}</div>"


def _blocks(example: Example, span: Span) -> Iterator[tuple[Block, np.ndarray]]:
    """Every block of a medium with its ids (3, t, rows, columns); the tail, which is like text, is left out."""
    assert span.medium is not None
    at = span.start
    for block in example.layouts[span.medium].blocks:
        shape = block.t, block.rows, block.cols + block.newline
        yield block, example.positions_AT[:, at : at + block.tokens - block.tail].reshape(3, *shape)
        at += block.tokens


def _block(block: Block, ids: np.ndarray) -> str:
    """Time as a row of its steps, height and width as maps, all shaded on one scale; rows and columns of every step
    have the same ids."""
    shade = Axis(float(ids.min()), float(ids.max()), 0.15, 1.0)
    height, width = (_map(ids[axis, 0], name, shade) for axis, name in enumerate(AXES[1:], start=1))
    times = ids[0, :, 0, 0].tolist()
    size = (
        f"{block.rows}×{block.cols} tokens" + " and a newline a row" * block.newline + ", at every step" * (block.t > 1)
    )
    return (
        f'<div class="maps"><figure><figcaption>time: {block.t:,} step{"s" * (block.t > 1)}</figcaption>'
        f'<ol class="steps">{_steps(times, shade)}</ol></figure>{height}{width}</div>'
        f'<p class="soft">{size}</p>'
    )


def _steps(times: list[int], shade: Axis) -> str:
    shown = [times[i] for i in evenly(len(times), MOST_STEPS)]
    items = []
    for before, time in zip([times[0], *shown], shown, strict=False):
        items += ["<li>…</li>"] * (time > before + 1)
        items.append(f'<li><i style="opacity:{shade.at(time):.2f}"></i>{time}</li>')
    return "".join(items)


def _map(ids: np.ndarray, name: str, shade: Axis) -> str:
    """One axis' ids (rows, columns) as shades, the first and the last written at the edge along which they change."""
    rows, cols = ids.shape
    scale = SIDE / max(rows, cols)
    left = LEFT if name == "height" else 2
    drawn = "".join(
        f'<rect class="id" x="{left + x * scale:.1f}" y="{TOP + y * scale:.1f}" width="{w * scale:.1f}" '
        f'height="{h * scale:.1f}" fill-opacity="{shade.at(number):.2f}"/>'
        for y, x, h, w, number in cells(ids)
    )
    low, high = int(ids.min()), int(ids.max())
    # The last number stands clear of the first, however small the map is.
    right, foot = max(left + cols * scale, left + 40), max(TOP + rows * scale, TOP + 22)
    if name == "height":
        marks = [(low, left - 4, TOP + 10, "end"), (high, left - 4, foot, "end")]
    else:
        marks = [(low, left, TOP - 5, "start"), (high, right, TOP - 5, "end")]
    labels = "".join(
        f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{number}</text>'
        for number, x, y, anchor in (marks if low < high else marks[:1])
    )
    told = f"{name}: {_range(low, high)}"
    width, height = round(right) + 2, round(foot) + 4
    return (
        f"<figure><figcaption>{told}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" style="width:{width}px" role="img" aria-label="{told}">'
        f"{drawn}{_grid(rows, cols, scale, left)}{labels}</svg></figure>"
    )


def _grid(rows: int, cols: int, scale: float, left: int) -> str:
    """Lines between the tokens, where they are far enough apart to be seen."""
    if scale < 4:
        return ""
    across = [f"M{left} {TOP + i * scale:.1f}h{cols * scale:.1f}" for i in range(1, rows)]
    down = [f"M{left + i * scale:.1f} {TOP}v{rows * scale:.1f}" for i in range(1, cols)]
    return f'<path class="between" d="{"".join(across + down)}"/>'


def cells(ids: np.ndarray) -> list[Cell]:
    """A map (rows, columns) as stretches of equal ids, as high as the map where all rows are equal."""
    rows = len(ids)
    same = bool((ids == ids[0]).all())
    found = []
    for row, numbers in enumerate(ids[:1] if same else ids):
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for start, end in pairwise(starts):
            found.append((row, start, rows if same else 1, end - start, int(numbers[start])))
    return found
