"""What came of a synthesis, in numbers: tasks, attempts, findings, what was made, and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opsin.synthesize.checks import suspicious
from opsin.synthesize.checks.words import number_of_words
from opsin.synthesize.near_duplicates import NEAR_DUPLICATE
from opsin.synthesize.request import Usage

if TYPE_CHECKING:
    from opsin.synthesize.outcome import Attempt, Outcome

QUANTILES = (5, 50, 95)
MOST_NAMED = 20
"""Suspicious pictures that are named; the others are counted."""

UNREAD = frozenset({"cut", "empty", "refusal", "size", "control", "schema"})
"""With one of these, an answer's things may not have been looked up, since it could not be read."""


def summarise(outcomes: Sequence[Outcome], *, looked_up: Collection[str]) -> dict[str, Any]:
    """Numbers that can be written as JSON. `looked_up` are the kinds whose things are looked up in the contexts."""
    tried = [outcome.attempts for outcome in outcomes if outcome.attempts]
    made = [outcome for outcome in outcomes if outcome.state == "made"]
    by_kind: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.task.kind, Counter())[outcome.state] += 1
    grounded = [outcome.attempts for outcome in outcomes if outcome.attempts and outcome.task.kind in looked_up]
    return {
        "tasks": len(outcomes),
        "states": _sorted(Counter(outcome.state for outcome in outcomes)),
        "kinds": {kind: _sorted(states) for kind, states in by_kind.items()},
        "attempts": sum(map(len, tried)),
        "repaired": sum(len(outcome.attempts) > 1 for outcome in made),
        "findings": {
            "first": _sorted(_checks(attempts[0] for attempts in tried)),
            "last": _sorted(_checks(attempts[-1] for attempts in tried)),
        },
        "hallucination": {
            "first": _rate([attempts[0] for attempts in grounded]),
            "last": _rate([attempts[-1] for attempts in grounded]),
        },
        "near_duplicates": sum(_has(attempts[-1], NEAR_DUPLICATE) for attempts in tried),
        "suspicious": _suspicious(outcomes),
        "exchanges": _spread([len(outcome.exchanges) for outcome in made]),
        "words": {
            kind: _spread([_words(outcome) for outcome in made if outcome.task.kind == kind]) for kind in by_kind
        },
        "usage": _usage([attempt for attempts in tried for attempt in attempts]),
        "problems": [f"{one.task.id}: {one.problem}" for one in outcomes if one.problem][:MOST_NAMED],
    }


def summary_lines(statistics: Mapping[str, Any]) -> list[str]:
    """The numbers of `summarise` for a terminal."""
    states, usage = statistics["states"], statistics["usage"]
    lines = [f"tasks    {statistics['tasks']:,}: {_listed(states) or 'none'}"]
    lines += [f"  {kind}: {_listed(counts)}" for kind, counts in statistics["kinds"].items()]
    lines.append(f"answers  {statistics['attempts']:,}; {statistics['repaired']:,} samples were made after a repair")
    for when in ("first", "last"):
        if found := statistics["findings"][when]:
            lines.append(f"  wrong with the {when} answers: {_listed(found)}")
    first, last = statistics["hallucination"]["first"], statistics["hallucination"]["last"]
    if first["rate"] is not None:
        lines.append(
            f"  things that are not there: in {first['rate']:.1%} of {first['examined']:,} first answers, "
            f"in {last['rate']:.1%} of {last['examined']:,} last ones"
        )
    if suspicious := statistics["suspicious"]["count"]:
        ids = statistics["suspicious"]["ids"]
        more = f" and {suspicious - len(ids):,} more" if suspicious > len(ids) else ""
        lines.append(f"  captions that read like orders: {', '.join(ids)}{more}")
    if usage["requests"]:
        lines.append(
            f"asked    {usage['requests']:,} requests: {usage['prompt_tokens']:,} + {usage['answer_tokens']:,} tokens, "
            f"cost {usage['cost']:.4f}"
        )
    if spent := statistics.get("spent"):
        lines.append(
            f"spent    {spent['cost']:.4f} by {spent['requests']:,} requests of all runs here; {spent['failed']:,} "
            f"failed, and {spent['cost_of_no_answer']:.4f} of it is, or may be, for answers that are lost, or of other "
            "samples than these"
        )
    return lines + [f"unanswered  {problem}" for problem in statistics["problems"]]


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _has(attempt: Attempt, check: str) -> bool:
    return any(finding.check == check for finding in attempt.findings)


def _checks(attempts: Iterable[Attempt]) -> Counter[str]:
    """Answers by check: one with three findings of a check counts once."""
    return Counter(check for attempt in attempts for check in {finding.check for finding in attempt.findings})


def _rate(attempts: Sequence[Attempt]) -> dict[str, Any]:
    examined = [one for one in attempts if UNREAD.isdisjoint(finding.check for finding in one.findings)]
    found = sum(_has(one, "hallucination") for one in examined)
    return {"examined": len(examined), "found": found, "rate": found / len(examined) if examined else None}


def _suspicious(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    subjects = {outcome.task.subject.id: outcome.task.subject for outcome in outcomes}
    ids = [id_ for id_, subject in subjects.items() if any(map(suspicious, subject.contexts))]
    return {"count": len(ids), "ids": ids[:MOST_NAMED]}


def _words(outcome: Outcome) -> int:
    return sum(number_of_words(exchange.answer) for exchange in outcome.exchanges)


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = np.percentile(values, QUANTILES)
    spread = {f"{at}%": round(float(value), 2) for at, value in zip(QUANTILES, quantiles, strict=True)}
    return {"mean": round(float(np.mean(values)), 2), **spread}


def _usage(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Of all requests that have answers. Two tasks may have asked the same: it counts once, as it was paid."""
    asked = {attempt.key: attempt for attempt in attempts if attempt.key is not None}
    usage = sum((attempt.usage for attempt in asked.values()), Usage(0, 0))
    return {
        "requests": len(asked),
        "prompt_tokens": usage.prompt_tokens,
        "answer_tokens": usage.answer_tokens,
        "cost": usage.cost,
    }
