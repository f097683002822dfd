from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.core.types import Block, Grid, Layout
from opsin.vision.positions import MRope, Run, Sequential
from tests.support.golden import golden


def medium(*blocks: Block) -> Layout:
    maps = sum(block.maps for block in blocks)
    return Layout((8, 8), (8, 8), maps, Grid(maps, 2, 2), (1, 1), blocks)


def laid_out(ids: list[int], case: dict[str, Any], pads: dict[str, int]) -> list[Run]:
    """The media of a golden case from their grids, at the places of their first pad."""
    grids = {pads["image_pad"]: case["image_grid_thw"] or [], pads["video_pad"]: case["video_grid_thw"] or []}
    waiting = {pad: iter(found) for pad, found in grids.items()}
    runs: list[Run] = []
    at = 0
    while at < len(ids):
        if ids[at] in waiting:
            maps, height, width = next(waiting[ids[at]])
            runs.append((at, medium(Block(maps, height // 2, width // 2))))
            at += runs[-1][1].tokens
        else:
            at += 1
    return runs


@pytest.mark.parametrize(("version", "resume"), [("v4", "paper"), ("v5", "transformers5")])
def test_mrope_equals_transformers(version: str, resume: Any) -> None:
    found = golden(f"qwen2vl_mrope_{version}")
    for case in found["cases"]:
        for row, padded in enumerate(case["input_ids"]):
            real = np.array(case["attention_mask"][row], dtype=bool)
            ids = np.array(padded)[real].tolist()
            positions = MRope(resume=resume).ids(len(ids), laid_out(ids, case, found["ids"]))
            expected = np.array(case["position_ids"])[:, row][:, real]
            assert np.array_equal(positions, expected), case["name"]


def test_the_worked_example() -> None:
    runs = [(4, medium(Block(1, 2, 3))), (14, medium(Block(2, 2, 2)))]
    time, height, width = MRope().ids(26, runs).tolist()
    assert time == [*range(4), *[4] * 6, 7, 8, 9, 10, *[11] * 4, *[12] * 4, 13, 14, 15, 16]
    assert height == [*range(4), 4, 4, 4, 5, 5, 5, 7, 8, 9, 10, *[11, 11, 12, 12] * 2, 13, 14, 15, 16]
    assert width == [*range(4), *[4, 5, 6] * 2, 7, 8, 9, 10, *[11, 12] * 4, 13, 14, 15, 16]


def test_after_a_long_clip_text_resumes_behind_its_last_frame() -> None:
    runs = [(3, medium(Block(6, 2, 2)))]
    assert MRope().ids(30, runs)[:, 27:].tolist() == [[9, 10, 11]] * 3
    assert MRope(resume="transformers5").ids(30, runs)[:, 27:].tolist() == [[5, 6, 7]] * 3


def test_a_newline_is_one_more_column_and_a_tail_is_text() -> None:
    positions = MRope().ids(9, [(1, medium(Block(1, 2, 2, newline=1, tail=1)))])
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]


blocks = st.builds(Block, st.integers(1, 5), st.integers(0, 4), st.integers(1, 4), st.integers(0, 1), st.integers(0, 2))
media = st.builds(lambda parts: medium(*parts), st.lists(blocks, min_size=1, max_size=3))
documents = st.lists(st.tuples(st.integers(0, 4), media), max_size=4)


@given(document=documents, rest=st.integers(0, 4))
def test_text_never_reuses_a_position_of_what_came_before(document: list[tuple[int, Layout]], rest: int) -> None:
    runs: list[Run] = []
    length = 0
    for text, layout in document:
        runs.append((length + text, layout))
        length += text + layout.tokens
    length += rest
    visual = np.zeros(length, dtype=bool)
    for place, layout in runs:
        visual[place : place + layout.tokens] = True
    positions = MRope().ids(length, runs)
    assert positions.shape == (3, length)
    assert positions.dtype == np.int64
    furthest = -1
    for at in range(length):
        if not visual[at]:
            assert len(set(positions[:, at])) == 1
            assert positions[0, at] == furthest + 1
        furthest = max(furthest, positions[:, at].max())
    assert Sequential().ids(length, runs).tolist() == [list(range(length))]


def test_a_section_without_a_frequency_is_refused() -> None:
    with pytest.raises(ValueError, match="each of the three sections needs at least one frequency"):
        MRope(sections=(0, 4, 4))
