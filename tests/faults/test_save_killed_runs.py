"""The real command, killed again and again while it saves: what it learns in the end is what it would have learnt."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from opsin.checkpoint.store import candidates, verify
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 12
LORA = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-2, "lora": {"rank": 2}}}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "opsin", "train", *map(str, arguments)]


def kill_in_a_save(arguments: list[str], folder: Path, environment: dict[str, str], draw: random.Random) -> int:
    """Run a command until it has begun some saves and kill it in the next; how it ended: -9, or 0 if it was done."""
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted, seen = draw.randrange(1, 4), set()
    while process.poll() is None:
        seen |= {path.name for path in folder.glob(".*.partial")}
        if len(seen) >= wanted:
            time.sleep(draw.random() * 0.02)
            process.kill()
            break
        time.sleep(0.0005)
    return process.wait()


def learnt(run: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[dict[str, Any]]]:
    ends = {
        path.name: load_file(path / "model.safetensors")
        for path in candidates(run / "checkpoints")
        if verify(path)["done"]
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return ends, [{key: line[key] for key in ("stage", "step", "loss", "grad_norm")} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_a_run_that_is_killed_in_its_saves_learns_the_same(tmp_path: Path, background: bool) -> None:
    value = recipe_value(tmp_path, save_every=1, keep=1, save_in_background=background, device="cpu")
    value["stages"][1]["train"] = LORA
    for stage in value["stages"]:
        stage |= {"epochs": 4, "workers": 1}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(value), encoding="utf-8")
    environment = os.environ | {"OPSIN_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command(recipe, "--out", tmp_path / "whole"), env=environment, check=True, capture_output=True)

    run, draw, kills = tmp_path / "killed", random.Random(0), 0
    while kills < KILLS:
        begun = bool(candidates(run / "checkpoints"))
        arguments = command("--resume", run) if begun else command(recipe, "--out", run)
        if kill_in_a_save(arguments, run / "checkpoints", environment, draw) == 0:
            break
        kills += 1
    done = subprocess.run(command("--resume", run), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{kills} kills")  # noqa: T201
    assert kills >= KILLS // 2

    (ends, lines), (expected, expected_lines) = learnt(run), learnt(tmp_path / "whole")
    assert lines == expected_lines
    assert ends.keys() == expected.keys()
    for name, tensors in expected.items():
        assert ends[name].keys() == tensors.keys()
        assert all(torch.equal(ends[name][key], tensor) for key, tensor in tensors.items()), name
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []
