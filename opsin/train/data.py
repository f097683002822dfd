"""A stage's data: what it uses of its sources, and the packs of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError
from opsin.core.files import sha256_bytes
from opsin.data.corpus import Corpus
from opsin.data.example import Preparation
from opsin.data.index import index_of
from opsin.data.mixture import Portion, amounts, draw
from opsin.data.plan import Pack, plan_epoch
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage
from opsin.train.selecting import ADVICE, Found, Selection
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
            model's context is one, unless the stage says what to do with it. There are no samples.
    """
    prepare = preparation(config, tokenizer, stage.template, stage.resolution)
    selection = Selection.of(stage, config, prepare)
    found = Found()
    corpus = Corpus(prepare, sources=stage.sources)
    if stage.order == "stream":
        return StageData(corpus, (), found, Reading(selection, found, skip_bad, on_progress))
    for name, source in stage.sources.items():
        index = index_of(source, prepare, partial(on_progress, name), workers=stage.workers)
        corpus.add(selection.part(name, source, index, found))
    if found.refused and not skip_bad:
        raise DataError(found.refused, ADVICE)
    if not len(corpus):
        lost = (*found.refused, *found.dropped)
        raise DataError([f"stage {stage.name!r}: its sources hold no sample that it can use", *lost])
    return StageData(corpus, tuple(amounts(stage.data, [len(part) for part in corpus.parts])), found)


def mixture_digest(stage: Stage) -> str:
    """A hash of the contents of a stage's sources and of how much an epoch takes of each."""
    portions = [source.model_dump_json(include=set(Portion.model_fields)) for source in stage.data]
    contents = [source.content() for source in stage.data]
    return sha256_bytes("\n".join([*stage.sources, *portions, *contents]).encode())


def plan_steps(data: StageData, stage: Stage, seed: int) -> Sequence[tuple[Pack, ...]]:
    """The packs of every optimiser step of a stage, in order: a pure function of the data, the stage and the seed.

    Those of a stage that streams are planned when they are looked at.
    """
    if data.reading is not None:
        return StreamSteps(data.reading, data.examples, seed)
    parts = range(len(data.examples.parts))
    groups = [[part] for part in parts] if stage.order == "as_listed" else [list(parts)]
    costs = data.examples.costs
    packs: list[Pack] = []
    for group in groups:
        for epoch in range(math.ceil(stage.epochs)):
            samples = np.concatenate([_drawn(data, stage, part, seed, epoch) for part in group])
            plan = plan_epoch(costs, stage.budget, seed=seed, epoch=epoch, samples=samples)
            share = min(1.0, stage.epochs - epoch)
            packs += plan.packs[: math.ceil(share * len(plan.packs))]
    # The last, smaller step counts too: no sample is dropped, and the loss is normalised by the step's own tokens.
    steps = [tuple(packs[i : i + stage.packs_per_step]) for i in range(0, len(packs), stage.packs_per_step)]
    return steps[: stage.steps]


def _drawn(data: StageData, stage: Stage, part: int, seed: int, epoch: int) -> np.ndarray:
    """The samples that an epoch takes of a part."""
    used = data.examples.parts[part]
    own = draw(stage.data[part], used.name, len(used), data.amounts[part], seed=seed, epoch=epoch)
    return data.examples.first(part) + own
