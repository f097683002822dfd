"""What a stage uses of an index: samples of the kinds that it wants, and what fits into a pack or can be made to."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from opsin.core.errors import DataError
from opsin.core.types import Conversation
from opsin.data.corpus import Part
from opsin.data.costs import KINDS, Costs, cost_of
from opsin.data.example import Fit, Preparation
from opsin.data.index import Index
from opsin.data.plan import Budget
from opsin.data.policy import fit
from opsin.data.sources import Source
from opsin.model.config import ModelConfig
from opsin.text.templates import sample_name
from opsin.train.recipe import Stage

CONTENTS = frozenset({"conversations", "turns", "pictures", "clips"})
"""Counts of what a source holds; the others tell what was done to it."""

WHOLE_FILES = "a file that is damaged in its middle is not a bad record to be skipped: repair it, or fetch it again"
ADVICE = "`opsin data check FILE ...` lists them; `opsin train RECIPE --skip-bad` trains without them"
"""What to do about records that cannot be used."""


@dataclass
class Found:
    """What happened to samples while a stage was read.

    - `counts`: what was counted
    - `refused`: one line for every record that cannot be used; `cut` are those that are the end of their file, though
      there is more of it
    - `dropped`, `shortened`: one line for every sample that the length policy leaves out or makes shorter
    """

    counts: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    shortened: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What was done to samples, counted."""
        return [f"{count:,} {name}" for name, count in sorted(self.counts.items()) if name not in CONTENTS]

    def check(self, *, skip_bad: bool) -> None:
        """Refuse what cannot be used; with `skip_bad` only files that are not whole, which are no bad records.

        Raises:
            DataError: there is some.
        """
        if self.cut and skip_bad:
            raise DataError(self.cut, WHOLE_FILES)
        if self.refused and not skip_bad:
            raise DataError(self.refused, ADVICE)

    def add(self, other: Found) -> None:
        """What happened elsewhere too."""
        self.counts += other.counts
        self.refused += other.refused
        self.cut += other.cut
        self.dropped += other.dropped
        self.shortened += other.shortened


@dataclass(frozen=True)
class Selection:
    """What a stage wants of its samples."""

    stage: Stage
    preparation: Preparation
    context: int

    @staticmethod
    def of(stage: Stage, config: ModelConfig, preparation: Preparation) -> Selection:
        """A stage's, for a model."""
        context = config.language.facts.get("max_position_embeddings", sys.maxsize)
        return Selection(stage, preparation, int(context))

    def part(self, name: str, source: Source, index: Index, found: Found) -> Part:
        """What the stage uses of a source; what it does not use is told to `found`."""
        found.counts += index.counts
        found.refused += index.problems
        found.cut += index.cut
        costs, most = index.costs, self._most
        wanted = np.isin(costs.kinds, [KINDS.index(kind) for kind in self.stage.only or KINDS])
        if left := int((~wanted).sum()):
            found.counts["samples left out: not of the stage's kinds"] += left
        large = wanted & ((costs.tokens > most.tokens) | (costs.patches > most.patches))
        if self.stage.too_long == "error":
            found.refused += self._too_large(source, index, large)
            wanted &= ~large
        part = Part(name, source, index, np.flatnonzero(wanted), costs.take(wanted))
        return self._shortened(part, large, found) if large.any() and self.stage.too_long != "error" else part

    @property
    def _most(self) -> Budget:
        budget, longest = self.stage.budget, self.stage.longest_sample or sys.maxsize
        return replace(budget, tokens=min(self.context, budget.tokens, longest))

    def _shortened(self, part: Part, large: np.ndarray, found: Found) -> Part:
        """The part with its large samples made shorter, or dropped where that is not possible or not wanted."""
        fits: dict[int, Fit] = {}
        columns = part.costs.columns()
        kept = np.ones(len(part), dtype=bool)
        places = np.flatnonzero(large[part.samples])
        for place, conversation in zip(places, _read(part.source, part.index, part.samples[places]), strict=True):
            made = fit(conversation, self.preparation, self._most, self.stage.too_long)
            if made.example is None or made.fit is None:
                found.dropped.append(made.text)
                kept[place] = False
            else:
                found.shortened.append(made.text)
                fits[int(part.samples[place])] = made.fit
                columns[:, place] = cost_of(made.example)
        return replace(part, costs=Costs(*columns), fits=fits).take(kept)

    def _too_large(self, source: Source, index: Index, large: np.ndarray) -> list[str]:
        """What to say of every sample that is over the context, the stage's longest sample or the budget of a pack."""
        if not large.any():
            return []
        costs, budget, longest = index.costs.take(large), self.stage.budget, self.stage.longest_sample or sys.maxsize
        problems = []
        rows = zip(costs.tokens.tolist(), costs.patches.tolist(), strict=True)
        for (tokens, patches), conversation in zip(rows, _read(source, index, np.flatnonzero(large)), strict=True):
            name = sample_name(conversation)
            if tokens > self.context:
                problems.append(
                    f"{name} {tokens} tokens, more than the language model's context of {self.context}; shorten or "
                    "split the sample, or set too_long"
                )
            elif tokens > longest:
                problems.append(
                    f"{name} {tokens} tokens, more than longest_sample, {longest}; raise it, shorten the sample, or "
                    "set too_long"
                )
            elif tokens > budget.tokens:
                problems.append(
                    f"{name} {tokens} tokens, more than the pack's budget of {budget.tokens}; raise batch_tokens to at "
                    f"least {costs.tokens.max()}, shorten the sample, or set too_long"
                )
            if patches > budget.patches:
                problems.append(
                    f"{name} {patches} patches of {len(conversation.media)} pictures, more than the pack's budget of "
                    f"{budget.patches}; raise batch_patches to at least {costs.patches.max()}, show it fewer or "
                    "smaller pictures, or set too_long"
                )
        return problems


def _read(source: Source, index: Index, samples: np.ndarray) -> Iterator[Conversation]:
    """Some samples of an index, read again."""
    reader = source.reader()
    try:
        for sample in samples.tolist():
            yield reader.conversation(index.address(sample))
    finally:
        reader.close()
