"""What samples cost, worked out once and kept: when it is used again, and when not."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opsin.core.errors import DataError, LoaderError
from opsin.data import index as module
from opsin.data import measure
from opsin.data.corpus import Corpus, Part
from opsin.data.costs import KINDS
from opsin.data.example import Fit, Preparation, make_example
from opsin.data.index import Chunks, Index, index_of
from opsin.data.sources import LlavaFile
from tests.support.models import draw_picture, tiny_vlm


@pytest.fixture
def prepare(tmp_path: Path) -> Preparation:
    return tiny_vlm(tmp_path)[1]


def record(number: int, pictures: int = 1) -> dict[str, Any]:
    question = "<image>" * pictures + f"What is number {number}?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "so " * (1 + number % 5)}]
    return {"id": f"id-{number}", "image": [f"{i}.png" for i in range(pictures)], "conversations": turns}


def written(folder: Path, records: list[dict[str, Any]]) -> LlavaFile:
    for number in range(3):
        draw_picture(folder / f"{number}.png", number, (40 + 8 * number, 30))
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return LlavaFile(path=path)


@pytest.fixture
def source(tmp_path: Path) -> LlavaFile:
    return written(tmp_path, [record(n, n % 3) for n in range(9)])


def count_measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever samples are rendered."""
    calls: list[int] = []
    real = measure.make_example

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(measure, "make_example", counted)
    return calls


def corpus(source: LlavaFile, index: Index, prepare: Preparation, **changes: Any) -> Corpus:
    return Corpus(prepare, [Part("data", source, index, np.arange(len(index)), index.costs, **changes)])


def test_costs_are_those_of_the_examples(source: LlavaFile, prepare: Preparation) -> None:
    index = index_of(source, prepare)
    examples = [make_example(conversation, prepare) for conversation in source.conversations(index.counts.copy())]
    assert index.ids == tuple(example.id for example in examples)
    assert index.costs.tokens.tolist() == [example.num_tokens for example in examples]
    assert index.costs.visual.tolist() == [int(example.visual_T.sum()) for example in examples]
    assert index.costs.supervised.tolist() == [example.num_supervised for example in examples]
    assert index.costs.patches.tolist() == [example.num_patches for example in examples]
    assert [KINDS[kind] for kind in index.costs.kinds] == ["text", "image", "images"] * 3
    assert index.counts == {"conversations": 9, "turns": 18, "pictures": 9}


def test_a_sample_is_read_again_as_it_was(source: LlavaFile, prepare: Preparation) -> None:
    samples = corpus(source, index_of(source, prepare), prepare)
    examples = [
        make_example(conversation, prepare) for conversation in source.conversations(samples.parts[0].index.counts)
    ]
    for number in (8, 0, 5, 5):
        for name in ("tokens_T", "supervised_T", "visual_T", "positions_AT"):
            assert np.array_equal(getattr(samples[number], name), getattr(examples[number], name))
        assert samples[number].seen == examples[number].seen
        assert samples.name(number) == examples[number].name
    assert [example.id for example in samples] == list(samples.ids())


def test_a_part_may_use_some_samples_and_make_them_shorter(source: LlavaFile, prepare: Preparation) -> None:
    index = index_of(source, prepare)
    chosen = np.array([2, 7])
    part = Part("data", source, index, chosen, index.costs.take(chosen), {7: Fit(exchanges=1)})
    both = Corpus(prepare, [part, part])
    assert len(both) == 4
    assert list(both.ids()) == ["id-2", "id-7"] * 2
    assert both[3].id == both.id(3) == "id-7"
    assert [both.first(0), both.first(1)] == [0, 2]
    with pytest.raises(IndexError):
        both[4]


