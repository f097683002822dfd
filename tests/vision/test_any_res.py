from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opsin.core.types import Block, Grid, Layout
from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.published import CLIP_L, SIGLIP
from tests.support.golden import golden
from tests.support.pictures import TOWERS, drawing, tower

MEAN = (0.5, 0.5, 0.5)
TOWER_OF = {336: CLIP_L, 384: SIGLIP}


def next_336(**changes: Any) -> AnyRes:
    return AnyRes(size=336, pinpoints=NEXT_PINPOINTS, **changes)


def onevision(max_tiles: int = 9, **changes: Any) -> AnyRes:
    return AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS, max_tiles=max_tiles, **changes)


def planned(value: AnyRes, height: int, width: int) -> Layout:
    return value.plan(height, width, "single", TOWER_OF[value.size])


def kept(layout: Layout) -> tuple[int, int]:
    """Rows and columns of the mosaic that show the picture."""
    mosaic = layout.blocks[1]
    return mosaic.kept or (mosaic.tiles[0] * layout.shape[0], mosaic.tiles[1] * layout.shape[1])


SYSTEMS = {"onevision_am9": onevision(9), "onevision_am4": onevision(4), "next336": next_336()}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_original_code_gives_the_same_geometry(system: str) -> None:
    value = SYSTEMS[system]
    for row in golden("anyres_orig")["rows"]:
        expected, layout = row[system], planned(value, row["h"], row["w"])
        base, mosaic = layout.blocks
        assert list(value.pinpoint_for(row["h"], row["w"])) == expected["best_wh"][::-1]
        assert mosaic.tiles == (expected["grid_rows"], expected["grid_cols"])
        assert kept(layout) == (expected["unpad_h"], expected["unpad_w"])
        assert (mosaic.rows, mosaic.cols, mosaic.newline) == (expected["final_h"], expected["final_w"], 1)
        assert (layout.grid.t, base.tokens) == (1 + expected["tiles"], base.rows * base.cols)
        assert layout.tokens == expected["total_tokens"]


@pytest.mark.parametrize(
    ("value", "tokens", "best"),
    [
        (onevision(9, rule="transformers"), "ov_am9_tokens", "ov_best_hw"),
        (onevision(4, rule="transformers"), "ov_am4_tokens", "ov_best_hw"),
        (next_336(rule="transformers"), "next_tokens", "next_best_hw"),
    ],
    ids=["onevision_am9", "onevision_am4", "next336"],
)
def test_transformers_gives_the_same_tokens(value: AnyRes, tokens: str, best: str) -> None:
    for row in golden("anyres_hf")["rows"]:
        assert list(value.pinpoint_for(row["h"], row["w"])) == row[best]
        assert planned(value, row["h"], row["w"]).tokens == row[tokens]


def test_the_two_rules_differ_where_the_two_codes_do() -> None:
    found = golden("anyres_orig_vs_hf_diffs")
    for which, height, width, *both in found["diffs"]:
        make = onevision if which == "ov" else next_336
        for rule, (tokens, best, unpadded, _, final) in zip(("original", "transformers"), both, strict=True):
            value = make(rule=rule)
            layout = planned(value, height, width)
            assert (layout.tokens, list(value.pinpoint_for(height, width))) == (tokens, best)
            assert list(kept(layout)) == unpadded
            assert [layout.blocks[1].rows, layout.blocks[1].cols] == final
    tokens, height, width, _ = found["max_tokens_found_orig_am9"]
    assert planned(onevision(), height, width).tokens == tokens


TABLE = """
384 384 27 27 27 27 1485 2928 | 300 300 27 27 27 27 1485 1176 | 480 640 40 54 40 54 2929 2340
640 480 54 40 54 40 2943 2352 | 720 1280 54 96 54 96 5967 1948 | 1080 1920 75 135 60 108 7269 1948
1920 1080 135 75 108 60 7317 1968 | 2160 3840 92 162 61 107 7317 1948 | 768 768 54 54 54 54 3699 2928
800 800 81 81 81 81 7371 2928 | 1000 300 81 25 81 25 2835 2232 | 300 2000 25 162 25 162 4804 1306
3000 200 162 11 162 11 2673 936 | 2304 2304 162 162 81 81 7371 2928 | 1536 1152 108 81 93 70 7332 2352
500 333 40 27 40 27 1849 1476 | 333 500 27 40 27 40 1836 1464 | 1024 768 73 54 73 54 4744 2352
50 700 3 54 3 54 894 1014 | 10 2304 1 162 1 162 892 576 | 1500 1000 108 73 108 73 8721 2160
389 383 28 27 28 27 1513 2928
"""
"""height, width; OneVision's mosaic before and after its budget and its tokens; LLaVA-NeXT's tokens."""


