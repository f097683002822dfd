"""Whole answers, good ones and ones with a fault, as a capable teacher writes them: how often the checks are right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from opsin.synthesize.context import Context, Thing
from opsin.synthesize.english import noun_phrase
from opsin.synthesize.kinds.conversation import Conversation
from opsin.synthesize.kinds.detail import Detail
from opsin.synthesize.kinds.reasoning import Reasoning
from tests.support.examining import findings

if TYPE_CHECKING:
    from opsin.synthesize.outcome import Finding

FILES = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FILES / "answers.json").read_text(encoding="utf-8"))
LATER = json.loads((FILES / "later_answers.json").read_text(encoding="utf-8"))
"""Written when the checks had been mended by the first ones; again, half of them was never read."""
READ, UNREAD = GOLDEN["pictures"][1::2], GOLDEN["pictures"][::2]
"""Answers that were read when the checks were mended, and those that never were."""
EXPECTED = {kind.kind: asdict(kind.expected) for kind in (Conversation(), Detail(), Reasoning())}


def found(picture: dict[str, Any], kind: str, turns: list[list[str]]) -> list[Finding]:
    things = tuple(Thing(noun_phrase(name), ("thing", name)) for name in picture["things"])
    context = Context(tuple(picture["captions"]), things, "categories")
    asked = [(question or "Describe the picture.", answer) for question, answer in turns]
    return [finding for finding in findings(asked, context, **EXPECTED[kind]) if finding.refuses]


def spoiled(good: dict[str, Any], changes: list[list[str]]) -> list[list[str]]:
    turns = [list(turn) for turn in good["turns"]]
    for old, new in changes:
        turns = [[text.replace(old, new, 1) for text in turn] for turn in turns]
    return turns


def refused_and_passed(pictures: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The findings of good answers, and the faults of bad ones in which nothing is found but what is in the good one.

    So a bad answer does not count as found because the good one is refused.
    """
    refused, passed = [], []
    for picture in pictures:
        known = []
        for good in picture["good"]:
            findings = found(picture, good["kind"], good["turns"])
            refused += [finding.text for finding in findings[:1]]
            known.append({finding.text for finding in findings})
        for bad in picture["bad"]:
            good = picture["good"][bad["of"]]
            findings = found(picture, good["kind"], spoiled(good, bad["changes"]))
            if not {finding.text for finding in findings} - known[bad["of"]]:
                passed.append(bad["fault"])
    return refused, passed


@pytest.mark.parametrize(
    ("pictures", "most_refused", "most_passed"), [(READ, 0, 5), (UNREAD, 5, 10)], ids=["read", "unread"]
)
def test_good_answers_pass_and_bad_ones_do_not(
    pictures: list[dict[str, Any]], most_refused: int, most_passed: int
) -> None:
    assert sum(len(picture["good"]) for picture in pictures) == sum(len(picture["bad"]) for picture in pictures) == 100
    refused, passed = refused_and_passed(pictures)
    assert len(refused) <= most_refused, refused
    assert len(passed) <= most_passed, passed
    # What is claimed outright is found.
    assert not {"absent-claim", "yes-absent", "caption-talk", "coords", "truncated"} & set(passed)


@pytest.mark.parametrize(("half", "most_refused", "most_passed"), [("read", 0, 4), ("unread", 3, 5)])
def test_later_answers(half: str, most_refused: int, most_passed: int) -> None:
    pictures = LATER[half]
    assert sum(len(picture["good"]) for picture in pictures) == sum(len(picture["bad"]) for picture in pictures) == 48
    refused, passed = refused_and_passed(pictures)
    assert len(refused) <= most_refused, refused
    assert len(passed) <= most_passed, passed
    always = {"mentions_source", "coordinates", "broken_off", "refusal", "chatter", "other_language"}
    assert always < {bad["fault"] for picture in pictures for bad in picture["bad"]}
    assert not always & set(passed)
    assert passed.count("absent_object_claimed") <= 1
