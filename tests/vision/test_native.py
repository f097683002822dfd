from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opsin.core.types import Block, Grid, Layout
from opsin.vision.native import Native
from opsin.vision.published import NATIVE_VIT
from tests.support.golden import golden
from tests.support.pictures import drawing, tower

MEAN = (0.5, 0.5, 0.5)
SIZES = golden("qwen2vl_smart_resize")
LIMITS = {config["name"]: (config["min"], config["max"]) for config in SIZES["configs"]}


def named(row: dict[str, Any]) -> str:
    return f"{row['cfg']}-{row['h']}x{row['w']}"


@pytest.mark.parametrize(("rule", "column"), [("original", "qwen_utils_0_0_14"), ("transformers", "hf5")])
def test_smart_resize(rule: Any, column: str) -> None:
    for row in SIZES["rows"]:
        least, most = LIMITS[row["cfg"]]
        value, size = Native(rule=rule, min_pixels=least, max_pixels=most), (row["h"], row["w"])
        expected = row[column]
        if "error" in expected:
            with pytest.raises(ValueError, match=r"pixels \(HxW\) is 20[01]\.\d\d:1; the limit is 200:1"):
                value.plan(*size, "single", NATIVE_VIT)
            continue
        # qwen-vl-utils lets a side of a strip fall to 0, which no encoder takes; here it keeps one token.
        height, width = (max(28, side) for side in expected)
        layout = value.plan(*size, "single", NATIVE_VIT)
        assert layout.canvas == (height, width), named(row)
        assert layout.tokens == (height // 28) * (width // 28)


@pytest.mark.parametrize(
    ("height", "width", "canvas", "tokens"),
    [
        (224, 224, (224, 224), 64),
        (28, 28, (56, 56), 4),
        (480, 640, (476, 644), 391),
        (720, 1280, (728, 1288), 1196),
        (1080, 1920, (1092, 1932), 2691),
        (2160, 3840, (2156, 3836), 10_549),
        (4000, 6000, (2912, 4368), 16_224),
        (3585, 3585, (3584, 3584), 16_384),
        (100, 100, (112, 112), 16),
        (50, 1000, (56, 1008), 72),
        (5, 800, (28, 812), 29),
        (42, 42, (56, 56), 4),  # 1.5 and 2.5 tokens a side: Python rounds halves to even
        (70, 70, (56, 56), 4),
    ],
)
def test_worked_numbers(height: int, width: int, canvas: tuple[int, int], tokens: int) -> None:
    layout = Native().plan(height, width, "single", NATIVE_VIT)
    rows, cols = canvas[0] // 28, canvas[1] // 28
    assert layout == Layout(
        (height, width), canvas, 1, Grid(1, 2 * rows, 2 * cols), (rows, cols), (Block(1, rows, cols),), "single"
    )
    assert layout.tokens == tokens


def test_an_aspect_of_200_passes() -> None:
    assert Native().plan(28, 5600, "single", NATIVE_VIT).canvas == (28, 5600)


@pytest.mark.parametrize(
    ("column", "total"),
    [("utils_0_0_8", None), ("utils_0_0_14", int(128_000 * 28 * 28 * 0.9))],
    ids=["0.0.8", "0.0.14"],
)
def test_the_budget_of_a_clip(column: str, total: int | None) -> None:
    for row in golden("qwen2vl_video_budget")["rows"]:
        asked, expected = row["ele"], row[column]
        value = Native(
            video_total_pixels=asked.get("total_pixels", total),
            video_min_pixels=asked.get("min_pixels", 128 * 28 * 28),
        )
        layout = value.plan(row["h"], row["w"], "video", NATIVE_VIT, expected["nframes"])
        assert (list(layout.canvas), layout.tokens) == (expected["resized"], expected["tokens"])
        assert layout.grid.t * 2 == layout.frames == expected["nframes"]


def test_transformers_has_no_budget_for_a_whole_clip_by_default() -> None:
    canvas = {
        (rule, total): Native(rule=rule, video_total_pixels=total).plan(720, 1280, "video", NATIVE_VIT, 600).canvas
        for rule in ("original", "transformers")
        for total in (None, 16_384 * 28 * 28)
    }
    assert canvas["transformers", None] == (560, 1008)
    assert canvas["original", None] == (224, 420)
    assert canvas["transformers", 16_384 * 28 * 28] == canvas["original", 16_384 * 28 * 28] == (224, 420)


def test_an_odd_clip_repeats_its_last_frame() -> None:
    value = Native(video_min_pixels=16, video_max_pixels=4096)
    layout = value.plan(8, 12, "video", tower("fold"), frames=3)
    assert (layout.frames, layout.grid, layout.blocks) == (4, Grid(2, 4, 6), (Block(2, 2, 3),))
    frames = [Image.new("RGB", (12, 8), (shade, shade, shade)) for shade in (10, 100, 200)]
    assert value.pixels(frames, layout, MEAN)[:, 0, 0, 0].tolist() == [10, 100, 200, 200]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_pixels": 5000, "max_pixels": 4000}, "min_pixels 5000 is more than max_pixels 4000"),
        ({"video_min_pixels": 700_000}, "video_min_pixels 700000 is more than video_max_pixels 602112"),
        ({"max_pixels": 10**12}, "less than or equal to 64000000"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Native(**limits)


@settings(deadline=None, max_examples=150)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    role=st.sampled_from(["single", "multi", "video"]),
    kind=st.sampled_from(["patchwise", "fold", "latents"]),
    frames=st.integers(1, 5),
    rule=st.sampled_from(["original", "transformers"]),
)
def test_pixels_are_what_was_promised(height: int, width: int, role: Any, kind: str, frames: int, rule: Any) -> None:
    value = Native(min_pixels=64, max_pixels=1024, video_min_pixels=64, video_max_pixels=512, rule=rule)
    model = tower(kind)
    layout = value.plan(height, width, role, model, frames)
    factor = model.patch * model.fold
    assert all(side > 0 and side % factor == 0 for side in layout.canvas)
    assert layout.canvas == (layout.grid.h * model.patch, layout.grid.w * model.patch)
    assert sum(block.maps for block in layout.blocks) == layout.grid.t
    assert layout.tokens == layout.grid.t * (
        5 if kind == "latents" else layout.patches // layout.grid.t // model.fold**2
    )
    images = [drawing(width, height)] * (frames if role == "video" else 1)
    pixels = value.pixels(images, layout, MEAN)
    assert pixels.shape == (layout.frames, 3, *layout.canvas)
    assert pixels.dtype == np.uint8
    assert layout.frames == (2 * layout.grid.t if role == "video" else 1)


@settings(deadline=None, max_examples=200)
@given(height=st.integers(82, 16_384), width=st.integers(82, 16_384))
def test_a_picture_within_the_limits_is_only_rounded_and_a_larger_one_made_to_fit(height: int, width: int) -> None:
    canvas = Native().plan(height, width, "single", NATIVE_VIT).canvas
    assert 3136 <= canvas[0] * canvas[1] <= 12_845_056
    if height * width < 12_000_000:
        assert abs(canvas[0] - height) <= 14
        assert abs(canvas[1] - width) <= 14
