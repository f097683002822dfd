from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opsin.vision.sampling import EvenFrames, LlavaFrames, QwenFrames, QwenRule, Sampling, llava_frames, qwen_frames
from tests.support.golden import golden

COLUMNS: dict[QwenRule, str] = {
    "0.0.8": "utils_0_0_8",
    "0.0.14": "utils_0_0_14",
    "transformers": "hf5_sample_frames",
}
OPTIONS = {"nframes": "count", "fps": "target", "max_frames": "most"}


@pytest.mark.parametrize("rule", COLUMNS)
def test_qwens_frames(rule: QwenRule) -> None:
    for row in golden("qwen2vl_video_frames")["rows"]:
        options: dict[str, Any] = {OPTIONS[key]: value for key, value in row["ele"].items()}
        frames = qwen_frames(row["total_frames"], row["video_fps"], rule=rule, **options).tolist()
        expected = row[COLUMNS[rule]]
        assert len(frames) == expected["n"]
        shown = frames if "..." not in expected["idx"] else [*frames[:4], "...", *frames[-4:]]
        assert shown == expected["idx"]


@pytest.mark.parametrize(("total", "rate", "older", "newer"), [(61, 24, 6, 4), (55, 10, 12, 10)])
def test_the_two_versions_of_qwens_code_make_numbers_even_differently(
    total: int, rate: int, older: int, newer: int
) -> None:
    assert len(qwen_frames(total, rate, rule="0.0.8")) == older
    assert len(qwen_frames(total, rate, rule="0.0.14")) == newer


@pytest.mark.parametrize("rule", COLUMNS)
def test_a_video_too_short_for_qwen_is_refused(rule: QwenRule) -> None:
    with pytest.raises(ValueError, match="0 frames are to be taken of a video of 1"):
        qwen_frames(1, 24, rule=rule)
    with pytest.raises(ValueError, match="8 frames are to be taken of a video of 5"):
        qwen_frames(5, 24, rule=rule, count=8)


@settings(deadline=None, max_examples=200)
@given(total=st.integers(2, 200_000), count=st.integers(1, 384))
def test_frames_half_way_between_two_fall_as_torch_rounds_them(total: int, count: int) -> None:
    wanted = min(2 * count, total // 2 * 2)
    expected = torch.linspace(0, total - 1, wanted).round().long().tolist()
    assert qwen_frames(total, 25.0, count=wanted).tolist() == expected


@settings(deadline=None, max_examples=200)
@given(
    total=st.integers(2, 5000),
    rate=st.floats(1, 120),
    rule=st.sampled_from(list(COLUMNS)),
    target=st.floats(0.1, 8),
)
def test_frames_exist_and_run_forward(total: int, rate: float, rule: QwenRule, target: float) -> None:
    for frames in (qwen_frames(total, rate, rule=rule, target=target), llava_frames(total, rate, target=target)):
        assert frames[0] == 0
        assert frames[-1] < total
        assert (np.diff(frames) > 0).all()
    assert len(qwen_frames(total, rate, rule=rule, target=target)) % 2 == 0


def test_llavas_frames() -> None:
    assert llava_frames(100, 29.97).tolist() == [0, 30, 60, 90]
    assert llava_frames(5, 0.3).tolist() == [0, 1, 2, 3, 4]
    long = llava_frames(3000, 30.0)
    assert len(long) == 32
    assert long[:3].tolist() == [0, 96, 193]  # 96.7 and 193.5, truncated
    assert long[-1] == 2999
    assert llava_frames(4, 1.0, most=6, spread=True).tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0, "rate": 25.0}, "at least 1 frame, got 0"),
        ({"total": 9, "rate": 0.0}, "positive numbers, got 0.0 and"),
        ({"total": 9, "rate": float("nan")}, "positive numbers, got nan and"),
        ({"total": 9, "rate": 25.0, "target": -1.0}, "positive numbers, got 25.0 and -1.0"),
    ],
)
def test_impossible_videos_are_refused(arguments: dict[str, Any], message: str) -> None:
    for sample in (llava_frames, qwen_frames):
        with pytest.raises(ValueError, match=message):
            sample(**arguments)


@st.composite
def samplings(draw: st.DrawFn) -> tuple[Sampling, int]:
    """A rule, and the most frames that it may take."""
    most = draw(st.integers(2, 100))
    rate = draw(st.floats(0.1, 8))
    rule = draw(st.sampled_from(list(COLUMNS)))
    made: Sampling = draw(
        st.sampled_from(
            [EvenFrames(count=most), LlavaFrames(rate=rate, most=most), QwenFrames(rule=rule, rate=rate, most=most)]
        )
    )
    return made, max(most, 4) if isinstance(made, QwenFrames) else most


@settings(deadline=None, max_examples=200)
@given(samplings(), st.integers(1, 5000), st.floats(1, 120))
def test_every_rule_takes_frames_that_exist_in_order_and_no_more_than_it_may(
    made: tuple[Sampling, int], total: int, rate: float
) -> None:
    rule, most = made
    assume(total > 1 or not isinstance(rule, QwenFrames))
    taken = rule.take(total, rate)
    assert all(type(frame) is int for frame in taken)
    assert 0 <= taken[0] <= taken[-1] < total
    assert list(taken) == sorted(set(taken))
    assert 1 <= len(taken) <= min(most, total)


def test_rules_by_their_values() -> None:
    assert EvenFrames(count=4).take(31, 30.0) == (0, 10, 20, 30)
    assert EvenFrames(count=4).take(3, 30.0) == (0, 1, 2)
    assert EvenFrames(count=1).take(9, 30.0) == (0,)
    assert LlavaFrames(rate=2, most=3).take(60, 30.0) == (0, 29, 59)
    assert LlavaFrames(rate=2).take(60, 30.0) == (0, 15, 30, 45)
    assert LlavaFrames(most=6, spread=True).take(4, 1.0) == (0, 0, 1, 1, 2, 3)
    assert QwenFrames(rate=1, least=2).take(100, 25.0) == (0, 33, 66, 99)
    assert QwenFrames(rate=1, least=2, rule="transformers").take(100, 25.0) == (0, 25, 50, 75)
    with pytest.raises(ValueError, match="0 frames are to be taken of a video of 1"):
        QwenFrames().take(1, 25.0)
    with pytest.raises(ValueError, match="a video has at least 1 frame, got 0"):
        EvenFrames().take(0, 25.0)