@pytest.mark.parametrize("row", TABLE.replace("\n", "|").strip("|").split("|"))
def test_worked_numbers(row: str) -> None:
    height, width, *expected = map(int, row.split())
    for rule in ("original", "transformers"):
        layout = planned(onevision(rule=rule), height, width)
        mosaic = layout.blocks[1]
        small = planned(next_336(rule=rule), height, width)
        assert [*kept(layout), mosaic.rows, mosaic.cols, layout.tokens, small.tokens] == expected


def test_equally_good_canvases_are_tried_in_each_codes_own_order() -> None:
    assert planned(next_336(), 300, 300).blocks[1].tiles == (2, 1)
    assert planned(next_336(rule="transformers"), 300, 300).blocks[1].tiles == (1, 2)


def test_a_mosaic_without_a_row_that_shows_the_picture_leaves_the_base_alone() -> None:
    layout = planned(next_336(), 10, 2304)
    assert layout.blocks[1] == Block(1, 0, 72, 1, tiles=(1, 3), kept=(0, 72))
    assert (layout.tokens, layout.grid.t) == (576, 4)


def test_several_pictures_are_one_base_each() -> None:
    found = golden("onevision_hf_multi_image")
    flat, nested, *_ = (case["image_tokens"] for case in found["cases"])
    sizes = [(height, width) for width, height in found["images_wh"]]
    layouts = [onevision().plan(*size, "multi", SIGLIP) for size in sizes]
    assert layouts[0].blocks == (Block(1, 27, 27, tail=1),)
    assert [layout.tokens for layout in layouts] == [730, 730]
    assert [sum(layout.tokens for layout in layouts)] == nested
    # transformers takes a flat list of pictures for as many samples of one picture; `multi: tiles` does the same.
    tiled = onevision(multi="tiles")
    assert [sum(tiled.plan(*size, "multi", SIGLIP).tokens for size in sizes)] == flat


