"""A run: the stages of a recipe one after the other, in a run directory, resumable.

RUN/recipe.json      the resolved recipe
RUN/run.json         versions, git state, hashes of the data files and of what their samples cost
RUN/metrics.jsonl    one line a step
RUN/skipped.txt      records and damaged media that skip_bad left out, samples that were too long, and why
RUN/shortened.txt    samples that too_long made shorter, and how
RUN/checkpoints/     00-align-000000120/ ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from opsin.checkpoint.load import load
from opsin.checkpoint.model import CHECKPOINTS, fill_model, read_config, write_model
from opsin.checkpoint.store import candidates, commit, delete, newest_whole, set_aside, sweep
from opsin.core.errors import DamagedError, DataError, TrainError
from opsin.core.files import write_json
from opsin.data.corpus import Corpus
from opsin.data.plan import Pack
from opsin.model.config import Lora, ModuleName
from opsin.model.lora import merge_lora, require_peft
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import StageData, plan_steps, read_stage
from opsin.train.features import FeatureCache
from opsin.train.hooks import Hooks
from opsin.train.left_out import SHORTENED, SKIPPED, forget_damaged, name_affected, name_damaged, tell_damaged
from opsin.train.loop import StageLoop
from opsin.train.optimiser import Audit, build_optimiser, optimiser_state, prepare_parts, restore_optimiser, store_parts
from opsin.train.recipe import Recipe, Stage
from opsin.train.record import check_planned, check_samples, forget_metrics, read_record, write_record
from opsin.train.warm_start import warm_start

OPTIMISER = "optimiser.safetensors"
METRICS = "metrics.jsonl"
DAMAGED = (
    "`opsin data check FILE --decode` finds all such files; replace them, then begin again, or --resume the run; a run "
    "with --skip-bad leaves them out"
)
"""What to do about a medium that is damaged behind its header, so that it is found when its pack comes."""


@dataclass(frozen=True)
class Position:
    """How far a run is: `step` steps of stage `stage` are taken."""

    stage: int
    step: int


def start(recipe: Recipe, out: Path, hooks: Hooks | None = None) -> Path:
    """Train a recipe from its beginning in a new run directory; returns the last checkpoint.

    Raises:
        TrainError: `out` already holds a run.
        OpsinError: anything about data, model or files that makes the run impossible.
    """
    hooks = hooks or Hooks()
    if candidates(out / CHECKPOINTS):
        raise TrainError(f"{out}: holds a run already; resume it with --resume {out}, or choose another directory")
    work = _read_work(recipe, 0, hooks)
    out.mkdir(parents=True, exist_ok=True)
    write_record(recipe, out, work.samples())
    for name in (METRICS, SKIPPED, SHORTENED):  # of a run that ended before its first checkpoint
        (out / name).unlink(missing_ok=True)
    for index, data in work.data.items():
        name_affected(out, recipe.stages[index].name, data, hooks.on_line)
    torch.manual_seed(recipe.seed)
    model = _first_model(recipe).to(_device(recipe))
    model.precision = recipe.precision
    store_parts(model, recipe.stages, recipe.precision)
    hooks.before_stages(model)
    return _stages(work, out, model, Position(0, 0), None, hooks)


def resume(out: Path, hooks: Hooks | None = None) -> Path:
    """Go on with a run from its newest whole checkpoint; returns the last checkpoint.

    Raises:
        TrainError: there is no run, or its data have changed.
        CheckpointError: no checkpoint is whole.
    """
    hooks = hooks or Hooks()
    recipe = read_record(out)
    folder, skipped = newest_whole(out / CHECKPOINTS)
    for line in skipped:
        hooks.on_line(line)
    meta = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    position = Position(meta["stage"] + 1, 0) if meta["done"] else Position(meta["stage"], meta["step"])
    if position.stage >= len(recipe.stages):
        hooks.on_line(f"{out}: all {len(recipe.stages)} stages are complete; nothing to do")
        return folder
    work = _read_work(recipe, position.stage, hooks)
    check_samples(out, work.samples())
    check_planned(recipe.stages[position.stage], work.steps[position.stage], position.step, meta.get("planned"))
    model = Vlm(read_config(folder).config, weights=False).to(_device(recipe))
    model.precision = recipe.precision
    if position.step == 0:
        fill_model(model, folder)
    stage = recipe.stages[position.stage]
    hooks.on_line(f"resuming at stage {stage.name!r}, step {position.step + 1}")
    forget_metrics(out, recipe, position.stage, position.step)
    forget_damaged(out, [stage.name for stage in recipe.stages], position.stage, position.step)
    for path in candidates(out / CHECKPOINTS):
        if path.name > folder.name:  # skipped above; the run is about to make this checkpoint again
            set_aside(path)
    return _stages(work, out, model, position, folder if position.step else None, hooks)


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


def _read_work(recipe: Recipe, first: int, hooks: Hooks) -> Work:
    """Read, render and plan all stages to come, before any compute is spent.

    Raises:
        DataError: with every problem of every stage's records.
        MissingExtraError: a stage wants adapters and peft is not installed.
    """
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
        except DataError as error:
            problems |= dict.fromkeys(error.problems)
            advice = advice or error.advice
    if problems:
        raise DataError(list(problems), advice)
    return Work(recipe, tokenizer, data, steps)


def _first_model(recipe: Recipe) -> Vlm:
    """The model as the first stage finds it, all of it trainable until the stage says what is."""
    if recipe.start_from is None:
        return Vlm(recipe.composition)
    return load(recipe.start_from).model.requires_grad_(requires_grad=True).train()


def _device(recipe: Recipe) -> torch.device:
    """Where to train: as the recipe says, by default on the first CUDA device if there is one."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise TrainError("the recipe says device: cuda, but torch finds no CUDA device; use device: cpu or auto")
    return torch.device(recipe.device)


