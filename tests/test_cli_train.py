"""`opsin train` as a person meets it: what it says, what it refuses, and how it goes on."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from opsin import cli
from opsin.core.files import write_json
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    value = recipe_value(tmp_path, save_every=2, device="cpu")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def train(*arguments: object) -> int:
    """The exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["opsin", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.app()
    return int(left.value.code or 0)


def cut_short(run: Path) -> Path:
    """Take a run back to its newest checkpoint within the last stage."""
    for end in run.glob("checkpoints/01-*-done/*"):
        if end.is_file():
            end.unlink()
    return max(path for path in run.glob("checkpoints/01-*") if not path.name.endswith("-done"))


def test_a_run_says_what_it_trains_on_how_fast_and_where_the_result_is(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(recipe, "--out", run) == 0
    told, err = capsys.readouterr()
    assert re.fullmatch(rf"checkpoint  {run}/checkpoints/01-instruct-\d+-done\n", told)
    for stage, trained in (("align", "connector 0.01"), ("instruct", "connector 0.01, language 0.001")):
        assert re.search(
            rf"^stage '{stage}': 8 samples, \d packs .+, \d steps?, .+ trains {trained}$", err, re.MULTILINE
        )
        assert f"stage '{stage}': gradient audit passed; trained parameters: connector " in err
        assert re.search(
            rf"^{stage} (\d)/\1  loss \d\.\d+  [\d,]+ tok/s \([\d,]+ learned\)  .+ img/s", err, re.MULTILINE
        )
    assert train("--resume", run, "--json") == 0
    told, err = capsys.readouterr()
    assert json.loads(told)["checkpoint"].startswith(f"{run}/checkpoints/01-instruct-")
    assert f"{run}: all 2 stages are complete; nothing to do" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe to train, or --resume RUN to go on with a run"),
        (["RECIPE", "--resume", "RUN"], "give a recipe to train, or --resume RUN to go on with a run"),
        (["--resume", "RUN", "--out", "other"], "--resume goes on with the run as it is: only --weights-only and --ov"),
        (["--resume", "RUN", "--skip-bad"], "--resume goes on with the run as it is: only --weights-only and --ov"),
        (["RECIPE", "--weights-only"], "--weights-only and --override go with --resume RUN"),
        (["RECIPE", "--override"], "--weights-only and --override go with --resume RUN"),
        (["--resume", "RUN"], "RUN: no recipe.json there; this is not a run directory"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_a_changed_recipe_is_named_and_goes_on_only_if_asked(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(recipe, "--out", run) == 0
    cut_short(run)
    value = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    value["stages"][1]["epochs"] = 2.0
    write_json(run / "recipe.json", value)
    capsys.readouterr()
    assert train("--resume", run) == 2
    told = capsys.readouterr().err
    assert f"  {run}/recipe.json: stages.1.epochs: was 1.0, now 2.0\n" in told
    assert "go on all the same with --override" in told
    assert train("--resume", run, "--override") == 0
    assert "stages.1.epochs: was 1.0, now 2.0" in capsys.readouterr().err
    assert train("--resume", run) == 0  # it is the run now


@pytest.mark.parametrize("asked", [True, False])
def test_a_checkpoint_without_its_optimiser_is_passed_over_unless_that_is_wanted(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: bool
) -> None:
    run = tmp_path / "run"
    assert train(recipe, "--out", run) == 0
    newest = cut_short(run)
    (newest / "optimiser.safetensors").unlink()
    capsys.readouterr()
    assert train("--resume", run, *["--weights-only"] * asked) == 0
    told = capsys.readouterr().err
    missing = f"skipped {newest}: optimiser.safetensors is missing; the checkpoint is incomplete"
    assert (missing in told) != asked
    step = int(newest.name.split("-")[2]) + 1
    assert (f"resuming at stage 'instruct', step {step}\n" in told) == asked