@pytest.mark.parametrize(
    ("changes", "tokens", "blocks"),
    [
        ({}, 6273, (Block(32, 14, 14, tail=1),)),
        ({"video_newline": "grid"}, 6720, (Block(32, 14, 14, newline=1),)),
        ({"video_newline": "frame"}, 6304, (Block(1, 14, 14, tail=1),) * 32),
        ({"video_newline": "no_token"}, 6272, (Block(32, 14, 14),)),
        ({"newline": False}, 6272, (Block(32, 14, 14),)),
        ({"video_pool": "average"}, 5409, (Block(32, 13, 13, tail=1, pool="average"),)),
        ({"video_pool": "max", "video_stride": 3}, 2593, (Block(32, 9, 9, tail=1, pool="max"),)),
        ({"video_stride": 1}, 23_329, (Block(32, 27, 27, tail=1),)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_clips(changes: dict[str, Any], tokens: int, blocks: tuple[Block, ...]) -> None:
    layout = onevision(**changes).plan(480, 640, "video", SIGLIP, frames=32)
    assert layout.tokens == tokens
    assert layout.blocks == blocks
    assert layout.grid == Grid(32, 27, 27)


def test_one_frame_is_a_clip_too() -> None:
    assert onevision().plan(480, 640, "video", SIGLIP, frames=1).tokens == 197


@pytest.mark.parametrize(
    ("stride", "message"),
    [
        (7, "video_stride 7 with average pooling leaves 3 of 27 tokens, as video_stride 9 does"),
        (28, "video_stride 28 is more than the 27 tokens along a frame's side"),
    ],
)
def test_a_stride_that_the_tokens_do_not_tell_is_refused(stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        onevision(video_pool="average", video_stride=stride).plan(9, 9, "video", SIGLIP)


def test_the_merge_type_spatial_keeps_the_padding() -> None:
    layout = planned(next_336(unpad=False, newline=False), 480, 640)
    assert layout.blocks == (Block(1, 24, 24), Block(1, 48, 48, tiles=(2, 2)))
    assert next_336(newline=False).plan(9, 9, "multi", CLIP_L).tokens == 576


def test_latents_cannot_be_put_together() -> None:
    layout = AnyRes(size=8, pinpoints=((16, 16),)).plan(9, 9, "single", tower("latents"))
    assert layout.blocks == (Block(5, 1, 5),)


@pytest.mark.parametrize(
    ("pinpoints", "message"),
    [
        ((), "at least 1 item"),
        (((336, 672), (336, 500)), "pinpoint 336x500 is not made of whole tiles of 336x336"),
        (((0, 336),), "pinpoint 0x336 is not made of whole tiles"),
        (((336 * 101, 336),), "pinpoint 33936x336 has 101 tiles; the limit is 100"),
    ],
)
def test_impossible_canvases_are_refused(pinpoints: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnyRes(size=336, pinpoints=pinpoints)


def test_tiles_come_in_raster_order_after_the_base() -> None:
    case = golden("anyres_tile_order")
    width, height = case["image_wh"]
    value = AnyRes(size=8, pinpoints=((8 * height // 2, 8 * width // 2),), rule="transformers")
    number = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    # Every pixel of the golden picture becomes 4 x 4, so that a tile of 8 holds the 2 x 2 pixels of a golden tile.
    image = Image.fromarray(np.repeat(np.repeat(np.stack([number] * 3, axis=-1), 4, axis=0), 4, axis=1))
    layout = value.plan(image.height, image.width, "single", tower())
    tiles = value.pixels([image], layout, MEAN)[1:]
    assert tiles[:, 0, ::4, ::4].reshape(len(tiles), -1).tolist() == case["tiles_R"]


@pytest.mark.parametrize("row", golden("anyres_resize_pad_geometry")["rows"], ids=lambda row: f"{row['h']}x{row['w']}")
def test_the_picture_lies_on_the_canvas_where_the_original_puts_it(row: dict[str, Any]) -> None:
    value = onevision()
    white = Image.new("RGB", (row["w"], row["h"]), (255, 255, 255))
    layout = planned(value, row["h"], row["w"])
    rows, cols = layout.blocks[1].tiles
    tiles = value.pixels([white], layout, MEAN)[1:, 0].reshape(rows, cols, 384, 384)
    canvas = tiles.transpose(0, 2, 1, 3).reshape(rows * 384, cols * 384)
    seen_y, seen_x = np.nonzero(canvas)
    assert list(canvas.shape) == row["best_wh"][::-1]
    assert [seen_x.min(), seen_y.min()] == row["paste_xy"]
    assert [seen_x.max() - seen_x.min() + 1, seen_y.max() - seen_y.min() + 1] == row["nonblack_wh"]


def test_the_base_is_squeezed_alone_and_padded_in_company() -> None:
    image = Image.new("RGB", (64, 16), (255, 255, 255))
    value = AnyRes(size=8, pinpoints=((8, 16),), rule="transformers")
    alone, several, clip = (
        value.pixels([image], value.plan(16, 64, role, tower()), MEAN) for role in ("single", "multi", "video")
    )
    assert (alone[0] == 255).all()
    assert several.shape == clip.shape == (1, 3, 8, 8)
    assert several[0, :, 0, 0].tolist() == [127, 127, 127]
    assert (clip == 255).all()


@st.composite
def any_res(draw: st.DrawFn) -> AnyRes:
    side = st.integers(1, 4)
    shapes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=5))
    return AnyRes(
        size=8,
        pinpoints=tuple((8 * rows, 8 * cols) for rows, cols in shapes),
        max_tiles=draw(st.none() | st.integers(1, 6)),
        unpad=draw(st.booleans()),
        newline=draw(st.booleans()),
        rule=draw(st.sampled_from(["original", "transformers"])),
        multi=draw(st.sampled_from(["base", "tiles"])),
        video_newline=draw(st.sampled_from(["one_token", "grid", "frame", "no_token"])),
        video_pool=draw(st.sampled_from(["bilinear", "average", "max"])),
    )


@settings(deadline=None, max_examples=150)
@given(
    value=any_res(),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    role=st.sampled_from(["single", "multi", "video"]),
    kind=st.sampled_from(TOWERS),
    frames=st.integers(1, 4),
)
def test_blocks_take_all_maps_and_pixels_are_what_was_promised(
    value: AnyRes, height: int, width: int, role: Any, kind: str, frames: int
) -> None:
    layout = value.plan(height, width, role, tower(kind), frames)
    assert sum(block.maps for block in layout.blocks) == layout.grid.t == layout.frames
    assert layout.canvas == (8, 8)
    for block in layout.blocks:
        mosaic = tuple(n * side for n, side in zip(block.tiles, layout.shape, strict=True))
        inside = block.kept or mosaic
        assert all(0 <= part <= whole and (whole - part) % 2 == 0 for part, whole in zip(inside, mosaic, strict=True))
        assert block.rows <= inside[0]
        assert block.cols <= inside[1]
    images = [drawing(width, height)] * (frames if role == "video" else 1)
    pixels = value.pixels(images, layout, MEAN)
    assert pixels.shape == (layout.frames, 3, *layout.canvas)
    assert pixels.dtype == np.uint8
    assert pixels.nbytes == layout.bytes


@settings(deadline=None, max_examples=200)
@given(height=st.integers(2, 16_384), width=st.integers(2, 16_384), max_tiles=st.integers(1, 12))
def test_a_mosaic_stays_within_its_budget(height: int, width: int, max_tiles: int) -> None:
    mosaic = planned(onevision(max_tiles), height, width).blocks[1]
    assert mosaic.rows * mosaic.cols <= 1.1**2 * max_tiles * 27 * 27
