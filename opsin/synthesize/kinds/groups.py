"""What kinds for several pictures have in common: how the pictures are put together."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.core.files import sha256_bytes
from opsin.synthesize.kinds.base import KindBase
from opsin.synthesize.subject import Subject

if TYPE_CHECKING:
    from opsin.synthesize.context import Context

JOINED = "+"


class GroupKind(KindBase):
    """A kind that makes samples of several pictures each."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Pictures of one group."""

    def usable(self, context: Context) -> bool:
        """Whether there is anything to tell of one of the pictures."""
        return bool(context.captions)

    def subjects(self, subjects: Sequence[Subject], seed: int) -> Iterator[Subject]:
        """Groups drawn by the seed, every picture in at most one; what is left at the end makes no group."""
        usable = [subject for subject in subjects if len(subject.images) == 1 and self.usable(subject.context)]
        random.Random(f"{seed}/{self.name}").shuffle(usable)
        for first in range(0, len(usable) - self.size + 1, self.size):
            group = together(usable[first : first + self.size])
            if self.chosen(group.id, seed):
                yield group


def together(subjects: Sequence[Subject]) -> Subject:
    """Several pictures as one subject; ids are joined, and cut by a hash where they would be long.

    Raises:
        ValueError: the pictures lie below different folders.
    """
    roots = {subject.root for subject in subjects}
    if len(roots) != 1:
        raise ValueError(f"pictures of one group lie below one folder; got {sorted(map(str, roots))}")
    identity = JOINED.join(subject.id for subject in subjects)
    if len(identity) > 120:
        identity = f"{identity[:100]}{JOINED}{sha256_bytes(identity.encode('utf-8', 'surrogatepass'))[:12]}"
    return Subject(
        id=identity,
        images=tuple(image for subject in subjects for image in subject.images),
        contexts=tuple(subject.context for subject in subjects),
        root=subjects[0].root,
        where=", ".join(dict.fromkeys(subject.where for subject in subjects)),
    )
