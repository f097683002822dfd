"""The evaluation questions about held-out pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.synthesize.rules import (
    BRIEF_QUESTION,
    GROUP_QUESTION,
    TOTAL_QUESTION,
    YES_NO,
    group_check,
    group_count,
)
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from opsin.quickstart.scenes import Scene
    from opsin.quickstart.stamps import Stamp
    from opsin.synthesize.context import Vocabulary


def category(stamp: Stamp) -> Exchange:
    """Which group."""
    return Exchange(GROUP_QUESTION, stamp.group)


def caption(stamp: Stamp) -> Exchange:
    """A short description; the answer is the reference caption."""
    return Exchange(BRIEF_QUESTION, stamp.caption)


def count(scene: Scene, vocabulary: Vocabulary) -> Exchange:
    """How many things, or how many of a group: whichever the scene was planned for."""
    if scene.plan.asked == "total":
        return Exchange(TOTAL_QUESTION, str(len(scene.context.things)))
    many = vocabulary.group(scene.focus).many
    if many is None:
        raise ValueError(f"the group {scene.focus!r} has no plural to ask with")
    return Exchange(group_count(many), str(scene.context.counts()[scene.focus]))


def yes_no(stamps: Sequence[Stamp], vocabulary: Vocabulary, rng: random.Random) -> list[tuple[Stamp, Exchange]]:
    """Group checks, every question text as often true as false, so that the text alone says nothing.

    Each stamp's own group is one true question; the same questions are dealt out again to stamps of other groups, as a
    maximum matching. What cannot be dealt (its overlaps leave nobody to deny it for) is not asked at all.
    """
    denied = _match(stamps, vocabulary, rng)
    asked = []
    for index, stamp in enumerate(stamps):
        if index in denied:
            asked.append((stamp, Exchange(group_check(stamp.group), YES_NO[True])))
            asked.append((stamps[denied[index]], Exchange(group_check(stamp.group), YES_NO[False])))
    return asked


def _match(stamps: Sequence[Stamp], vocabulary: Vocabulary, rng: random.Random) -> dict[int, int]:
    """For each stamp whose group can be denied for another stamp, that one; none is used twice (Kuhn's algorithm)."""
    order = rng.sample(range(len(stamps)), len(stamps))
    taken: dict[int, int] = {}

    def assign(question: int, tried: set[int]) -> bool:
        for target in order:
            if target in tried or not vocabulary.may_deny(stamps[question].group, stamps[target].group):
                continue
            tried.add(target)
            if target not in taken or assign(taken[target], tried):
                taken[target] = question
                return True
        return False

    for question in order:
        assign(question, set())
    return {question: target for target, question in taken.items()}
