"""Stages that stream: planned as they go, and yet the same packs for everyone."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from opsin.core.errors import DataError
from opsin.data import index, measure
from opsin.data.loader import Loader
from opsin.train import stream
from opsin.train.data import StageData, plan_steps, read_stage
from opsin.train.recipe import Stage
from opsin.train.stream import StreamSteps, packs_from
from tests.support.models import tiny_vlm, write_data

if TYPE_CHECKING:
    from pathlib import Path

TRAIN = {"language": {"lr": 1e-3}}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 40 samples and chunks of 16, so that little data makes several."""
    monkeypatch.setattr(stream, "SHUFFLED", 40)
    monkeypatch.setattr(stream, "WINDOW", 20)
    monkeypatch.setattr(index, "CHUNK", 16)


def texts(folder: Path, name: str, count: int, *, broken: int | None = None) -> dict[str, Any]:
    lines = []
    for number in range(count):
        turns = [{"from": "human", "value": f"Say {number}"}, {"from": "gpt", "value": "so " * (1 + number % 7)}]
        lines.append(json.dumps({"id": f"{name}-{number}", "conversations": turns}))
    if broken is not None:
        lines[broken] = "{"
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "llava", "path": path}


def stage(*sources: dict[str, Any], **changes: Any) -> Stage:
    value = {"name": "x", "data": list(sources), "train": TRAIN, "batch_tokens": 128, "order": "stream", "steps": 12}
    return Stage.model_validate(value | changes)


def read(folder: Path, value: Stage, **options: Any) -> StageData:
    model, prepare = tiny_vlm(folder)
    return read_stage(value, model.config, prepare.tokenizer, **options)


def ids_of(data: StageData, steps: Any) -> list[list[str]]:
    return [[data.examples.id(i) for i in pack.samples] for step in steps for pack in step]


def test_the_same_packs_whoever_asks_and_from_wherever(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 100), packs_per_step=2)
    data = read(tmp_path, value)
    steps = plan_steps(data, value, seed=5)
    whole = ids_of(data, steps)
    assert len(steps) == 12
    assert len(whole) == 24
    for pack in packs_from(steps, 0):
        assert pack.tokens == sum(data.examples[i].num_tokens for i in pack.samples) <= 128
        assert pack.supervised == sum(data.examples[i].num_supervised for i in pack.samples)
    again = read(tmp_path, value)
    steps = plan_steps(again, value, seed=5)
    assert [[again.examples.id(i) for i in pack.samples] for pack in packs_from(steps, 7)] == whole[14:]
    other = read(tmp_path, value)
    assert ids_of(other, plan_steps(other, value, seed=6)) != whole


def test_training_begins_before_the_source_is_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    real = measure.make_example

    def noted(conversation: Any, *rest: Any, **options: Any) -> Any:
        rendered.append(conversation.id)
        return real(conversation, *rest, **options)

    monkeypatch.setattr(measure, "make_example", noted)
    value = stage(texts(tmp_path, "a", 1000))
    steps = plan_steps(read(tmp_path, value), value, seed=0)
    assert rendered == []
    assert len(steps[0][0].samples) > 3
    assert len(rendered) == 48  # three chunks: what a window needs
    rendered.clear()
    plan_steps(read(tmp_path, value), value, seed=0)[0]
    assert rendered == []  # costs are kept


def test_a_source_that_ends_begins_anew(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 30), steps=20)
    data = read(tmp_path, value)
    counts = Counter(name for pack in ids_of(data, plan_steps(data, value, seed=0)) for name in pack)
    assert len(counts) == 30
    assert max(counts.values()) - min(counts.values()) <= 2


def test_sources_are_mixed_by_their_shares(tmp_path: Path) -> None:
    sources = texts(tmp_path, "a", 70) | {"share": 0.75}, texts(tmp_path, "b", 9) | {"share": 0.25}
    value = stage(*sources, steps=30)
    data = read(tmp_path, value)
    names = [name[0] for pack in ids_of(data, plan_steps(data, value, seed=0)) for name in pack]
    for start in range(0, len(names) - 60, 20):  # at any time, not only in the end
        assert 0.6 < names[start : start + 60].count("a") / 60 < 0.9


