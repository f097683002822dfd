"""What the encoder is given of a picture or clip, with its geometry drawn on it.

The pixels are those that training takes, and the edge of the picture in them is found by sending a white picture the
same way: nothing about geometry is worked out a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from PIL import Image

from opsin.core.types import Block, Clip, Layout, Medium
from opsin.data.example import Preparation
from opsin.report.gallery import embedded
from opsin.report.pieces import evenly, shown_frames
from opsin.vision.picture import open_picture
from opsin.vision.video import read_frames

SIDE = 480
"""Longest side of an embedded view, in pixels; frames of a clip have `FRAME_SIDE`."""

FRAME_SIDE = 240
MOST_VIEWS = 12
MOST_LINES = 56
"""Lines of the patch grid along a side; of more only every second, third, ... is drawn."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of a view."""


@dataclass(frozen=True)
class View:
    """One canvas, or a mosaic of `block.tiles` (rows, columns) of them, with what lies where.

    - `grid`: patches (rows, columns) of each tile, `patch` pixels each way; `shape`: tokens made of them
    - `picture`: where the picture is, the rest being padding; `kept`: what the language model is shown of it
    """

    name: str
    image: Image.Image
    block: Block
    grid: tuple[int, int]
    shape: tuple[int, int]
    patch: int
    picture: Box
    kept: Box

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of canvases."""
        return self.block.tiles

    @property
    def rate(self) -> str:
        """What becomes of the patches of each tile, or of the one that there is: `24×24 → 12×12`."""
        block = self.block
        return f"{_by(self.grid)} → {_by((block.rows, block.cols) if self.tiles == (1, 1) else self.shape)}"

    @property
    def budget(self) -> str:
        """How the patches become tokens, step by step: of all tiles, of what is kept of them, with newlines."""
        tiles, block = self.tiles, self.block
        steps = [f"{_by(self.grid)} patches", _by(self.shape)]
        if tiles != (1, 1):
            steps[0] = f"{_by(tiles)} tiles of {steps[0]}"
            steps.append(f"{_by((tiles[0] * self.shape[0], tiles[1] * self.shape[1]))} in all")
        if block.kept is not None:
            steps.append(f"{_by(block.kept)} kept")
        if (last := _by((block.rows, block.cols))) != steps[-1].split(" ")[0]:
            steps.append(last)
        newline = " + a newline each row" * block.newline + " + 1 at the end" * block.tail
        return f"{' → '.join(steps)}{newline} = {block.tokens // block.t:,} tokens"


@dataclass(frozen=True)
class Sight:
    """Views of a medium (of a long clip some of them), and of a video when each of its frames is shown, in seconds."""

    views: tuple[View, ...]
    of: int
    seconds: tuple[float, ...] = ()


def sight(medium: Medium, layout: Layout, prepare: Preparation, patch: int) -> Sight:
    """Open a medium as training does; `patch` is the side of an encoder's patch in pixels.

    Raises:
        OpsinError: it cannot be decoded.
    """
    seconds: list[float] = []
    pixels = prepare.resolution.pixels(_images(medium, seconds), layout, prepare.mean)
    picture = _picture_mask(layout, prepare)
    if isinstance(medium, Clip):
        count = shown_frames(medium, layout)
        numbers = medium.taken or range(count)
        chosen = evenly(count, MOST_VIEWS)
        block = replace(layout.blocks[0], t=1, tail=0)
        names = [_frame_name(numbers[i], seconds[i] if seconds else None) for i in chosen]
        views = [
            _view(name, pixels[[i]], picture[[0]], block, layout, patch) for name, i in zip(names, chosen, strict=True)
        ]
        return Sight(tuple(views), count, tuple(seconds))
    parts = _parts(layout)
    names = ["canvas"] if len(parts) == 1 else ["base", *(f"tile {i}" for i in range(1, len(parts)))]
    if len(parts) == 2 and parts[1][1].tiles != (1, 1):
        names[1] = f"{parts[1][1].maps} tiles"
    chosen = evenly(len(parts), MOST_VIEWS)
    found = [_view(names[i], pixels[parts[i][0]], picture[parts[i][0]], parts[i][1], layout, patch) for i in chosen]
    return Sight(tuple(found), len(parts))


def _images(medium: Medium, seconds: list[float]) -> Iterator[Image.Image]:
    """The pictures of a medium, one in memory at a time; when a video's frames are shown is added to `seconds`."""
    if isinstance(medium, Clip) and medium.path is not None:
        for when, image in read_frames(medium.path, medium.taken or ()):
            seconds.append(when)
            yield image
    else:
        yield from map(open_picture, medium.frames if isinstance(medium, Clip) else (medium,))


def _picture_mask(layout: Layout, prepare: Preparation) -> np.ndarray:
    """uint8 (frames, 3, *canvas), white where the picture is and black where padding is."""
    height, width = layout.source
    white = Image.new("RGB", (width, height), (255, 255, 255))
    return prepare.resolution.pixels([white], layout, (0.0, 0.0, 0.0))


