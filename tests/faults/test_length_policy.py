"""Row D8 of the fault matrix: whatever is too long fits afterwards, or is left out by name; it is never cut."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from opsin.checkpoint.prepare import preparation
from opsin.core.types import Clip, Conversation, Example, Medium, Picture, Turn
from opsin.data.collate import medium_pixels
from opsin.data.example import Preparation, make_example
from opsin.data.plan import Budget
from opsin.data.policy import Fitted, TooLong, fit
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.vision.resolution import AnyRes, Native, Resolution, Square
from tests.support.models import model_value
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

RESOLUTIONS: dict[str, Resolution] = {
    "any_res": AnyRes(size=32, pinpoints=tuple((32 * i, 32 * j) for i in (1, 2, 3) for j in (1, 2, 3)), max_tiles=5),
    "any_res tiles": AnyRes(size=32, pinpoints=((32, 96), (64, 64)), multi="tiles", video_newline="grid"),
    "native": Native(min_pixels=1024, max_pixels=40_000, video_min_pixels=1024, video_max_pixels=9000),
    "square": Square(size=64),
}
WORDS = st.text("a cat<|im_end|>", max_size=30)
SIDES = st.integers(2, 150)
PERCENT = st.integers(20, 110)
"""Of what a sample costs."""


@cache
def picture(height: int, width: int) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(file, "BMP")
    return Picture(data=file.getvalue())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Preparation]:
    """By the name of the resolution; one model looks by cross-attention, where pictures take no tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer_dir = chatml_tokenizer_dir(folder)
    kinds = {"encoder": "native_vit", "resolution": "any_res", "positions": "mrope"}
    video = {"video": {"kind": "even", "count": 7}}
    spliced, gated = (
        ModelConfig.model_validate(model_value(tokenizer_dir, fusion=fusion, **kinds) | video).resolved()
        for fusion in ("splice", "gated_cross_attention")
    )
    tokenizer = Tokenizer.load(tokenizer_dir)
    found = {name: preparation(spliced, tokenizer, resolution=value) for name, value in RESOLUTIONS.items()}
    return found | {"gated": preparation(gated, tokenizer, resolution=RESOLUTIONS["any_res"])}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.avi", range(12))


@st.composite
def conversations(draw: st.DrawFn, video: Path) -> Conversation:
    exchanges = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.tuples(SIDES, SIDES), max_size=3))
    media: list[Medium] = [picture(*size) for size in sizes]
    if draw(st.integers(0, 3)) == 0:
        media.append(draw(st.sampled_from([Clip(path=video), Clip((picture(30, 40),) * 5)])))
    turns = [Turn("system", (draw(WORDS),))] if draw(st.booleans()) else []
    where = [draw(st.integers(0, exchanges - 1)) for _ in media]
    for number in range(exchanges):
        shown = [medium for medium, place in zip(media, where, strict=True) if place == number]
        turns.append(Turn("user", (*shown, draw(WORDS), *shown[:1]) if draw(st.booleans()) else (draw(WORDS), *shown)))
        # Now and then an answer has nothing to learn; the last one always has, else the whole sample is refused.
        blank = number < exchanges - 1 and draw(st.integers(0, 4)) == 0
        turns.append(Turn("assistant", (" " if blank else "x" + draw(WORDS),)))
    return Conversation("cat", tuple(turns), "data.json:7")


def within(example: Example, most: Budget) -> bool:
    return example.num_tokens <= most.tokens and example.num_patches <= most.patches


def check_whole(example: Example, prepare: Preparation) -> None:
    """Every medium has all its places, and its pixels are what the layout promises."""
    expected = sum(layout.tokens for layout in example.layouts) if prepare.spliced else 0
    assert example.visual_T.sum() == expected
    for (medium, layout), place in zip(example.seen, example.places, strict=True):
        if prepare.spliced:
            assert example.visual_T[place : place + layout.tokens].all()
        pixels = medium_pixels(medium, layout, prepare)
        assert pixels.shape == (layout.frames, 3, *layout.canvas)
        assert pixels.nbytes == layout.bytes


def check_same(one: Example, other: Example) -> None:
    for name in ("tokens_T", "supervised_T", "visual_T", "positions_AT"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert (one.media, one.layouts, one.places) == (other.media, other.layouts, other.places)


def check_is_a_prefix(fitted: Fitted, conversation: Conversation, prepare: Preparation) -> None:
    """What is left is the example of a conversation that only ever had the first exchanges."""
    assert fitted.example is not None
    exchanges = fitted.fit.exchanges
    if exchanges is None:
        return
    system = conversation.turns[0].role == "system"
    turns = conversation.turns[: system + 2 * exchanges]
    assert len(turns) < len(conversation.turns)
    check_same(fitted.example, make_example(Conversation("cat", turns, "data.json:7"), prepare))


@pytest.mark.parametrize("name", [*RESOLUTIONS, "gated"])
@pytest.mark.parametrize("policy", ["truncate_turns", "shrink_images", "drop", "error"])
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), tokens=PERCENT, patches=PERCENT | st.just(100))
def test_a_sample_fits_whole_or_is_left_out_by_name(
    prepared: dict[str, Preparation],
    video: Path,
    name: str,
    policy: TooLong,
    data: st.DataObject,
    tokens: int,
    patches: int,
) -> None:
    conversation, prepare = data.draw(conversations(video)), prepared[name]
    whole = make_example(conversation, prepare)
    # Words cannot be shrunk, so a budget below them would only ever show what is left out.
    fixed = int((~whole.visual_T).sum()) if policy == "shrink_images" else 0
    most = Budget(fixed + tokens * (whole.num_tokens - fixed) // 100, patches * whole.num_patches // 100)
    fitted = fit(conversation, prepare, most, policy)
    if within(whole, most):
        assert fitted.text == ""
    else:
        assert fitted.text.startswith("data.json:7: (cat) ")
        assert ", over " in fitted.text
    event(f"{policy}: {'used' if fitted.example else 'left out'}")
    if fitted.example is None:
        assert not within(whole, most)
        return
    assert within(fitted.example, most)
    assert fitted.example.num_supervised >= 1
    check_whole(fitted.example, prepare)
    check_same(fitted.example, make_example(conversation, prepare, fit=fitted.fit))
    check_is_a_prefix(fitted, conversation, prepare)
    if policy == "shrink_images":
        words, before = fitted.example.tokens_T[~fitted.example.visual_T], whole.tokens_T[~whole.visual_T]
        assert np.array_equal(words, before)
        assert len(fitted.example.media) == len(whole.media)


@pytest.mark.parametrize("name", [*RESOLUTIONS, "gated"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), tokens=PERCENT)
def test_as_few_exchanges_as_needed_are_left_out(
    prepared: dict[str, Preparation], video: Path, name: str, data: st.DataObject, tokens: int
) -> None:
    conversation, prepare = data.draw(conversations(video)), prepared[name]
    whole = make_example(conversation, prepare)
    most = Budget(tokens * whole.num_tokens // 100, whole.num_patches)
    fitted = fit(conversation, prepare, most, "truncate_turns")
    system = conversation.turns[0].role == "system"
    exchanges = (len(conversation.turns) - system) // 2
    for kept in range((fitted.fit.exchanges or exchanges) + 1 if fitted.example else 1, exchanges):
        turns = conversation.turns[: system + 2 * kept]
        teaches = any(turn.role == "assistant" and turn.parts != (" ",) for turn in turns)
        assert not teaches or not within(make_example(Conversation("a", turns), prepare), most)
