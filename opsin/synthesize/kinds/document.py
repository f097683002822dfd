"""Documents: what is written in a rendered text or table, and questions about it, answered from the source."""

from __future__ import annotations

import random
import re
from collections import Counter
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from opsin.synthesize import symbolic
from opsin.synthesize.english import number
from opsin.synthesize.kinds.answers import parse_blocks
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.single import SingleKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Context, Vocabulary
    from opsin.synthesize.subject import Task

READ_INSTRUCTIONS = (
    "Read all of the text in this picture.",
    "What is written here?",
    "Write down the text of this picture, word for word.",
    "Transcribe this document.",
)
MOST_QUESTIONS = 4
"""Of one document, besides the reading."""
_NUMBER = re.compile(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")


class Document(SingleKind):
    """The whole text first, then questions about it."""

    kind: Literal["document"] = "document"

    @property
    def expected(self) -> Expected:
        """The whole text may be long; documents speak of anything, positions too."""
        return Expected(exchanges=(1, 16), words=(1, 5_000), grounded=False, free_of_positions=False)

    def usable(self, context: Context) -> bool:
        """Whether something is written in it."""
        return bool(context.text)

    def query(self, task: Task) -> str:
        """What is written in it."""
        return symbolic.document(task.subject.context)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """Blocks of questions and answers, behind the reading, which is known from the source."""
        return (_reading(task), *parse_blocks(raw))

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """Lookups: cells, largest numbers, first words."""
        del vocabulary
        context, rng = task.subject.context, random.Random(task.seed)
        exchanges = [
            *_of_the_title(context),
            *(_of_the_table(context, rng) if context.table else _of_the_text(context, rng)),
        ]
        return (_reading(task), *rng.sample(exchanges, min(MOST_QUESTIONS, len(exchanges))))


def _reading(task: Task) -> Exchange:
    return Exchange(random.Random(task.seed).choice(READ_INSTRUCTIONS), task.subject.context.text)


def _of_the_title(context: Context) -> list[Exchange]:
    return [Exchange("What is the title?", context.title)] if context.title else []


def _of_the_text(context: Context, rng: random.Random) -> list[Exchange]:
    """Which word comes after another one, and how the text ends; words are those that spaces part."""
    words = context.text.removeprefix(context.title).split()
    counts = Counter(words)
    followed = [(word, after) for word, after in pairwise(words) if counts[word] == 1]
    exchanges = [
        Exchange(f'Which word comes directly after "{word}" in the text?', after)
        for word, after in rng.sample(followed, min(2, len(followed)))
    ]
    if len(words) >= 6:
        exchanges.append(Exchange("What are the first three words of the text?", " ".join(words[:3])))
        exchanges.append(Exchange("What are the last three words?", " ".join(words[-3:])))
    return exchanges


def _of_the_table(context: Context, rng: random.Random) -> list[Exchange]:
    header, *rows = context.table
    exchanges = [Exchange("How many rows does the table have below its header?", f"{number(len(rows))}".capitalize())]
    exchanges.append(Exchange("What are the columns of the table?", ", ".join(header)))
    labels = Counter(row[0] for row in rows)
    cells = [
        Exchange(f"What does the table say for {row[0]} under {column}?", row[index])
        for row in rows
        for index, column in enumerate(header)
        if index and labels[row[0]] == 1 and header.count(column) == 1 and row[0] and column and row[index]
    ]
    exchanges += rng.sample(cells, min(3, len(cells)))
    for index, column in enumerate(header):
        if index and column and header.count(column) == 1 and len(rows) > 1:
            exchanges += _extreme(column, [(row[0], row[index]) for row in rows])
    return exchanges


def _extreme(column: str, cells: list[tuple[str, str]]) -> list[Exchange]:
    """Which row has the largest and the smallest number of a column of plain numbers, where rows have names."""
    labels = {label for label, _ in cells if label}
    if len(labels) < len(cells) or not all(_NUMBER.fullmatch(cell) for _, cell in cells):
        return []
    numbers = [Decimal(cell.replace(",", "")) for _, cell in cells]
    exchanges = []
    for which, extreme in (("largest", max(numbers)), ("smallest", min(numbers))):
        if numbers.count(extreme) == 1:
            label, cell = cells[numbers.index(extreme)]
            exchanges.append(Exchange(f"Which row has the {which} number under {column}?", f"{label}, with {cell}."))
    return exchanges
