"""What packs hold of the samples that there are: numbers that `opsin plan` and `opsin inspect` have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from opsin.data.corpus import Corpus
from opsin.data.costs import Costs
from opsin.data.plan import Pack


@dataclass(frozen=True)
class Held:
    """Samples, and how often packs hold each of them (`times`, int64).

    Numbers of tokens and patches are of the packs: a sample counts as often as they hold it.
    """

    costs: Costs
    times: np.ndarray

    @staticmethod
    def by(packs: Iterable[Pack], costs: Costs) -> Held:
        """What packs hold of the samples with these costs."""
        samples = np.fromiter(chain.from_iterable(pack.samples for pack in packs), np.int64)
        return Held(costs, np.bincount(samples, minlength=len(costs)))

    @staticmethod
    def once(costs: Costs) -> Held:
        """Every sample once, where there are no packs."""
        return Held(costs, np.ones(len(costs), dtype=np.int64))

    @property
    def available(self) -> int:
        """How many samples there are, held or not."""
        return len(self.costs)

    @property
    def drawn(self) -> int:
        """How many samples the packs hold, each as often as they do."""
        return int(self.times.sum())

    @property
    def samples(self) -> np.ndarray:
        """The samples that are held at least once (int64), in order."""
        return np.flatnonzero(self.times)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self._sum(self.costs.tokens)

    @property
    def visual(self) -> int:
        """Visual ones of `tokens`."""
        return self._sum(self.costs.visual)

    @property
    def supervised(self) -> int:
        """Supervised ones of `tokens`."""
        return self._sum(self.costs.supervised)

    @property
    def patches(self) -> int:
        """Encoder patches."""
        return self._sum(self.costs.patches)

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each of `samples`."""
        return self.costs.take(self.samples).tokens

    def by_source(self, examples: Corpus) -> dict[str, Held]:
        """Each source's own by its name; a stream has many parts of one source."""
        found: dict[str, list[np.ndarray]] = {}
        for number, part in enumerate(examples.parts):
            first = examples.first(number)
            found.setdefault(part.name, []).append(np.arange(first, first + len(part)))
        own = {name: np.concatenate(samples) for name, samples in found.items()}
        return {name: Held(self.costs.take(samples), self.times[samples]) for name, samples in own.items()}

    def _sum(self, column: np.ndarray) -> int:
        return int((self.times * column).sum())
