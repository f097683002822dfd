"""The samples of a stage, read again and rendered when they are asked for: nothing of them stays in memory."""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from operator import itemgetter
from typing import overload

import numpy as np

from opsin.core.errors import DataError
from opsin.core.files import home
from opsin.core.types import Conversation, Example
from opsin.data.costs import Costs, cost_of
from opsin.data.example import WHOLE, Fit, Preparation, make_example
from opsin.data.index import Index
from opsin.data.record_file import Address, Reader
from opsin.data.sources import Source


@dataclass(frozen=True)
class Part:
    """What a stage uses of an index of a source: `samples` (int64) of it; `fits` says which were made shorter, and how.

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

    def take(self, chosen: np.ndarray) -> Part:
        """Some of the samples, by their places in `samples` or by a mask of them."""
        return Part(self.name, self.source, self.index, self.samples[chosen], self.costs.take(chosen), self.fits)


@dataclass(frozen=True, slots=True)
class Pick:
    """All that has to be known of a sample to make its example: its source, where it stands, how it is used."""

    source: str
    address: Address
    fit: Fit
    cost: tuple[int, ...]


class Corpus(Sequence[Example]):
    """The samples of some parts, one part after the other; `sources` by name are those that parts can come from.

    A copy in another process makes the example of any `Pick`, also of parts that were added since it was copied.
    """

    def __init__(
        self, preparation: Preparation, parts: Sequence[Part] = (), sources: Mapping[str, Source] | None = None
    ) -> None:
        self.preparation = preparation
        self.parts: list[Part] = []
        self._sources = dict(sources or {})
        self._starts = [0]
        self._readers: dict[str, Reader] = {}
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        """Put a part behind the others."""
        self._sources.setdefault(part.name, part.source)
        self.parts.append(part)
        self._starts.append(self._starts[-1] + len(part))

    @property
    def costs(self) -> Costs:
        """Of all samples, as they are used."""
        return Costs.joined([part.costs for part in self.parts])

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, sample: int | Pick) -> Example: ...

    @overload
    def __getitem__(self, sample: slice) -> list[Example]: ...

    def __getitem__(self, sample: int | Pick | slice) -> Example | list[Example]:
        """Read and render a sample.

        Raises:
            OpsinError: its file, or one of its media, is not what it was when the sample was measured.
        """
        if isinstance(sample, slice):
            return [self[i] for i in range(len(self))[sample]]
        pick = sample if isinstance(sample, Pick) else self.pick(sample)
        example = make_example(self._read(pick.source, pick.address), self.preparation, fit=pick.fit)
        _check_cost(example, pick.cost)
        return example

    def pick(self, sample: int) -> Pick:
        """What there is to know of a sample."""
        part, place = self._place(sample)
        own = int(part.samples[place])
        return Pick(part.name, part.index.address(own), part.fits.get(own, WHOLE), part.costs.row(place))

    def conversation(self, sample: int) -> Conversation:
        """Read a sample again.

        Raises:
            DataError: its file has changed.
        """
        part, place = self._place(sample)
        return self._read(part.name, part.index.address(int(part.samples[place])))

    def _read(self, source: str, address: Address) -> Conversation:
        if source not in self._readers:
            self._readers[source] = self._sources[source].reader()
        return self._readers[source].conversation(address)

    def source(self, sample: int) -> str:
        """The name of the source that a sample comes from."""
        return self._place(sample)[0].name

    def name(self, sample: int) -> str:
        """What to call a sample in messages: `file:line: (id)`; nothing is read, since that may be what hangs."""
        part, place = self._place(sample)
        own = int(part.samples[place])
        return f"{part.source.where(part.index.address(own))}: ({part.index.ids[own]})"

    def id(self, sample: int) -> str:
        """A sample's id, without reading it."""
        part, place = self._place(sample)
        return part.index.ids[int(part.samples[place])]

    def ids(self) -> Iterator[str]:
        """The ids of all samples, without reading them."""
        for part in self.parts:
            yield from (part.index.ids[own] for own in part.samples.tolist())

    def digest(self) -> str:
        """A hash of which samples there are, where they stand, what they cost and how they are made shorter."""
        found = hashlib.sha256()
        for part in self.parts:
            used = set(part.samples.tolist())
            fits = [(own, *astuple(fit)) for own, fit in sorted(part.fits.items(), key=itemgetter(0)) if own in used]
            ids = [part.index.ids[own] for own in part.samples.tolist()]
            found.update(json.dumps([part.name, ids, fits]).encode())
            found.update(part.index.addresses_N4[part.samples].tobytes())
            found.update(part.costs.columns().tobytes())
        return found.hexdigest()

    def forget(self, before: int) -> None:
        """Let go of parts that hold only samples before one; those can no longer be asked for by their index."""
        gone = bisect.bisect_right(self._starts, before) - 1
        del self.parts[:gone]
        del self._starts[:gone]

    def first(self, part: int) -> int:
        """The first sample of a part."""
        return self._starts[part]

    def _place(self, sample: int) -> tuple[Part, int]:
        """The part that a sample is of, and its place in it."""
        if not self._starts[0] <= sample < len(self):
            raise IndexError(sample)  # what ends an iteration
        number = bisect.bisect_right(self._starts, sample) - 1
        return self.parts[number], sample - self._starts[number]


def _check_cost(example: Example, planned: tuple[int, ...]) -> None:
    """A pack's budgets and the loss's divisor are those of the plan: what no longer costs the same may not be used.

    Raises:
        DataError: it does not.
    """
    found = cost_of(example)
    if found != planned:
        names = ("tokens", "visual tokens", "supervised tokens", "patches")
        differing = [
            f"{was} {name}, now {now}" for name, was, now in zip(names, planned, found, strict=False) if was != now
        ]
        raise DataError(
            [
                f"{example.name} one of its pictures or videos changed since the sample was measured "
                f"({'; '.join(differing)}); start again when they are at rest, and without {home() / 'lengths'} if "
                "files can change without a new time"
            ]
        )
