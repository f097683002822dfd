"""What a line of progress says of the speed."""

from __future__ import annotations

import pytest

from opsin.synthesize.rate import Rate


@pytest.mark.parametrize("every", [0.01, 0.3, 25.0, 100.0])
def test_a_steady_teacher_has_its_speed_from_the_first_answer_on(every: float) -> None:
    rate = Rate(0.0)
    for number in range(1, 5_000):
        rate.add(number * every)
        assert rate.per_second(number * every) == pytest.approx(1 / every, rel=1e-6)


def test_a_pause_is_seen_and_forgotten() -> None:
    rate = Rate(0.0)
    for number in range(1, 101):
        rate.add(number * 0.1)
    assert rate.per_second(10.0) == pytest.approx(10)
    assert rate.per_second(70.0) < 1
    for number in range(1, 1001):
        rate.add(70 + number * 0.1)
    assert rate.per_second(170.0) == pytest.approx(10, rel=0.05)


def test_nothing_came_yet() -> None:
    assert Rate(5.0).per_second(5.0) == 0
