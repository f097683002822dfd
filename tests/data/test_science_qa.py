from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import DataError
from opsin.core.types import Picture, Turn
from opsin.data.check import check, source_of
from opsin.data.science_qa import ScienceQA
from tests.support.damage import CHANGES, mutated, read_through
from tests.support.models import draw_picture

if TYPE_CHECKING:
    from pathlib import Path

PROBLEMS: dict[str, Any] = {
    "1": {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "lecture": "Maps have four cardinal directions.\nNorth is one.",
        "solution": "West  Virginia is farthest north.",
    },
    "2": {
        "question": "Is air a solid or a gas?",
        "choices": ["a gas", "a solid"],
        "answer": 1,
        "hint": " Select   one. ",
        "image": None,
        "lecture": "",
        "solution": "",
    },
}


def written(folder: Path, problems: Any = PROBLEMS, splits: Any = None) -> Path:
    (folder / "1").mkdir(exist_ok=True)
    draw_picture(folder / "1" / "image.png", 1)
    path = folder / "problems.json"
    path.write_text(json.dumps(problems), encoding="utf-8")
    split_names = splits if splits is not None else {"train": ["1"], "test": ["2", "1"]}
    path.with_name("pid_splits.json").write_text(json.dumps(split_names), encoding="utf-8")
    return path


def test_qcm_lea_is_written_as_llava_writes_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    (first,) = source_of(path).conversations(Counter())
    assert (first.id, first.where) == ("1", str(path))
    assert first.turns == (
        Turn(
            "user",
            (
                "Which of these states is farthest north?\nContext: N/A\n"
                "Options: (A) West Virginia (B) Louisiana (C) Arizona (D) Oklahoma\n",
                Picture(path=tmp_path / "1" / "image.png"),
            ),
        ),
        Turn(
            "assistant",
            ("Maps have four cardinal directions.\\nNorth is one. West Virginia is farthest north. The answer is A.",),
        ),
    )


def test_without_picture_lecture_and_explanation(tmp_path: Path) -> None:
    second, _ = ScienceQA(path=written(tmp_path), split="test").conversations(Counter())
    # Two spaces become one in a single pass: of three two are left, and no answer has its blanks stripped.
    assert second.turns == (
        Turn("user", ("Is air a solid or a gas?\nContext: Select  one.\nOptions: (A) a gas (B) a solid",)),
        Turn("assistant", (" The answer is B.",)),
    )


def test_the_letter_form_shows_the_picture_first_and_asks_for_a_letter(tmp_path: Path) -> None:
    second, first = ScienceQA(path=written(tmp_path), split="test", prompt="letter").conversations(Counter())
    ask = "Answer with the option's letter from the given choices directly."
    assert second.turns == (
        Turn(
            "user",
            (f"Context: Select  one.\nQuestion: Is air a solid or a gas?\nOptions: (A) a gas (B) a solid\n{ask}",),
        ),
        Turn("assistant", ("B",)),
    )
    picture, text = first.turns[0].parts
    assert picture == Picture(path=tmp_path / "1" / "image.png")
    assert text.startswith("\nContext: N/A\nQuestion: Which")
    assert first.turns[1].parts == ("A",)


def test_every_problem_of_the_split_is_listed(tmp_path: Path) -> None:
    problems = {
        "1": PROBLEMS["1"] | {"answer": 4},
        "2": PROBLEMS["2"] | {"image": "gone.png"},
        "3": PROBLEMS["2"] | {"choices": []},
        "4": PROBLEMS["2"] | {"hint": None},
        "5": "none",
    }
    path = written(tmp_path, problems, {"train": ["1", "2", "3", "4", "5", "6", 7]})
    listed = [problem.text.removeprefix(f"{path}: ") for problem in check(ScienceQA(path=path)).problems]
    splits = path.with_name("pid_splits.json")
    assert listed == [
        "(1) 'answer' must be a number from 0 to 3, got int 4",
        f"(2) image '2/gone.png': no such file under {tmp_path}; correct the path or image_root",
        "(3) 'choices' must be a list of 1 to 26 texts, got list []",
        "(4) the problem: 'hint' must be a text, got nothing",
        "(5) the record must be a JSON object, got str 'none'",
        f"{splits}: the split 'train' has str '6', which is not a problem",
        f"{splits}: the split 'train' has int 7, which is not a problem",
    ]


def test_an_unknown_split_and_missing_files_are_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(DataError, match="no split 'val'; there are 'test', 'train'"):
        list(ScienceQA(path=path, split="val").conversations(Counter()))
    path.with_name("pid_splits.json").unlink()
    with pytest.raises(DataError, match=r"pid_splits\.json: no such file"):
        list(ScienceQA(path=path).conversations(Counter()))


@given(CHANGES, st.integers(0, 900), st.booleans())
@settings(max_examples=100, deadline=None)
def test_whatever_happens_to_the_files_is_said_as_data_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int, splits: bool
) -> None:
    path = written(tmp_path_factory.mktemp("mutated"))
    source = ScienceQA(path=path, split="test")
    victim = source.files[splits]
    victim.write_bytes(mutated(victim.read_bytes(), changes, max(0, cut - 800)))
    _, problems = read_through(source)
    assert all(problem.startswith(tuple(map(str, source.files))) for problem in problems)
