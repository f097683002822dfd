"""What a stage uses of its sources: kinds, lengths, amounts, a resolution of its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from opsin.core.errors import DataError, ModelError
from opsin.train.data import StageData, mixture_digest, plan_steps, read_stage
from opsin.train.recipe import Stage
from tests.support.models import draw_picture, tiny_vlm

TRAIN = {"language": {"lr": 1e-3}}


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for pair in pairs for role, text in zip(("human", "gpt"), pair, strict=True)]


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    for number in range(2):
        draw_picture(folder / f"{number}.png", number, (64, 48))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return {"kind": "llava", "path": path}


def texts(folder: Path, name: str, count: int) -> dict[str, Any]:
    return write(folder, name, [{"id": f"{name}-{n}", "conversations": turns(("Say", "so"))} for n in range(count)])


def every_kind(folder: Path) -> dict[str, Any]:
    return write(
        folder,
        "all",
        [
            {"id": "text", "conversations": turns(("Say", "so"))},
            {"id": "one", "image": "0.png", "conversations": turns(("<image>What?", "A cat."))},
            {"id": "two", "image": ["0.png", "1.png"], "conversations": turns(("<image><image>Which?", "Both."))},
        ],
    )


def stage(*sources: dict[str, Any], **changes: Any) -> Stage:
    return Stage.model_validate({"name": "x", "data": list(sources), "train": TRAIN, "batch_tokens": 64} | changes)


def read(folder: Path, value: Stage, model: dict[str, Any] | None = None, **options: Any) -> StageData:
    vlm, prepare = tiny_vlm(folder, **(model or {}))
    return read_stage(value, vlm.config, prepare.tokenizer, **options)


def taken(data: StageData, value: Stage, seed: int = 0) -> list[str]:
    return [data.examples.id(i) for step in plan_steps(data, value, seed) for pack in step for i in pack.samples]


def test_a_stage_takes_the_kinds_that_it_wants(tmp_path: Path) -> None:
    value = stage(every_kind(tmp_path), only=["image", "images"])
    data = read(tmp_path, value)
    assert list(data.examples.ids()) == ["one", "two"]
    assert data.found.notes == ["1 samples left out: not of the stage's kinds"]
    assert data.examples[0].id == "one"


def test_kinds_of_which_there_is_none_are_told_with_those_there_are(tmp_path: Path) -> None:
    told = "hold no sample that it can use: 'only' takes video, and they hold 1 text, 1 image, 1 images"
    with pytest.raises(DataError, match=told):
        read(tmp_path, stage(every_kind(tmp_path), only=["video"]))


def test_amounts_are_taken_every_epoch(tmp_path: Path) -> None:
    sources = texts(tmp_path, "a", 10) | {"weight": 2}, texts(tmp_path, "b", 10) | {"number": 3}
    value = stage(*sources, epochs=3)
    counts = Counter(taken(read(tmp_path, value), value))
    assert [counts[f"a-{n}"] for n in range(10)] == [6] * 10
    assert sum(counts[f"b-{n}"] for n in range(10)) == 9
    assert max(counts[f"b-{n}"] for n in range(10)) == 1  # over epochs other ones


def test_the_first_of_a_source_as_published_mixtures_take_them(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 10) | {"number": 3, "pick": "first"}, epochs=2)
    assert Counter(taken(read(tmp_path, value), value)) == {"a-0": 2, "a-1": 2, "a-2": 2}


def test_sources_are_named_by_their_files_unless_they_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    same = texts(tmp_path, "a", 1), texts(tmp_path / "other", "a", 1), texts(tmp_path, "b", 1) | {"name": "chat"}
    assert list(stage(*same).sources) == ["a-1", "a-2", "chat"]
    with pytest.raises(ValueError, match="two sources have the same name"):
        stage(texts(tmp_path, "b", 1) | {"name": "a-1"}, *same)


def test_the_mixtures_hash_follows_contents_and_amounts(tmp_path: Path) -> None:
    source = texts(tmp_path, "a", 3)
    digests = {mixture_digest(stage(source)), mixture_digest(stage(source | {"weight": 2}))}
    texts(tmp_path, "a", 4)
    assert len({*digests, mixture_digest(stage(source))}) == 3
    assert mixture_digest(stage(source)) == mixture_digest(stage(source, epochs=2))


def long(folder: Path) -> dict[str, Any]:
    chat = turns(*[("Say it again please", "so " * 6)] * 4)
    return write(
        folder,
        "long",
        [
            {"id": "short", "conversations": turns(("Say", "so"))},
            {"id": "chat", "conversations": chat},
            {"id": "endless", "conversations": turns(("Say", "so " * 90))},
        ],
    )


def test_long_samples_are_refused_by_default(tmp_path: Path) -> None:
    value = stage(long(tmp_path))
    with pytest.raises(DataError) as caught:
        read(tmp_path, value)
    assert len(caught.value.problems) == 2
    assert all("more than the pack's budget of 64" in problem for problem in caught.value.problems)
    assert list(read(tmp_path, value, skip_bad=True).examples.ids()) == ["short"]


def test_long_samples_are_dropped_and_named(tmp_path: Path) -> None:
    data = read(tmp_path, stage(long(tmp_path), too_long="drop"))
    assert list(data.examples.ids()) == ["short"]
    assert ["(chat)" in data.found.dropped[0], "(endless)" in data.found.dropped[1]] == [True, True]
    assert data.found.refused == []


def test_long_samples_lose_their_last_exchanges_and_are_named(tmp_path: Path) -> None:
    value = stage(long(tmp_path), too_long="truncate_turns")
    data = read(tmp_path, value)
    assert list(data.examples.ids()) == ["short", "chat"]
    assert data.examples[1].num_tokens == data.examples.costs.tokens[1] <= 64
    (dropped,), (shortened,) = data.found.dropped, data.found.shortened
    assert "(endless)" in dropped
    assert "(chat)" in shortened
    assert "of 4 exchanges kept" in shortened
    assert Counter(taken(data, value)) == {"short": 1, "chat": 1}


@pytest.mark.parametrize("longest", [30, 64])
def test_a_sample_may_have_a_limit_below_that_of_its_pack(tmp_path: Path, longest: int) -> None:
    source = long(tmp_path)
    as_pack = read(tmp_path, stage(source, too_long="truncate_turns", batch_tokens=longest))
    wide = stage(source, too_long="truncate_turns", batch_tokens=512, longest_sample=longest)
    data = read(tmp_path, wide)
    assert data.examples.costs.tokens.tolist() == as_pack.examples.costs.tokens.tolist()
    assert max(data.examples.costs.tokens) <= longest
    assert (data.found.dropped, data.found.shortened) == (as_pack.found.dropped, as_pack.found.shortened)
    (packed,), *_ = plan_steps(data, wide, 0)
    assert len(packed.samples) == len(data.examples)  # the pack itself may hold more


def test_a_sample_over_the_limit_of_samples_says_which_key_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, stage(long(tmp_path), batch_tokens=512, longest_sample=64))
    assert len(caught.value.problems) == 2
    assert all("tokens, more than longest_sample, 64; raise it" in problem for problem in caught.value.problems)


def test_pictures_are_shrunk_to_fit(tmp_path: Path) -> None:
    model = {"encoder": "native_vit", "resolution": "native", "positions": "mrope"}
    value = stage(every_kind(tmp_path), too_long="shrink_images", batch_tokens=26)
    with pytest.raises(DataError, match="budget of 26"):
        read(tmp_path, stage(every_kind(tmp_path), batch_tokens=26), model)
    data = read(tmp_path, value, model)
    assert data.found.shortened
    assert all(example.num_tokens <= 26 for example in data.examples)
    assert data.examples.costs.tokens.tolist() == [example.num_tokens for example in data.examples]


def test_a_stage_may_have_a_resolution_of_its_own(tmp_path: Path) -> None:
    model = {"encoder": "siglip", "resolution": "any_res"}
    own, cheap = (
        read(tmp_path, stage(every_kind(tmp_path), batch_tokens=512, **changes), model)
        for changes in ({}, {"resolution": {"kind": "square", "size": 32}})
    )
    assert cheap.examples.costs.tokens[1] < own.examples.costs.tokens[1]
    assert cheap.examples[1].num_tokens == cheap.examples.costs.tokens[1]
    any_res = {"kind": "any_res", "size": 32, "pinpoints": [[32, 32]]}
    with pytest.raises(ModelError, match="no newline vector"):
        read(tmp_path, stage(every_kind(tmp_path), resolution=any_res), {"encoder": "siglip"})


def test_a_stage_ends_after_its_steps(tmp_path: Path) -> None:
    value = stage(texts(tmp_path, "a", 40), steps=2)
    assert len(plan_steps(read(tmp_path, value), value, 0)) == 2


def test_the_mixtures_hash_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = texts(tmp_path, "a", 3), texts(tmp_path / "other", "a", 3)
    assert mixture_digest(stage(here)) == mixture_digest(stage(there))


@pytest.mark.parametrize("amount", ["share", "weight", "number"])
def test_a_source_of_which_nothing_is_left_is_refused_by_name(tmp_path: Path, amount: str) -> None:
    value = {"share": 0.5, "weight": 2, "number": 3}[amount]
    other = {"share": 0.5} if amount == "share" else {}
    endless = [{"id": f"b-{n}", "conversations": turns(("Say", "so " * 90))} for n in range(2)]
    broken = {"id": "none", "conversations": []}
    source = write(tmp_path, "b", [*endless, broken]) | {amount: value, "name": "charts"}
    mixture = stage(texts(tmp_path, "a", 5) | other, source, too_long="drop")
    with pytest.raises(DataError) as caught:
        read(tmp_path, mixture, skip_bad=True)
    first, *lost = caught.value.problems
    assert "source 'charts'" in first
    assert "b.json) has no sample that the stage can use (1 cannot be used; 2 dropped)" in first
    assert [name in line for name, line in zip(["(none)", "(b-0)", "(b-1)"], lost, strict=True)] == [True] * 3


def test_samples_of_other_kinds_are_why_a_source_is_empty(tmp_path: Path) -> None:
    mixture = stage(every_kind(tmp_path) | {"share": 0.5}, texts(tmp_path, "a", 3), only=["image"])
    with pytest.raises(DataError, match=r"source 'a' .*; 3 samples left out: not of the stage's kinds\), but the mix"):
        read(tmp_path, mixture)


def test_an_epoch_that_is_too_long_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    number = {"number": 60_000_000}
    mixture = stage(texts(tmp_path, "a", 3) | number, texts(tmp_path, "b", 3) | number)
    with pytest.raises(DataError, match="stage 'x': an epoch of 120,000,000 samples is more than the 100,000,000"):
        read(tmp_path, mixture)


def packs_of(data: StageData, source: dict[str, Any], epochs: float) -> int:
    return len(plan_steps(data, stage(source, epochs=epochs), 0))


def test_a_part_of_an_epoch_is_so_many_of_its_packs(tmp_path: Path) -> None:
    source = texts(tmp_path, "a", 40)
    data = read(tmp_path, stage(source))
    whole = packs_of(data, source, 1)
    assert whole % 10 == 0
    assert packs_of(data, source, 1.1) == whole + whole // 10  # though 1.1 - 1 is more than 0.1
    assert packs_of(data, source, 2.5) == 2 * whole + whole // 2
    assert packs_of(data, source, 0.5 / whole) == 1  # a pack that is begun is taken
    assert packs_of(data, source, 1.5 / whole) == 2


def test_a_stage_of_no_step_is_refused(tmp_path: Path) -> None:
    source = texts(tmp_path, "a", 4)
    with pytest.raises(DataError, match="stage 'x': epochs 1e-12 are no whole pack, so 0 steps"):
        packs_of(read(tmp_path, stage(source)), source, 1e-12)


def test_a_file_that_is_not_whole_is_not_skipped(tmp_path: Path) -> None:
    """Eleven of 243 samples are not what anybody means by leaving out a bad record."""
    source = texts(tmp_path, "a", 40)
    whole = source["path"].read_text(encoding="utf-8")
    source["path"].write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)a\.json:1:.*the rest of the file is not read.*not a bad record"):
        read(tmp_path, stage(source), skip_bad=True)
