"""A run: the stages of a recipe one after the other, in a run directory, resumable.

RUN/recipe.json      the resolved recipe
RUN/run.json         versions, git state, hashes of the data files
RUN/metrics.jsonl    one line a step
RUN/checkpoints/     00-align-000120/ ...
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from opsin import __version__
from opsin.checkpoint.model import CHECKPOINTS, fill_model, read_config, write_model
from opsin.checkpoint.store import candidates, commit, delete, newest_whole, set_aside
from opsin.core.errors import CheckpointError, TrainError
from opsin.core.files import sha256_bytes, sha256_file, write_json
from opsin.model.config import Lora, PartName
from opsin.model.lora import merge_lora
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import plan_steps, preparation, read_stage
from opsin.train.features import FeatureCache
from opsin.train.loop import StageLoop, StepMetrics
from opsin.train.optimiser import Audit, build_optimiser, optimiser_state, prepare_parts, restore_optimiser
from opsin.train.recipe import Recipe, Stage
from opsin.train.warm_start import warm_start

OPTIMISER = "optimiser.safetensors"


def _ignore(*_: object) -> None:
    """The default of every hook."""


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to be told. None of them can change the training."""

    on_line: Callable[[str], None] = _ignore
    on_features: Callable[[int, int], None] = _ignore
    on_stage: Callable[[Stage, StageLoop], None] = _ignore
    on_step: Callable[[Stage, StepMetrics, int], None] = _ignore
    before_stages: Callable[[Vlm], None] = _ignore
    after_stage: Callable[[Stage, Vlm], None] = _ignore


@dataclass(frozen=True)
class Position:
    """How far a run is: `step` steps of stage `stage` are taken; `done` says that the stage is complete."""

    stage: int
    step: int
    done: bool


def start(recipe: Recipe, out: Path, hooks: Hooks | None = None) -> Path:
    """Train a recipe from its beginning in a new run directory; returns the last checkpoint.

    Raises:
        TrainError: `out` already holds a run.
        OpsinError: anything about data, model or files that makes the run impossible.
    """
    hooks = hooks or Hooks()
    if (out / "recipe.json").exists():
        raise TrainError(f"{out}: holds a run already; resume it with --resume {out}, or choose another directory")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", recipe.model_dump(mode="json"))
    write_json(out / "run.json", _provenance(recipe))
    torch.manual_seed(recipe.seed)
    model = Vlm(recipe.model)
    model.precision = recipe.precision
    hooks.before_stages(model)
    return _stages(recipe, out, model, Position(0, 0, done=False), None, hooks)


def resume(out: Path, hooks: Hooks | None = None) -> Path:
    """Go on with a run from its newest whole checkpoint; returns the last checkpoint.

    Raises:
        TrainError: there is no run, or its data files have changed.
        CheckpointError: no checkpoint is whole.
    """
    hooks = hooks or Hooks()
    recipe = _saved_recipe(out)
    _check_data(recipe, out)
    folder, skipped = newest_whole(out / CHECKPOINTS)
    for line in skipped:
        hooks.on_line(line)
    meta = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    position = Position(meta["stage"], meta["step"], done=meta["done"])
    described = read_config(folder)
    model = Vlm(described.config, weights=False)
    model.precision = recipe.precision
    if position.done:
        fill_model(model, folder)
        position = Position(position.stage + 1, 0, done=False)
    if position.stage >= len(recipe.stages):
        hooks.on_line(f"{out}: all {len(recipe.stages)} stages are complete; nothing to do")
        return newest_whole(out / CHECKPOINTS)[0]
    stage = recipe.stages[position.stage]
    hooks.on_line(f"resuming at stage {stage.name!r}, step {position.step + 1}")
    _forget_metrics(out, recipe, position)
    for path in candidates(out / CHECKPOINTS):
        if path.name > folder.name:  # skipped above; the run is about to make this checkpoint again
            set_aside(path)
    return _stages(recipe, out, model, position, folder if position.step else None, hooks)


def _stages(recipe: Recipe, out: Path, model: Vlm, position: Position, folder: Path | None, hooks: Hooks) -> Path:
    tokenizer = Tokenizer.load(recipe.model.language.tokenizer_path)
    last = out
    for index in range(position.stage, len(recipe.stages)):
        stage = recipe.stages[index]
        # New adapters are drawn at random: the same ones whether the run comes from the stage before or is resumed.
        torch.manual_seed(recipe.seed + 1 + index)
        prepare_parts(model, stage, recipe.precision)
        if folder is not None:
            fill_model(model, folder)
        loop = _build_loop(recipe, stage, model, tokenizer, hooks)
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
        last = _train_stage(recipe, index, loop, tokenizer, out, hooks)
        hooks.after_stage(stage, model)
    return last


