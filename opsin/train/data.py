"""A stage's data: what it uses of its sources, and the packs of every step."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError
from opsin.core.files import sha256_bytes
from opsin.data.corpus import Corpus, Part
from opsin.data.costs import KINDS, Costs, cost_of
from opsin.data.example import Fit, Preparation
from opsin.data.index import Index, index_of
from opsin.data.mixture import Portion, amounts, draw
from opsin.data.plan import Budget, Pack, plan_epoch
from opsin.data.policy import fit
from opsin.data.sources import Source
from opsin.model.config import ModelConfig
from opsin.text.templates import sample_name
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage

Progress = Callable[[str, int], None]
"""Told the name of a source, and how many of its samples are read."""


def quiet(_name: str, _done: int) -> None:
    """Nobody is told."""


CONTENTS = frozenset({"conversations", "turns", "pictures", "clips"})
"""Counts of what a source holds; the others tell what was done to it."""


@dataclass(frozen=True)
class StageData:
    """The samples that a stage uses, and `amounts`: how many of each part an epoch takes.

    - `counts`: what was counted while reading
    - `refused`: one line for every record that cannot be used
    - `dropped`, `shortened`: one line for every sample that the length policy leaves out or makes shorter
    """

    examples: Corpus
    amounts: tuple[int, ...]
    counts: Counter[str] = field(default_factory=Counter)
    refused: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    shortened: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to samples while they were read, counted."""
        return tuple(f"{count:,} {name}" for name, count in sorted(self.counts.items()) if name not in CONTENTS)

    @property
    def preparation(self) -> Preparation:
        """How the samples are prepared."""
        return self.examples.preparation


@dataclass
class _Found:
    """What happens to samples while a stage is read."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    shortened: list[str] = field(default_factory=list)


def read_stage(
    stage: Stage, config: ModelConfig, tokenizer: Tokenizer, *, skip_bad: bool = False, on_progress: Progress = quiet
) -> StageData:
    """Read all of a stage's sources, or their kept indexes, and decide about samples that are too long.

    With `skip_bad`, records that cannot be used are left out, each named in `refused`.

    Raises:
        DataError: with every problem of every record, unless `skip_bad`; a sample over a pack's budget or the language
            model's context is one, unless the stage says what to do with it. There are no samples.
    """
    prepare = preparation(config, tokenizer, stage.template, stage.resolution)
    context = int(config.language.facts.get("max_position_embeddings", sys.maxsize))
    found = _Found()
    parts = []
    for name, source in stage.sources.items():
        index = index_of(source, prepare, lambda done, name=name: on_progress(name, done))  # type: ignore[misc]
        found.counts += index.counts
        found.problems += index.problems
        parts.append(_part(name, source, index, stage, prepare, context, found))
    if found.problems and not skip_bad:
        raise DataError(found.problems)
    corpus = Corpus(parts, prepare)
    if not len(corpus):
        lost = (*found.problems, *found.dropped)
        raise DataError([f"stage {stage.name!r}: its sources hold no sample that it can use", *lost])
    return StageData(
        examples=corpus,
        amounts=tuple(amounts(stage.data, [len(part) for part in parts])),
        counts=found.counts,
        refused=tuple(found.problems),
        dropped=tuple(found.dropped),
        shortened=tuple(found.shortened),
    )


def mixture_digest(stage: Stage) -> str:
    """A hash of the contents of a stage's sources and of how much an epoch takes of each."""
    portions = [source.model_dump_json(include=set(Portion.model_fields)) for source in stage.data]
    contents = [source.identity() for source in stage.data]
    return sha256_bytes("\n".join([*stage.sources, *portions, *contents]).encode())