def _stages(work: Work, out: Path, model: Vlm, position: Position, folder: Path | None, hooks: Hooks) -> Path:
    recipe, last = work.recipe, out
    sweep(out / CHECKPOINTS)
    for index in range(position.stage, len(recipe.stages)):
        stage = recipe.stages[index]
        # New adapters are drawn at random: the same ones whether the run comes from the stage before or is resumed.
        torch.manual_seed(recipe.seed + 1 + index)
        lora = prepare_parts(model, stage)
        if folder is not None:
            fill_model(model, folder)
        loop = _build_loop(work, index, model, out, hooks)
        if folder is None and stage.warm_start is not None and loop.features is not None:
            done = warm_start(model, loop.data.examples, loop.features, stage.warm_start, recipe.seed)
            hooks.on_line(
                f"stage {stage.name!r}: connector warm start on {done.pictures} captions, "
                f"loss {done.first:.2f} -> {done.last:.2f}"
            )
        if folder is not None:
            loop.step = position.step
            restore_optimiser(model, loop.optimiser, load_file(folder / OPTIMISER))
            folder = None
        with closing(loop):
            last = _train_stage(work, index, loop, lora, out, hooks)
        hooks.after_stage(stage, model)
    return last


def _build_loop(work: Work, index: int, model: Vlm, out: Path, hooks: Hooks) -> StageLoop:
    stage, data, skip_bad = work.recipe.stages[index], work.data[index], work.recipe.skip_bad
    for note in data.found.notes:
        hooks.on_line(f"stage {stage.name!r}: {note}")
    features = _features(model, stage, data.examples, hooks, skip_bad=skip_bad) if stage.cache_features else None
    return StageLoop(
        model=model,
        stage=stage,
        data=data,
        steps=work.steps[index],
        optimiser=build_optimiser(model, stage),
        features=features,
        on_audit=lambda audit: hooks.on_line(_audit_line(stage, audit)),
        skip_bad=skip_bad,
        on_bad=lambda step, line: name_damaged(out, stage.name, step, line, hooks.on_line),
    )


def _features(model: Vlm, stage: Stage, examples: Corpus, hooks: Hooks, *, skip_bad: bool) -> FeatureCache:
    cache = FeatureCache(model, examples.preparation, on_line=hooks.on_line)
    added = cache.add(examples, attrgetter("seen"), hooks.on_features)
    if cache.damaged and not skip_bad:
        raise DataError(list(_damaged(examples, cache)), DAMAGED)
    damaged = f", {cache.damaged} are damaged" if cache.damaged else ""
    hooks.on_line(f"stage {stage.name!r}: {added}{damaged}")
    return cache


def _damaged(examples: Corpus, cache: FeatureCache) -> Iterator[str]:
    """What to say of every sample that has no features."""
    for example in examples:
        if example.seen:
            try:
                cache.get(example.seen)
            except DamagedError as error:
                yield f"{example.name} {error}"


def _audit_line(stage: Stage, audit: Audit) -> str:
    trained = ", ".join(f"{part} {count:,}" for part, count in audit.scalars.items())
    # A tower's layers behind the selected one, for example: not a mistake, but the reader should know.
    unreached = f"; not used in this stage, so unchanged: {', '.join(audit.unreached)}" if audit.unreached else ""
    return f"stage {stage.name!r}: gradient audit passed; trained parameters: {trained}{unreached}"


def _train_stage(
    work: Work, index: int, loop: StageLoop, lora: dict[ModuleName, Lora], out: Path, hooks: Hooks
) -> Path:
    recipe, stage = work.recipe, loop.stage
    hooks.on_stage(stage, loop)
    with (out / METRICS).open("a", encoding="utf-8") as metrics:
        while loop.step < len(loop.steps):
            try:
                done = loop.take_step()
            except DamagedError as error:
                raise type(error)(f"{error}; {DAMAGED}") from None
            metrics.write(json.dumps(done.as_dict(stage.name)) + "\n")
            metrics.flush()
            hooks.on_step(stage, done, len(loop.steps))
            due = recipe.save_every and loop.step % recipe.save_every == 0 and loop.step < len(loop.steps)
            if due:
                _save(out, index, loop, work.tokenizer, lora, done=False)
                _keep_newest(out, recipe.keep)
    if stage.order == "stream":  # only now is known what was left out
        name_affected(out, stage.name, work.data[index], hooks.on_line)
    tell_damaged(out, stage.name, hooks.on_line)
    for part in lora:
        merge_lora(loop.model.part(part))
    loop.model.requires_grad_(requires_grad=False).eval()
    return _save(out, index, loop, work.tokenizer, {}, done=True)


def _save(
    out: Path, index: int, loop: StageLoop, tokenizer: Tokenizer, lora: dict[ModuleName, Lora], *, done: bool
) -> Path:
    def write(folder: Path) -> None:
        write_model(folder, loop.model, tokenizer, lora)
        write_json(folder / "train.json", {"stage": index, "step": loop.step, "done": done} | loop.planned)
        if not done:
            save_file(optimiser_state(loop.model, loop.optimiser), folder / OPTIMISER)

    name = f"{index:02d}-{loop.stage.name}-{loop.step:09d}{'' if not done else '-done'}"
    return commit(out / CHECKPOINTS / name, write, {"stage": loop.stage.name, "step": loop.step, "done": done})


def _keep_newest(out: Path, keep: int) -> None:
    """Delete old mid-stage checkpoints; the end of a stage is always kept."""
    middles = [path for path in candidates(out / CHECKPOINTS) if not path.name.endswith("-done")]
    for path in middles[keep:]:
        delete(path)
