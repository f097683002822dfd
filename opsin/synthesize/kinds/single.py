"""What kinds for single pictures have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.kinds.base import KindBase

if TYPE_CHECKING:
    from opsin.synthesize.context import Context
    from opsin.synthesize.subject import Subject


class SingleKind(KindBase):
    """A kind that makes samples of one picture each."""

    def usable(self, context: Context) -> bool:
        """Whether there is anything to make a sample of."""
        return bool(context.captions or context.things)

    def subjects(self, subjects: Sequence[Subject], seed: int) -> Iterator[Subject]:
        """Single pictures of which enough is known."""
        for subject in subjects:
            if len(subject.images) == 1 and self.usable(subject.context) and self.chosen(subject.id, seed):
                yield subject
