"""What requests will take before any is sent: an upper bound for budgets, and what is to be expected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.synthesize.limits import SECONDS
from opsin.synthesize.request import Request, Usage

if TYPE_CHECKING:
    from opsin.synthesize.ledger import Ledger, Totals
    from opsin.synthesize.teacher_values import Limits, OpenAI

TOKENS_PER_MESSAGE = 16
"""The most that a chat template adds to a message."""
TOKENS_PER_REQUEST = 64
"""The most that it adds to all of them, a default system message included."""

# Before anything is measured: English has about 4 bytes in a token, and answers take about half of what they may.
PROMPT_SHARE = 0.3
ANSWER_SHARE = 0.5
ENOUGH = 20
"""Answers after which the measured shares are taken instead."""


@dataclass(frozen=True)
class Estimate:
    """What a number of requests will take; usage and time are those of the ones that are not in the ledger."""

    requests: int
    in_ledger: int
    expected: Usage
    most: Usage
    seconds: float | None
    """At the limits per minute, and at the speed of the answers so far; nothing if neither is known."""
    pictures: int = 0
    samples: int = 0
    """Those that are made without a teacher included."""
    refused_entries: int = 0

    @property
    def to_buy(self) -> int:
        """Requests that will be sent, if none has to be repeated."""
        return self.requests - self.in_ledger


def most_of(request: Request, teacher: OpenAI) -> Usage:
    """The most that a request can use: no tokenizer makes more tokens than there are bytes of UTF-8."""
    prompt = TOKENS_PER_REQUEST + len(request.extra)  # tools and schemas are prompt, too
    for message in request.messages:
        prompt += TOKENS_PER_MESSAGE + len(message.text.encode("utf-8", "surrogatepass"))
        prompt += len(message.pictures) * teacher.tokens_per_picture
    price = teacher.price
    return Usage(prompt, request.max_tokens) if price is None else price.of(prompt, request.max_tokens)


def expected(most: Usage, totals: Totals) -> Usage:
    """What to expect of a request that uses `most` at most: by the shares that others have used, if they are known."""
    prompt_share, answer_share = PROMPT_SHARE, ANSWER_SHARE
    if totals.measured >= ENOUGH and totals.asked_for.prompt_tokens and totals.asked_for.answer_tokens:
        prompt_share = totals.used.prompt_tokens / totals.asked_for.prompt_tokens
        answer_share = totals.used.answer_tokens / totals.asked_for.answer_tokens
    return Usage(round(most.prompt_tokens * prompt_share), round(most.answer_tokens * answer_share))


def estimate(requests: Iterable[Request], ledger: Ledger, teacher: OpenAI, limits: Limits) -> Estimate:
    """What requests will take; those that are there twice count once."""
    keys: set[str] = set()
    in_ledger = 0
    most = foreseen = Usage(0, 0)
    for request in requests:
        key = request.key
        if key in keys:
            continue
        keys.add(key)
        if ledger.lookup(key):
            in_ledger += 1
            continue
        bound = most_of(request, teacher)
        usage = expected(bound, ledger.totals)
        price = teacher.price
        most += bound
        foreseen += usage if price is None else price.of(usage.prompt_tokens, usage.answer_tokens)
    number = len(keys) - in_ledger
    return Estimate(len(keys), in_ledger, foreseen, most, _seconds(number, foreseen, ledger.totals, limits))


def _seconds(number: int, foreseen: Usage, totals: Totals, limits: Limits) -> float | None:
    """The longest of what each limit takes alone."""
    times = []
    if limits.requests_per_minute is not None:
        times.append(number * SECONDS / limits.requests_per_minute)
    if limits.tokens_per_minute is not None:
        times.append(foreseen.tokens * SECONDS / limits.tokens_per_minute)
    if totals.measured:
        times.append(number * totals.seconds / totals.measured / limits.concurrency)
    return max(times, default=None)
