"""A teacher whose answers are nearly all refused does not spend the budget; one that is mostly good is not stopped."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from opsin.core.errors import TeacherError
from opsin.synthesize.brake import BLOCK, FIRST, Brake, told_refused
from opsin.synthesize.check_values import Checks
from opsin.synthesize.outcome import Attempt, Finding, Outcome, State
from opsin.synthesize.recipe import Synthesis, load_synthesis
from opsin.synthesize.request import Usage
from opsin.synthesize.run import Watch, synthesize, synthesize_by_batch
from opsin.synthesize.subject import Task
from tests.support.chat_endpoint import Asked, ChatEndpoint, Reply, completion, refused
from tests.support.teaching import recipe_text, well, write_collection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

PICTURES = 200
KINDS = [{"kind": "reasoning"}, {"kind": "detail"}]
REFUSED = Reply(body=completion("Sure! The caption says that there is an elephant."))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_collection(tmp_path_factory.mktemp("collection"), pictures=PICTURES)
    captions = json.loads((folder / "captions.json").read_text())
    for number, annotation in enumerate(captions["annotations"]):
        annotation["caption"] += f" The street has the name {number}."  # no two requests are the same
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


def recipe(collection: Path, url: str, path: Path, **more: Any) -> Synthesis:
    limits = {"concurrency": 4}
    path.write_text(recipe_text(collection, url, **{"kinds": KINDS, "limits": limits, **more}))
    return load_synthesis(path)


def is_repair(asked: Asked) -> bool:
    return bool(asked.body["messages"][-1]["content"].startswith("That answer cannot be used"))


def only_reasoning_refused(asked: Asked) -> Reply:
    return REFUSED if "reason" in asked.body["messages"][0]["content"].lower() else well(asked)


def test_a_kind_that_is_always_refused_is_not_asked_for_to_the_end(collection: Path, tmp_path: Path) -> None:
    out, told, counts = tmp_path / "out", [], []
    watch = Watch(on_line=told.append, on_facts=lambda done, tasks, _: counts.append((done, tasks)))
    with ChatEndpoint(only_reasoning_refused) as endpoint:
        value = recipe(collection, endpoint.url, tmp_path / "recipe.yaml", checks={"near_duplicate": None})
        with pytest.raises(TeacherError) as caught:
            synthesize(value, out, watch)
        states = json.loads((out / "statistics.json").read_text())["kinds"]
        refused = states["reasoning"]["quarantined"]
        assert states["detail"] == {"made": PICTURES}  # which comes later, and is worth its money
        assert states["reasoning"] == {"quarantined": refused, "waiting": PICTURES - refused}
        assert FIRST * 0.9 <= refused < FIRST + 10
        assert len(endpoint.asked) == PICTURES + 2 * refused
        assert len((out / "quarantine.jsonl").read_text().splitlines()) == refused
        assert counts[0] == (1, 2 * PICTURES)
        assert counts[-1] == (PICTURES + refused, PICTURES + refused)  # what is not begun is not awaited
        assert told.count("reasoning: nearly all answers are refused; no more samples of this kind are begun") == 1

        first, done, look, change, go_on = str(caught.value).splitlines()
        assert first.startswith(f"reasoning: of {refused} samples with an answer {refused} are refused, by the checks ")
        assert f"schema {refused}" in first
        assert "says of 000000000001#reasoning: " in first
        assert done == f"{PICTURES + refused} of {2 * PICTURES} tasks are done"
        assert look.startswith(f"look at {out / 'quarantine.jsonl'} (`opsin inspect {out}`")
        assert "another model, prompt, temperature or extra_body" in change
        assert "checks.stop_when_refused=null, which is 0.9 now" in go_on

        with pytest.raises(TeacherError) as again:
            synthesize(value, out)
        assert str(again.value) == str(caught.value)
        assert len(endpoint.asked) == PICTURES + 2 * refused  # the same command spends nothing more


def test_answers_count_as_refused_when_their_repairs_are_not_answered(collection: Path, tmp_path: Path) -> None:
    """Some servers answer a question, and refuse every conversation with an answer in it."""

    def replies(asked: Asked) -> Reply:
        return refused(400, "conversation roles must alternate") if is_repair(asked) else REFUSED

    with ChatEndpoint(replies) as endpoint:
        value = recipe(collection, endpoint.url, tmp_path / "recipe.yaml", kinds=KINDS[:1])
        with pytest.raises(TeacherError) as caught:
            synthesize(value, tmp_path / "out")
        number = len(endpoint.asked) // 2
    assert FIRST * 0.9 <= number < FIRST + 10
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"reasoning: of {number} samples with an answer {number} are refused, by the checks ")
    assert f"asked again for {number} of them, the teacher gave no answer: " in first
    assert "conversation roles must alternate" in first
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["states"] == {"waiting": PICTURES - number, "unanswered": number}
    assert statistics["attempts"] == statistics["findings"]["last"]["schema"] == number  # paid answers are told
    assert statistics["usage"]["requests"] == number
    assert (tmp_path / "out" / "quarantine.jsonl").read_text() == ""  # a repair may still come
    assert "quarantine" not in str(caught.value)


def test_without_a_brake_all_is_asked(collection: Path, tmp_path: Path) -> None:
    with ChatEndpoint(lambda _: REFUSED) as endpoint:
        checks = {"stop_when_refused": None, "repairs": 0}
        value = recipe(collection, endpoint.url, tmp_path / "recipe.yaml", kinds=KINDS[:1], checks=checks)
        result = synthesize(value, tmp_path / "out")
    assert result.statistics["states"] == {"quarantined": PICTURES}
    assert len(endpoint.asked) == PICTURES


def test_a_kind_that_is_done_all_the_same_is_no_error(collection: Path, tmp_path: Path) -> None:
    """The samples were all refused by the checks, as the exit code 0 says; a trial tells what for all the same."""
    out, told = tmp_path / "out", []
    with ChatEndpoint(lambda _: REFUSED) as endpoint:
        value = recipe(collection, endpoint.url, tmp_path / "recipe.yaml", kinds=KINDS[:1], checks={"repairs": 0})
        assert synthesize(value, out, Watch(on_line=told.append), most_pictures=FIRST).complete
    first, look, change = told[-3:]
    assert first.startswith(f"reasoning: of {FIRST} samples with an answer {FIRST} are refused, by the checks schema ")
    assert look.startswith(f"look at {out / 'quarantine.jsonl'}")
    assert "take a new directory with --out" in change
    assert not any("no more samples of this kind are begun" in line or "stop_when_refused" in line for line in told)


def test_a_question_that_has_changed_is_asked_anew(collection: Path, tmp_path: Path) -> None:
    path, out, warmer = tmp_path / "recipe.yaml", tmp_path / "out", [{"kind": "reasoning", "temperature": 0.3}]
    with ChatEndpoint(lambda _: REFUSED) as endpoint, pytest.raises(TeacherError) as caught:
        synthesize(recipe(collection, endpoint.url, path, kinds=KINDS[:1]), out, most_pictures=80)
    with ChatEndpoint(well) as endpoint:  # it is mended
        with pytest.raises(TeacherError) as again:
            synthesize(recipe(collection, endpoint.url, path, kinds=KINDS[:1]), out, most_pictures=80)
        assert str(again.value) == str(caught.value)
        assert not endpoint.asked
        checks = {"near_duplicate": None}
        result = synthesize(recipe(collection, endpoint.url, path, kinds=warmer, checks=checks), out, most_pictures=80)
    assert result.statistics["states"] == {"made": 80}


def test_a_budget_that_ends_is_told_beside_the_refused_kind(collection: Path, tmp_path: Path) -> None:
    with ChatEndpoint(only_reasoning_refused) as endpoint:
        value = recipe(
            collection, endpoint.url, tmp_path / "recipe.yaml", limits={"concurrency": 4, "max_requests": 150}
        )
        with pytest.raises(TeacherError) as caught:
            synthesize(value, tmp_path / "out")
    first, budget, done, *_ = str(caught.value).splitlines()
    assert first.startswith("reasoning: of ")
    assert "max_requests=150" in budget
    assert done.endswith("tasks are done")


def test_a_batch_is_told_before_its_next_round(collection: Path, tmp_path: Path) -> None:
    value = recipe(collection, "http://127.0.0.1:9/v1", tmp_path / "recipe.yaml")
    rounds = Rounds(value, tmp_path)
    rounds.export()
    told = rounds.answer(only_reasoning_refused)
    assert not any("are refused" in line for line in told)  # the repairs may all be good
    assert rounds.kinds["reasoning"] == {"waiting": PICTURES}
    told = rounds.answer(only_reasoning_refused, most=FIRST)
    (line,) = [line for line in told if "are refused" in line]
    assert line.startswith(f"reasoning: of {FIRST} samples with an answer {FIRST} are refused, by the checks schema ")
    assert line.endswith("; a next round would pay for the same: change the model or the prompt first")
    assert rounds.kinds["reasoning"] == {"waiting": PICTURES - FIRST, "quarantined": FIRST}
    exported = f"batch  {tmp_path / 'batch' / 'batch-001.jsonl'}"
    assert told.index(line) < told.index(exported)
    assert len(rounds.requests) == PICTURES - FIRST  # exported all the same
    (line,) = [line for line in rounds.answer(only_reasoning_refused) if "are refused" in line]
    assert line.startswith(f"reasoning: of {PICTURES} samples with an answer {PICTURES} are refused")
    assert "next round" not in line  # there is none


def test_a_batch_whose_repairs_are_good_is_not_told_of_its_first_answers(collection: Path, tmp_path: Path) -> None:
    checks = {"near_duplicate": None}
    rounds = Rounds(recipe(collection, "http://127.0.0.1:9/v1", tmp_path / "recipe.yaml", checks=checks), tmp_path)
    told = rounds.export()
    told += rounds.answer(lambda asked: well(asked) if is_repair(asked) else REFUSED)
    told += rounds.answer(lambda asked: well(asked) if is_repair(asked) else REFUSED)
    assert rounds.kinds == {"reasoning": {"made": PICTURES}, "detail": {"made": PICTURES}}
    assert not any("are refused" in line for line in told)


class Rounds:
    """A synthesis by batch files: each `answer` takes answers to what was exported, and exports the next round."""

    def __init__(self, value: Synthesis, folder: Path) -> None:
        self.value = value
        self.folder = folder
        self.kinds: dict[str, dict[str, int]] = {}

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What was exported last."""
        return [json.loads(line) for line in (self.folder / "batch" / "batch-001.jsonl").read_text().splitlines()]

    def export(self, *imported: Path) -> list[str]:
        """The lines that are told."""
        told: list[str] = []
        out, batch, watch = self.folder / "out", self.folder / "batch", Watch(on_line=told.append)
        result = synthesize_by_batch(self.value, out, watch, imported=imported, exported=batch)
        self.kinds = result.statistics["kinds"]
        return told

    def answer(self, replies: Callable[[Asked], Reply], most: int | None = None) -> list[str]:
        """With the first so many requests answered, the others failed."""
        answers = self.folder / "answers.jsonl"
        lines = []
        for number, line in enumerate(self.requests):
            asked = Asked(0, "", line["body"], "", 0.0)
            answered = most is None or number < most
            body = json.loads(replies(asked).body or "{}") if answered else {"error": {"message": "expired"}}
            response = {"status_code": 200 if answered else 500, "body": body}
            lines.append(json.dumps({"custom_id": line["custom_id"], "response": response}) + "\n")
        answers.write_text("".join(lines))
        return self.export(answers)


