"""A brake: nothing more is asked for a kind whose answers are nearly all refused.

A wrong model, one without instruction tuning or a broken chat template would spend the whole budget on the quarantine.
Every kind is judged by itself, since a share of all would hide one kind that fails behind others that do not; and the
others go on, since they have prompts of their own, and what passes the checks is worth its money.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opsin.synthesize.outcome import Outcome
    from opsin.synthesize.subject import Task

FIRST = 50
"""Tasks by which a kind is judged at first; then by 100, by 150 and by 200."""
BLOCK = 200
"""Tasks by which it is judged after that, each so many by themselves: a server can break in the middle of a night."""


@dataclass
class _Tally:
    """Some tasks of a kind in a row: those that have or may still get an answer, and the refused ones among them."""

    tasks: int
    refused: int = 0


class Brake:
    """Counts outcomes, and says which kinds are not worth asking for any more.

    A kind is judged by tasks in their order; those without an outcome yet count as not refused, those that get no
    answer do not count. So an outcome can only add to the share that is refused: the verdict on the same ones is
    the same in whatever order they come, and no slow answer delays it.
    """

    def __init__(self, tasks: Sequence[Task], share: float | None) -> None:
        """`tasks` are all that will be counted, those of a kind together; with no share, no kind is ever stopped."""
        self.stopped: set[str] = set()
        self._share = share
        self._first = {task.kind: index for index, task in reversed(list(enumerate(tasks)))}
        self._number = Counter(task.kind for task in tasks)
        self._tallies: dict[tuple[str, range], _Tally] = {}

    def count(self, index: int, outcome: Outcome) -> bool:
        """Count the outcome of the task with this index, once; whether its kind is stopped by it."""
        kind = outcome.task.kind
        if self._share is None or kind in self.stopped or outcome.state == "made":
            return False
        for row in _rows(index - self._first[kind]):
            there = min(len(row), self._number[kind] - row.start)  # the last row may be a short one
            tally = self._tallies.setdefault((kind, row), _Tally(there))
            if is_refused(outcome):
                tally.refused += 1
            else:  # no answer of a teacher
                tally.tasks -= 1
            if tally.refused / max(tally.tasks, FIRST) >= self._share:
                self.stopped.add(kind)
        return kind in self.stopped


def _rows(place: int) -> list[range]:
    """The rows of tasks that one of a kind is judged in, by its place in the kind."""
    if place >= BLOCK:
        begin = place - place % BLOCK
        return [range(begin, begin + BLOCK)]
    return [range(end) for end in range(FIRST, BLOCK + 1, FIRST) if place < end]


def is_refused(outcome: Outcome) -> bool:
    """Whether a teacher has answered and the checks have refused it, even if it may be asked once more."""
    return outcome.state != "made" and is_answered(outcome)


def is_answered(outcome: Outcome) -> bool:
    """Whether a teacher has answered; the rules have no request."""
    return bool(outcome.attempts) and outcome.attempts[-1].key is not None


def told_refused(outcomes: Iterable[Outcome], kind: str) -> str:
    """How many samples of a kind are refused, by which checks, and what one of them was refused for.

    And of how many the repair got no answer: an endpoint may refuse a conversation that it has answered once.
    """
    answered = [outcome for outcome in outcomes if outcome.task.kind == kind and is_answered(outcome)]
    refused = [(outcome.task.id, _reasons(outcome)) for outcome in answered if is_refused(outcome)]
    checks = Counter(check for _, reasons in refused for check in reasons).most_common()
    commonest = checks[0][0]
    example = next(f"{id_}: {reasons[commonest]}" for id_, reasons in refused if commonest in reasons)
    listed = ", ".join(f"{check} {count:,}" for check, count in checks)
    told = (
        f"{kind}: of {len(answered):,} samples with an answer {len(refused):,} are refused, by the checks {listed}; "
        f"{commonest} says of {example}"
    )
    if problems := [outcome.problem for outcome in answered if outcome.problem]:
        told += f"; asked again for {len(problems):,} of them, the teacher gave no answer: {problems[0]}"
    return told


def _reasons(outcome: Outcome) -> dict[str, str]:
    """Of the last answer: the checks that refuse it, each with one of its findings."""
    return {finding.check: finding.text for finding in outcome.attempts[-1].findings if finding.refuses}