def _parts(layout: Layout) -> list[tuple[list[int], Block]]:
    """For every map that the blocks are made of: its canvases, and the block it belongs to."""
    found: list[tuple[list[int], Block]] = []
    first = 0
    for block in layout.blocks:
        tiles = block.tiles[0] * block.tiles[1]
        for _ in range(block.t):
            found.append((list(range(first, first + tiles)), block))
            first += tiles
    return found


def _frame_name(number: int, seconds: float | None) -> str:
    return f"frame {number}" if seconds is None else f"frame {number}, {seconds:.2f} s"


def _view(name: str, pixels: np.ndarray, white: np.ndarray, block: Block, layout: Layout, patch: int) -> View:
    """Canvases (tiles, 3, height, width) in raster order as one picture; `block` is what is made of them."""
    image = _mosaic(pixels, block.tiles)
    mask = _mosaic(white, block.tiles).convert("L").point(lambda value: 255 * (value > 127))
    found = mask.getbbox() or (0, 0, *image.size)
    grid = (layout.grid.h, layout.grid.w)
    return View(name, image, block, grid, layout.shape, patch, _floats(found), _kept(block, layout, patch))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _mosaic(pixels: np.ndarray, tiles: tuple[int, int]) -> Image.Image:
    rows, cols = tiles
    _, _, height, width = pixels.shape
    whole = pixels.reshape(rows, cols, 3, height, width).transpose(0, 3, 1, 4, 2)
    return Image.fromarray(np.ascontiguousarray(whole.reshape(rows * height, cols * width, 3)))


def _floats(box: tuple[int, int, int, int]) -> Box:
    left, top, right, bottom = box
    return float(left), float(top), float(right), float(bottom)


def _kept(block: Block, layout: Layout, patch: int) -> Box:
    """The part of the mosaic whose tokens are kept: cut from its middle (`Block`)."""
    whole = block.tiles[0] * layout.shape[0], block.tiles[1] * layout.shape[1]
    kept = block.kept or whole
    grid = layout.grid.h, layout.grid.w
    ends = []
    for axis in (1, 0):
        before = (whole[axis] - kept[axis]) // 2
        for token in (before, before + kept[axis]):
            # A tile's last pixels can lie beyond its last whole patch; no token shows them.
            tile, rest = divmod(token, layout.shape[axis])
            ends.append(tile * layout.canvas[axis] + rest * patch * grid[axis] / layout.shape[axis])
    left, right, top, bottom = ends
    return left, top, right, bottom


def svg(view: View, side: int = SIDE) -> str:
    """A view with its patches, tiles, padding and what is kept, at most `side` pixels long."""
    width, height = view.image.size
    inner = [f'<image width="{width}" height="{height}" href="{embedded(view.image, side)}"/>']
    lines = patch_lines(view)[0]
    inner.append(f'<path class="under" d="{lines}"/><path class="patches" d="{lines}"/>')
    if view.tiles != (1, 1):
        inner.append(f'<path class="tiles" d="{_tile_lines(view)}"/>')
    whole = (0.0, 0.0, float(width), float(height))
    if view.kept != whole:
        inner.append(f'<path class="dropped" fill-rule="evenodd" d="{_outline(whole)}{_outline(view.kept)}"/>')
        inner.append(f'<path class="kept" d="{_outline(view.kept)}"/>')
    if view.picture != whole:
        inner.append(f'<path class="edge" d="{_outline(view.picture)}"/>')
    label = escape(view.name, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(inner)}</svg>'


def patch_lines(view: View) -> tuple[str, int]:
    """Lines between the patches as an SVG path, and of how many lines one is drawn."""
    width, height = view.image.size
    tile = height // view.tiles[0], width // view.tiles[1]
    every = max(1, *(-(-view.tiles[axis] * view.grid[axis] // MOST_LINES) for axis in (0, 1)))
    down, across = (
        [start * tile[axis] + i * view.patch for start in range(view.tiles[axis]) for i in _inner(view, tile, axis)]
        for axis in (0, 1)
    )
    lines = [f"M0 {y}H{width}" for y in down[every - 1 :: every]]
    return "".join(lines + [f"M{x} 0V{height}" for x in across[every - 1 :: every]]), every


def _inner(view: View, tile: tuple[int, int], axis: int) -> range:
    """The patches' edges inside of a tile; the last one too where pixels lie beyond it."""
    trimmed = view.grid[axis] * view.patch < tile[axis]
    return range(1, view.grid[axis] + int(trimmed))


def _tile_lines(view: View) -> str:
    width, height = view.image.size
    down = [f"M0 {i * height // view.tiles[0]}H{width}" for i in range(1, view.tiles[0])]
    return "".join(down + [f"M{i * width // view.tiles[1]} 0V{height}" for i in range(1, view.tiles[1])])


def _outline(box: Box) -> str:
    left, top, right, bottom = box
    return f"M{left:g} {top:g}H{right:g}V{bottom:g}H{left:g}Z"