def test_a_bad_record_is_named_when_it_comes(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 100, broken=90), steps=40)
    data = read(tmp_path, value)
    steps = plan_steps(data, value, seed=0)
    assert steps[0]
    with pytest.raises(DataError, match=r"a\.jsonl:91:"):
        list(steps)
    patient = read(tmp_path, value, skip_bad=True)
    seen = {name for pack in ids_of(patient, plan_steps(patient, value, seed=0)) for name in pack}
    assert len(seen) == 99
    assert len(patient.found.refused) == 1  # told once, though the source is read more than once
    assert patient.found.counts["conversations"] == 99


def test_a_source_without_a_usable_sample_ends_the_run(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 20), only=["video"])
    with pytest.raises(DataError, match=r"a\.jsonl: no sample that the stage can use"):
        list(plan_steps(read(tmp_path, value), value, seed=0))


def test_workers_read_what_is_planned_on_the_way(tmp_path: Path) -> None:
    value = stage({"kind": "llava", "path": write_data(tmp_path, pictures=30, texts=60)}, batch_tokens=200)
    batches = []
    for workers in (0, 3):
        data = read(tmp_path, value)
        packs = packs_from(plan_steps(data, value, seed=1), 2)
        with Loader(data.examples, data.preparation, packs, workers=workers, pick=data.examples.pick) as loader:
            batches.append(list(loader))
    for one, other in zip(*batches, strict=True):
        assert one.ids == other.ids
        assert one.tokens_T.equal(other.tokens_T)
        assert (one.pixels_X is None) == (other.pixels_X is None)
        assert one.pixels_X is None or one.pixels_X.equal(other.pixels_X)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "give steps"),
        ({"epochs": 2.0}, "has no epochs"),
        ({"cache_features": True}, "do not go together"),
    ],
)
def test_what_a_stream_cannot_have(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage(texts(tmp_path, "a", 3), **changes)
    with pytest.raises(ValueError, match="mixes by share"):
        stage(texts(tmp_path, "a", 3), texts(tmp_path, "b", 3))


def test_a_picture_that_comes_back_changes_no_step_between_processes(tmp_path: Path) -> None:
    """The plan is made in one place, so that no worker can see another one."""
    source = write_data(tmp_path, pictures=30, texts=30)
    moved = (tmp_path / "pictures" / "3.png").rename(tmp_path / "3.png")
    value = stage({"kind": "llava", "path": source}, batch_tokens=200, steps=30)
    data = read(tmp_path, value, skip_bad=True)
    packs = packs_from(plan_steps(data, value, seed=1), 0)
    with Loader(data.examples, data.preparation, packs, workers=2, pick=data.examples.pick) as loader:
        for number, batch in enumerate(loader):
            assert batch.ids == tuple(data.examples.id(i) for i in packs[number].samples)
            assert batch.num_supervised == packs[number].supervised
            if number == 5:
                moved.rename(tmp_path / "pictures" / "3.png")


def test_steps_that_are_taken_are_forgotten(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 30), steps=200)
    data, other = read(tmp_path, value), read(tmp_path, value)
    steps, whole = plan_steps(data, value, seed=0), plan_steps(other, value, seed=0)
    assert isinstance(steps, StreamSteps)
    assert isinstance(whole, StreamSteps)
    held = []
    for step in range(200):
        packs = steps[step]
        assert ids_of(data, [packs]) == ids_of(other, [whole[step]])
        steps.forget(step + 1)
        held.append(len(data.examples.parts))
    assert max(held[100:]) <= max(held[:100])
    assert steps.digest(200) == whole.digest(200) != whole.digest(199)
    with pytest.raises(IndexError, match="step 3 is taken and forgotten"):
        steps[3]
