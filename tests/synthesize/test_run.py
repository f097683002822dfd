"""A whole synthesis: from COCO's annotations to LLaVA JSON, by rules and with an endpoint, cut off and gone on with."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from opsin.core.errors import OpsinError, StoppedError, TeacherError
from opsin.data.check import check, source_of
from opsin.synthesize.recipe import load_synthesis
from opsin.synthesize.run import Result, Watch, estimated, synthesize, synthesize_by_batch
from tests.support.chat_endpoint import Asked, ChatEndpoint, Reply, completion, refused
from tests.support.teaching import batch_line, recipe_text, well, write_collection

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.synthesize.recipe import Synthesis

FILES = ("instruct.json", "provenance.jsonl", "quarantine.jsonl")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection"))


def made(collection: Path, out: Path, url: str | None = None, watch: Watch | None = None, **more: Any) -> Result:
    path = out.with_suffix(".yaml")
    path.write_text(recipe_text(collection, url, **more))
    return synthesize(load_synthesis(path), out, watch)


def records(out: Path, name: str = "instruct.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / name).read_text())
    return found


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_an_endpoint_makes_all_three_kinds_with_provenance(collection: Path, tmp_path: Path) -> None:
    price = {"input": 1.0, "output": 2.0}
    with ChatEndpoint(well) as endpoint:
        teacher = {"kind": "openai", "model": "tiny-1", "base_url": endpoint.url, "price": price}
        result = made(collection, tmp_path / "out", teacher=teacher)
    assert result.complete
    assert result.statistics["states"] == {"made": 36}
    found = records(tmp_path / "out")
    assert Counter(record["id"].partition("#")[2] for record in found) == {
        "conversation": 12,
        "detail": 12,
        "reasoning": 12,
    }
    for record in found:
        assert record["image"] == f"{record['id'][:12]}.jpg"
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert sum(turn["value"].count("<image>") for turn in turns) == 1
        assert "<image>" in turns[0]["value"]
    by = lines(tmp_path / "out", "provenance.jsonl")
    assert [one["id"] for one in by] == [record["id"] for record in found]
    assert [one["cost"] for one in by] == pytest.approx([20e-6] * 36)  # 10 + 5 tokens, as the endpoint says
    assert {one["model"] for one in by} == {"tiny-1"}
    assert all(one["prompt"].startswith(f"{one['kind']}@") and len(one["requests"]) == 1 for one in by)
    checked = check(source_of(tmp_path / "out" / "instruct.json", collection / "images"), decode=True)
    assert not checked.problems


def test_the_marks_of_pictures_stand_before_or_behind_the_question(collection: Path, tmp_path: Path) -> None:
    made(collection, tmp_path / "out", kinds=[{"kind": "conversation", "draws": 4}])
    firsts = [record["conversations"][0]["value"] for record in records(tmp_path / "out")]
    assert {value.startswith("<image>\n") for value in firsts} == {True, False}
    assert all(value.startswith("<image>\n") or value.endswith("\n<image>") for value in firsts)


def test_pictures_kept_apart_are_in_one_file_only(collection: Path, tmp_path: Path) -> None:
    made(collection, tmp_path / "out", held_out=0.4)
    kept = {record["image"] for record in records(tmp_path / "out", "held-out.json")}
    trained = {record["image"] for record in records(tmp_path / "out")}
    assert kept
    assert trained
    assert not kept & trained
    made(collection, tmp_path / "out")
    assert not (tmp_path / "out" / "held-out.json").exists()


def test_the_same_recipe_gives_the_same_bytes(collection: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        made(collection, tmp_path / name, held_out=0.2, seed=3)
    same(tmp_path / "one", tmp_path / "two")
    made(collection, tmp_path / "three", held_out=0.2, seed=4)
    assert records(tmp_path / "three") != records(tmp_path / "one")


def test_a_second_run_asks_nothing_and_writes_the_same(collection: Path, tmp_path: Path) -> None:
    with ChatEndpoint(well) as endpoint:
        made(collection, tmp_path / "out", endpoint.url)
        before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
        number = len(endpoint.asked)
        assert made(collection, tmp_path / "out", endpoint.url).complete
        assert len(endpoint.asked) == number == 36
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before


def test_progress_counts_what_a_teacher_is_asked_for(collection: Path, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    watch = Watch(on_facts=lambda done, tasks, _: counts.append((done, tasks)))
    with ChatEndpoint(well) as endpoint:
        made(collection, tmp_path / "out", endpoint.url, watch, kinds=[{"kind": "brief"}, {"kind": "detail"}])
    assert counts == [(done, 12) for done in range(1, 13)]  # brief ones are made by rules


def test_a_refused_answer_is_asked_for_again_with_what_was_wrong(collection: Path, tmp_path: Path) -> None:
    def replies(asked: Asked) -> Reply:
        again = asked.body["messages"][-1]["content"].startswith("That answer cannot be used")
        return well(asked) if again else Reply(body=completion("As the caption says, there is an elephant."))

    with ChatEndpoint(replies) as endpoint:
        result = made(collection, tmp_path / "out", endpoint.url, kinds=[{"kind": "detail"}])
        assert len(endpoint.asked) == 24
    assert result.statistics["states"] == {"made": 12}
    repaired = [one["check"] for one in lines(tmp_path / "out", "provenance.jsonl")[0]["repaired"]]
    assert {"disclosure", "hallucination"} <= set(repaired)


def test_what_stays_wrong_is_kept_in_quarantine_with_the_raw_answers(collection: Path, tmp_path: Path) -> None:
    raw = "The elephant \ud800 in the caption is at [0.12, 0.34, 0.50, 0.60].<image>"
    with ChatEndpoint(lambda _: Reply(body=completion(raw))) as endpoint:
        result = made(collection, tmp_path / "out", endpoint.url, kinds=[{"kind": "detail"}], checks={"repairs": 2})
    assert result.statistics["states"] == {"quarantined": 12}
    assert records(tmp_path / "out") == []
    refused_ones = lines(tmp_path / "out", "quarantine.jsonl")
    assert [len(one["attempts"]) for one in refused_ones] == [3] * 12
    assert refused_ones[0]["attempts"][0]["raw"] == raw
    assert refused_ones[0]["reasons"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_what_there_is_and_the_next_run_goes_on(
    collection: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def facts(done: int, _tasks: int, _facts: object) -> None:
        if done == 10:
            os.kill(os.getpid(), number)

    with ChatEndpoint(well, latency=0.01) as endpoint:
        made(collection, tmp_path / "whole", endpoint.url)
        asked = len(endpoint.asked)
        with pytest.raises(StoppedError, match="the same command goes on") as caught:
            made(collection, tmp_path / "cut", endpoint.url, Watch(on_facts=facts), limits={"concurrency": 2})
        assert caught.value.signal == number
        some = len(records(tmp_path / "cut"))
        assert 10 <= some < 36
        assert made(collection, tmp_path / "cut", endpoint.url).complete
        assert len(endpoint.asked) == 2 * asked  # nothing was bought twice
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_wrong_key_ends_it_at_once_and_is_never_printed(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    told: list[str] = []
    with ChatEndpoint(lambda _: refused(401, "wrong key sk-very-secret")) as endpoint:
        with pytest.raises(TeacherError, match="the key is not accepted") as caught:
            made(collection, tmp_path / "out", endpoint.url, Watch(on_line=told.append))
        assert len(endpoint.asked) <= 16
    assert "very-secret" not in str(caught.value) + "".join(told)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"very-secret" not in written


def test_a_budget_ends_it_before_it_is_passed_and_a_larger_one_goes_on(collection: Path, tmp_path: Path) -> None:
    with ChatEndpoint(well) as endpoint:
        result = made(collection, tmp_path / "out", endpoint.url, limits={"max_requests": 7})
        assert not result.complete
        assert "max_requests=7" in result.ended
        assert len(endpoint.asked) == 7
        assert result.statistics["states"] == {"made": 7, "waiting": 29}
        # What is in the ledger is made again however little may be asked, and wherever the others stand in line.
        path = tmp_path / "reordered.yaml"
        kinds = [{"kind": "brief"}, {"kind": "detail"}, {"kind": "conversation"}]
        path.write_text(recipe_text(collection, endpoint.url, kinds=kinds, limits={"max_requests": 7}))
        again = synthesize(load_synthesis(path), tmp_path / "out")
        assert again.statistics["kinds"]["brief"] == {"made": 12}
        assert again.statistics["kinds"]["conversation"] == {"waiting": 5, "made": 7}
        assert len(endpoint.asked) == 7
        assert made(collection, tmp_path / "out", endpoint.url).complete
        assert len(endpoint.asked) == 36


def test_a_request_that_is_never_answered_leaves_the_others_alone(collection: Path, tmp_path: Path) -> None:
    def replies(asked: Asked) -> Reply:
        return refused(400, "no") if asked.number == 5 else well(asked)

    with ChatEndpoint(replies) as endpoint:
        result = made(collection, tmp_path / "out", endpoint.url)
    assert result.statistics["states"] == {"made": 35, "unanswered": 1}
    assert not result.complete


def test_answers_that_are_out_are_kept_though_another_recipe_takes_them(collection: Path, tmp_path: Path) -> None:
    """Paid is paid: with fewer pictures, or another temperature, the rest is not asked again later."""
    out, answers = tmp_path / "out", tmp_path / "answers.jsonl"
    recipe, came = out_as_a_batch(collection, tmp_path)
    answers.write_text("".join(came))
    few = synthesize_by_batch(recipe, out, imported=[answers], most_pictures=3)
    assert few.statistics["states"] == {"made": 9}
    assert few.statistics["spent"]["requests"] == 36
    with ChatEndpoint(well) as endpoint:
        assert made(collection, out, endpoint.url).statistics["states"] == {"made": 36}
    assert endpoint.asked == []


def test_a_budget_of_requests_holds_over_rounds_of_batches(collection: Path, tmp_path: Path) -> None:
    out, answers = tmp_path / "out", tmp_path / "answers.jsonl"
    recipe, came = out_as_a_batch(collection, tmp_path, limits={"max_requests": 5})
    answers.write_text("".join(came))
    result = synthesize_by_batch(recipe, out, imported=[answers], exported=tmp_path / "batch")
    assert result.statistics["states"] == {"made": 5, "waiting": 31}
    assert list((tmp_path / "batch").iterdir()) == []


def test_what_came_is_written_though_more_is_out(collection: Path, tmp_path: Path) -> None:
    out, answers = tmp_path / "out", tmp_path / "answers.jsonl"
    recipe, came = out_as_a_batch(collection, tmp_path)
    answers.write_text("".join(came[:20]))
    with pytest.raises(OpsinError, match="16 requests of "):
        synthesize_by_batch(recipe, out, imported=[answers], exported=tmp_path / "batch")
    assert len(records(out)) == 20


def out_as_a_batch(collection: Path, folder: Path, **more: Any) -> tuple[Synthesis, list[str]]:
    """A recipe whose requests are out, and the answers to them, a line each."""
    path = folder / "recipe.yaml"
    path.write_text(recipe_text(collection, "http://127.0.0.1:9/v1", **more))
    recipe = load_synthesis(path)
    synthesize_by_batch(recipe, folder / "out", exported=folder / "batch")
    (file,) = (folder / "batch").iterdir()
    return recipe, [batch_line(json.loads(line)) for line in file.read_text().splitlines()]


def test_an_estimate_asks_and_writes_nothing(collection: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(collection, "http://127.0.0.1:9/v1"))
    found = estimated(load_synthesis(path), tmp_path / "out")
    assert (found.requests, found.in_ledger) == (36, 0)
    assert 0 < found.expected.tokens < found.most.tokens
    assert not (tmp_path / "out").exists()


def test_a_directory_with_other_things_in_it_is_refused(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(OpsinError, match="not empty, and no synthesis"):
        made(collection, tmp_path / "out")
