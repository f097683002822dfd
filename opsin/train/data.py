"""A stage's data: its files as examples, and the packs of every step."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError, OpsinError
from opsin.core.types import Conversation, Example
from opsin.data.example import Preparation, make_example
from opsin.data.plan import Pack, plan_epoch
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage


@dataclass(frozen=True)
class StageData:
    """Examples of a stage, how many came from each of its files, and what was counted while reading them."""

    examples: tuple[Example, ...]
    sizes: tuple[int, ...]
    preparation: Preparation
    counts: Counter[str]
    skipped: tuple[str, ...] = ()


def read_stage(stage: Stage, config: ModelConfig, tokenizer: Tokenizer, *, skip_bad: bool = False) -> StageData:
    """Read and render all of a stage's files.

    With `skip_bad`, records that cannot be used are left out, each named in `skipped`.

    Raises:
        DataError: with every problem of every record, unless `skip_bad`; a sample longer than the language model's
            context is one. There are no samples.
    """
    prepare = preparation(config, tokenizer, stage.template)
    context = int(config.language.facts.get("max_position_embeddings", sys.maxsize))
    examples: list[Example] = []
    sizes: list[int] = []
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for source in stage.data:
        conversations: list[Conversation] = []
        try:
            conversations.extend(source.conversations(counts))
        except DataError as error:  # raised behind the last record: the good ones have been given
            problems += error.problems
        made = [_checked(conversation, prepare, context, problems) for conversation in conversations]
        examples += [example for example in made if example is not None]
        sizes.append(sum(example is not None for example in made))
    if problems and not skip_bad:
        raise DataError(problems)
    if not examples:
        raise DataError([f"stage {stage.name!r}: its files hold no samples", *problems])
    return StageData(tuple(examples), tuple(sizes), prepare, counts, tuple(problems))


def _checked(conversation: Conversation, prepare: Preparation, context: int, problems: list[str]) -> Example | None:
    """The example, or None and one more problem."""
    try:
        example = make_example(conversation, prepare)
    except OpsinError as error:
        problems.append(str(error))
        return None
    if example.num_tokens <= context:
        return example
    problems.append(
        f"{example.where}: ({example.id}) {example.num_tokens} tokens, more than the language model's "
        f"context of {context}; shorten or split the sample"
    )
    return None


def survey(
    stage: Stage, config: ModelConfig, tokenizer: Tokenizer, seed: int
) -> tuple[StageData, list[tuple[Pack, ...]]]:
    """A stage's data and steps as training takes them, with everything it would refuse in `skipped` instead of raised.

    There are no steps where a sample is over a pack's budget.

    Raises:
        DataError: there are no samples.
    """
    data = read_stage(stage, config, tokenizer, skip_bad=True)
    try:
        return data, plan_steps(data, stage, seed)
    except DataError as error:
        return replace(data, skipped=(*data.skipped, *error.problems)), []


def plan_steps(data: StageData, stage: Stage, seed: int) -> list[tuple[Pack, ...]]:
    """The packs of every optimiser step of a stage, in order: a pure function of the data, the stage and the seed.

    Raises:
        DataError: a sample is longer than a pack.
    """
    sizes = data.sizes if stage.order == "as_listed" else (len(data.examples),)
    packs: list[Pack] = []
    first = 0
    for size in sizes:
        packs += _plan_file(data.examples[first : first + size], first, stage, seed)
        first += size
    # The last, smaller step counts too: no sample is dropped, and the loss is normalised by the step's own tokens.
    return [tuple(packs[i : i + stage.packs_per_step]) for i in range(0, len(packs), stage.packs_per_step)]


def _plan_file(examples: Sequence[Example], first: int, stage: Stage, seed: int) -> list[Pack]:
    """All epochs of some consecutive examples, the first of which has index `first`."""
    packs: list[Pack] = []
    for epoch in range(math.ceil(stage.epochs)):
        plan = plan_epoch(examples, stage.budget, seed=seed, epoch=epoch)
        share = min(1.0, stage.epochs - epoch)
        packs += plan.packs[: math.ceil(share * len(plan.packs))]
    return [replace(pack, samples=tuple(first + i for i in pack.samples)) for pack in packs]
