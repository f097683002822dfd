from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from opsin.synthesize.limits import Pace, Taken


class Time:
    """A clock that goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    async def nap(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)

    def pace(self, requests: float | None, tokens: float | None) -> Pace:
        return Pace(requests, tokens, nap=self.nap, clock=lambda: self.now)


async def turn(pace: Pace, tokens: float) -> Taken:
    await pace.turn(tokens)
    return await pace.begin(tokens)


def begun(requests: float | None, tokens: float | None, sizes: list[float]) -> list[float]:
    """When requests of these sizes begin that all are ready at once."""

    async def run() -> list[float]:
        time = Time()
        pace = time.pace(requests, tokens)
        times = []
        for size in sizes:
            await turn(pace, size)
            times.append(time.now)
        return times

    return asyncio.run(run())


@given(st.integers(1, 300), st.integers(2, 700))
def test_no_minute_has_more_requests_than_allowed(per_minute: int, number: int) -> None:
    times = begun(per_minute, None, [1.0] * number)
    assert all(later - first >= 60 - 1e-6 for first, later in zip(times, times[per_minute:], strict=False))
    assert times[-1] - times[0] <= (number - 1) * 60 / per_minute + 1e-6


@given(st.lists(st.integers(1, 500), min_size=2, max_size=100))
def test_no_minute_has_more_tokens_than_allowed(sizes: list[int]) -> None:
    per_minute = 1000
    times = begun(None, per_minute, [float(size) for size in sizes])
    for first in range(len(sizes)):
        within = sum(
            size for size, time in zip(sizes, times, strict=True) if times[first] <= time < times[first] + 59.99
        )
        assert within <= per_minute
    assert times[-1] - times[0] <= 2 * sum(sizes[:-1]) * 60 / per_minute + 60  # a minute may be half empty


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=2, max_size=100), st.integers(1, 40))
def test_nor_where_requests_take_other_numbers_than_expected(sizes: list[tuple[int, int]], at_a_time: int) -> None:
    """Many wait at once, and each gives back, or takes besides, what it has really used, a second later."""
    per_minute = 1000
    begun: list[tuple[float, int]] = []

    async def run() -> None:
        time = Time()
        pace = time.pace(None, per_minute)
        slots = asyncio.Semaphore(at_a_time)

        async def ask(expected: int, real: int) -> None:
            async with slots:
                taken = await turn(pace, expected)
                begun.append((time.now, min(expected, real)))
                await time.nap(1)
                pace.correct(taken, real)

        await asyncio.gather(*(ask(*one) for one in sizes))

    asyncio.run(run())
    for first, _ in begun:
        assert sum(size for at, size in begun if first <= at < first + 60 - 0.01) <= per_minute


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=2, max_size=60))
def test_what_requests_have_not_taken_is_there_for_others(sizes: list[tuple[int, float]]) -> None:
    per_minute = 1000
    begun: list[tuple[float, int]] = []

    async def run() -> None:
        time = Time()
        pace = time.pace(None, per_minute)
        for expected, share in sizes:
            taken = await turn(pace, expected)
            begun.append((time.now, round(expected * share)))
            pace.correct(taken, round(expected * share))

    asyncio.run(run())
    for first, _ in begun:
        assert sum(size for at, size in begun if first <= at < first + 60 - 0.01) <= per_minute
    whole = sum(size for _, size in begun)
    assert begun[-1][0] - begun[0][0] <= 2 * whole * 60 / per_minute + 60  # a minute may be half empty


def test_a_request_that_is_larger_than_the_limit_goes_by_itself() -> None:
    assert begun(None, 100, [500.0, 10.0]) == [1000.0, 1300.0]


def test_a_request_waits_only_for_those_before_it_and_as_they_really_were() -> None:
    async def run() -> None:
        time = Time()
        pace = time.pace(None, 600)
        pace.correct(await turn(pace, 100), 40)
        await turn(pace, 10)
        assert time.now == 1004.0

    asyncio.run(run())


def test_a_pause_holds_everybody_back_even_one_that_waits_already() -> None:
    async def run() -> None:
        time = Time()
        pace = time.pace(60, None)
        await turn(pace, 1)
        waiting = asyncio.create_task(turn(pace, 1))
        await asyncio.sleep(0)
        assert pace.waiting == 1
        pace.hold(30)
        pace.hold(5)  # shorter, so it changes nothing
        assert pace.paused_for == 30
        await waiting
        assert 1030 <= time.now <= 1033
        assert pace.waiting == 0

    asyncio.run(run())


@given(st.integers(5, 60), st.integers(1, 90), st.integers(1, 30))
def test_a_pause_does_not_bring_the_requests_of_many_turns_together(
    per_minute: int, pause: int, at_a_time: int
) -> None:
    """Nor do slow answers: those that waited for a slot meanwhile have had their turns."""
    times: list[float] = []

    async def run() -> None:
        time = Time()
        pace = time.pace(per_minute, None)
        slots = asyncio.Semaphore(at_a_time)

        async def ask(number: int) -> None:
            await pace.turn(1)
            async with slots:
                await pace.begin(1)
                times.append(time.now)
                await time.nap(0.1)
                if number == 3:
                    pace.hold(pause)

        await asyncio.gather(*(ask(number) for number in range(3 * per_minute)))

    asyncio.run(run())
    times.sort()
    assert all(later - first >= 60 - 0.01 for first, later in zip(times, times[per_minute:], strict=False))


def test_nothing_waits_without_limits() -> None:
    assert begun(None, None, [1e9] * 5) == [1000.0] * 5
