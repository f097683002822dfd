"""A stage's data: order of its files, samples that do not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from opsin.core.errors import DataError
from opsin.data.plan import Pack
from opsin.train.data import plan_steps, read_stage
from opsin.train.recipe import Stage
from tests.support.models import tiny_vlm


def write(path: Path, count: int, words: int = 1) -> Path:
    turns = [{"from": "human", "value": "Say"}, {"from": "gpt", "value": "so " * words}]
    records = [{"id": f"{path.stem}-{n}", "conversations": turns} for n in range(count)]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def stage(*paths: Path, **changes: object) -> Stage:
    sources = [{"kind": "llava", "path": path} for path in paths]
    value = {"name": "x", "data": sources, "train": {"language": {"lr": 1e-3}}, "batch_tokens": 64}
    return Stage.model_validate(value | changes)


def test_files_as_listed_come_one_after_the_other(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    plan = stage(write(tmp_path / "a.json", 9), write(tmp_path / "b.json", 7), order="as_listed", epochs=2)
    data = read_stage(plan, model.config, prepare.tokenizer)
    names = [data.examples[i].id[0] for packs in plan_steps(data, plan, 0) for pack in packs for i in pack.samples]
    assert names == ["a"] * 18 + ["b"] * 14


def test_files_are_mixed_by_default(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    plan = stage(write(tmp_path / "a.json", 9), write(tmp_path / "b.json", 7))
    data = read_stage(plan, model.config, prepare.tokenizer)
    names = [data.examples[i].id[0] for packs in plan_steps(data, plan, 0) for pack in packs for i in pack.samples]
    assert sorted(names) == ["a"] * 9 + ["b"] * 7
    assert names != sorted(names)


def counts(steps: Sequence[tuple[Pack, ...]]) -> list[int]:
    return [sum(len(pack.samples) for pack in step) for step in steps]


def test_a_step_is_so_many_samples_of_one_epoch(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    plan = stage(write(tmp_path / "a.json", 9), samples_per_step=4, epochs=2)
    data = read_stage(plan, model.config, prepare.tokenizer)
    steps = plan_steps(data, plan, 0)
    assert counts(steps) == [4, 4, 1] * 2
    for epoch in (steps[:3], steps[3:]):
        assert sorted(i for step in epoch for pack in step for i in pack.samples) == list(range(9))
    part = plan.model_copy(update={"epochs": 1.5})
    assert plan_steps(data, part, 0) == steps[:5]  # half of three steps, rounded up
    tight = plan.model_copy(update={"batch_tokens": 32})
    assert counts(plan_steps(data, tight, 0)) == counts(steps)
    assert max(map(len, plan_steps(data, tight, 0))) > 1


def test_steps_of_samples_keep_the_order_of_files(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    files = write(tmp_path / "a.json", 5), write(tmp_path / "b.json", 3)
    plan = stage(*files, samples_per_step=4, order="as_listed")
    data = read_stage(plan, model.config, prepare.tokenizer)
    steps = plan_steps(data, plan, 0)
    names = [[data.examples[i].id[0] for pack in step for i in pack.samples] for step in steps]
    assert names == [["a"] * 4, ["a"], ["b"] * 3]


def test_a_sample_longer_than_the_context_is_named(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    context = model.config.language.facts["max_position_embeddings"]
    plan = stage(write(tmp_path / "a.json", 2, words=context))
    with pytest.raises(
        DataError, match=rf"a\.json:1: \(a-0\) \d+ tokens, more than the language model's context of {context}"
    ):
        read_stage(plan, model.config, prepare.tokenizer)
