"""A stage's data: its files as examples, and the packs of every step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from opsin.checkpoint.prepare import preparation as model_preparation
from opsin.core.errors import DataError, OpsinError, TrainError
from opsin.core.types import Example
from opsin.data.example import Preparation, make_example
from opsin.data.plan import Pack, plan_epoch
from opsin.data.sources import read_conversations
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage


def preparation(config: ModelConfig, tokenizer: Tokenizer, stage: Stage | None = None) -> Preparation:
    """How a model's inputs are prepared; a stage may use a template of its own."""
    return model_preparation(config, tokenizer, stage.template if stage else None)


@dataclass(frozen=True)
class StageData:
    """Examples of a stage and what was counted while reading them."""

    examples: tuple[Example, ...]
    preparation: Preparation
    counts: Counter[str]


def read_stage(stage: Stage, prepare: Preparation) -> StageData:
    """Read and render all of a stage's files.

    Raises:
        DataError: with every problem of every record.
    """
    conversations, counts = read_conversations(stage.data)
    examples, problems = [], []
    for conversation in conversations:
        try:
            examples.append(make_example(conversation, prepare))
        except OpsinError as error:
            problems.append(str(error))
    if problems:
        raise DataError(problems)
    if not examples:
        raise DataError([f"stage {stage.name!r}: its files hold no samples"])
    return StageData(tuple(examples), prepare, counts)


def plan_steps(examples: Sequence[Example], stage: Stage, seed: int) -> list[tuple[Pack, ...]]:
    """The packs of every optimiser step of a stage, in order: a pure function of the examples, the stage and the seed.

    Raises:
        TrainError: fewer packs than one step takes.
    """
    packs: list[Pack] = []
    for epoch in range(math.ceil(stage.epochs)):
        plan = plan_epoch(examples, stage.batch_tokens, seed=seed, epoch=epoch)
        share = min(1.0, stage.epochs - epoch)
        packs += plan.packs[: math.ceil(share * len(plan.packs))]
    size = stage.packs_per_step
    # The last, smaller step counts too: no sample is dropped, and the loss is normalised by the step's own tokens.
    steps = [tuple(packs[i : i + size]) for i in range(0, len(packs), size)]
    if not steps:
        raise TrainError(f"stage {stage.name!r}: nothing to train on")
    return steps
