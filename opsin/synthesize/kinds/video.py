"""Videos: conversations and descriptions from the captions of some frames, each at its second."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from opsin.synthesize import symbolic
from opsin.synthesize.annotated import some_of
from opsin.synthesize.english import listing, sentence
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.forms import TwoForms
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Vocabulary
    from opsin.synthesize.subject import Subject, Task

FACTUAL_QUESTION = "Say what the video shows, and when."
MOST_QUESTIONS = 5


class Video(TwoForms):
    """A conversation about a video, or a description of it."""

    kind: Literal["video"] = "video"

    @property
    def name(self) -> str:
        """With its form: a recipe may have both."""
        return "video" if self.form == "conversation" else "video-detail"

    @property
    def expected(self) -> Expected:
        """As of pictures; what happens between two frames must be told in words that no frame has."""
        if self.form == "detail":
            return Expected(exchanges=(1, 1), words=(4, 1000))
        return Expected(exchanges=(1, 16), words=(1, 300))

    def subjects(self, subjects: Sequence[Subject], seed: int) -> Iterator[Subject]:
        """Videos."""
        for subject in subjects:
            if subject.video is not None and self.chosen(subject.id, seed):
                yield subject

    def query(self, task: Task) -> str:
        """The captions of the frames, each under its second."""
        return symbolic.frames(task.subject)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """What is to be seen, and when."""
        del vocabulary
        rng = random.Random(task.seed)
        moments = [
            (symbolic.seconds(time), sentence(rng.choice(context.captions)))
            for time, context in zip(task.subject.times, task.subject.contexts, strict=True)
            if context.captions
        ]
        if self.form == "detail":
            told = " ".join(f"At {when}: {what}" for when, what in moments)
            return (Exchange(FACTUAL_QUESTION, told),) if told else ()
        exchanges = [Exchange(f"What can be seen at {when}?", what) for when, what in moments]
        exchanges += _appearances(task.subject)
        return tuple(rng.sample(exchanges, min(MOST_QUESTIONS, len(exchanges))))


def _appearances(subject: Subject) -> list[Exchange]:
    """At which of the described moments a thing is seen; it may be seen at others too."""
    seen: dict[str, list[str]] = {}
    for time, context in zip(subject.times, subject.contexts, strict=True):
        for name in dict.fromkeys(some_of(thing) for thing in context.things if thing.name):
            seen.setdefault(name, []).append(f"at {symbolic.seconds(time)}")
    return [
        Exchange(f"Say when {name} can be seen, at least once.", sentence(f"{name}: {listing(times)}"))
        for name, times in seen.items()
    ]