def _part(
    name: str, source: Source, index: Index, stage: Stage, prepare: Preparation, context: int, found: _Found
) -> Part:
    """What the stage uses of a source: the kinds that it wants, and what fits into a pack or can be made to."""
    costs = index.costs
    wanted = np.isin(costs.kinds, [KINDS.index(kind) for kind in stage.only or KINDS])
    if left := int((~wanted).sum()):
        found.counts["samples left out: not of the stage's kinds"] += left
    most = Budget(min(context, stage.budget.tokens), stage.budget.patches)
    large = wanted & ((costs.tokens > most.tokens) | (costs.patches > most.patches))
    if not large.any():
        return Part(name, source, index, np.flatnonzero(wanted), costs.take(wanted))
    if stage.too_long == "error":
        found.problems += _too_large(source, index, large, stage, context)
        kept = wanted & ~large
        return Part(name, source, index, np.flatnonzero(kept), costs.take(kept))
    part = Part(name, source, index, np.flatnonzero(wanted), costs.take(wanted))
    return _shortened(part, large, stage, most, prepare, found)


def _shortened(part: Part, large: np.ndarray, stage: Stage, most: Budget, prepare: Preparation, found: _Found) -> Part:
    """The part with its large samples made shorter, or dropped where that is not possible or not wanted."""
    fits: dict[int, Fit] = {}
    rows: dict[int, tuple[int, ...]] = {}
    reader = part.source.reader()
    for own in np.flatnonzero(large).tolist():
        made = fit(reader.conversation(part.index.address(own)), prepare, most, stage.too_long)
        if made.example is None or made.fit is None:
            found.dropped.append(made.text)
        else:
            found.shortened.append(made.text)
            fits[own], rows[own] = made.fit, cost_of(made.example)
    reader.close()
    dropped = large.copy()
    dropped[list(rows)] = False
    samples = part.samples[~dropped[part.samples]]
    columns = part.index.costs.take(samples).columns()
    for place, own in enumerate(samples.tolist()):
        if own in rows:
            columns[:, place] = rows[own]
    return replace(part, samples=samples, costs=Costs(*columns), fits=fits)


def _too_large(source: Source, index: Index, large: np.ndarray, stage: Stage, context: int) -> list[str]:
    """What to say of every sample that is over the context or the budget of a pack."""
    costs, budget = index.costs.take(large), stage.budget
    tokens, patches = int(costs.tokens.max()), int(costs.patches.max())
    problems = []
    reader = source.reader()
    for own in np.flatnonzero(large).tolist():
        conversation = reader.conversation(index.address(own))
        name = sample_name(conversation)
        length, cost = int(index.costs.tokens[own]), int(index.costs.patches[own])
        if length > context:
            problems.append(
                f"{name} {length} tokens, more than the language model's context of {context}; shorten or split the "
                "sample, or set too_long"
            )
        elif length > budget.tokens:
            problems.append(
                f"{name} {length} tokens, more than the pack's budget of {budget.tokens}; raise batch_tokens to at "
                f"least {tokens}, shorten the sample, or set too_long"
            )
        if cost > budget.patches:
            problems.append(
                f"{name} {cost} patches of {len(conversation.media)} media, more than the pack's budget of "
                f"{budget.patches}; raise batch_patches to at least {patches}, show it fewer or smaller pictures, or "
                "set too_long"
            )
    reader.close()
    return problems


def plan_steps(data: StageData, stage: Stage, seed: int) -> list[tuple[Pack, ...]]:
    """The packs of every optimiser step of a stage, in order: a pure function of the data, the stage and the seed."""
    parts = range(len(data.examples.parts))
    groups = [[part] for part in parts] if stage.order == "as_listed" else [list(parts)]
    packs: list[Pack] = []
    for group in groups:
        for epoch in range(math.ceil(stage.epochs)):
            samples = np.concatenate([_drawn(data, stage, part, seed, epoch) for part in group])
            plan = plan_epoch(data.examples.costs, stage.budget, seed=seed, epoch=epoch, samples=samples)
            share = min(1.0, stage.epochs - epoch)
            packs += plan.packs[: math.ceil(share * len(plan.packs))]
    # The last, smaller step counts too: no sample is dropped, and the loss is normalised by the step's own tokens.
    return [tuple(packs[i : i + stage.packs_per_step]) for i in range(0, len(packs), stage.packs_per_step)]


def _drawn(data: StageData, stage: Stage, part: int, seed: int, epoch: int) -> np.ndarray:
    """The samples that an epoch takes of a part."""
    used = data.examples.parts[part]
    own = draw(stage.data[part], used.name, len(used), data.amounts[part], seed=seed, epoch=epoch)
    return data.examples.first(part) + own
