"""What was asked and what came back, on disk before it counts: no paid answer is lost, and none is bought twice.

One table of events that only grows. A request is `sent` before it goes out, and `answered` or `failed` after; each of
these names the event of `sent` that it settles, so what was under way when a run was killed is known for ever. All
events that come up within some milliseconds are one transaction, which is flushed (synchronous=FULL): an event counts
when its future is done.

The event loop's own thread writes. One beside it would get the interpreter's lock only when the loop rests or its time
is up (5 ms), twice for each transaction, which takes 0.3 ms: at 400 requests per second, events took 11 ms that way.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from opsin.core.errors import OpsinError
from opsin.synthesize.request import Answer, Usage

APPLICATION = 0x4F50534C
"""Marks the file as ours ("OPSL"), in the place that SQLite has for it."""
FORMAT = 1
BUSY_SECONDS = 10.0
GROUP_SECONDS = 0.003
"""Events that come up within it are written together. On a slow disk, as long as the last transaction took, so that
the event loop has half of the time for itself."""

NOT_SENT = "not sent, since the run ended"
"""The problem of a request that counts neither as sent nor as failed."""

SCHEMA = f"""
BEGIN;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    what TEXT NOT NULL CHECK (what IN ('sent', 'answered', 'failed')),
    key TEXT NOT NULL,
    settles INTEGER UNIQUE REFERENCES events (sequence),
    at REAL NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    answer_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    payload TEXT NOT NULL
);
CREATE INDEX answers ON events (key) WHERE what = 'answered';
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""
INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
ANSWER = """
SELECT payload, prompt_tokens, answer_tokens, cost FROM events
WHERE key = ? AND what = 'answered' ORDER BY sequence LIMIT 1
"""
SUMS = "coalesce(sum({0}.prompt_tokens), 0), coalesce(sum({0}.answer_tokens), 0), coalesce(sum({0}.cost), 0.0)"
UNSETTLED = """
FROM events AS sent WHERE what = 'sent' AND NOT EXISTS (SELECT 1 FROM events WHERE settles = sent.sequence)
"""


@dataclass(frozen=True)
class Uncertain:
    """A request that was sent by a run that ended before the answer was here: it may have been charged."""

    key: str
    at: float
    """Seconds since 1970."""
    most: Usage
    """What was put aside for it, with what bills here were over that at most."""


@dataclass
class Totals:
    """Sums over a ledger, kept up to date while it is written."""

    requests: int
    """Sent over the network, those that were repeated included, or answered in a batch."""
    answered: int
    failed: int
    spent: Usage
    """Of what is settled; and, of requests whose answers were lost, all that was put aside for them."""
    asked_for: Usage
    """What was put aside for the requests that were answered: with `used`, it tells what to expect of others."""
    used: Usage
    measured: int
    """Number of these; answers that came in a batch are not among them."""
    seconds: float
    """That these took, together."""
    excess: float
    """What one of them has cost over what was put aside for it, at most."""


Row = tuple[int, str, str, int | None, float, int, int, float, str]


