"""What a kept index or a planned sample is held against: nothing is used that is no longer what was measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.core.errors import DataError
from opsin.data.corpus import Corpus, Part
from opsin.data.costs import Costs
from opsin.data.example import Preparation
from opsin.data.index import Index, index_of
from opsin.data.sources import LlavaFile
from tests.support.models import tiny_vlm


@pytest.fixture
def prepare(tmp_path: Path) -> Preparation:
    return tiny_vlm(tmp_path, encoder="native_vit", resolution="native")[1]


@pytest.fixture
def source(tmp_path: Path) -> LlavaFile:
    Image.new("RGB", (40, 48)).save(tmp_path / "a.bmp")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "image": "a.bmp", "conversations": turns}]))
    return LlavaFile(path=tmp_path / "data.json")


def test_a_picture_rewritten_with_as_many_bytes_is_measured_anew(
    source: LlavaFile, prepare: Preparation, tmp_path: Path
) -> None:
    before, facts = index_of(source, prepare), (tmp_path / "a.bmp").stat()
    Image.new("RGB", (24, 80)).save(tmp_path / "a.bmp")
    os.utime(tmp_path / "a.bmp", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert (tmp_path / "a.bmp").stat().st_size == facts.st_size
    after = index_of(source, prepare)
    assert after.costs.patches[0] != before.costs.patches[0]


def planned(source: LlavaFile, prepare: Preparation, index: Index, costs: Costs) -> Corpus:
    return Corpus(prepare, [Part("data", source, index, np.arange(len(index)), costs)])


@pytest.mark.parametrize("column", ["tokens", "visual", "supervised", "patches", "kinds"])
def test_a_sample_that_costs_something_else_than_planned_is_not_used(
    source: LlavaFile, prepare: Preparation, column: str
) -> None:
    index = index_of(source, prepare)
    assert planned(source, prepare, index, index.costs)[0].id == "a"
    costs = replace(index.costs, **{column: getattr(index.costs, column) + 1})
    with pytest.raises(DataError, match=r"data\.json:1: \(a\) one of its pictures or videos changed"):
        planned(source, prepare, index, costs)[0]
