"""A run: the stages of a recipe one after the other, in a run directory, resumable.

RUN/recipe.json      the resolved recipe
RUN/run.json         versions, git state, hashes of the data files and of what their samples cost
RUN/metrics.jsonl    one line a step
RUN/skipped.txt      records and damaged media that skip_bad left out, samples that were too long, and why
RUN/shortened.txt    samples that too_long made shorter, and how
RUN/dump/            packs of steps that were skipped, because the loss or a gradient was not finite
RUN/checkpoints/     00-align-000000120/ ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from opsin.checkpoint.model import CHECKPOINTS, read_config
from opsin.checkpoint.restore import restore_model
from opsin.checkpoint.store import candidates, newest_whole, set_aside, sweep
from opsin.core.errors import CheckpointError, OpsinError, TrainError
from opsin.core.lock import RunLock
from opsin.model.vlm import Vlm
from opsin.train.beginning import first_model
from opsin.train.hooks import Hooks
from opsin.train.left_out import SHORTENED, SKIPPED, forget_damaged, name_affected
from opsin.train.optimiser import store_parts
from opsin.train.recipe import Recipe
from opsin.train.record import check_planned, check_samples, forget_metrics, read_record, write_record
from opsin.train.stages import METRICS, STATE, Benchmarking, From, Run, no_benchmarks
from opsin.train.tensorboard import require_tensorboard
from opsin.train.work import Work, read_work
from opsin.train.world import World, joined


def start(recipe: Recipe, out: Path, hooks: Hooks | None = None, *, benchmarks: Benchmarking = no_benchmarks) -> Path:
    """Train a recipe from its beginning in a new run directory; returns the last checkpoint.

    Under `torchrun` every process calls it; they share the work.

    Raises:
        TrainError: `out` already holds a run, or is in use by another one.
        StoppedError: a signal asked for the end; what was done is saved.
        OpsinError: anything about data, model or files that makes the run impossible.
    """
    _check_new(out)
    if recipe.tensorboard:
        require_tensorboard()
    with joined(recipe.device, recipe.parallel.timeout) as world:
        hooks = _own(hooks, world)
        work = read_work(recipe, 0, world, hooks)
        with _locked(out, world):
            return _begin(work, out, world, hooks, benchmarks)


def _check_new(out: Path) -> None:
    """Refuse a directory that holds a run.

    Raises:
        TrainError: it does.
    """
    if candidates(out / CHECKPOINTS):
        raise TrainError(f"{out}: holds a run already; resume it with --resume {out}, or choose another directory")


def _begin(work: Work, out: Path, world: World, hooks: Hooks, benchmarks: Benchmarking) -> Path:
    _check_new(out)
    recipe = work.recipe
    if world.rank == 0:
        write_record(recipe, out, work.samples(), world.size)
        for name in (METRICS, SKIPPED, SHORTENED):  # of a run that ended before its first checkpoint
            (out / name).unlink(missing_ok=True)
        for index, data in work.data.items():
            name_affected(out, recipe.stages[index].name, data, hooks.on_line)
    torch.manual_seed(recipe.seed)
    model = first_model(recipe).to(world.device)
    model.precision = recipe.precision
    store_parts(model, recipe.stages, recipe.precision)
    hooks.before_stages(model)
    return Run(work, out, world, hooks, benchmarks).stages(model, From())


def resume(
    out: Path,
    hooks: Hooks | None = None,
    *,
    weights_only: bool = False,
    override: bool = False,
    benchmarks: Benchmarking = no_benchmarks,
) -> Path:
    """Go on with a run from its newest whole checkpoint; returns the last checkpoint.

    With `weights_only`, a checkpoint within a stage needs no optimiser state, and a fresh optimiser goes on. With
    `override`, it does so although recipe, data or tokenizer have changed; what has changed is told.

    Raises:
        TrainError: there is no run, its data have changed, or it is in use.
        CheckpointError: no checkpoint is whole.
        StoppedError: a signal asked for the end; what was done is saved.
    """
    recipe, changes = read_record(out, override=override)
    with joined(recipe.device, recipe.parallel.timeout) as world, _locked(out, world):
        hooks = _own(hooks, world)
        folder, skipped = _newest(out, world, weights_only=weights_only)
        for line in (*changes, *skipped):
            hooks.on_line(line)
        meta = json.loads((folder / STATE).read_text(encoding="utf-8"))
        _check_stage(recipe, meta, folder)
        index, step = (meta["stage"] + 1, 0) if meta["done"] else (meta["stage"], meta["step"])
        if index >= len(recipe.stages):
            hooks.on_line(f"{out}: all {len(recipe.stages)} stages are complete; nothing to do")
            return folder
        work = read_work(recipe, index, world, hooks)
        if not override:
            check_samples(out, work.samples())
            check_planned(recipe.stages[index], work.steps[index], step, meta.get("planned"))
        model = Vlm(read_config(folder).config, weights=False) if step else restore_model(folder)
        model = model.to(world.device)
        model.precision = recipe.precision
        stage = recipe.stages[index]
        hooks.on_line(f"resuming at stage {stage.name!r}, step {step + 1}")
        if world.rank == 0:
            forget_metrics(out, recipe, index, step)
            forget_damaged(out, [stage.name for stage in recipe.stages], index, step)
            sweep(out / CHECKPOINTS)
            for path in candidates(out / CHECKPOINTS):
                if path == folder:
                    break
                set_aside(path)  # skipped above; the run is about to make this checkpoint again
        world.barrier()
        begin = From(index, step, folder if step else None, weights_only, meta.get("troubles", 0) if step else 0)
        run = Run(work, out, world, hooks, benchmarks)
        if changes and world.rank == 0:  # once the checkpoint fits, this is the run
            run.on_begun = lambda: write_record(recipe, out, work.samples(), world.size)
        return run.stages(model, begin)


def _newest(out: Path, world: World, *, weights_only: bool) -> tuple[Path, list[str]]:
    """The newest whole checkpoint, and what to say of others; one rank reads and hashes them for all.

    Raises:
        CheckpointError: there is none.
    """
    found: tuple[Path, list[str]] | None = None
    error: OpsinError | None = None
    if world.rank == 0:
        try:
            found = newest_whole(out / CHECKPOINTS, weights_only=weights_only)
        except OpsinError as problem:
            error = problem
    waiting = world.preparing if world.size > 1 else world
    told = waiting.gather({"path": str(found[0]) if found else None, "error": None if error is None else str(error)})
    if error is not None:
        raise error
    if told[0]["path"] is None:
        raise CheckpointError(told[0]["error"])
    return Path(told[0]["path"]), found[1] if found else []


def _check_stage(recipe: Recipe, meta: dict[str, Any], folder: Path) -> None:
    """Stages are counted: one that was put in, taken out or renamed would be taken for another.

    Raises:
        TrainError: the recipe's stage at the checkpoint's place has another name.
    """
    index, name = meta["stage"], meta.get("name")
    held = recipe.stages[index].name if index < len(recipe.stages) else "none"
    if name is not None and name != held:
        raise TrainError(
            f"{folder}: was saved in stage {name!r}, number {index + 1}, which is {held!r} in recipe.json now; give "
            "the stages back their names and their order, or start a new run from this checkpoint (start_from)"
        )


@contextmanager
def _locked(out: Path, world: World) -> Iterator[None]:
    """The run directory for these ranks alone.

    Raises:
        TrainError: another run is in it.
    """
    error: OpsinError | None = None
    with ExitStack() as held:
        try:
            if world.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(RunLock(out))
        except OpsinError as problem:
            error = problem
        world.agree(error)  # nobody reads or writes in a directory that is not theirs
        yield


def _own(hooks: Hooks | None, world: World) -> Hooks:
    """Only rank 0 tells what all do."""
    return hooks if hooks is not None and world.rank == 0 else Hooks()
