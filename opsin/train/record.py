"""What a run writes about itself, and what is compared when it goes on: recipe, versions, hashes, metrics."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError

from opsin import __version__
from opsin.core.errors import TrainError
from opsin.core.files import sha256_file, write_json, write_text
from opsin.data.plan import Pack
from opsin.text.tokenizer import TOKENIZER_FILE
from opsin.train.recipe import Recipe, Stage
from opsin.train.stream import StreamSteps


def write_record(recipe: Recipe, out: Path, samples: Mapping[str, str], ranks: int = 1) -> None:
    """Write RUN/recipe.json and RUN/run.json; `samples` names, for every stage, what its samples cost."""
    write_json(out / "recipe.json", recipe.model_dump(mode="json"))
    write_json(out / "run.json", _provenance(recipe) | {"ranks": ranks, "samples": dict(samples)})


def read_record(out: Path, *, override: bool = False) -> tuple[Recipe, list[str]]:
    """The recipe of a run, and how it and its data differ from what the run wrote down when it began.

    Raises:
        TrainError: there is no run, or something differs and `override` does not allow it; everything is listed.
    """
    path = out / "recipe.json"
    if not path.is_file():
        raise TrainError(f"{out}: no recipe.json there; this is not a run directory")
    try:
        recipe = Recipe.model_validate_json(path.read_text(encoding="utf-8"))
        saved = json.loads((out / "run.json").read_text(encoding="utf-8"))
        changes = [f"{path}: {line}" for line in differing(saved["recipe"], recipe.model_dump(mode="json"))]
        data, tokenizer = dict(saved["data"]), saved["tokenizer_sha256"]
    except (ValidationError, OSError, ValueError, KeyError, TypeError):
        raise TrainError(f"{out}: recipe.json or run.json was altered and cannot be read; start a new run") from None
    for stage in recipe.stages:
        for name, source in stage.sources.items():
            if data.get(stage.name, {}).get(name) != source.content():
                changes.append(f"{source.path}: not the data that the run began with")
    if tokenizer != _tokenizer_digest(recipe):
        folder = recipe.composition.language.tokenizer_path
        changes.append(f"{folder}: not the tokenizer that the run began with")
    changes = list(dict.fromkeys(changes))  # stages can share a file
    if changes and not override:
        listed = "".join(f"\n  {line}" for line in changes)
        raise TrainError(
            f"{out}: a resumed run must be the one that began, but this changed since:{listed}\nput it back, start a "
            "new run, or go on all the same with --override"
        )
    return recipe, [f"changed since the run began: {line}" for line in changes]


def differing(before: Any, now: Any, path: str = "") -> list[str]:
    """The values that differ in two nested ones, each with its dotted path."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(key, before.get(key), now.get(key)) for key in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(i), one, other) for i, (one, other) in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{path.removeprefix('.')}: was {before!r}, now {now!r}"]
    return [line for key, one, other in pairs for line in differing(one, other, f"{path}.{key}")]


def _tokenizer_digest(recipe: Recipe) -> str:
    path = recipe.composition.language.tokenizer_path / TOKENIZER_FILE
    return sha256_file(path) if path.is_file() else "missing"


def check_samples(out: Path, samples: Mapping[str, str]) -> None:
    """Hold what the samples of some stages cost against what they cost when the run began.

    Raises:
        TrainError: those of a stage differ, so its plan would be another one.
    """
    saved = json.loads((out / "run.json").read_text(encoding="utf-8")).get("samples", {})
    for stage, digest in samples.items():
        if saved.get(stage) != digest:
            raise TrainError(
                f"{out}: stage {stage!r}: its samples are not those that the run began with; pictures or videos were "
                "changed, added or removed: put them back, or start a new run"
            )


def check_planned(stage: Stage, steps: Sequence[tuple[Pack, ...]], step: int, planned: str | None) -> None:
    """Hold the steps that a stream plans now, up to one of them, against those that were taken.

    Raises:
        TrainError: they are others.
    """
    if isinstance(steps, StreamSteps) and step and steps.digest(step) != planned:
        raise TrainError(
            f"stage {stage.name!r}: the samples up to step {step} are not those that were trained on; pictures or "
            "videos were changed, added or removed: put them back, or start a new run"
        )


def forget_metrics(out: Path, recipe: Recipe, stage: int, step: int) -> None:
    """Drop the lines of metrics.jsonl after a step of a stage: those steps are taken again."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return
    order = {stage.name: index for index, stage in enumerate(recipe.stages)}
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run can be half written
        if (order[value["stage"]], value["step"]) <= (stage, step):
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _mixtures(recipe: Recipe) -> dict[str, dict[str, str]]:
    """For every stage its sources' contents, by their names, each as a hash."""
    return {stage.name: {name: source.content() for name, source in stage.sources.items()} for stage in recipe.stages}


def _provenance(recipe: Recipe) -> dict[str, Any]:
    return {
        "opsin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "recipe": recipe.model_dump(mode="json"),
        "tokenizer_sha256": _tokenizer_digest(recipe),
        "data": _mixtures(recipe),
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
