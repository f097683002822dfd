"""Buys answers: each once, within limits and budget, and on disk before it counts.

    answer(request) -> the ledger's, or that of the same request under way, or bought:
        put its highest cost aside -> wait for its turn -> ledger: sent -> take a slot -> ask -> ledger: answered

Only asking takes a slot, so that the disk and the endpoint are busy at the same time. Some more requests than there are
slots are noted as sent, so that one is ready whenever a slot is let go; of no more than these may the end be unknown
after a crash.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from opsin.core.errors import BudgetError, OpsinError, TeacherError, UnansweredError
from opsin.synthesize.budget import Budget
from opsin.synthesize.estimate import expected, most_of
from opsin.synthesize.ledger import Ledger, kept
from opsin.synthesize.limits import Pace
from opsin.synthesize.rate import Rate
from opsin.synthesize.request import Answer, Request, Usage
from opsin.synthesize.retry import FIRST_WAIT_SECONDS, AttemptError, Backoff, Then
from opsin.synthesize.teacher_values import misfits

if TYPE_CHECKING:
    from opsin.synthesize.endpoint import Endpoint
    from opsin.synthesize.teacher_values import Limits

UNREACHED_IN_A_ROW = 25
"""Requests given up one after another, after all their retries, that show that the endpoint is down."""
HOPELESS = 3
"""The same where the directory has no answer at all yet: something is wrong with the recipe."""


def most_noted(concurrency: int) -> int:
    """The most requests that are noted as sent and have no known end yet."""
    return concurrency + max(2, concurrency // 4)


@dataclass(frozen=True)
class Facts:
    """Where the buying stands, for a line of progress."""

    sent: int
    """In this run, like all counts here; requests that are repeated count each time."""
    answered: int
    from_ledger: int
    failed: int
    """Attempts without a usable answer."""
    in_flight: int
    waiting: int
    """For their turn, or to be asked again."""
    paused_for: float
    """Seconds that the endpoint has asked to wait."""
    per_second: float
    """Answers, lately."""
    used: Usage
    spent: Usage
    """By all runs of this directory; with what was put aside for requests whose answers were lost."""
    problem: str
    """What the last failed attempt brought."""


class Engine:
    """Answers requests while inside (`async with`); one to a ledger."""

    def __init__(
        self, endpoint: Endpoint, ledger: Ledger, limits: Limits, *, first_wait_seconds: float = FIRST_WAIT_SECONDS
    ) -> None:
        """`first_wait_seconds` is the longest wait after a first failure; each further one may double it.

        Raises:
            BudgetError: max_cost is set and the teacher has no price.
        """
        for problem in misfits(endpoint.teacher, limits):
            raise BudgetError(problem)
        price = endpoint.teacher.price
        self._endpoint = endpoint
        self._ledger = ledger
        self._limits = limits
        self._backoff = Backoff(limits.longest_wait_seconds, first_wait_seconds)
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._noted = asyncio.Semaphore(most_noted(limits.concurrency))
        self._pace = Pace(limits.requests_per_minute, limits.tokens_per_minute, nap=self._nap)
        totals = ledger.totals
        currency = price.currency if price else ""
        excess = totals.excess if totals.measured else None
        self._budget = Budget(limits.max_cost, limits.max_requests, totals.spent, totals.requests, currency, excess)
        self._under_way: dict[str, asyncio.Future[Answer]] = {}
        self._ended: OpsinError | None = None
        self._end = asyncio.Event()
        self._given_up = 0
        self._begun = replace(totals)
        self._from_ledger = self._in_flight = self._waiting = 0
        self._rate = Rate(time.monotonic())
        self._problem = ""

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._endpoint.close()

    async def answer(self, request: Request) -> Answer:
        """The answer to a request: from the ledger, or bought now.

        Raises:
            UnansweredError: this request got none, after all retries.
            TeacherError: the teacher cannot be asked at all; from now on every call raises it.
            BudgetError: the request might cost more than is left.
            StoppedError: the run was asked to end.
            OpsinError: the ledger cannot be written; from now on every call raises it.
        """
        key = request.key
        while True:
            if found := self._ledger.lookup(key):
                self._from_ledger += 1
                return found
            if key not in self._under_way:
                return await self._alone(key, request)
            try:
                return replace(await asyncio.shield(self._under_way[key]), bought=False)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # else it was the other one that was cancelled, and now it is our turn

    async def _alone(self, key: str, request: Request) -> Answer:
        """Buy an answer, so that whoever asks the same in the meantime gets it too."""
        future = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._buy(key, request)
        except OpsinError as error:
            future.set_exception(error)
            future.exception()  # it need not interest anybody else
            raise
        except BaseException:  # cancelled, or a mistake of ours: nobody may wait for it for ever
            future.cancel()
            raise
        else:
            future.set_result(answer)
            return answer
        finally:
            del self._under_way[key]

    async def _buy(self, key: str, request: Request) -> Answer:
        most = most_of(request, self._endpoint.teacher)
        content = self._endpoint.body(request)
        for attempt in range(1, self._limits.retries + 2):
            try:
                answer = await self._attempt(key, content, most)
            except AttemptError as error:
                self._problem = str(error)
                self._go_on()
                if error.then is Then.GIVE_UP or attempt > self._limits.retries:
                    raise self._unanswered(error, attempt) from None
                await self._wait(error, attempt)
            else:
                self._given_up = 0
                return answer
        raise AssertionError("the last attempt either answers or raises")

    async def _attempt(self, key: str, content: bytes, most: Usage) -> Answer:
        """One attempt, within all limits; what came of it is in the ledger when this returns or raises AttemptError."""
        self._go_on()
        await self._budget.reserve(most)
        sequence: int | None = None
        came: Answer | AttemptError | None = None
        used: Usage | None = None
        asked = False
        try:
            foreseen = expected(most, self._ledger.totals).tokens
            await self._pace.turn(foreseen)
            async with self._noted:
                self._go_on()
                sequence, noted = self._ledger.sent(key, most)
                await kept(noted)
                async with self._slots:
                    taken = await self._pace.begin(foreseen)
                    self._go_on()
                    asked = True
                    came, used, written = await self._exchange(sequence, key, content, most)
            self._pace.correct(taken, used.tokens)
            await kept(written)
        except OpsinError as error:  # of the ledger, or the reason why everything ends
            raise self._ending(error) from None
        finally:
            if asked:
                spent = self._budget.lost(most) if used is None else used
                self._budget.book(most, spent, answered=isinstance(came, Answer))
            else:
                self._budget.take_back(most)
                if sequence is not None:
                    self._ledger.withdrawn(key, sequence)
        if not isinstance(came, Answer):
            raise came
        self._rate.add(time.monotonic())
        return came

    async def _exchange(
        self, sequence: int, key: str, content: bytes, most: Usage
    ) -> tuple[Answer | AttemptError, Usage, asyncio.Future[None]]:
        """Ask; returns what came, what it has used, and the future of its event in the ledger."""
        self._in_flight += 1
        begun = time.monotonic()
        try:
            answer = await self._endpoint.ask(content, key, most)
        except AttemptError as error:
            # At once, since others are about to be sent.
            self._pace.hold(error.wait or 0.0)
            if error.then is Then.STOP:
                self._ending(TeacherError(f"{self._name}: {error}"))
            used = error.usage or (self._budget.lost(most) if error.perhaps_charged else Usage(0, 0))
            return error, used, self._ledger.failed(key, str(error), used, sequence)
        else:
            self._ledger.learn(most, answer.usage, time.monotonic() - begun)
            return answer, answer.usage, self._ledger.answered(key, answer, sequence)
        finally:
            self._in_flight -= 1

    async def _wait(self, error: AttemptError, failures: int) -> None:
        self._waiting += 1
        try:
            await self._nap(self._backoff.seconds(failures) - (error.wait or 0.0))
        finally:
            self._waiting -= 1

    async def _nap(self, seconds: float) -> None:
        """Sleep; if everything ends meanwhile, that is raised."""
        try:
            async with asyncio.timeout(seconds):
                await self._end.wait()
        except TimeoutError:
            return
        self._go_on()

    def end(self, error: OpsinError) -> None:
        """Ask nothing from now on: every call raises the error, but for those whose requests are under way."""
        self._ending(error)

    def _go_on(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _ending(self, error: OpsinError) -> OpsinError:
        """From now on nothing is asked; the first reason is everybody's."""
        if self._ended is None:
            self._ended = error
            self._end.set()
        return self._ended

    def _unanswered(self, error: AttemptError, attempts: int) -> OpsinError:
        """The error of a request that is given up; of all of them, if that is so for too many."""
        times = f", asked {attempts} times" if attempts > 1 else ""
        none_yet = not self._ledger.totals.answered
        if error.then is Then.ASK_AGAIN or none_yet:
            self._given_up += 1
        # Before the first answer, as many more as are under way: they may be good ones that take longer.
        is_hopeless = none_yet and not error.of_this_one
        enough = HOPELESS + self._in_flight if is_hopeless else UNREACHED_IN_A_ROW
        if self._given_up >= enough:
            return self._ending(
                TeacherError(
                    f"{self._name}: {self._given_up} requests in a row got no answer; the last one: {error}{times}"
                )
            )
        return UnansweredError(f"{self._name}: {error}{times}")

    @property
    def _name(self) -> str:
        return f"{self._endpoint.url} ({self._endpoint.teacher.model})"

    def facts(self) -> Facts:
        """Where it stands now."""
        totals, begun = self._ledger.totals, self._begun
        return Facts(
            sent=totals.requests - begun.requests,
            answered=totals.answered - begun.answered,
            from_ledger=self._from_ledger,
            failed=totals.failed - begun.failed,
            in_flight=self._in_flight,
            waiting=self._pace.waiting + self._waiting,
            paused_for=self._pace.paused_for,
            per_second=self._rate.per_second(time.monotonic()),
            used=Usage(
                totals.spent.prompt_tokens - begun.spent.prompt_tokens,
                totals.spent.answer_tokens - begun.spent.answer_tokens,
                totals.spent.cost - begun.spent.cost,
            ),
            spent=totals.spent,
            problem=self._problem,
        )
