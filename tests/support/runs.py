"""Directories of runs, as files tell them, without a model."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def step_line(stage: str, step: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl with everything that a step can tell."""
    loss = 5 / math.sqrt(step)
    line = {
        "stage": stage,
        "step": step,
        "loss": loss,
        "grad_norm": 1.0 / step,
        "norms": {"connector": 1 / step, "language 0-11": 0.5},
        "lr": {"connector": 1e-3, "language 0-11": 2e-5},
        "tokens": 1000,
        "supervised": 400,
        "samples": 12,
        "pictures": 9,
        "patches": 900,
        "packs": 2,
        "sources": {"captions": [loss * 300, 300], "talk": [loss * 50, 100], "none": [0.0, 0]},
        "seconds": 0.5,
        "waited": 0.05,
        "flops": 1e9,
        "memory": 3_000_000_000 + step,
    }
    return line | changes


def check_line(stage: str, step: int, loss: float | None, accuracy: float) -> dict[str, Any]:
    """A line of metrics.jsonl of a check."""
    return {
        "stage": stage,
        "step": step,
        "check": {"loss": loss, "benchmarks": {"small": {"accuracy": accuracy}}, "seconds": 0.2},
    }


def write_run(folder: Path, lines: list[dict[str, Any]], **recipe: Any) -> Path:
    """A run directory with these metrics, and a recipe with these changes."""
    folder.mkdir(parents=True)
    stages = [{"name": "align", "batch_tokens": 512, "data": [{"path": "a.json"}]}]
    value = {"name": folder.name, "seed": 0, "stages": stages} | recipe
    (folder / "recipe.json").write_text(json.dumps(value), encoding="utf-8")
    run = {"opsin": "0.1", "torch": "2.13.0", "data": {"align": {"a": "c0ffee" * 10}}, "recipe": {"name": folder.name}}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def whole_run(folder: Path, **recipe: Any) -> Path:
    """A run of 30 steps with checks, a skipped step and samples that were left out."""
    lines = [step_line("align", step) for step in range(1, 31)]
    lines[4] |= {"loss": None, "grad_norm": None, "trouble": "the loss is <nan>"}
    lines[7] |= {"skipped": 2}
    lines.insert(10, check_line("align", 10, 2.5, 0.25))
    lines.insert(21, check_line("align", 20, 2.0, 0.5))
    lines.append(check_line("align", 30, 2.25, 0.75))
    return write_run(folder, lines, **recipe)
