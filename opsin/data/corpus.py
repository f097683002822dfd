"""The samples of a stage, read again and rendered when they are asked for: nothing of them stays in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from opsin.core.types import Conversation, Example
from opsin.data.costs import Costs
from opsin.data.example import Fit, Preparation, make_example
from opsin.data.index import Index
from opsin.data.record_file import Reader
from opsin.data.sources import Source
from opsin.text.templates import sample_name


@dataclass(frozen=True)
class Part:
    """What a stage uses of one source: `samples` (int64) of its index; `fits` says which were made shorter, and how.

    `costs` are those of `samples`, as they are used.
    """

    name: str
    source: Source
    index: Index
    samples: np.ndarray
    costs: Costs
    fits: Mapping[int, Fit] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)


class Corpus(Sequence[Example]):
    """The samples of some sources, one source after the other."""

    def __init__(self, parts: Sequence[Part], preparation: Preparation) -> None:
        self.parts = tuple(parts)
        self.preparation = preparation
        self.costs = Costs.joined([part.costs for part in self.parts])
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._readers: dict[int, Reader] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, sample: int) -> Example: ...

    @overload
    def __getitem__(self, sample: slice) -> list[Example]: ...

    def __getitem__(self, sample: int | slice) -> Example | list[Example]:
        """Read and render a sample.

        Raises:
            DataError: its file has changed.
        """
        if isinstance(sample, slice):
            return [self[i] for i in range(len(self))[sample]]
        number, own = self._place(sample)
        fit = self.parts[number].fits.get(own, Fit())
        return make_example(self.conversation(sample), self.preparation, fit=fit)

    def conversation(self, sample: int) -> Conversation:
        """Read a sample again.

        Raises:
            DataError: its file has changed.
        """
        number, own = self._place(sample)
        part = self.parts[number]
        if number not in self._readers:
            self._readers[number] = part.source.reader()
        return self._readers[number].conversation(part.index.address(own))

    def name(self, sample: int) -> str:
        """What to call a sample in messages: `file:line: (id)`; its media are not opened."""
        return sample_name(self.conversation(sample))

    def id(self, sample: int) -> str:
        """A sample's id, without reading it."""
        number, own = self._place(sample)
        return self.parts[number].index.ids[own]

    def ids(self) -> Iterator[str]:
        """The ids of all samples, without reading them."""
        for part in self.parts:
            yield from (part.index.ids[own] for own in part.samples.tolist())

    def first(self, part: int) -> int:
        """The first sample of a part."""
        return int(self._starts[part])

    def _place(self, sample: int) -> tuple[int, int]:
        """The number of the part that a sample is of, and the sample's in the part's index."""
        if not 0 <= sample < len(self):
            raise IndexError(sample)  # what ends an iteration
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return number, int(self.parts[number].samples[sample - self._starts[number]])
