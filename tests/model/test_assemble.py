from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opsin.core.errors import ModelError
from opsin.core.types import Block, Grid, Layout, MediumRole
from opsin.model.assemble import assemble
from opsin.vision.any_res import AnyRes
from opsin.vision.native import Native
from opsin.vision.resolution import Resolution
from opsin.vision.square import Square
from opsin.vision.tower import Tower
from tests.support.golden import golden, sine
from tests.support.layouts import layout_of

NEWLINE = torch.tensor([-1.0, -2.0])


def tokens(layouts: list[Layout], width: int = 2) -> Tensor:
    return torch.randn(sum(x.grid.t * x.shape[0] * x.shape[1] for x in layouts), width)


def pictures(shape: tuple[int, int], *blocks: Block) -> Layout:
    return layout_of(Grid(sum(block.maps for block in blocks), *shape), shape, *blocks)


BASE = Block(1, 3, 3)
NEXT_LAYOUTS = [
    [pictures((3, 3), BASE, Block(1, 3, 3, newline=1))],
    [pictures((3, 3), BASE, Block(1, 6, 12, newline=1, tiles=(2, 4)))],
    # Edge case: the mosaic of 18x15 is cut to 18x13, then shrunk to 4x3, and only then are there newlines.
    [pictures((3, 3), BASE, Block(1, 4, 3, newline=1, tiles=(6, 5), kept=(18, 13)))],
    [pictures((3, 3), BASE, Block(1, 9, 9, newline=1, tiles=(6, 6)))],
    [pictures((3, 3), BASE, Block(1, 3, 9, newline=1, tiles=(1, 3)))],
    [pictures((3, 3), Block(1, 3, 3, tail=1)), pictures((3, 3), Block(1, 3, 3, tail=1))],
    [pictures((3, 3), Block(4, 2, 2, tail=1))],
]


@pytest.mark.parametrize(
    ("case", "layouts"),
    list(zip(golden("anyres_pack_features_orig")["cases"], NEXT_LAYOUTS, strict=True)),
    ids=lambda x: f"{x['h']}x{x['w']}-{x['aspect']}-{x['modality']}" if isinstance(x, dict) else "",
)
def test_blocks_are_put_together_as_llava_next_does(case: dict[str, Any], layouts: list[Layout]) -> None:
    features = sine(sum(case["crops_per_image"]) * 9, 2)
    expected = torch.tensor(case["output_embeds"])[1:-1]  # a word stands before and behind
    out = assemble(features, layouts, torch.tensor(case["image_newline"]))
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("pool", "side", "count"), [("bilinear", 14, 196), ("average", 13, 169), ("max", 13, 169)])
def test_a_frame_is_pooled_as_onevision_does(pool: Any, side: int, count: int) -> None:
    case = golden("video_pool_27")["out"][pool]
    assert case["n"] == count == side * side
    out = assemble(sine(729, 2), [pictures((27, 27), Block(1, side, side, pool=pool))], None)
    torch.testing.assert_close(out, torch.tensor(case["values"]), atol=2e-5, rtol=0)


def test_a_clip_is_pooled_frame_by_frame_and_has_one_newline_at_its_end() -> None:
    layout = pictures((27, 27), Block(32, 14, 14, tail=1))
    x = tokens([layout])
    out = assemble(x, [layout], NEWLINE)
    assert len(out) == layout.tokens == 6273
    assert torch.equal(out[-1], NEWLINE)
    frame = assemble(x[729 * 5 : 729 * 6], [pictures((27, 27), Block(1, 14, 14))], None)
    torch.testing.assert_close(out[196 * 5 : 196 * 6], frame)


def test_one_of_several_pictures_is_its_base_and_a_newline() -> None:
    layouts = [pictures((27, 27), Block(1, 27, 27, tail=1))] * 2
    x = tokens(layouts)
    out = assemble(x, layouts, NEWLINE)
    assert [layout.tokens for layout in layouts] == [730, 730]
    assert torch.equal(out, torch.cat([x[:729], NEWLINE[None], x[729:], NEWLINE[None]]))


def test_tokens_that_stay_as_they_are_are_not_copied() -> None:
    layouts = [pictures((3, 4), Block(2, 3, 4)), pictures((2, 2), Block(1, 2, 2, kept=(2, 2)))]
    x = tokens(layouts)
    assert assemble(x, layouts, NEWLINE) is x
    assert assemble(x[:0], [], None).shape == (0, 2)


