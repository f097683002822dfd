"""A run at work: stage after stage, step after step, with its checkpoints, its records, and its ends, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from opsin.checkpoint.adapters import adapter_tensors, write_adapters
from opsin.checkpoint.model import CHECKPOINTS, fill_model, read_optimiser, unique_state, write_description
from opsin.checkpoint.places import MODEL, OPTIMISER, Place
from opsin.checkpoint.restore import restore_model
from opsin.checkpoint.saver import Saver, Snapshot
from opsin.checkpoint.snapshot import whole_tensors
from opsin.core.errors import (
    CheckpointError,
    DamagedError,
    LostRankError,
    OpsinError,
    OutOfMemoryError,
    StoppedError,
    TrainError,
)
from opsin.core.files import write_json
from opsin.core.stop import Stop
from opsin.core.types import Batch
from opsin.data.corpus import Corpus
from opsin.model.config import Lora, ModuleName
from opsin.model.lora import merge_lora
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.checks import Benchmarks, Checker, read_checker
from opsin.train.dump import write_dump
from opsin.train.features import FeatureCache
from opsin.train.flops import count_operations
from opsin.train.hooks import Hooks
from opsin.train.left_out import SKIPPED, name_affected, name_damaged, tell_damaged
from opsin.train.loop import StageLoop, Told
from opsin.train.messages import audit_line, last_good, stopped, warmup_lines
from opsin.train.objective import Objective
from opsin.train.optimiser import (
    build_optimiser,
    optimiser_state,
    prepare_parts,
    restore_optimiser,
)
from opsin.train.recipe import Stage, WarmStart
from opsin.train.sharding import divide, local, same_everywhere
from opsin.train.warm_start import warm_start
from opsin.train.watch import Watch
from opsin.train.work import DAMAGED, Work, refuse_damaged, stage_features
from opsin.train.world import World, answering

METRICS = "metrics.jsonl"
STATE = "train.json"
"""How far a run was at a checkpoint."""

Benchmarking = Callable[[Stage, Tokenizer], Benchmarks]
"""Gives the benchmarks that a stage asks for."""


def no_benchmarks(_stage: Stage, _tokenizer: Tokenizer) -> Benchmarks:
    """None can be asked."""
    return {}


@dataclass(frozen=True)
class From:
    """Where a run goes on: after `step` steps of stage `stage`, with the files of `folder` if that is within the stage.

    `weights_only`: with a fresh optimiser. `troubles`: steps of the stage that were skipped so far.
    """

    stage: int = 0
    step: int = 0
    folder: Path | None = None
    weights_only: bool = False
    troubles: int = 0


@dataclass
class Run:
    """One run in its directory; every rank has one, but only rank 0 writes anything but its share of a checkpoint."""

    work: Work
    out: Path
    world: World
    hooks: Hooks
    benchmarks: Benchmarking = no_benchmarks
    on_begun: Callable[[], None] = lambda: None
    _kept: int = 0
    _watch: Watch | None = None
    _checkers: dict[int, Checker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make what saves the checkpoints."""
        recipe = self.work.recipe
        self.saver = Saver(
            self.out / CHECKPOINTS,
            self.world.saving,
            background=recipe.save_in_background,
            keep=recipe.keep,
            keep_every=recipe.keep_every,
            on_error=recipe.on_save_error,
            on_line=self.hooks.on_line,
        )

    def stages(self, model: Vlm, begin: From) -> Path:
        """Train all stages from one on; returns the last checkpoint.

        Raises:
            StoppedError: a signal asked for the end, and what was done is saved.
            OpsinError: the run cannot go on; what was done is saved if it can be, in an emergency checkpoint.
        """
        try:
            return self._stages(model, begin)
        except LostRankError:  # a save that is under way waits for that rank, too: it ends with this process
            raise
        except BaseException:
            self.saver.close()  # it is finished, whatever else has failed
            raise

    def _stages(self, model: Vlm, begin: From) -> Path:
        last = self.out
        for index in self.work.data:  # all of them, before any compute is spent
            checker = self._checker(self.work.recipe.stages[index])
            if checker is not None:
                self._checkers[index] = checker
        for index in range(begin.stage, len(self.work.recipe.stages)):
            if index > begin.stage and self.world.group is not None:
                model = restore_model(last).to(self.world.device)  # as a resumed run does: divided weights stay divided
                model.precision = self.work.recipe.precision
            last = self._stage(model, index, begin if index == begin.stage else From(index))
            self.hooks.after_stage(self.work.recipe.stages[index], model)
        return last

    def _stage(self, model: Vlm, index: int, begin: From) -> Path:
        recipe, stage, data = self.work.recipe, self.work.recipe.stages[index], self.work.data[index]
        for note in data.found.notes:
            self.hooks.on_line(f"stage {stage.name!r}: {note}")
        # New adapters are drawn at random: the same ones whether the run comes from the stage before or is resumed.
        torch.manual_seed(recipe.seed + 1 + index)
        lora = prepare_parts(model, stage)
        if begin.folder is not None:
            fill_model(model, begin.folder)
        for line in warmup_lines(stage, len(self.work.steps[index])):
            self.hooks.on_line(line)
        checker = self._checkers.get(index)
        features = self._features(model, stage, data.examples, checker)
        if begin.folder is None and stage.warm_start is not None and features is not None:
            self._warm_start(model, stage, stage.warm_start, features, data.examples)
        saved, operations = set(unique_state(model)), count_operations(model)
        objective = self._objective(model, stage)
        optimiser = build_optimiser(model, stage)
        if begin.folder is not None and not begin.weights_only:
            restore_optimiser(model, optimiser, read_optimiser(begin.folder))
        loop = StageLoop(
            objective=objective,
            stage=stage,
            data=data,
            steps=self.work.steps[index],
            optimiser=optimiser,
            world=self.world,
            number=index,
            seed=recipe.seed,
            features=features,
            saved=saved,
            operations=operations,
            step=begin.step,
            troubles=begin.troubles,
            skip_bad=recipe.skip_bad,
            told=self._told(stage),
        )
        self.on_begun()
        self.hooks.on_stage(stage, loop)
        with closing(loop), self._watching(loop):
            return self._train(index, loop, lora, checker)

    @contextmanager
    def _watching(self, loop: StageLoop) -> Iterator[None]:
        """The report and TensorBoard are kept new while a stage trains."""
        if self.world.rank != 0:
            yield
            return
        self._watch = Watch(self.out, self.hooks.on_line, tensorboard=self.work.recipe.tensorboard)
        self._watch.begin(loop)
        try:
            yield
        finally:
            self._watch.close()
            self._watch = None

    def _checker(self, stage: Stage) -> Checker | None:
        recipe = self.work.recipe
        return self.world.in_turn(
            lambda: read_checker(
                stage,
                recipe.composition,
                self.work.tokenizer,
                seed=recipe.seed,
                benchmarks=self.benchmarks(stage, self.work.tokenizer),
                ranks=self.world,
                skip_bad=recipe.skip_bad,
                on_progress=self.hooks.on_read,
            )
        )

    def _features(self, model: Vlm, stage: Stage, examples: Corpus, checker: Checker | None) -> FeatureCache | None:
        if not stage.cache_features:
            return None
        skip_bad = self.work.recipe.skip_bad
        features = stage_features(model, stage, examples, self.world, self.hooks, skip_bad=skip_bad)
        if checker is not None:
            features.add(checker.samples, attrgetter("seen"))
            refuse_damaged(checker.samples, features, skip_bad=skip_bad)
            checker.features = features
        return features

    def _warm_start(
        self, model: Vlm, stage: Stage, settings: WarmStart, features: FeatureCache, examples: Corpus
    ) -> None:
        done = warm_start(model, examples, features, settings, self.work.recipe.seed)
        same_everywhere(model.connection.parameters(), self.world)
        self.hooks.on_line(
            f"stage {stage.name!r}: connector warm start on {done.pictures} captions, "
            f"loss {done.first:.2f} -> {done.last:.2f}"
        )

    def _objective(self, model: Vlm, stage: Stage) -> Objective:
        """The model with its loss, compiled and divided as the recipe says."""
        objective = Objective(model, stage.loss)
        model.recompute(stage.activation_checkpointing)
        if self.work.recipe.compile:
            for layer in model.decoder.layers:
                layer.compile(dynamic=True)
        divide(objective, self.work.recipe.parallel, self.world, encodes=not stage.cache_features)
        return objective

    def _told(self, stage: Stage) -> Told:
        return Told(
            audited=lambda audit: self.hooks.on_line(audit_line(stage, audit)),
            damaged=lambda step, line: self._damaged(stage, step, line),
            trouble=lambda step, why, batches, ids: self._trouble(stage, step, why, batches, ids),
        )

    def _damaged(self, stage: Stage, step: int, line: str) -> None:
        with self._tolerating(SKIPPED):
            name_damaged(self.out, stage.name, step, line, self.hooks.on_line)

    def _trouble(self, stage: Stage, step: int, why: str, batches: Sequence[Batch], ids: Sequence[str]) -> None:
        folder, name = self.out / "dump", f"{stage.name}-{step:09d}"
        self.hooks.on_line(
            f"stage {stage.name!r}, step {step}: {why}; the step is skipped, no weight is changed. Its samples, in "
            f"{folder}/{name}-rank*: {', '.join(ids[:50])}"
        )
        with self._tolerating("dump"):
            write_dump(folder, name, batches, self.world.rank)

    def _train(self, index: int, loop: StageLoop, lora: dict[ModuleName, Lora], checker: Checker | None) -> Path:
        """All steps of a stage that are left, and its last checkpoint."""
        self._kept = loop.step
        try:
            with Stop() as stop:
                loop.wanted = lambda: stop.wanted
                self._steps(index, loop, lora, checker)
                return self._end(index, loop, lora)
        except LostRankError as error:
            raise LostRankError(f"{error}; {last_good(self.out)}") from None
        except (StoppedError, OutOfMemoryError):
            raise
        except CheckpointError:  # of a save while training went on: what was done since is worth another one
            self._emergency(index, loop, lora)
            raise
        except Exception as error:  # whatever it is, the work of hours is kept where that can be done
            # Of most errors of one rank the others know nothing, and would not take part in a save.
            if not loop.is_torn and (self.world.size == 1 or loop.can_be_saved):
                self._emergency(index, loop, lora)
            if isinstance(error, DamagedError):
                raise type(error)(f"{error}; {DAMAGED}") from None
            raise

    def _steps(self, index: int, loop: StageLoop, lora: dict[ModuleName, Lora], checker: Checker | None) -> None:
        every, total, name = self.work.recipe.save_every, len(loop.steps), loop.stage.name
        while loop.step < total:
            done = loop.take_step()
            self._write(done.as_dict(name))
            if self._watch is not None:
                self._watch.step(done)
            self.hooks.on_step(loop.stage, done, total)
            if checker is not None and checker.is_due(loop.step, total) and loop.stopping is None:
                checked = checker.check(loop.objective)
                self._write(checked.as_dict(name, loop.step))
                if self._watch is not None:
                    self._watch.check(loop.step, checked)
                self.hooks.on_check(loop.stage, loop.step, checked)
            if loop.step == total:
                return
            if loop.stopping is not None:
                self._save(index, loop, lora, wait=True)
                raise stopped(loop, self.out)
            if every and loop.step % every == 0:
                self._save(index, loop, lora)

    def _write(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, there for others to read at once."""
        if self.world.rank == 0:
            with self._tolerating(METRICS), (self.out / METRICS).open("a", encoding="utf-8") as metrics:
                metrics.write(json.dumps(line) + "\n")

    @contextmanager
    def _tolerating(self, what: str) -> Iterator[None]:
        """Files beside the checkpoints that cannot be written are told, and end nothing but where all is gone."""
        try:
            yield
        except OSError as error:
            if not self.out.is_dir():
                raise
            self.hooks.on_line(f"{self.out / what}: could not be written ({error.strerror or error}); training goes on")

    def _end(self, index: int, loop: StageLoop, lora: dict[ModuleName, Lora]) -> Path:
        """Save the end of a stage, and fold its adapters into the weights for the next one."""
        stage = loop.stage
        if stage.order == "stream":  # only now is known what was left out
            name_affected(self.out, stage.name, self.work.data[index], self.hooks.on_line)
        tell_damaged(self.out, stage.name, self.hooks.on_line)
        path = self._save(index, loop, lora, done=True, wait=True)
        if self.world.group is None:
            for part in lora:
                merge_lora(loop.model.part(part))
            loop.model.requires_grad_(requires_grad=False).eval()
        if loop.stopping is not None and index + 1 < len(self.work.recipe.stages):
            raise stopped(loop, self.out)
        return path

    def _save(
        self,
        index: int,
        loop: StageLoop,
        lora: dict[ModuleName, Lora],
        *,
        done: bool = False,
        wait: bool = False,
        ordinary: bool = True,
    ) -> Path:
        state = {
            "stage": index,
            "name": loop.stage.name,
            "step": loop.step,
            "done": done,
            "troubles": loop.troubles,
        } | loop.planned

        def take() -> Snapshot:
            self._check_finite(loop)
            with answering():
                tensors = {MODEL: whole_tensors(unique_state(loop.model), self.world)}
                if not done:
                    tensors[OPTIMISER] = whole_tensors(optimiser_state(loop.model, loop.optimiser), self.world)
                adapters = adapter_tensors(loop.model, lora)

            def write(folder: Path) -> None:
                write_description(folder, loop.model, self.work.tokenizer, lora)
                write_adapters(folder, adapters, lora)
                write_json(folder / STATE, state)

            return Snapshot(tensors, write)

        path = self.saver.save(Place(index, loop.step, done, ordinary), loop.stage.name, take, wait=wait)
        self._kept = loop.step
        return path

    def _check_finite(self, loop: StageLoop) -> None:
        """What is not a number is never saved, whatever made it so.

        Raises:
            TrainError: a trained weight is not finite.
        """
        trained = {name: p for name, p in loop.model.named_parameters() if p.requires_grad}
        wrong = [name for name, parameter in trained.items() if not bool(torch.isfinite(local(parameter)).all())]
        if found := sorted({name for one in self.world.gather(wrong) for name in one}):
            raise TrainError(
                f"stage {loop.stage.name!r}, step {loop.step}: not saved, not finite: {', '.join(found[:10])}"
            )

    def _emergency(self, index: int, loop: StageLoop, lora: dict[ModuleName, Lora]) -> None:
        """Save what was trained since the last checkpoint; nothing if that is nothing, or if it fails too."""
        if loop.step == self._kept:
            return
        try:
            path = self._save(index, loop, lora, wait=True, ordinary=False)
        except OpsinError as error:
            self.hooks.on_line(f"no emergency checkpoint either: {error}")
            return
        self.hooks.on_line(f"the {loop.step} steps that were taken are saved in {path}")
