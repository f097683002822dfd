"""What a large corpus takes: bytes of a sample in memory, and how much sooner a second look is done."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from opsin.data.corpus import Corpus, Part
from opsin.data.index import index_of
from opsin.data.plan import Budget, plan_epoch
from opsin.data.sources import LlavaFile
from tests.support.models import tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 300


def written(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [{"from": "human", "value": f"q{number % 7}"}, {"from": "gpt", "value": "a " * (1 + number % 5)}]
            file.write(json.dumps({"id": f"sample-{number}", "conversations": turns}) + "\n")
    return path


@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_sample_takes_few_bytes_and_its_second_measuring_no_time(tmp_path: Path, count: int) -> None:
    prepare = tiny_vlm(tmp_path)[1]
    path = written(tmp_path / "data.jsonl", count)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        index_of(LlavaFile(path=path), prepare)
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < seconds[0] / 4

    tracemalloc.start()
    try:
        source = LlavaFile(path=path)
        index = index_of(source, prepare)
        corpus = Corpus(prepare, [Part("data", source, index, np.arange(count), index.costs)])
        plan = plan_epoch(corpus.costs, Budget(256, 10**6), seed=0, epoch=0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(len(pack.samples) for pack in plan.packs) == len(corpus) == count
    assert held / count < MOST_BYTES
