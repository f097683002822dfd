"""One damage of each kind in a mixture of all modalities: check, plan and training name the same samples.

What is damaged behind its header is found by whoever decodes it; what is too long, by whoever knows the budget.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from opsin.cli import app
from opsin.core.errors import DataError, PictureError
from opsin.train.recipe import load_recipe
from opsin.train.run import resume, start
from tests.support.mixture import tiny_recipe, write_tiny_mixture

RECORD_FILES = ("captions.json", "shapes.jsonl", "pairs.parquet", "videos.jsonl", "texts.jsonl")
MISSING, DAMAGED = 3, 0
"""Captions whose picture is gone, or cut short behind its header."""

SHOWN_BY_BIKES = {f"(bikes{name})" for name in ("", ".shows", ".length", ".wider", ".higher")}
BAD_LINE = "shapes.jsonl:4"
TOO_LONG = "(text.4)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    data = write_tiny_mixture(folder)
    captions = json.loads((data / "captions.json").read_text(encoding="utf-8"))
    (data / captions[MISSING]["image"]).unlink()
    for path in (data / captions[DAMAGED]["image"], data / "videos" / "bikes.mp4"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    lines = (data / "shapes.jsonl").read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3][:100]
    (data / "shapes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    path = tiny_recipe(folder)
    value = json.loads(path.read_text(encoding="utf-8"))
    value["stages"][1]["too_long"] = "error"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def caption(folder: Path, number: int) -> str:
    return f"({json.loads((folder / 'data' / 'captions.json').read_text(encoding='utf-8'))[number]['id']})"


def named(problems: list[str]) -> set[str]:
    """The ids of problems, in brackets; of a line that cannot be read, its place."""
    places = (re.search(r"\([^)\s]+\)|[\w.-]+:\d+(?=:\d+: not valid JSON)", problem) for problem in problems)
    return {place[0] for place in places if place is not None}


def spoken(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    return json.loads(result.stdout)


def test_check_plan_and_training_name_the_same_samples(folder: Path, recipe: Path) -> None:
    paths = [str(folder / "data" / name) for name in RECORD_FILES]
    checked = named(
        [p["text"] for one in spoken("data", "check", *paths, "--decode", "--json") for p in one["problems"]]
    )
    from_headers = {caption(folder, MISSING), BAD_LINE, *SHOWN_BY_BIKES}
    assert checked == from_headers | {caption(folder, DAMAGED)}

    planned = named([text for stage in spoken("plan", str(recipe), "--json") for text in stage["refused"]])
    assert planned == from_headers | {TOO_LONG}

    with pytest.raises(DataError) as refused:
        start(load_recipe(recipe), folder / "refused")
    assert named(list(refused.value.problems)) == planned
    assert not (folder / "refused").exists()


def test_a_run_that_skips_what_is_bad_trains_on_all_the_rest(folder: Path, recipe: Path) -> None:
    last = start(load_recipe(recipe, ["skip_bad=true"]), folder / "run")
    assert last.name.endswith("-done")
    skipped = (folder / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    before = [line for line in skipped if ", step " not in line]
    assert named(before) == {caption(folder, MISSING), BAD_LINE, *SHOWN_BY_BIKES, TOO_LONG}
    while_training = [line for line in skipped if line not in before]
    assert named(while_training) == {caption(folder, DAMAGED)}
    steps = map(json.loads, (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert sum(step.get("skipped", 0) for step in steps) == len(while_training) > 0


def test_a_run_that_met_a_damaged_picture_goes_on_when_it_is_replaced(tmp_path: Path) -> None:
    data = write_tiny_mixture(tmp_path)
    recipe = load_recipe(tiny_recipe(tmp_path), ["stages.1.data.1.number=6"])
    picture = sorted((data / "shapes").iterdir())[0]
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=f"{picture.name}: .*data check FILE --decode.*--resume"):
        start(recipe, tmp_path / "run")
    picture.write_bytes(whole)
    assert resume(tmp_path / "run").name.endswith("-done")
