from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError
from opsin.data.collate import medium_pixels
from opsin.data.example import make_example
from opsin.evaluate import heldout
from opsin.evaluate.heldout import Asker, Effort, caption_scores, evaluate, retrieval
from opsin.evaluate.questions import read_questions
from opsin.report.scores import Scores
from tests.support.tiny import tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from opsin.core.types import Batch
    from opsin.data.example import Seen
    from opsin.model.vlm import Vlm
    from opsin.text.tokenizer import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


def records() -> list[dict[str, Any]]:
    """For every colour a category, a yes-or-no question and a caption; the first two also a count."""
    found: list[dict[str, Any]] = []
    for index, name in enumerate(COLOURS):
        common = {"image": f"{name}.png"}
        label = "warm" if name == "red" else "cold"
        asked = [
            ("category", "Which group?", label, ["warm", "cold"]),
            ("yes_no", "Is it red?", "Yes" if name == "red" else "No", ["Yes", "No"]),
            ("caption", "What is in this picture? Be brief.", f"A {name} square.", None),
            *([("count", "How many things are there?", "1", None)] if index < 2 else []),
        ]
        for task, question, answer, choices in asked:
            record = {"id": f"{name}#{task}", "task": task, "question": question, "answer": answer}
            found.append(common | record | ({"choices": choices} if choices else {}))
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Vlm, Tokenizer]:
    return tiny_model(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (80, 60), colour).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "heldout.json").write_text(json.dumps(records()), encoding="utf-8")
    return tmp_path


def run(tiny: tuple[Vlm, Tokenizer], data: Path, **settings: Any) -> Scores:
    return evaluate(*tiny, data / "heldout.json", data / "images", **settings)


def with_answers(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, answers: dict[str, str]) -> None:
    """The model says `answers[question id]`, else "cold"."""

    def generate(_model: Vlm, prompts: Batch, *_: object) -> list[list[int]]:
        return [tokenizer.encode(answers.get(name, "cold")) for name in prompts.ids]

    monkeypatch.setattr(heldout, "generate", generate)


def test_arithmetic_of_known_answers(tiny: tuple[Vlm, Tokenizer], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"red#category": "Warm.", "green#yes_no": "no", "red#count": "2", "green#count": " 1. "}
    answers |= {"red#caption": "A red square.", "blue#caption": "A green square."}
    with_answers(monkeypatch, tiny[1], answers)
    scores = run(tiny, data, effort=Effort(retrieval_size=0))

    found = {score.task: score for score in scores.scores}
    assert {task: found[task].value for task in ("category", "yes_no", "count")} == {
        "category": 1.0,  # "warm", and "cold" three times
        "yes_no": 0.25,
        "count": 0.5,
    }
    assert found["category"].baseline == 0.75
    assert found["category"].baseline_name == "always “cold”"
    assert (found["yes_no"].baseline, found["count"].baseline) == (0.75, 1.0)
    assert found["caption"].metric == "CIDEr-D"
    by_id = {prediction.id: prediction for prediction in scores.predictions}
    assert by_id["red#caption"].correct is None
    assert by_id["red#caption"].cider == max(p.cider or 0 for p in scores.predictions)
    assert by_id["red#count"].correct is False
    assert by_id["green#count"].answer == "1."
    assert [p.id for p in scores.predictions] == [record["id"] for record in records()]


def test_a_real_pass_is_repeatable_whatever_the_batch(tiny: tuple[Vlm, Tokenizer], data: Path) -> None:
    seen: list[tuple[int, int]] = []
    one = run(tiny, data, effort=Effort(batch=1), on_progress=lambda done, every: seen.append((done, every)))
    all_at_once = run(tiny, data, effort=Effort(batch=32))
    assert one.predictions == all_at_once.predictions
    assert [score.value for score in one.scores] == pytest.approx([score.value for score in all_at_once.scores])
    assert seen[-1] == (18, 18)  # 14 questions and 4 pictures of the retrieval
    assert [score.metric for score in one.scores if score.task == "caption"] == ["CIDEr-D", "recall@1", "recall@5"]
    assert Scores.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_cached_features_take_the_place_of_the_encoder(
    tiny: tuple[Vlm, Tokenizer], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    expected = run(tiny, data)
    encode, prepare = model.encoder.forward, preparation(model.config, tokenizer)

    class Cached:
        def get(self, seen: Sequence[Seen]) -> Tensor:
            pixels = [torch.from_numpy(medium_pixels(*pair, prepare)).flatten() for pair in seen]
            return encode(torch.cat(pixels), [layout for _, layout in seen])

    def must_not_run(*_: object) -> Tensor:
        raise AssertionError("the encoder ran although its features are cached")

    monkeypatch.setattr(model.encoder, "forward", must_not_run)
    assert run(tiny, data, features=Cached()).predictions == expected.predictions


def test_the_model_is_left_as_it_was(tiny: tuple[Vlm, Tokenizer], data: Path) -> None:
    model, _ = tiny
    model.train()
    run(tiny, data, effort=Effort(retrieval_size=0))
    assert model.training
    assert torch.is_grad_enabled()


def test_a_prompt_and_its_caption_are_what_training_shows(tiny: tuple[Vlm, Tokenizer], data: Path) -> None:
    asker = Asker(tiny[0], preparation(tiny[0].config, tiny[1]), None)
    question = next(q for q in read_questions(data / "heldout.json", data / "images") if q.task == "caption")
    trained = make_example(question.answered(asker.prepare.template), asker.prepare)
    joined = [*asker.prompts([question]).tokens_T.tolist(), *asker.caption_ids(question)]
    assert joined == trained.tokens_T.tolist()[: len(joined)]
    assert "".join(
        part for part in question.asked(asker.prepare.template).turns[0].parts if isinstance(part, str)
    ).startswith("\nWhat")


def test_a_caption_that_is_always_likely_does_not_win(tiny: tuple[Vlm, Tokenizer], data: Path) -> None:
    asker = Asker(tiny[0], preparation(tiny[0].config, tiny[1]), None)
    questions = [q for q in read_questions(data / "heldout.json", data / "images") if q.task == "caption"]
    done: list[int] = []
    matrix = caption_scores(asker, questions, 3, done.append)
    assert matrix.shape == (4, 4)
    assert done == [3, 4]
    np.testing.assert_allclose(matrix.sum(axis=0), 0, atol=1e-12)


def test_retrieval_says_what_chance_gets() -> None:
    first, fifth = retrieval(np.eye(10))
    assert (first.metric, first.value, first.baseline) == ("recall@1", 1.0, 0.1)
    assert (fifth.metric, fifth.value, fifth.baseline) == ("recall@5", 1.0, 0.5)
    assert first.verdict == "above"


@pytest.mark.parametrize("size", [1, -1])
def test_a_retrieval_of_one_picture_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"retrieval_size is {size}; give at least 2"):
        Effort(retrieval_size=size)


def test_every_bad_record_is_named(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "bad.json"
    good = records()[0]
    bad = [good | {"task": "sing"}, good | {"image": "../x.png"}, {"id": "a"}, good | {"anwser": "typo"}]
    path.write_text("\n".join(json.dumps(record) for record in bad), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_questions(path, data / "images")
    message = "\n".join(caught.value.problems)
    for part in ("bad.json:1: task", "bad.json:2: (red#category) image '../x.png': '..'", "bad.json:3", "anwser"):
        assert part in message


def test_no_questions_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="holds 0 questions"):
        read_questions(path, tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_questions(tmp_path / "none.json", tmp_path)
