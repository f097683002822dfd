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
from opsin.core.files import sha256_bytes, write_json, write_text
from opsin.data.plan import Pack
from opsin.train.recipe import Recipe, Stage
from opsin.train.stream import StreamSteps


def write_record(recipe: Recipe, out: Path, samples: Mapping[str, str]) -> None:
    """Write RUN/recipe.json and RUN/run.json; `samples` names, for every stage, what its samples cost."""
    write_json(out / "recipe.json", recipe.model_dump(mode="json"))
    write_json(out / "run.json", _provenance(recipe) | {"samples": dict(samples)})


def read_record(out: Path) -> Recipe:
    """The recipe of a run, checked against what the run wrote down when it began.

    Raises:
        TrainError: there is no run, or its recipe or one of its data files has changed.
    """
    path = out / "recipe.json"
    if not path.is_file():
        raise TrainError(f"{out}: no recipe.json there; this is not a run directory")
    try:
        recipe = Recipe.model_validate_json(path.read_text(encoding="utf-8"))
        saved = json.loads((out / "run.json").read_text(encoding="utf-8"))
        recipe_digest, data = saved["recipe_sha256"], dict(saved["data"])
    except (ValidationError, OSError, ValueError, KeyError, TypeError):
        raise TrainError(f"{out}: recipe.json or run.json was altered and cannot be read; start a new run") from None
    if recipe_digest != _recipe_digest(recipe):
        raise TrainError(f"{path}: changed since the run began; a resumed run must keep its recipe: start a new run")
    for stage in recipe.stages:
        for name, source in stage.sources.items():
            if data.get(stage.name, {}).get(name) != source.content():
                raise TrainError(f"{source.path}: changed since the run began; a resumed run must see the same data")
    return recipe


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


def _recipe_digest(recipe: Recipe) -> str:
    return sha256_bytes(recipe.model_dump_json().encode())


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
        "recipe_sha256": _recipe_digest(recipe),
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
