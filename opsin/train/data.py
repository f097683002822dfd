"""A stage's data: what it uses of its sources, and the packs of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError
from opsin.core.files import sha256_bytes
from opsin.data.corpus import Corpus
from opsin.data.costs import KINDS
from opsin.data.example import Preparation
from opsin.data.index import index_of
from opsin.data.mixture import Portion, amounts, draw, needed
from opsin.data.plan import Pack, plan_batches, plan_epoch
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage
from opsin.train.selecting import Found, Selection
from opsin.train.stream import Progress, Reading, StreamSteps, quiet


@dataclass(frozen=True)
class StageData:
    """The samples that a stage uses, `amounts`: how many of each source an epoch takes, and what happened to others.

    A stage that streams has no samples before its steps are planned; `reading` says how they are read.
    """

    examples: Corpus
    amounts: tuple[int, ...]
    found: Found
    reading: Reading | None = None

    @property
    def preparation(self) -> Preparation:
        """How the samples are prepared."""
        return self.examples.preparation


def read_stage(
    stage: Stage, config: ModelConfig, tokenizer: Tokenizer, *, skip_bad: bool = False, on_progress: Progress = quiet
) -> StageData:
    """Read all of a stage's sources, or their kept indexes, and decide about samples that are too long.

    With `skip_bad`, records that cannot be used are left out, each named in `found.refused`.

    Raises:
        DataError: with every problem of every record, unless `skip_bad`; a sample over a pack's budget or the language
            model's context is one, unless the stage says what to do with it. There are no samples, or none of a
            source of which the mixture takes some; an epoch is too long to be planned.
    """
    prepare = preparation(config, tokenizer, stage.template, stage.resolution)
    selection = Selection.of(stage, config, prepare)
    found = Found()
    corpus = Corpus(prepare, sources=stage.sources)
    if stage.order == "stream":
        return StageData(corpus, (), found, Reading(selection, found, skip_bad, on_progress))
    empty: dict[str, Found] = {}
    for name, source in stage.sources.items():
        index = index_of(source, prepare, partial(on_progress, name), workers=stage.workers)
        own = Found()
        part = selection.part(name, source, index, own)
        corpus.add(part)
        found.add(own)
        if not len(part):
            empty[name] = own
    found.check(skip_bad=skip_bad)
    if not len(corpus):
        lost = (*found.refused, *found.dropped)
        kinds = _kinds(stage, corpus)
        raise DataError([f"stage {stage.name!r}: its sources hold no sample that it can use{kinds}", *lost])
    _check_mixture(stage, empty)
    try:
        return StageData(corpus, tuple(amounts(stage.data, [len(part) for part in corpus.parts])), found)
    except ValueError as error:
        raise DataError([f"stage {stage.name!r}: {error}"]) from None


def _kinds(stage: Stage, corpus: Corpus) -> str:
    """Which kinds a stage takes, and which its sources have."""
    if stage.only is None:
        return ""
    counts = np.bincount(np.concatenate([part.index.costs.kinds for part in corpus.parts]), minlength=len(KINDS))
    held = ", ".join(f"{count:,} {kind}" for kind, count in zip(KINDS, counts.tolist(), strict=True) if count)
    return f": 'only' takes {', '.join(stage.only)}, and they hold {held or 'nothing'}"


def _check_mixture(stage: Stage, empty: Mapping[str, Found]) -> None:
    """Refuse sources without a sample that the stage can use, if the mixture takes some of them."""
    problems = []
    for (name, source), is_needed in zip(stage.sources.items(), needed(stage.data), strict=True):
        if name in empty and is_needed:
            found = empty[name]
            lost = [f"{len(found.refused):,} cannot be used", f"{len(found.dropped):,} dropped", *found.notes]
            problems += [
                f"stage {stage.name!r}: source {name!r} ({source.path}) has no sample that the stage can use "
                f"({'; '.join(lost)}), but the mixture takes some of it; remove it, or see why they are left out",
                *found.refused,
                *found.dropped,
            ]
    if problems:
        raise DataError(problems)


def mixture_digest(stage: Stage) -> str:
    """A hash of the contents of a stage's sources and of how much an epoch takes of each."""
    portions = [source.model_dump_json(include=set(Portion.model_fields)) for source in stage.data]
    contents = [source.content() for source in stage.data]
    return sha256_bytes("\n".join([*stage.sources, *portions, *contents]).encode())


def plan_steps(data: StageData, stage: Stage, seed: int) -> Sequence[tuple[Pack, ...]]:
    """The packs of every optimiser step of a stage, in order: a pure function of the data, the stage and the seed.

    With `samples_per_step` a step is so many samples of an epoch, as in the papers; the last step of an epoch has what
    is left of it, so every epoch takes each of its samples once. Otherwise a step is `packs_per_step` packs, whatever
    the epochs that they come from. Steps of a stage that streams are planned when they are looked at.

    Raises:
        DataError: so small a part of an epoch holds no pack.
    """
    if data.reading is not None:
        return StreamSteps(data.reading, data.examples, seed)
    parts = range(len(data.examples.parts))
    groups = [[part] for part in parts] if stage.order == "as_listed" else [list(parts)]
    steps: list[tuple[Pack, ...]] = []
    for group in groups:
        for epoch in range(math.ceil(stage.epochs)):
            samples = np.concatenate([_drawn(data, stage, part, seed, epoch) for part in group])
            made = _epoch(data, stage, seed, epoch, samples)
            share = min(1.0, stage.epochs - epoch)
            # Rounded, since 1.1 - 1 is a little over 0.1.
            steps += made[: math.ceil(round(share * len(made), 6))]
    if not steps:
        raise DataError([f"stage {stage.name!r}: epochs {stage.epochs:g} are no whole pack, so 0 steps; raise epochs"])
    if stage.samples_per_step is None:
        # The last, smaller step counts too: no sample is dropped, and the loss is normalised by the step's own tokens.
        packs = [pack for step in steps for pack in step]
        steps = [tuple(packs[i : i + stage.packs_per_step]) for i in range(0, len(packs), stage.packs_per_step)]
    return steps[: stage.steps]


def _epoch(data: StageData, stage: Stage, seed: int, epoch: int, samples: np.ndarray) -> Sequence[tuple[Pack, ...]]:
    """An epoch's steps of so many samples, or its packs one by one."""
    costs, budget = data.examples.costs, stage.budget
    if stage.samples_per_step is not None:
        return plan_batches(costs, budget, stage.samples_per_step, seed=seed, epoch=epoch, samples=samples)
    return [(pack,) for pack in plan_epoch(costs, budget, seed=seed, epoch=epoch, samples=samples).packs]


def _drawn(data: StageData, stage: Stage, part: int, seed: int, epoch: int) -> np.ndarray:
    """The samples that an epoch takes of a part."""
    used = data.examples.parts[part]
    own = draw(stage.data[part], used.name, len(used), data.amounts[part], seed=seed, epoch=epoch)
    return data.examples.first(part) + own
