"""A stage's data: its files as examples, and the packs of every step."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError, OpsinError, TrainError
from opsin.core.types import Example
from opsin.data.example import Preparation, make_example
from opsin.data.plan import Pack, plan_epoch
from opsin.data.sources import read_conversations
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage


@dataclass(frozen=True)
class StageData:
    """Examples of a stage and what was counted while reading them."""

    examples: tuple[Example, ...]
    preparation: Preparation
    counts: Counter[str]


def read_stage(stage: Stage, config: ModelConfig, tokenizer: Tokenizer) -> StageData:
    """Read and render all of a stage's files.

    Raises:
        DataError: with every problem of every record; a sample longer than the language model's context is one.
    """
    prepare = preparation(config, tokenizer, stage.template)
    context = int(config.language.facts.get("max_position_embeddings", sys.maxsize))
    conversations, counts = read_conversations(stage.data)
    examples, problems = [], []
    for conversation in conversations:
        try:
            example = make_example(conversation, prepare)
            if example.num_tokens > context:
                problems.append(
                    f"{example.where}: ({example.id}) {example.num_tokens} tokens, more than the language model's "
                    f"context of {context}; shorten or split the sample"
                )
            examples.append(example)
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
