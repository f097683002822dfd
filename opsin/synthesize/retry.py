"""What went wrong with one attempt, what to do about it, and how long to wait before the next one."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum

from opsin.core.errors import OpsinError
from opsin.synthesize.request import Usage

FIRST_WAIT_SECONDS = 1.0
LONGEST_ASKED_SECONDS = 600.0
"""The longest that an endpoint may ask us to wait; if it asks for more, the run ends and says so."""

STOPPING = {
    401: "the key is not accepted",
    402: "there is no money left",
    403: "the key may not do this",
    404: "there is no such model, or no endpoint at this address",
    405: "this is not the address of a chat endpoint",
}
"""Statuses that every further request would get as well."""

QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of a 429 that no waiting helps against."""

OF_THIS_ONE = frozenset(
    {
        "context_length_exceeded",
        "exceed_context_size_error",
        "string_above_max_length",
        "invalid_image",
        "image_parse_error",
        "invalid_base64",
    }
)
"""Codes of a refusal that tells nothing about other requests."""
_TOO_LONG = re.compile(r"(?i)\bcontext (?:length|size|window)\b")
"""In the message of servers that give no code for it."""

PASSING = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may be other ones the next time."""

LOST = frozenset({408, 504, 524})
"""Statuses of a gateway that gave up waiting: the answer may have been written, and charged, all the same."""


class Then(Enum):
    """What to do after a failed attempt."""

    ASK_AGAIN = "ask again"
    GIVE_UP = "give this request up"
    STOP = "stop asking altogether"


class AttemptError(OpsinError):
    """One attempt that brought no usable answer.

    `wait` is the number of seconds that the endpoint asks for. `usage` is what the attempt has cost if that is known;
    otherwise it may have cost as much as was reserved if `perhaps_charged`, and nothing if not. `of_this_one`: it is
    the request's own fault, and no sign that others will fail.
    """

    def __init__(
        self,
        problem: str,
        then: Then,
        *,
        wait: float | None = None,
        usage: Usage | None = None,
        perhaps_charged: bool = False,
        of_this_one: bool = False,
    ) -> None:
        super().__init__(problem)
        self.then = then
        self.wait = wait
        self.usage = usage
        self.perhaps_charged = perhaps_charged
        self.of_this_one = of_this_one


class TooLargeError(OpsinError):
    """A response of more bytes than are read."""


def after_status(status: int, code: str | None, said: str, headers: Mapping[str, str]) -> AttemptError:
    """The error of a response that is not 200; `said` is the endpoint's message, `code` the one that goes with it."""
    problem = f"{status}{f' {code}' if code else ''}: {said}"
    if status == 429 and code in QUOTA:
        return AttemptError(f"there is no quota left ({problem})", Then.STOP)
    if status in STOPPING or 300 <= status < 400:
        # Without a name, a password or a query: they may be secrets, and belong into no address
        target = re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", headers.get("location", "nowhere"))[0])
        told = STOPPING.get(status, f"it redirects to {target[:200]}; set that as base_url")
        return AttemptError(f"{told} ({problem})", Then.STOP)
    if status < 500 and status not in PASSING:
        return AttemptError(
            f"refused ({problem})", Then.GIVE_UP, of_this_one=code in OF_THIS_ONE or bool(_TOO_LONG.search(said))
        )
    wait = retry_after(headers)
    if wait is not None and wait > LONGEST_ASKED_SECONDS:
        return AttemptError(f"it asks to wait for {wait:,.0f} seconds ({problem}); run again then", Then.STOP)
    return AttemptError(problem, Then.ASK_AGAIN, wait=wait, perhaps_charged=status in LOST)


def retry_after(
    headers: Mapping[str, str], now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
) -> float | None:
    """The seconds that Retry-After asks for (RFC 9110, 10.2.3: a number or a date), or retry-after-ms; else nothing."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if (seconds := _number(headers.get(name, ""))) is not None:
            return seconds * unit
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, (until - now()).total_seconds())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


@dataclass(frozen=True)
class Backoff:
    """Exponential with full jitter: uniform between nothing and `first` x 2^n seconds, at most `longest`.

    Full jitter spreads the requests that failed together (M. Brooker, "Exponential Backoff and Jitter", AWS
    Architecture Blog, 2015).
    """

    longest: float
    first: float = FIRST_WAIT_SECONDS
    draw: Callable[[float, float], float] = random.uniform

    def seconds(self, failures: int) -> float:
        """How long to wait after so many failures of a request (at least one)."""
        return self.draw(0.0, min(self.longest, self.first * 2.0 ** (failures - 1)))
