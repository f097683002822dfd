from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opsin.core.errors import PictureError, RenderError
from opsin.core.types import PLACEHOLDER_ID, Conversation, Picture, Turn
from opsin.data.example import Preparation, make_example
from opsin.data.user_turn import user_turn
from tests.support.models import dialogue, draw_picture, tiny_vlm


@pytest.fixture
def prepare(tmp_path: Path) -> Preparation:
    return tiny_vlm(tmp_path)[1]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [Picture(path=draw_picture(tmp_path / f"{n}.png", n, (30 + n, 50))) for n in range(3)]


def text_between(prepare: Preparation, ids: np.ndarray) -> str:
    return prepare.tokenizer.decode([int(i) for i in ids], keep_control=True)


def test_visual_positions_stand_where_the_picture_is(prepare: Preparation, pictures: list[Picture]) -> None:
    example = make_example(dialogue("a", "What is it?", "A cat.", pictures[:1]), prepare)
    assert example.visual_T.sum() == example.layouts[0].tokens == 4
    (places,) = np.nonzero(example.visual_T)
    assert np.array_equal(places, np.arange(places[0], places[0] + 4))
    assert text_between(prepare, example.tokens_T[: places[0]]) == "<|im_start|>user\n"
    after = text_between(prepare, example.tokens_T[places[-1] + 1 :])
    assert after == "\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    assert (example.tokens_T[example.visual_T] == PLACEHOLDER_ID).all()
    assert not (example.supervised_T & example.visual_T).any()


def test_only_the_answer_and_its_end_are_learned(prepare: Preparation, pictures: list[Picture]) -> None:
    turns = (user_turn("One?", pictures[:1]), Turn("assistant", ("First.",)), Turn("user", ("Two?",)))
    example = make_example(Conversation("a", (*turns, Turn("assistant", ("Second.",)))), prepare)
    assert text_between(prepare, example.tokens_T[example.supervised_T]) == "First.<|im_end|>Second.<|im_end|>"
    assert example.num_supervised == example.supervised_T.sum()


def test_several_pictures_keep_their_order_and_places(prepare: Preparation, pictures: list[Picture]) -> None:
    first = Turn("user", ("left", pictures[2], pictures[0], "right"))
    turns = (first, Turn("assistant", ("Yes.",)), Turn("user", (pictures[1],)), Turn("assistant", ("No.",)))
    example = make_example(Conversation("a", turns), prepare)
    assert example.media == (pictures[2], pictures[0], pictures[1])
    assert [layout.source for layout in example.layouts] == [(50, 32), (50, 30), (50, 31)]
    assert example.visual_T.sum() == sum(layout.tokens for layout in example.layouts) == 12
    runs = np.flatnonzero(np.diff(np.concatenate([[0], example.visual_T, [0]])))
    (first_start, first_end), (second_start, second_end) = runs.reshape(-1, 2)
    assert (first_end - first_start, second_end - second_start) == (8, 4)
    without = example.tokens_T[~example.visual_T]
    assert text_between(prepare, without).startswith("<|im_start|>user\nleftright<|im_end|>")


def test_text_alone_has_no_visual_positions(prepare: Preparation) -> None:
    example = make_example(dialogue("a", "Hello <image>?", "Hi."), prepare)
    assert not example.visual_T.any()
    assert example.layouts == ()
    assert "<image>" in text_between(prepare, example.tokens_T)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_prompt_is_a_prefix_of_what_was_trained(prepare: Preparation, pictures: list[Picture], count: int) -> None:
    whole = dialogue("a", "  What is it? ", "A cat.", pictures[:count])
    trained = make_example(whole, prepare)
    prompt = make_example(Conversation("a", whole.turns[:1]), prepare, open_for_generation=True)
    length = prompt.num_tokens
    assert np.array_equal(prompt.tokens_T, trained.tokens_T[:length])
    assert np.array_equal(prompt.visual_T, trained.visual_T[:length])
    assert int(np.flatnonzero(trained.supervised_T)[0]) == length
    assert prompt.layouts == trained.layouts


def test_errors_name_the_sample(prepare: Preparation, tmp_path: Path) -> None:
    gone = Picture(path=tmp_path / "gone.png")
    turns = (user_turn("What?", [gone]), Turn("assistant", ("A cat.",)))
    with pytest.raises(PictureError) as caught:
        make_example(Conversation("cat-7", turns, "data.json:12"), prepare)
    assert str(caught.value).startswith(f"data.json:12: (cat-7) {tmp_path / 'gone.png'}: no such file")
    with pytest.raises(RenderError, match=r"^data.json:3: \(b\): nothing to learn"):
        make_example(Conversation("b", (Turn("user", ("x",)), Turn("assistant", (" ",))), "data.json:3"), prepare)
