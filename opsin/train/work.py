"""What a run has to do: its recipe with tokenizer, data and plan of every stage, read before any compute is spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from opsin.core.errors import DamagedError, DataError, TrainError
from opsin.core.files import sha256_bytes
from opsin.core.types import Example
from opsin.data.corpus import Corpus
from opsin.data.plan import Pack
from opsin.model.lora import require_peft
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import StageData, plan_steps, read_stage
from opsin.train.features import FeatureCache
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe, Stage
from opsin.train.stream import StreamSteps, check_ranks
from opsin.train.world import World

DAMAGED = (
    "`opsin data check FILE --decode` finds all such files; replace them, then begin again, or --resume the run; a run "
    "with --skip-bad leaves them out"
)
"""What to do about a medium that is damaged behind its header, so that it is found when its pack comes."""


@dataclass(frozen=True)
class Work:
    """A recipe with its tokenizer and the data and steps of its stages, by index, from the first one to be trained."""

    recipe: Recipe
    tokenizer: Tokenizer
    data: dict[int, StageData]
    steps: dict[int, Sequence[tuple[Pack, ...]]]

    def samples(self) -> dict[str, str]:
        """For every stage a hash of its samples, which decide its plan; a stream does not know any yet."""
        return {self.recipe.stages[index].name: data.examples.digest() for index, data in self.data.items()}


def read_work(recipe: Recipe, first: int, world: World, hooks: Hooks) -> Work:
    """Read, render and plan all stages to come; rank 0 measures the samples, and the others read what it kept.

    Raises:
        DataError: with every problem of every stage's records.
        MissingExtraError: a stage wants adapters and peft is not installed.
        TrainError: ranks have planned different steps.
    """
    work = world.in_turn(lambda: _read(recipe, first, hooks))
    for steps in work.steps.values():
        check_ranks(steps, world.size)
    plans = {recipe.stages[index].name: _digest(steps) for index, steps in work.steps.items()}
    for rank, other in enumerate(world.gather(plans)):
        if differing := [name for name in plans if other.get(name) != plans[name]]:
            raise TrainError(
                f"rank {rank} plans other steps than rank {world.rank} in {', '.join(differing)}: they see other "
                "files, or run another version; give all ranks the same data"
            )
    return work


def check_reach(stage: Stage, steps: Sequence[tuple[Pack, ...]]) -> None:
    """Refuse a stage that would train what none of its samples reaches; of a stream nobody knows yet.

    Raises:
        TrainError: it trains encoder or connector, and has no pictures.
    """
    unreached = [group.name for group in stage.train.groups if group.part in ("vision", "connector", "newline")]
    if unreached and not isinstance(steps, StreamSteps) and not any(pack.patches for step in steps for pack in step):
        raise TrainError(
            f"stage {stage.name!r} trains {', '.join(unreached)}, but none of its samples has a picture or video, so "
            "nothing would reach them; correct 'data', or 'train'"
        )


def _digest(steps: Sequence[tuple[Pack, ...]]) -> str:
    if isinstance(steps, StreamSteps):  # planned on the way, and compared then
        return f"{len(steps)} steps"
    return sha256_bytes("\n".join(str([pack.samples for pack in step]) for step in steps).encode())


def _read(recipe: Recipe, first: int, hooks: Hooks) -> Work:
    tokenizer = Tokenizer.load(recipe.composition.language.tokenizer_path)
    data: dict[int, StageData] = {}
    steps: dict[int, Sequence[tuple[Pack, ...]]] = {}
    problems: dict[str, None] = {}  # in order, and once: stages can share a file
    advice = ""
    for index in range(first, len(recipe.stages)):
        stage = recipe.stages[index]
        if any(group.plan.lora is not None for group in stage.train.groups):
            require_peft()
        try:
            data[index] = read_stage(
                stage, recipe.composition, tokenizer, skip_bad=recipe.skip_bad, on_progress=hooks.on_read
            )
            steps[index] = plan_steps(data[index], stage, recipe.seed)
            check_reach(stage, steps[index])
        except DataError as error:
            problems |= dict.fromkeys(error.problems)
            advice = advice or error.advice
    if problems:
        raise DataError(list(problems), advice)
    return Work(recipe, tokenizer, data, steps)


def stage_features(
    model: Vlm, stage: Stage, examples: Corpus, world: World, hooks: Hooks, *, skip_bad: bool
) -> FeatureCache:
    """The features of a stage's pictures, read or computed, by every rank a share; the encoder is not divided yet.

    Raises:
        DataError: media are damaged, unless `skip_bad`.
    """
    limit = stage.cache_limit_gb
    cache = FeatureCache(model, examples.preparation, limit_gb=limit, ranks=world.preparing, on_line=hooks.on_line)
    added = cache.add(examples, attrgetter("seen"), hooks.on_features)
    refuse_damaged(examples, cache, skip_bad=skip_bad)
    damaged = f", {cache.damaged} are damaged" if cache.damaged else ""
    hooks.on_line(f"stage {stage.name!r}: {added}{damaged}")
    return cache


def refuse_damaged(examples: Sequence[Example], cache: FeatureCache, *, skip_bad: bool) -> None:
    """Refuse samples with a medium that could not be decoded.

    Raises:
        DataError: there are some, all named, unless `skip_bad`.
    """
    if cache.damaged and not skip_bad and (problems := list(_damaged(examples, cache))):
        raise DataError(problems, DAMAGED)


def _damaged(examples: Sequence[Example], cache: FeatureCache) -> Iterator[str]:
    """What to say of every sample that has no features."""
    for example in examples:
        if example.seen:
            try:
                cache.get(example.seen)
            except DamagedError as error:
                yield f"{example.name} {error}"