def token_by_token(x: Tensor, layout: Layout) -> Tensor:
    """The slow twin, without pooling: where every single token of the sequence comes from."""
    (rows, cols), out, first = layout.shape, [], 0
    for block in layout.blocks:
        down, across = block.tiles
        kept = block.kept or (down * rows, across * cols)
        top, left = (down * rows - kept[0]) // 2, (across * cols - kept[1]) // 2
        for t in range(block.t):
            for y in range(top, top + kept[0]):
                for column in range(left, left + kept[1]):
                    tile = (t * down + y // rows) * across + column // cols
                    out.append(x[first + tile * rows * cols + (y % rows) * cols + column % cols])
                out += [NEWLINE] * block.newline
        out += [NEWLINE] * block.tail
        first += block.maps * rows * cols
    return torch.stack([*out, NEWLINE])[:-1]


small = st.integers(1, 4)


@st.composite
def layouts_without_pooling(draw: st.DrawFn) -> Layout:
    shape = draw(small), draw(small)
    blocks = []
    for _ in range(draw(st.integers(1, 3))):
        tiles = draw(small), draw(small)
        whole = tiles[0] * shape[0], tiles[1] * shape[1]
        kept = draw(st.none() | st.tuples(st.integers(0, whole[0]), st.integers(0, whole[1])))
        size = kept or whole
        blocks.append(Block(draw(small), *size, draw(st.integers(0, 1)), draw(st.integers(0, 1)), tiles, kept))
    return pictures(shape, *blocks)


@settings(max_examples=60, deadline=None)
@given(st.lists(layouts_without_pooling(), min_size=1, max_size=3))
def test_every_token_is_where_the_slow_twin_puts_it(layouts: list[Layout]) -> None:
    x = tokens(layouts)
    counts = [layout.grid.t * layout.shape[0] * layout.shape[1] for layout in layouts]
    expected = [token_by_token(part, layout) for part, layout in zip(x.split(counts), layouts, strict=True)]
    out = assemble(x, layouts, NEWLINE)
    assert len(out) == sum(layout.tokens for layout in layouts)
    assert torch.equal(out, torch.cat(expected))


def halved(rows: int, cols: int) -> tuple[int, int]:
    return rows // 2, cols // 2


SMALL_CANVASES = tuple((16 * i, 16 * j) for i in range(1, 5) for j in range(1, 5))
RESOLUTIONS = [
    (Square(size=24), Tower(patch=8, shrink=lambda rows, cols: (rows, cols))),
    (AnyRes(size=16, pinpoints=SMALL_CANVASES), Tower(patch=4, shrink=lambda rows, cols: (rows, cols))),
    (AnyRes(size=16, pinpoints=SMALL_CANVASES, max_tiles=2), Tower(patch=4, shrink=lambda rows, cols: (rows, cols))),
    (
        AnyRes(size=16, pinpoints=SMALL_CANVASES, video_newline="grid", video_pool="average"),
        Tower(patch=4, shrink=lambda rows, cols: (rows, cols)),
    ),
    (
        AnyRes(size=16, pinpoints=SMALL_CANVASES, video_newline="frame", video_pool="max"),
        Tower(patch=4, shrink=lambda rows, cols: (rows, cols)),
    ),
    (
        AnyRes(size=16, pinpoints=SMALL_CANVASES),
        Tower(patch=4, shrink=lambda rows, cols: (1, 5), spatial=False),
    ),
    (
        Native(min_pixels=64, max_pixels=4096),
        Tower(patch=4, shrink=halved, temporal=2, fold=2),
    ),
]


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize(("resolution", "tower"), RESOLUTIONS)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    role=st.sampled_from(["single", "multi", "video"]),
    frames=st.integers(2, 5),
)
def test_any_size_under_any_resolution_gives_the_tokens_that_were_planned(
    resolution: Resolution, tower: Tower, height: int, width: int, role: MediumRole, frames: int
) -> None:
    if isinstance(resolution, Native):
        height, width = max(height, width // 100), max(width, height // 100)
    layout = resolution.plan(height, width, role, tower, frames if role == "video" else 1)
    assert len(assemble(tokens([layout]), [layout], NEWLINE)) == layout.tokens


def test_gradients_reach_tokens_and_newline() -> None:
    layout = pictures((3, 3), Block(1, 2, 2, newline=1, tail=1), Block(1, 4, 6, newline=1, tiles=(2, 2), kept=(4, 6)))
    x, newline = tokens([layout]).requires_grad_(), NEWLINE.clone().requires_grad_()
    assemble(x, [layout], newline).sum().backward()
    assert newline.grad is not None
    assert newline.grad.tolist() == [2 + 1 + 4, 2 + 1 + 4]
    assert x.grad is not None
    assert x.grad.sum(dim=0).tolist() == pytest.approx([4 + 24, 4 + 24])


def test_the_newline_takes_the_tokens_dtype() -> None:
    layout = pictures((2, 2), Block(1, 2, 2, newline=1))
    assert assemble(tokens([layout]).bfloat16(), [layout], NEWLINE).dtype == torch.bfloat16


@pytest.mark.parametrize("block", [Block(1, 2, 2, newline=1), Block(1, 2, 2, tail=1)])
def test_newlines_without_a_newline_vector_are_refused(block: Block) -> None:
    layout = pictures((2, 2), block)
    with pytest.raises(ModelError, match=r"wants newlines, but the model has no newline vector"):
        assemble(tokens([layout]), [layout], None)


def test_other_tokens_than_the_layouts_say_are_refused_with_both_counts() -> None:
    layouts = [pictures((2, 2), Block(1, 2, 2)), pictures((2, 3), Block(2, 2, 3))]
    with pytest.raises(ModelError, match=r"^15 tokens from the connector for 2 layouts of 16 tokens in all"):
        assemble(torch.zeros(15, 2), layouts, None)


def test_blocks_that_leave_maps_over_are_refused() -> None:
    layout = layout_of(Grid(3, 2, 2), (2, 2), Block(2, 2, 2))
    with pytest.raises(ModelError, match=r"a layout of 3 maps has blocks of 2 maps"):
        assemble(torch.zeros(12, 2), [layout], None)


def test_a_size_that_no_stride_gives_is_refused() -> None:
    layout = pictures((9, 9), Block(1, 5, 5, pool="average"))
    with pytest.raises(ModelError, match=r"average pooling cannot make 5x5 of 9x9 tokens"):
        assemble(tokens([layout]), [layout], None)
