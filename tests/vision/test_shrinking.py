"""Ever smaller versions of a resolution, and what they cost a picture or a clip."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opsin.core.types import Layout
from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.native import Native
from opsin.vision.published import NATIVE_VIT, PUBLISHED, SIGLIP
from opsin.vision.resolution import Resolution
from opsin.vision.shrinking import HALVINGS, Step, ladder, thinned
from opsin.vision.square import Square
from opsin.vision.tower import Tower
from tests.support.pictures import tower

SIDES = st.integers(2, 16_384)
ROLES = st.sampled_from(["single", "multi", "video"])


def tiles(resolution: AnyRes) -> list[tuple[int, int | None]]:
    """Of every step, the most tiles of a canvas and the tiles whose tokens are left."""
    size = resolution.size**2
    return [(max(a * b // size for a, b in step.pinpoints), step.max_tiles) for step in resolution.smaller()]


def test_a_step_of_any_res_has_a_tenth_fewer_tiles() -> None:
    published = AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS, max_tiles=9)
    assert tiles(published)[:8] == [(30, 9), (25, 9), (25, 9), (20, 9), (18, 9), (16, 9), (15, 9), (12, 9)]
    assert tiles(published)[-8:] == [(8, 8), (6, 7), (6, 6), (5, 5), (4, 4), (3, 3), (2, 2), (1, 1)]
    assert tiles(AnyRes(size=336, pinpoints=NEXT_PINPOINTS)) == [(3, 3), (2, 2), (2, 1)]


def test_native_falls_to_its_least_pixels_in_steps_of_a_fifth() -> None:
    value = Native(min_pixels=1000, max_pixels=64_000, video_min_pixels=1000, video_max_pixels=2000)
    steps = list(value.smaller())
    assert (steps[-1].max_pixels, steps[-1].video_max_pixels) == (1000, 1000)
    for before, after in pairwise([value, *steps]):
        assert 0.78 < after.max_pixels / before.max_pixels < 0.82
        assert after.min_pixels == 1000
    least = Native(min_pixels=5, max_pixels=5, video_min_pixels=7, video_max_pixels=7)
    assert list(least.smaller()) == []


def test_a_square_has_nothing_smaller() -> None:
    assert [step.halvings for step in ladder(Square())] == list(range(HALVINGS + 1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_can_show_much_less(name: str) -> None:
    resolution, tower = PUBLISHED[name].resolution, PUBLISHED[name].tower
    last = ladder(resolution)[-1].resolution
    before, after = (one.plan(3000, 4000, "single", tower).tokens for one in (resolution, last))
    assert after <= before / (1 if isinstance(resolution, Square) else 2)


@pytest.mark.parametrize(
    ("resolution", "tower", "kept"),
    [
        (Square(), SIGLIP, [9, 5, 3, 2, 1, 1]),
        (Native(), NATIVE_VIT, [9, 5, 3, 2, 2, 2]),
    ],
    ids=["square", "native"],
)
def test_every_second_frame_is_left_out(resolution: Resolution, tower: Tower, kept: list[int]) -> None:
    frames = tuple(range(9))
    assert [len(thinned(frames, Step(resolution, halvings), tower)) for halvings in range(6)] == kept
    assert thinned(frames, Step(resolution, 2), tower) == (0, 4, 8)


@st.composite
def native(draw: st.DrawFn) -> Native:
    pixels = st.integers(1, 2_000_000)
    least, most = sorted(draw(st.tuples(pixels, pixels)))
    video_least, video_most = sorted(draw(st.tuples(pixels, pixels)))
    return Native(
        min_pixels=least,
        max_pixels=most,
        video_min_pixels=video_least,
        video_max_pixels=video_most,
        video_total_pixels=draw(st.none() | st.integers(1, 20_000_000)),
        rule=draw(st.sampled_from(["original", "transformers"])),
    )


@st.composite
def any_res(draw: st.DrawFn) -> AnyRes:
    side = st.integers(1, 10)
    shapes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=9))
    return AnyRes(
        size=28,
        pinpoints=tuple((28 * rows, 28 * cols) for rows, cols in shapes),
        max_tiles=draw(st.none() | st.integers(1, 12)),
        unpad=draw(st.booleans()),
        newline=draw(st.booleans()),
        multi=draw(st.sampled_from(["base", "tiles"])),
        rule=draw(st.sampled_from(["original", "transformers"])),
    )


def planned(resolution: Resolution, tower: Tower, height: int, width: int, role: Any, frames: int) -> list[Layout]:
    """The layouts of a picture or a clip at all steps of the ladder."""
    layouts = []
    for step in ladder(resolution):
        count = len(thinned(tuple(range(frames)), step, tower)) if role == "video" else 1
        layouts.append(step.resolution.plan(height, width, role, tower, count))
    return layouts


@settings(deadline=None, max_examples=100)
@given(value=native(), height=SIDES, width=SIDES, role=ROLES, frames=st.integers(1, 200), kind=st.booleans())
def test_no_step_of_native_costs_more_than_the_one_before(
    value: Native, height: int, width: int, role: Any, frames: int, kind: bool
) -> None:
    # A side shorter than a token is drawn out to a whole one, and the other side with it: that can cost more.
    assume(min(height, width) >= 28 and max(height, width) <= 200 * min(height, width))
    layouts = planned(value, tower("fold" if kind else "patchwise", patch=14), height, width, role, frames)
    assert len(layouts) <= 41 + HALVINGS
    for before, after in pairwise(layouts):
        assert after.patches <= before.patches
        assert after.tokens <= before.tokens


@settings(deadline=None, max_examples=100)
@given(value=any_res(), height=SIDES, width=SIDES, role=ROLES, frames=st.integers(1, 200), kind=st.booleans())
def test_steps_of_any_res_have_fewer_patches_and_a_falling_limit_of_tokens(
    value: AnyRes, height: int, width: int, role: Any, frames: int, kind: bool
) -> None:
    layouts = planned(value, tower("latents" if kind else "patchwise", patch=14), height, width, role, frames)
    assert len(layouts) <= 29 + HALVINGS
    for before, after in pairwise(layouts):
        assert after.patches <= before.patches
        assert after.tokens <= before.tokens or after.tiles != (0, 0)
    # Whole rows are cut and shrunk, so a mosaic of fewer tiles can come out a row larger; its limit holds all the same.
    for step, layout in zip(value.smaller(), layouts[1:], strict=False):
        mosaic = layout.blocks[-1]
        if mosaic.tiles != (1, 1) and 1 not in (mosaic.rows, mosaic.cols):
            assert mosaic.rows * mosaic.cols <= 1.1**2 * (step.max_tiles or 1) * layout.shape[0] * layout.shape[1]
