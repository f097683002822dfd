"""The maps of M-RoPE ids show what training takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opsin.data.example import make_example
from opsin.report.pieces import evenly, spans
from opsin.report.positions import cells, positions
from tests.support.models import dialogue
from tests.support.views import KINDS, asked, picture, prepared

if TYPE_CHECKING:
    from pathlib import Path


@given(arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 2)))
def test_stretches_make_up_the_map(ids: np.ndarray) -> None:
    drawn = np.full_like(ids, -1)
    for row, column, rows, columns, number in cells(ids):
        assert (drawn[row : row + rows, column : column + columns] == -1).all()
        drawn[row : row + rows, column : column + columns] = number
    assert (drawn == ids).all()


def test_rows_and_columns_are_drawn_once() -> None:
    rows, columns = np.indices((20, 30))
    assert len(cells(rows)) == 20
    assert len(cells(columns)) == 30


@given(st.integers(0, 200), st.integers(1, 30))
def test_what_is_chosen_evenly_has_both_ends(count: int, most: int) -> None:
    chosen = evenly(count, most)
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    if most > 1 and count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_a_picture_has_a_map_of_rows_and_one_of_columns(tmp_path: Path) -> None:
    _, prepare = prepared(tmp_path, **KINDS["native"])
    example = make_example(dialogue("x", "What is it?", "A cat.", [picture(tmp_path, 96, 64)]), prepare)
    html = positions(example)
    start = spans(example)[0].end
    rows, columns = example.layouts[0].shape
    assert "time: 1 step<" in html
    assert f'aria-label="height: {start}–{start + rows - 1}"' in html
    assert f'aria-label="width: {start}–{start + columns - 1}"' in html
    assert html.count('<rect class="id"') == rows + columns
    assert f"{rows}×{columns} tokens<" in html


def test_a_clip_has_its_steps_in_time(tmp_path: Path) -> None:
    _, prepare = prepared(tmp_path, **KINDS["native"])
    example = make_example(asked(tmp_path)[2], prepare)
    start = spans(example)[0].end
    steps = example.layouts[0].blocks[0].t
    assert steps == 2
    html = positions(example)
    assert f"time: {steps} steps" in html
    assert re.findall(r"</i>(\d+)</li>", html) == [str(start), str(start + 1)]


def test_one_axis_needs_no_map(tmp_path: Path) -> None:
    _, prepare = prepared(tmp_path)
    assert positions(make_example(asked(tmp_path)[0], prepare)) == ""
