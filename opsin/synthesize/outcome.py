"""What became of a task: its attempts, what was found wrong with each, and the sample if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opsin.synthesize.request import Finish, Usage
    from opsin.synthesize.subject import Exchange, Task


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an answer: the check's name, and a sentence that also tells the teacher."""

    check: str
    text: str
    refuses: bool = True
    """False for what is only reported (`checks.hallucination: report`): the sample is made all the same."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer to a task. `key` is that of its request; a teacher that is not asked over a network has none."""

    raw: str
    finish: Finish
    usage: Usage
    findings: tuple[Finding, ...]
    key: str | None = None


State = Literal["made", "quarantined", "nothing", "unusable", "unanswered", "waiting"]
"""`nothing`: the rules have nothing to state. `unusable`: its picture cannot be shown to the teacher. `unanswered`: no
answer after all retries. `waiting`: not asked yet, since the run ended before (budget, Ctrl-C, an exported batch)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A task with its attempts; `exchanges` is the sample if it was made. `problem` says why it is unanswered.

    One that is waiting or unanswered may have attempts, too: those were refused, and what is missing is a repair.
    """

    task: Task
    state: State
    attempts: tuple[Attempt, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    problem: str = ""