def test_a_second_look_renders_nothing(
    source: LlavaFile, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index_of(source, prepare)
    calls = count_measured(monkeypatch)
    again = index_of(LlavaFile(path=source.path), prepare)
    assert calls == []
    assert (again.ids, again.counts) == (first.ids, first.counts)
    assert np.array_equal(again.addresses_N4, first.addresses_N4)
    assert np.array_equal(again.costs.columns(), first.costs.columns())


def test_how_much_is_taken_of_a_source_changes_nothing(
    source: LlavaFile, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(source, prepare)
    calls = count_measured(monkeypatch)
    index_of(LlavaFile(path=source.path, name="other", weight=2.0), prepare)
    assert calls == []


def test_what_changes_is_measured_anew(
    source: LlavaFile, prepare: Preparation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index_of(source, prepare)
    calls = count_measured(monkeypatch)

    def measured() -> bool:
        index_of(LlavaFile(path=source.path), prepare)
        found = bool(calls)
        calls.clear()
        return found

    draw_picture(tmp_path / "1.png", 7, (64, 64))
    assert measured()  # a picture of another size
    assert not measured()
    records = json.loads(source.path.read_text(encoding="utf-8"))
    facts = source.path.stat()
    records[0]["id"] = "id-X"  # as long as it was, and at the same time: only the content tells
    source.path.write_text(json.dumps(records), encoding="utf-8")
    os.utime(source.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert source.path.stat().st_size == facts.st_size
    assert measured()
    (tmp_path / "1.png").unlink()
    assert measured()


def test_other_geometry_or_template_is_another_index(source: LlavaFile, prepare: Preparation, tmp_path: Path) -> None:
    other = tiny_vlm(tmp_path, resolution="any_res", encoder="siglip")[1]
    assert other.digest != prepare.digest
    assert index_of(source, other).costs.tokens.tolist() != index_of(source, prepare).costs.tokens.tolist()


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "other"])
def test_a_damaged_index_is_made_anew(source: LlavaFile, prepare: Preparation, cache_folder: Path, damage: str) -> None:
    first = index_of(source, prepare)
    (path,) = (cache_folder / "lengths").rglob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "garbage": b"\x93NUMPY" + whole, "empty": b"", "other": b"{}"}[damage]
    )
    assert index_of(LlavaFile(path=source.path), prepare).ids == first.ids


def test_problems_are_told_every_time_until_they_are_mended(tmp_path: Path, prepare: Preparation) -> None:
    (tmp_path / "gone.png").unlink(missing_ok=True)
    records = [record(0), record(1) | {"image": "gone.png"}]
    source = written(tmp_path, records)
    for _ in range(2):
        index = index_of(source, prepare)
        assert index.ids == ("id-0",)
        (problem,) = index.problems
        assert "(id-1) image 'gone.png': no such file" in problem
    draw_picture(tmp_path / "gone.png", 1)
    assert index_of(source, prepare).ids == ("id-0", "id-1")


def test_an_interrupted_index_goes_on_where_it_was(
    source: LlavaFile, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = index_of(source, prepare)
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "FORMAT", -1)  # another folder
    real = measure.make_example

    def stopped(conversation: Any, *rest: Any, **options: Any) -> Any:
        if conversation.id == "id-6":
            raise KeyboardInterrupt
        return real(conversation, *rest, **options)

    monkeypatch.setattr(measure, "make_example", stopped)
    with pytest.raises(KeyboardInterrupt):
        index_of(source, prepare)
    monkeypatch.setattr(measure, "make_example", real)
    calls = count_measured(monkeypatch)
    index = index_of(source, prepare)
    assert len(calls) == 5  # the first four were kept
    assert index.ids == whole.ids
    assert index.counts == whole.counts
    assert np.array_equal(index.addresses_N4, whole.addresses_N4)
    assert np.array_equal(index.costs.columns(), whole.costs.columns())


@pytest.mark.parametrize("count", [3, 4, 8, 9])
def test_chunks_hold_every_sample_once(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    source = written(tmp_path, [record(n, n % 2) for n in range(count)])
    for _ in range(2):  # measured, then kept
        assert index_of(source, prepare).ids == tuple(f"id-{n}" for n in range(count))
    chunks = Chunks(source, prepare)
    assert chunks.chunk(0).ids == tuple(f"id-{n}" for n in range(min(4, count)))


def test_a_chunk_with_a_problem_is_made_anew_and_the_others_are_kept(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    records = [record(n) for n in range(12)]
    records[5]["conversations"][1]["value"] = ""  # nothing to learn
    source = written(tmp_path, records)
    first = index_of(source, prepare)
    calls = count_measured(monkeypatch)
    again = index_of(source, prepare)
    assert len(calls) == 4
    assert again.problems == first.problems
    assert len(first.problems) == 1
    assert again.ids == first.ids


def test_animations_are_counted(tmp_path: Path, prepare: Preparation) -> None:
    source = written(tmp_path, [record(0), record(1)])
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "0.png", save_all=True, append_images=[second])
    for _ in range(2):
        assert index_of(source, prepare).counts["animated pictures, of which the first frame is taken"] == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_measure_the_same(tmp_path: Path, prepare: Preparation, workers: int) -> None:
    records = [record(n, n % 3) for n in range(150)]
    records[70]["conversations"][1]["value"] = ""  # nothing to learn
    records[149] = {"id": "bad"}
    source = written(tmp_path, records)
    told: list[int] = []
    alone = index_of(source, prepare)
    helped = index_of(source, prepare, told.append, workers=workers)
    assert sum(told) == len(helped) == 148
    assert len(helped.problems) == 2
    assert (helped.ids, helped.counts, helped.problems) == (alone.ids, alone.counts, alone.problems)
    assert np.array_equal(helped.addresses_N4, alone.addresses_N4)
    assert np.array_equal(helped.costs.columns(), alone.costs.columns())


def test_a_killed_process_is_told(tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.make_example

    def deadly(conversation: Any, *rest: Any, **options: Any) -> Any:
        if conversation.id == "id-7":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(conversation, *rest, **options)

    monkeypatch.setattr(measure, "make_example", deadly)
    with pytest.raises(LoaderError, match=r"was killed \(often a lack of memory\) at .*data\.json:1: \(id-7\)"):
        index_of(written(tmp_path, [record(n) for n in range(20)]), prepare, workers=1)


def test_a_picture_that_comes_or_goes_moves_no_other_sample(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    records = [record(n) for n in range(14)]
    records[1]["image"] = "late.png"
    source = written(tmp_path, records)
    everyone = [f"id-{n}" for n in range(14)]
    for there in (False, True, False):
        if there:
            draw_picture(tmp_path / "late.png", 1)
        else:
            (tmp_path / "late.png").unlink(missing_ok=True)
        for _ in range(2):
            index = index_of(source, prepare)
            assert list(index.ids) == [name for name in everyone if there or name != "id-1"]
            assert len(index.problems) == (not there)


def test_an_error_while_a_chunk_is_read_loses_nothing(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    source = written(tmp_path, [record(n) for n in range(11)])
    chunks = Chunks(source, prepare)
    real = measure.make_example

    def interrupted(conversation: Any, *rest: Any, **options: Any) -> Any:
        if conversation.id == "id-5":
            raise KeyboardInterrupt
        return real(conversation, *rest, **options)

    monkeypatch.setattr(measure, "make_example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chunks.chunk(1)
    monkeypatch.setattr(measure, "make_example", real)
    assert chunks.chunk(1).ids == ("id-4", "id-5", "id-6", "id-7")
    assert index_of(source, prepare).ids == tuple(f"id-{n}" for n in range(11))


def test_nothing_is_kept_of_a_file_that_changes_while_it_is_read(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    source = written(tmp_path, [record(n) for n in range(11)])
    before, times = source.path.read_bytes(), source.path.stat()
    chunks = Chunks(source, prepare)
    source.path.write_bytes(before.replace(b'"id-', b'"ID-'))
    with pytest.raises(DataError, match=r"data\.json: changed"):
        chunks.chunk(0)
    source.path.write_bytes(before)
    os.utime(source.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert index_of(LlavaFile(path=source.path), prepare).ids == tuple(f"id-{n}" for n in range(11))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_that_nobody_foresaw_is_a_problem_of_its_sample(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    real = measure.make_example

    def surprising(conversation: Any, *rest: Any, **options: Any) -> Any:
        if conversation.id == "id-1":
            raise IndexError("deep inside")
        return real(conversation, *rest, **options)

    monkeypatch.setattr(measure, "make_example", surprising)
    index = index_of(written(tmp_path, [record(n) for n in range(3)]), prepare, workers=workers)
    assert index.ids == ("id-0", "id-2")
    assert "(id-1): cannot be read (IndexError: deep inside)" in index.problems[0]


def test_a_hung_process_is_told_with_its_sample(
    tmp_path: Path, prepare: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.make_example

    def hanging(conversation: Any, *rest: Any, **options: Any) -> Any:
        if conversation.id == "id-70":
            time.sleep(60)
        return real(conversation, *rest, **options)

    monkeypatch.setattr(measure, "make_example", hanging)
    began = time.monotonic()
    with pytest.raises(LoaderError, match=r"no progress for 0\.5 seconds at .*data\.json:1: \(id-70\)"):
        index_of(written(tmp_path, [record(n) for n in range(90)]), prepare, workers=2, timeout=0.5)
    assert time.monotonic() - began < 20


def test_a_flipped_byte_of_a_kept_index_is_made_anew(
    source: LlavaFile, prepare: Preparation, cache_folder: Path
) -> None:
    first = index_of(source, prepare)
    (path,) = (cache_folder / "lengths").rglob("*.npz")
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        again = index_of(LlavaFile(path=source.path), prepare)
        assert again.ids == first.ids
        assert np.array_equal(again.costs.columns(), first.costs.columns())