class Ledger:
    """The open ledger of an output directory. One process at a time; others may read the file."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._rows: list[Row] = []
        self._written: asyncio.Future[None] | None = None
        self._took = 0.0
        self._broken: OpsinError | None = None
        with _explained(path):
            self._last = int(connection.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()[0])
            settled = _sums(connection)
            self._uncertain = [
                Uncertain(key, at, Usage(prompt, answer, cost + settled.excess))
                for key, at, prompt, answer, cost in connection.execute(
                    f"SELECT key, at, prompt_tokens, answer_tokens, cost {UNSETTLED} ORDER BY sequence"
                )
            ]
        self.totals = replace(settled, spent=sum((one.most for one in self._uncertain), settled.spent))

    @staticmethod
    def open(path: Path) -> Ledger:
        """Open a ledger, or begin one.

        Raises:
            OpsinError: the file is not a ledger, is one of a newer opsin, or is damaged, or it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with _explained(path):
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                _prepare(path, connection)
                return Ledger(path, connection)
            except BaseException:  # whatever it is: nobody else would close it
                connection.close()
                raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lookup(self, key: str) -> Answer | None:
        """The answer that was bought for a request, if there is one.

        Raises:
            OpsinError: the file is damaged.
        """
        with _explained(self.path):
            row = self._connection.execute(ANSWER, (key,)).fetchone()
            if row is None:
                return None
            value = json.loads(row[0])
            return Answer(value["text"], value["finish"], Usage(*row[1:]), value["model"], bought=False)

    def uncertain(self) -> list[Uncertain]:
        """Requests of earlier runs whose answers were lost."""
        return list(self._uncertain)

    def keep_all(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Keep answers that came in a batch, in one transaction.

        Raises:
            OpsinError: they cannot be written.
        """
        for key, answer in answers:
            self.totals.requests += 1
            self._count(answer)
            self._add("answered", key, None, answer.usage, _payload(answer))
        self._write()

    def sent(self, key: str, most: Usage) -> tuple[int, asyncio.Future[None]]:
        """Note that a request is about to be sent that uses `most` of what is paid for; wait for it before sending.

        The number names the event for `answered` or `failed`.
        """
        self.totals.requests += 1
        return self._add("sent", key, None, most, {}), self._soon()

    def answered(self, key: str, answer: Answer, settles: int) -> asyncio.Future[None]:
        """Keep an answer; it is kept when the future is done."""
        self._count(answer)
        self._add("answered", key, settles, answer.usage, _payload(answer))
        return self._soon()

    def failed(self, key: str, problem: str, usage: Usage, settles: int) -> asyncio.Future[None]:
        """Note an attempt without a usable answer, and what it has cost, or may have."""
        self.totals.failed += 1
        self.totals.spent += usage
        self._add("failed", key, settles, usage, {"problem": problem})
        return self._soon()

    def withdrawn(self, key: str, settles: int) -> None:
        """Note that a request was not sent after all: the run ended first."""
        self.totals.requests -= 1
        self._add("failed", key, settles, Usage(0, 0), {"problem": NOT_SENT})
        self._soon()

    def learn(self, most: Usage, used: Usage, seconds: float) -> None:
        """What an answered request has taken of what was put aside for it tells what to expect of others."""
        totals = self.totals
        totals.asked_for += most
        totals.used += used
        totals.measured += 1
        totals.excess = max(totals.excess, used.cost - most.cost)
        totals.seconds += seconds

    def close(self) -> None:
        """Write what is left, and close the file."""
        try:
            if self._broken is None:
                self._write()
        finally:
            with _explained(self.path):
                self._connection.close()

    def _count(self, answer: Answer) -> None:
        self.totals.answered += 1
        self.totals.spent += answer.usage

    def _add(self, what: str, key: str, settles: int | None, usage: Usage, payload: dict[str, Any]) -> int:
        if self._broken is not None:
            raise self._broken
        self._last += 1
        numbers = usage.prompt_tokens, usage.answer_tokens, usage.cost
        # ASCII, since an answer may hold what is no Unicode, such as half of a surrogate pair.
        self._rows.append((self._last, what, key, settles, time.time(), *numbers, json.dumps(payload)))
        return self._last

    def _soon(self) -> asyncio.Future[None]:
        """When the events so far are written."""
        if self._written is None:
            loop = asyncio.get_running_loop()
            self._written = loop.create_future()
            loop.call_later(max(GROUP_SECONDS, self._took), self._write_group)
        return self._written

    def _write_group(self) -> None:
        written, self._written = self._written, None
        assert written is not None
        try:
            self._write()
        except OpsinError as error:
            self._broken = error
            written.set_exception(error)
            written.exception()  # nobody may be left to see it
        else:
            written.set_result(None)

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        begun = time.monotonic()
        with _explained(self.path):
            self._commit(rows)
        self._took = time.monotonic() - begun

    def _commit(self, rows: list[Row]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(INSERT, rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._connection.rollback()
            raise


async def kept(written: asyncio.Future[None]) -> None:
    """Wait until an event is on disk. Whoever gives up waiting takes nothing back.

    Raises:
        OpsinError: it could not be written.
    """
    await asyncio.shield(written)


def _payload(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "finish": answer.finish, "model": answer.model}


def _sums(connection: sqlite3.Connection) -> Totals:
    """Of what is settled."""
    rows = connection.execute(
        "SELECT what, count(*), sum(settles IS NULL), sum(payload = ?) FROM events GROUP BY what",
        (json.dumps({"problem": NOT_SENT}),),
    )
    counts = {what: numbers for what, *numbers in rows}
    sent, _, _ = counts.get("sent", (0, 0, 0))
    answered, by_batch, _ = counts.get("answered", (0, 0, 0))
    failed, _, not_sent = counts.get("failed", (0, 0, 0))
    settled = Usage(*connection.execute(f"SELECT {SUMS.format('events')} FROM events WHERE what != 'sent'").fetchone())
    *numbers, measured, seconds, excess = connection.execute(
        f"SELECT {SUMS.format('sent')}, {SUMS.format('events')}, count(*), "
        "coalesce(sum(events.at - sent.at), 0.0), max(0.0, coalesce(max(events.cost - sent.cost), 0.0)) "
        "FROM events JOIN events AS sent ON events.settles = sent.sequence WHERE events.what = 'answered'"
    ).fetchone()
    return Totals(
        requests=sent - not_sent + by_batch,
        answered=answered,
        failed=failed - not_sent,
        spent=settled,
        asked_for=Usage(*numbers[:3]),
        used=Usage(*numbers[3:]),
        measured=measured,
        seconds=seconds,
        excess=excess,
    )


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Set a connection up, make the table in an empty file, and refuse a file of another kind."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if not is_empty and application != APPLICATION:
        raise OpsinError(f"{path}: a database of another program, not a ledger; choose another directory")
    if version > FORMAT:
        raise OpsinError(
            f"{path}: a ledger of format {version}, this opsin knows up to {FORMAT}; use the one that wrote it"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if is_empty:
        connection.executescript(SCHEMA)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What SQLite says, as an error of ours."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise OpsinError(
            f"{path}: another process writes to it as well ({error}); end one of them, nothing is lost"
        ) from error
    except sqlite3.OperationalError as error:
        raise OpsinError(
            f"{path}: cannot be read or written ({error}); everything before is kept: make room, or correct its "
            "permissions, and run again"
        ) from error
    except (sqlite3.DatabaseError, ValueError, KeyError) as error:
        raise OpsinError(
            f"{path}: damaged, or not a ledger ({error}); put a copy of it back, or move it away to begin anew: "
            "then all answers are bought again"
        ) from error
