"""What the length policies do to a sample, and how they say it (that it always works: tests/faults)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opsin.checkpoint.prepare import preparation
from opsin.core.types import Clip, Conversation, Example, Picture, Turn
from opsin.data import policy
from opsin.data.example import WHOLE, Fit, Preparation, make_example
from opsin.data.plan import Budget
from opsin.data.policy import fit
from opsin.data.user_turn import user_turn
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.vision.resolution import AnyRes, Native, Resolution, Square
from tests.support.models import dialogue, draw_picture, model_value
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import write_video

NO_LIMIT = 10**9
ANY_RES = AnyRes(size=32, pinpoints=((32, 32), (64, 64), (96, 64), (128, 128)))


def prepared(folder: Path, resolution: Resolution, **video: Any) -> Preparation:
    value = model_value(chatml_tokenizer_dir(folder), encoder="native_vit", resolution="any_res")
    config = ModelConfig.model_validate(value | ({"video": video} if video else {})).resolved()
    return preparation(config, Tokenizer.load(folder / "chatml"), resolution=resolution)


def picture(folder: Path, number: int = 0, size: tuple[int, int] = (96, 64)) -> Picture:
    return Picture(path=draw_picture(folder / f"{number}.png", number, size))


def talk(*questions: Turn, answer: str = "Yes.") -> Conversation:
    turns = [turn for question in questions for turn in (question, Turn("assistant", (answer,)))]
    return Conversation("cat", tuple(turns), "data.json:3")


def test_what_fits_is_left_as_it_is(tmp_path: Path) -> None:
    prepare = prepared(tmp_path, Square(size=32))
    conversation = talk(user_turn("What?", [picture(tmp_path)]))
    fitted = fit(conversation, prepare, Budget(NO_LIMIT, NO_LIMIT), "shrink_images")
    assert (fitted.fit, fitted.text) == (Fit(), "")


def test_the_last_exchanges_go_and_are_counted(tmp_path: Path) -> None:
    prepare = prepared(tmp_path, Square(size=32))
    conversation = talk(*(user_turn(f"Number {n}?") for n in range(4)))
    costs = [make_example(conversation, prepare, fit=Fit(exchanges=n)).num_tokens for n in range(1, 5)]
    fitted = fit(conversation, prepare, Budget(costs[2] - 1, 0), "truncate_turns")
    assert fitted.fit == Fit(exchanges=2)
    assert fitted.text == (
        f"data.json:3: (cat) {costs[3]} tokens, over {costs[2] - 1}: 2 of 4 exchanges kept, {costs[1]} tokens"
    )
    fitted = fit(conversation, prepare, Budget(costs[0] - 1, 0), "truncate_turns")
    assert fitted.text.endswith(
        f": dropped, since the first 1 of its 4 exchanges have {costs[0]} tokens, over {costs[0] - 1}"
    )


@pytest.mark.parametrize("between", [0, 2])
def test_a_picture_that_is_left_alone_can_cost_more_than_two(tmp_path: Path, between: int) -> None:
    prepare = prepared(tmp_path, ANY_RES)
    shown = [user_turn("?", [picture(tmp_path, n, (128, 128))]) for n in range(3)]
    conversation = talk(shown[0], *[user_turn("?")] * between, *shown[1:], answer="x")
    numbers = range(1, between + 4)
    costs = [make_example(conversation, prepare, fit=Fit(exchanges=n)).num_tokens for n in numbers]
    two = costs[between + 1]
    assert two < min(costs[between], costs[-1])
    fitted = fit(conversation, prepare, Budget(two, NO_LIMIT), "truncate_turns")
    assert fitted.fit == Fit(exchanges=between + 2)


def test_a_long_conversation_is_not_rendered_once_for_every_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = prepared(tmp_path, Square(size=32))
    conversation = talk(*(user_turn(f"Number {n}?") for n in range(400)))
    rendered: list[int | None] = []

    def counted(*args: Any, fit: Fit = WHOLE) -> Example:
        rendered.append(fit.exchanges)
        return make_example(*args, fit=fit)

    monkeypatch.setattr(policy, "make_example", counted)
    fitted = fit(conversation, prepare, Budget(200, 0), "truncate_turns")
    assert fitted.example is not None
    assert fitted.fit.exchanges is not None
    assert len(rendered) <= 10  # 400 halved until one is left, and the whole
    longer = make_example(conversation, prepare, fit=Fit(exchanges=fitted.fit.exchanges + 1))
    assert fitted.example.num_tokens <= 200 < longer.num_tokens


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (talk(user_turn("What?" * 20)), "dropped, since it has only one exchange"),
        (
            Conversation(
                "cat",
                (*talk(user_turn("a"), answer=" ").turns, *talk(user_turn("b" * 40)).turns),
                "data.json:3",
            ),
            "dropped, since no fewer exchanges have anything to learn",
        ),
    ],
    ids=["one exchange", "nothing to learn"],
)
def test_an_answer_to_learn_always_stays(tmp_path: Path, conversation: Conversation, reason: str) -> None:
    fitted = fit(conversation, prepared(tmp_path, Square(size=32)), Budget(20, NO_LIMIT), "truncate_turns")
    assert fitted.example is None
    assert fitted.text.endswith(f", over 20: {reason}")


@pytest.mark.parametrize(
    ("resolution", "text"),
    [
        (ANY_RES, "1 picture shrunk from 32 to 14 visual tokens"),
        (Native(min_pixels=256, max_pixels=10**6), "1 picture shrunk from 24 to 15 visual tokens"),
    ],
    ids=["any_res", "native"],
)
def test_pictures_are_shrunk_by_the_first_step_that_fits(tmp_path: Path, resolution: Resolution, text: str) -> None:
    prepare = prepared(tmp_path, resolution)
    conversation = talk(user_turn("What is it?", [picture(tmp_path)]))
    whole = make_example(conversation, prepare)
    fitted = fit(conversation, prepare, Budget(whole.num_tokens - 8, NO_LIMIT), "shrink_images")
    assert fitted.text.endswith(f" tokens, over {whole.num_tokens - 8}: {text}")
    before = make_example(conversation, prepare, fit=Fit(level=fitted.fit.level - 1))
    assert before.num_tokens > whole.num_tokens - 8


def test_where_only_patches_are_over_they_are_what_is_told(tmp_path: Path) -> None:
    prepare = prepared(tmp_path, AnyRes(size=32, pinpoints=((64, 64), (32, 32)), max_tiles=1))
    conversation = talk(user_turn("What is it?", [picture(tmp_path, size=(64, 64))]))
    fitted = fit(conversation, prepare, Budget(NO_LIMIT, 8), "shrink_images")
    assert fitted.text == "data.json:3: (cat) 20 patches, over 8: 1 picture shrunk from 20 to 8 patches"


def test_frames_go_when_a_square_cannot_shrink(tmp_path: Path) -> None:
    prepare = prepared(tmp_path, Square(size=32), kind="even", count=8)
    path = write_video(tmp_path / "a.avi", range(15))
    conversation = talk(user_turn("What?", [Clip(path=path), picture(tmp_path)]))
    whole = make_example(conversation, prepare)
    assert whole.media[0] == Clip(path=path, taken=(0, 2, 4, 6, 8, 10, 12, 14))
    fitted = fit(conversation, prepare, Budget(whole.num_tokens - 20, NO_LIMIT), "shrink_images")
    assert fitted.example is not None
    assert fitted.example.media[0] == Clip(path=path, taken=(0, 8))
    assert fitted.text.endswith(": 1 picture and 1 clip shrunk from 36 to 12 visual tokens")


def test_what_cannot_be_shrunk_enough_is_dropped_with_the_reason(tmp_path: Path) -> None:
    prepare = prepared(tmp_path, ANY_RES)
    shown = talk(user_turn("What is it?", [picture(tmp_path)]))
    fitted = fit(shown, prepare, Budget(20, NO_LIMIT), "shrink_images")
    assert fitted.example is None
    assert "dropped, since with its pictures at their smallest it has " in fitted.text
    square = fit(shown, prepared(tmp_path, Square(size=32)), Budget(10, NO_LIMIT), "shrink_images")
    assert square.text.endswith(", over 10: dropped, since its pictures cannot be made to cost less")
    words = fit(dialogue("a", "What?" * 9, "Yes."), prepare, Budget(20, 0), "shrink_images")
    assert words.text.endswith(": dropped, since it has no picture or clip to shrink")


def test_a_sample_can_be_dropped_or_be_an_error_at_once(tmp_path: Path) -> None:
    prepare = prepared(tmp_path, Square(size=32))
    conversation = talk(user_turn("What?"), user_turn("Where?"))
    name = f"data.json:3: (cat) {make_example(conversation, prepare).num_tokens} tokens, over 9: "
    assert fit(conversation, prepare, Budget(9, 0), "drop").text == f"{name}dropped"
    assert fit(conversation, prepare, Budget(9, 0), "error").text.startswith(f"{name}shorten it, raise the budget")
