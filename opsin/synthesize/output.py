"""The files of a synthesis: samples as LLaVA JSON, and beside them where each comes from and what was refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.core.files import sha256_bytes, write_bytes, write_json
from opsin.data.marks import IMAGE_MARK
from opsin.report.synthesis_view import HELD_OUT, INSTRUCT, PROVENANCE, QUARANTINE
from opsin.synthesize.request import Usage

if TYPE_CHECKING:
    from opsin.synthesize.outcome import Attempt, Finding, Outcome
    from opsin.synthesize.subject import Exchange, Subject, Task
    from opsin.synthesize.work import Work

LEDGER = "ledger.sqlite"
PAGE = "page.html"
PROBLEMS = "problems.txt"


@dataclass(frozen=True)
class Teaching:
    """Who taught, for the provenance of every sample."""

    teacher: str
    model: str
    versions: Mapping[str, str]
    """Of the prompts, by kind: the rules draw instructions from them, too."""


def write_samples(out: Path, outcomes: Sequence[Outcome], work: Work, teaching: Teaching) -> None:
    """Write the samples of both sides, their provenance, and the quarantine; in the order of the tasks."""
    made = [outcome for outcome in outcomes if outcome.state == "made"]
    sides: dict[str, list[Any]] = {INSTRUCT: [], HELD_OUT: []}
    for outcome in made:
        sides[_file(outcome.task, work)].append(record(outcome.task, outcome.exchanges))
    write_json(out / INSTRUCT, sides[INSTRUCT])
    if work.held_out:
        write_json(out / HELD_OUT, sides[HELD_OUT])
    else:
        (out / HELD_OUT).unlink(missing_ok=True)  # of an earlier run with another recipe
    _write_lines(out / PROVENANCE, (_provenance(outcome, work, teaching) for outcome in made))
    refused = [outcome for outcome in outcomes if outcome.state == "quarantined"]
    _write_lines(out / QUARANTINE, (_quarantined(outcome, work) for outcome in refused))


def record(task: Task, exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """A sample as LLaVA-Instruct-150K writes it: the marks of the media in the first question, before or after it."""
    subject = task.subject
    marks = IMAGE_MARK if subject.video is not None else "\n".join([IMAGE_MARK] * len(subject.images))
    before = random.Random(f"{task.seed}/mark").random() < 0.5
    conversations = []
    for number, exchange in enumerate(exchanges):
        question = exchange.question
        if number == 0:
            question = f"{marks}\n{question}" if before else f"{question}\n{marks}"
        conversations.append({"from": "human", "value": question})
        conversations.append({"from": "gpt", "value": exchange.answer})
    return {"id": task.id, **_media(subject), "conversations": conversations}


def _media(subject: Subject) -> dict[str, Any]:
    if subject.video is not None:
        return {"video": subject.video}
    return {"image": subject.images[0] if len(subject.images) == 1 else list(subject.images)}


def _file(task: Task, work: Work) -> str:
    return HELD_OUT if task.id in work.held_out else INSTRUCT


def _provenance(outcome: Outcome, work: Work, teaching: Teaching) -> dict[str, Any]:
    task, usage = outcome.task, _usage(outcome.attempts)
    asked = _requests(outcome)
    query = work.kinds[task.kind].query(task)
    repaired = [finding for attempt in outcome.attempts[:-1] for finding in attempt.findings]
    return {
        **_where(outcome, work),
        "file": _file(task, work),
        "teacher": teaching.teacher if asked else "rules",
        "model": teaching.model if asked else "",
        "prompt": teaching.versions.get(task.kind, ""),
        "query": query,
        "context": sha256_bytes(query.encode("utf-8", "surrogatepass")),
        "requests": asked,
        "attempts": len(outcome.attempts),
        "prompt_tokens": usage.prompt_tokens,
        "answer_tokens": usage.answer_tokens,
        "cost": usage.cost,
        "repaired": _told(repaired),
    }


def _quarantined(outcome: Outcome, work: Work) -> dict[str, Any]:
    attempts = [{"raw": one.raw, "finish": one.finish, "findings": _told(one.findings)} for one in outcome.attempts]
    return {
        **_where(outcome, work),
        "reasons": attempts[-1]["findings"],
        "attempts": attempts,
        "requests": _requests(outcome),
        "context": work.kinds[outcome.task.kind].query(outcome.task),
    }


def _where(outcome: Outcome, work: Work) -> dict[str, Any]:
    subject = outcome.task.subject
    return {
        "id": outcome.task.id,
        "kind": outcome.task.kind,
        "images": [subject.video] if subject.video is not None else list(subject.images),
        "image_root": str(work.image_root),
        "where": subject.where,
    }


def _requests(outcome: Outcome) -> list[str]:
    return [attempt.key for attempt in outcome.attempts if attempt.key is not None]


def _told(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"check": finding.check, "text": finding.text} for finding in findings]


def _usage(attempts: Iterable[Attempt]) -> Usage:
    return sum((attempt.usage for attempt in attempts), Usage(0, 0))


def _write_lines(path: Path, values: Iterable[Any]) -> None:
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # half a surrogate pair becomes JSON's own escape
