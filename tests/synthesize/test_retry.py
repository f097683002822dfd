from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.synthesize.retry import Backoff, Then, after_status, retry_after

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Fri, 02 Jan 2026 03:05:05 GMT"}, 60.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_how_long_an_endpoint_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, lambda: NOW) == seconds


@given(st.text(max_size=40))
def test_any_other_text_in_its_place_is_no_error(text: str) -> None:
    seconds = retry_after({"retry-after": text}, lambda: NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("status", "then"),
    [
        *((status, Then.ASK_AGAIN) for status in (408, 409, 425, 429, 500, 502, 503, 504, 524, 529)),
        *((status, Then.GIVE_UP) for status in (400, 413, 422)),
        *((status, Then.STOP) for status in (301, 307, 401, 402, 403, 404, 405)),
    ],
)
def test_what_is_done_after_a_status(status: int, then: Then) -> None:
    error = after_status(status, None, "sorry", {})
    assert error.then is then
    assert "sorry" in str(error)


def test_no_quota_and_a_wait_of_hours_are_no_reasons_to_ask_again() -> None:
    assert after_status(429, "insufficient_quota", "you exceeded it", {}).then is Then.STOP
    error = after_status(429, None, "later", {"retry-after": "86400"})
    assert (error.then, str(error)) == (Then.STOP, "it asks to wait for 86,400 seconds (429: later); run again then")


def test_waits_double_up_to_the_longest_and_are_drawn_from_all_of_it() -> None:
    highest = Backoff(10, draw=lambda low, high: high)
    assert [highest.seconds(failures) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert Backoff(10, draw=lambda low, high: low).seconds(5) == 0
