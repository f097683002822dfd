"""One task from its request to its sample: ask, read, check, and ask again with what was wrong."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from opsin.core.errors import PictureError, UnansweredError
from opsin.synthesize.checks import examine, examine_raw, harmless, repair_text
from opsin.synthesize.kinds.base import MalformedAnswerError
from opsin.synthesize.outcome import Attempt, Finding, Outcome
from opsin.synthesize.prompting import messages
from opsin.synthesize.request import Message, Request, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opsin.synthesize.kinds.base import KindBase
    from opsin.synthesize.prompting import Prompt
    from opsin.synthesize.recipe import Synthesis
    from opsin.synthesize.request import Answer, Finish
    from opsin.synthesize.subject import Exchange, Task
    from opsin.synthesize.work import Work

MOST_SENT_BACK = 4_000
"""Characters of a refused answer that the teacher is shown again."""


Steps = Generator["Request", "Answer | None", "Outcome"]
"""Requests that need answers before there is an outcome: whoever drives it decides where these come from. Sent none, it
ends, and the task is waiting; an UnansweredError thrown into it ends it, too."""


@dataclass(frozen=True)
class Maker:
    """Makes samples of a piece of work with one teacher."""

    recipe: Synthesis
    work: Work
    prompts: Mapping[str, Prompt]
    """By the name of the kind."""
    model: str = ""
    """Of the endpoint; empty for the rules."""
    extra: str = ""
    """As in `Request`."""

    def asks(self, kind: KindBase) -> bool:
        """Whether samples of a kind are a teacher's answers, not made by rules."""
        return bool(self.model) and kind.needs_teacher

    def first_request(self, task: Task) -> Request:
        """What is asked at first."""
        kind = self.work.kinds[task.kind]
        asked = messages(self.prompts[task.kind], kind.query(task), kind.pictures(task))
        return Request(self.model, asked, kind.max_tokens, kind.temperature, task.draw, self.extra)

    def steps(self, task: Task) -> Steps:
        """A sample from answers: as many attempts as the recipe allows; by rules where a teacher has nothing to add."""
        if not self.asks(self.work.kinds[task.kind]):
            return self.by_rules(task)
        attempts: list[Attempt] = []
        try:
            request = self.first_request(task)
        except PictureError as error:
            return Outcome(task, "unusable", problem=str(error))
        for _ in range(1 + self.recipe.checks.repairs):
            try:
                answer = yield request
            except UnansweredError as error:
                return Outcome(task, "unanswered", tuple(attempts), problem=str(error))
            if answer is None:
                return Outcome(task, "waiting", tuple(attempts))
            exchanges, findings = self._read(task, answer.text, answer.finish)
            attempts.append(Attempt(answer.text, answer.finish, answer.usage, findings, request.key))
            if not _refused(findings):
                return Outcome(task, "made", tuple(attempts), exchanges)
            request = _again(request, answer.text, findings)
        return Outcome(task, "quarantined", tuple(attempts))

    def by_rules(self, task: Task) -> Outcome:
        """A sample by rules, which passes through the same checks.

        Only its things are not looked up, since rules name others on purpose ("the cow is in the group animals, ..."),
        and it may be short.
        """
        exchanges = self.work.kinds[task.kind].by_rules(task, self.work.own[task.id])
        if not exchanges:
            return Outcome(task, "nothing")
        findings = self._examined(task, exchanges, "stop", looked_up=False)
        raw = "\n".join(f"{exchange.question}\n{exchange.answer}" for exchange in exchanges)
        attempt = Attempt(raw, "stop", Usage(0, 0), findings)
        if _refused(findings):
            return Outcome(task, "quarantined", (attempt,))
        return Outcome(task, "made", (attempt,), exchanges)

    def _read(self, task: Task, raw: str, finish: Finish) -> tuple[tuple[Exchange, ...], tuple[Finding, ...]]:
        if found := examine_raw(raw, finish):
            return (), found
        try:
            exchanges = self.work.kinds[task.kind].parse(raw, task)
        except MalformedAnswerError as error:
            return (), (Finding("schema", str(error)),)
        return exchanges, self._examined(task, exchanges, finish)

    def _examined(
        self, task: Task, exchanges: tuple[Exchange, ...], finish: Finish, *, looked_up: bool = True
    ) -> tuple[Finding, ...]:
        expected = self.work.kinds[task.kind].expected
        return examine(
            exchanges,
            expected=expected if looked_up else replace(expected, grounded=False, words=(1, expected.words[1])),
            contexts=task.subject.contexts,
            vocabulary=self.work.vocabulary,
            options=self.recipe.checks,
            finish=finish,
        )


def _refused(findings: tuple[Finding, ...]) -> bool:
    return any(finding.refuses for finding in findings)


def _again(request: Request, raw: str, findings: tuple[Finding, ...]) -> Request:
    """The same conversation with the refused answer and what is wrong with it."""
    told = (Message("assistant", harmless(raw[:MOST_SENT_BACK])), Message("user", repair_text(findings)))
    return replace(request, messages=(*request.messages, *told))