def outcome(number: int, state: State, kind: str = "detail", key: str | None = "key") -> Outcome:
    task = Task(f"{number}#{kind}", kind, None, number, 0)  # type: ignore[arg-type]
    findings = (Finding("schema", "no answer"),) if state == "quarantined" else ()
    attempts = (Attempt("", "stop", Usage(1, 1), findings, key),) if state in ("made", "quarantined") else ()
    return Outcome(task, state, attempts)


def stopped(outcomes: Iterable[tuple[int, Outcome]], share: float | None = 0.9) -> bool:
    counted = list(outcomes)
    brake = Brake([one.task for _, one in sorted(counted, key=lambda one: one[0])], share)
    return any(brake.count(index, one) for index, one in counted)


def drawn(share: float, number: int, seed: int) -> list[tuple[int, Outcome]]:
    rng = random.Random(seed)
    return [(index, outcome(index, "quarantined" if rng.random() < share else "made")) for index in range(number)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_teacher_that_is_refused_now_and_then_is_never_stopped(share: float) -> None:
    assert not any(stopped(drawn(share, 20_000, seed)) for seed in range(5))


@pytest.mark.parametrize("good", [120, 1_000, 1_030, 1_199, 50_000])
def test_a_teacher_that_breaks_late_is_stopped_soon(good: int) -> None:
    outcomes = [outcome(index, "made" if index < good else "quarantined") for index in range(good + 1_000)]
    brake = Brake([one.task for one in outcomes], 0.9)
    (last,) = (index for index, one in enumerate(outcomes) if brake.count(index, one))
    assert last - good < 2 * BLOCK


def test_the_last_few_are_not_judged_by_themselves() -> None:
    good = [(index, outcome(index, "made")) for index in range(1_000)]
    assert not stopped(good + [(index, outcome(index, "quarantined")) for index in range(1_000, 1_044)])
    assert stopped(good + [(index, outcome(index, "quarantined")) for index in range(1_000, 1_200)])
    assert stopped(good + [(index, outcome(index, "quarantined")) for index in range(1_000, 1_060)])


def test_the_order_in_which_answers_come_does_not_matter() -> None:
    verdicts = set()
    for seed in range(40):
        outcomes = drawn(0.88, 300, seed)
        verdict = stopped(outcomes)
        verdicts.add(verdict)
        random.Random(seed).shuffle(outcomes)
        assert stopped(outcomes) == verdict
    assert verdicts == {True, False}  # the share is near enough to the threshold


def test_nor_does_it_matter_when_the_unanswered_ones_come() -> None:
    for number in (44, 45):
        outcomes = [
            (index, outcome(index, "quarantined" if index < number else "unanswered")) for index in range(FIRST)
        ]
        assert stopped(outcomes) == stopped(outcomes[::-1]) == (number == 45)


def test_a_slow_answer_does_not_hold_up_the_verdict() -> None:
    assert stopped((index, outcome(index, "quarantined")) for index in range(5, FIRST))
    assert not stopped((index, outcome(index, "quarantined")) for index in range(6, FIRST))


def test_what_no_teacher_has_answered_is_not_judged() -> None:
    unanswered = [(index, outcome(index, "unanswered" if index % 2 else "quarantined")) for index in range(2 * FIRST)]
    assert not stopped(unanswered[:88])
    assert stopped(unanswered)  # all that were answered
    assert not stopped((index, outcome(index, "quarantined", key=None)) for index in range(4 * FIRST))  # by rules


def test_a_kind_is_stopped_once() -> None:
    outcomes = [outcome(index, "quarantined") for index in range(2 * FIRST)]
    brake = Brake([one.task for one in outcomes], 0.9)
    assert [index for index, one in enumerate(outcomes) if brake.count(index, one)] == [0.9 * FIRST - 1]
    assert brake.stopped == {"detail"}


def test_the_commonest_reason_is_told_first_with_an_example() -> None:
    cut = outcome(3, "quarantined")
    findings = (Finding("cut", "too long"), Finding("words", "few", refuses=False))
    cut = replace(cut, attempts=(replace(cut.attempts[0], findings=findings),))
    told = told_refused([cut, outcome(0, "made"), outcome(1, "quarantined"), outcome(2, "quarantined")], "detail")
    assert told == (
        "detail: of 4 samples with an answer 3 are refused, by the checks schema 2, cut 1; "
        "schema says of 1#detail: no answer"
    )


def test_kinds_are_judged_by_themselves() -> None:
    good = [(index, outcome(index, "made")) for index in range(400)]
    bad = [(400 + index, outcome(400 + index, "quarantined", "reasoning")) for index in range(FIRST)]
    assert stopped(good + bad)
    assert not stopped(good + bad[:40])


@pytest.mark.parametrize("share", [0, 1.1, "often"])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ValidationError):
        Checks(stop_when_refused=share)