def _build_loop(recipe: Recipe, stage: Stage, model: Vlm, tokenizer: Tokenizer, hooks: Hooks) -> StageLoop:
    data = read_stage(stage, preparation(recipe.model, tokenizer, stage))
    for name, count in sorted(data.counts.items()):
        if "dropped" in name:
            hooks.on_line(f"stage {stage.name!r}: {count} {name}")
    features = _features(model, stage, data.examples, data.preparation, hooks) if stage.cache_features else None
    return StageLoop(
        model=model,
        stage=stage,
        data=data,
        steps=plan_steps(data.examples, stage, recipe.seed),
        optimiser=build_optimiser(model, stage),
        features=features,
        on_audit=lambda audit: hooks.on_line(_audit_line(stage, audit)),
    )


def _features(model: Vlm, stage: Stage, examples: Any, prepare: Any, hooks: Hooks) -> FeatureCache:
    cache = FeatureCache(model, prepare)
    cache.load_or_forget(hooks.on_line)
    computed = cache.add((p for example in examples for p in example.pictures), hooks.on_features)
    hooks.on_line(
        f"stage {stage.name!r}: features of {computed} pictures computed, {len(cache) - computed} were cached"
    )
    return cache


def _audit_line(stage: Stage, audit: Audit) -> str:
    trained = ", ".join(f"{part} {count:,}" for part, count in audit.scalars.items())
    unreached = f"; no gradient reaches {', '.join(audit.unreached)}" if audit.unreached else ""
    return f"stage {stage.name!r}: gradient audit passed; trained parameters: {trained}{unreached}"


def _train_stage(recipe: Recipe, index: int, loop: StageLoop, tokenizer: Tokenizer, out: Path, hooks: Hooks) -> Path:
    stage = loop.stage
    lora = {part: plan.lora for part, plan in stage.train.parts.items() if plan.lora is not None}
    hooks.on_stage(stage, loop)
    loop.model.train()
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        while loop.step < len(loop.steps):
            done = loop.take_step()
            metrics.write(json.dumps(done.as_dict(stage.name)) + "\n")
            metrics.flush()
            hooks.on_step(stage, done, len(loop.steps))
            due = recipe.save_every and loop.step % recipe.save_every == 0 and loop.step < len(loop.steps)
            if due:
                _save(out, index, loop, tokenizer, lora, done=False)
                _keep_newest(out, recipe.keep)
    for part in lora:
        merge_lora(loop.model.part(part))
    loop.model.requires_grad_(requires_grad=False).eval()
    return _save(out, index, loop, tokenizer, {}, done=True)


def _save(
    out: Path, index: int, loop: StageLoop, tokenizer: Tokenizer, lora: dict[PartName, Lora], *, done: bool
) -> Path:
    def write(folder: Path) -> None:
        write_model(folder, loop.model, tokenizer, lora)
        write_json(folder / "train.json", {"stage": index, "step": loop.step, "done": done})
        if not done:
            save_file(optimiser_state(loop.model, loop.optimiser), folder / OPTIMISER)

    name = f"{index:02d}-{loop.stage.name}-{loop.step:06d}{'' if not done else '-done'}"
    return commit(out / CHECKPOINTS / name, write, {"stage": loop.stage.name, "step": loop.step, "done": done})


def _keep_newest(out: Path, keep: int) -> None:
    """Delete old mid-stage checkpoints; the end of a stage is always kept."""
    middles = [path for path in candidates(out / CHECKPOINTS) if not path.name.endswith("-done")]
    for path in middles[keep:]:
        delete(path)


def _saved_recipe(out: Path) -> Recipe:
    path = out / "recipe.json"
    if not path.is_file():
        raise TrainError(f"{out}: no recipe.json there; this is not a run directory")
    return Recipe.model_validate_json(path.read_text(encoding="utf-8"))


def _check_data(recipe: Recipe, out: Path) -> None:
    saved = json.loads((out / "run.json").read_text(encoding="utf-8"))["data"]
    for path, digest in _data_hashes(recipe).items():
        if saved.get(path) != digest:
            raise TrainError(f"{path}: changed since the run began; a resumed run must see the same data")


def _forget_metrics(out: Path, recipe: Recipe, position: Position) -> None:
    """Drop the lines of steps after the checkpoint: they are taken again."""
    path = out / "metrics.jsonl"
    order = {stage.name: index for index, stage in enumerate(recipe.stages)}
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run can be half written
        if (order[value["stage"]], value["step"]) <= (position.stage, position.step):
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def _data_hashes(recipe: Recipe) -> dict[str, str]:
    try:
        return {str(source.path): sha256_file(source.path) for stage in recipe.stages for source in stage.data}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror}); it is part of the run") from None


def _provenance(recipe: Recipe) -> dict[str, Any]:
    return {
        "opsin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "recipe_sha256": sha256_bytes(recipe.model_dump_json().encode()),
        "data": _data_hashes(recipe),
    }


def _git_state() -> str | None:
    """The commit of the folder the command runs in, with a mark if it has changes; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None
