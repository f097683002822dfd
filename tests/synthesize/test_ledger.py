from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import OpsinError
from opsin.synthesize.ledger import Ledger, kept
from opsin.synthesize.request import Answer, Usage

if TYPE_CHECKING:
    from pathlib import Path

MOST = Usage(100, 50, 0.4)


def answer(text: str = "yes", cost: float = 0.25) -> Answer:
    return Answer(text, "stop", Usage(10, 5, cost), "tiny-1")


def buy(ledger: Ledger, *keys: str, text: str = "yes") -> None:
    async def run() -> None:
        for key in keys:
            number, sent = ledger.sent(key, MOST)
            await kept(sent)
            await kept(ledger.answered(key, answer(text), number))

    asyncio.run(run())


def test_an_answer_is_found_again_and_is_not_bought_then(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        assert ledger.lookup("a") is None
        buy(ledger, "a")
    with Ledger.open(path) as ledger:
        assert ledger.lookup("a") == Answer("yes", "stop", Usage(10, 5, 0.25), "tiny-1", bought=False)
        assert ledger.lookup("b") is None
        assert (ledger.totals.requests, ledger.totals.answered, ledger.totals.failed) == (1, 1, 0)
        assert ledger.totals.spent == Usage(10, 5, 0.25)
        assert ledger.uncertain() == []


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with Ledger.open(tmp_path_factory.mktemp("ledger") / "ledger.sqlite") as ledger:
        ledger.keep_all([("a", answer(text))])
        found = ledger.lookup("a")
    assert found is not None
    assert found.text == text


def test_what_was_under_way_counts_as_spent_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    async def run(ledger: Ledger) -> None:
        first, _ = ledger.sent("a", MOST)
        ledger.sent("b", MOST)
        await kept(ledger.failed("a", "429", Usage(0, 0), first))

    with Ledger.open(path) as ledger:
        asyncio.run(run(ledger))
    with Ledger.open(path) as ledger:
        assert [(one.key, one.most) for one in ledger.uncertain()] == [("b", MOST)]
        assert ledger.totals.spent == MOST
        buy(ledger, "b")
    with Ledger.open(path) as ledger:
        assert ledger.totals.spent == MOST + Usage(10, 5, 0.25)
        assert (ledger.totals.requests, ledger.totals.failed) == (3, 1)
        assert len(ledger.uncertain()) == 1


def test_lost_answers_count_with_what_others_were_billed_over_that(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    async def run(ledger: Ledger) -> None:
        first, _ = ledger.sent("a", MOST)
        ledger.sent("b", MOST)
        await kept(ledger.answered("a", answer(cost=MOST.cost + 3), first))

    with Ledger.open(path) as ledger:
        asyncio.run(run(ledger))
    with Ledger.open(path) as ledger:
        assert [(one.key, one.most) for one in ledger.uncertain()] == [("b", MOST + Usage(0, 0, 3.0))]
        assert ledger.totals.spent.cost == 2 * (MOST.cost + 3)


def test_it_knows_what_requests_take_of_what_is_put_aside_for_them(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        buy(ledger, "a", "b")
        ledger.keep_all([("c", answer())])
    with Ledger.open(path) as ledger:
        totals = ledger.totals
    assert (totals.asked_for, totals.used, totals.measured, totals.answered) == (MOST + MOST, Usage(20, 10, 0.5), 2, 3)


def test_nothing_is_ever_changed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        buy(ledger, "a", text="first")
        ledger.keep_all([("a", answer("second"))])
        found = ledger.lookup("a")
    assert found is not None
    assert found.text == "first"
    rows = sqlite3.connect(path).execute("SELECT what, settles FROM events ORDER BY sequence").fetchall()
    assert rows == [("sent", None), ("answered", 1), ("answered", None)]


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE friends (name)")
    database.close()
    content = other.read_bytes()
    with pytest.raises(OpsinError, match=r"other\.sqlite: a database of another program, not a ledger"):
        Ledger.open(other)
    assert other.read_bytes() == content
    text = tmp_path / "text.sqlite"
    text.write_bytes(b"not a database, but a text that is long enough to be looked at\n" * 20)
    with pytest.raises(OpsinError, match=r"text\.sqlite: damaged, or not a ledger \(file is not a database\)"):
        Ledger.open(text)


def test_a_ledger_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(OpsinError, match="a ledger of format 7, this opsin knows up to 1"):
        Ledger.open(path)


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        buy(ledger, *(f"{number:064}" for number in range(100)), text="x" * 1000)
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 30] = bytes(4096 * 28)
    path.write_bytes(content)

    def read() -> None:
        with Ledger.open(path) as ledger:
            for number in range(100):
                ledger.lookup(f"{number:064}")

    with pytest.raises(OpsinError, match=r"ledger\.sqlite: damaged, or not a ledger"):
        read()


def test_a_full_disk_ends_the_run_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        buy(ledger, "a")
        ledger._connection.execute("PRAGMA max_page_count = 12")
        with pytest.raises(
            OpsinError, match=r"cannot be read or written \(database or disk is full\); everything before"
        ):
            buy(ledger, "b", text="x" * 100_000)
        with pytest.raises(OpsinError, match="disk is full"):
            buy(ledger, "c")
    with Ledger.open(path) as ledger:
        assert ledger.lookup("a") is not None
        assert ledger.lookup("b") is None
        assert [one.key for one in ledger.uncertain()] == ["b"]


def test_two_that_write_at_once_are_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger, Ledger.open(path) as other:
        buy(ledger, "a")
        with pytest.raises(OpsinError, match="another process writes to it as well"):
            buy(other, "b")
    with Ledger.open(path) as ledger:
        assert ledger.lookup("a") is not None
