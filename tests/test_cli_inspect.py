"""`opsin inspect`: a page or the terminal, for a recipe of every resolution, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from opsin import cli
from tests.support.hub import hub_dir
from tests.support.models import RESOLUTIONS, model_value, recipe_value, write_data
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = {"square": "siglip", "any_res": "siglip", "native": "native_vit"}


def write_recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe_value(folder, **changes), default=str))), "utf-8")
    return path


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command here; its exit code."""

    def run(*arguments: str | Path) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["opsin", "inspect", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            cli.app()
        return caught.value.code

    return run


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_page_for_every_resolution(tmp_path: Path, inspect: Any, resolution: str) -> None:
    model = model_value(chatml_tokenizer_dir(tmp_path), encoder=ENCODERS[resolution], resolution=resolution)
    out = tmp_path / "page.html"
    assert inspect(write_recipe(tmp_path, model=model), "--out", out, "--samples", "3") == 0
    html = out.read_text(encoding="utf-8")
    assert html.count("<article") == 6  # three of each stage
    assert "Stage “align”" in html
    assert "Stage “instruct”" in html
    assert "&lt;image: " in html
    assert "<svg" in html


def test_in_the_terminal_by_stage_and_id(tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    assert inspect(recipe, "--stage", "instruct", "--id", "picture-2", "--id", "text-1") == 0
    told = capsys.readouterr().out
    assert "stage instruct: 8 samples" in told
    assert "stage align" not in told
    assert "picture-2" in told
    assert "<image: 4 tokens>" in told
    assert "the answer is 1" in told
    assert "picture-0" not in told


def test_samples_that_are_too_long_or_broken_are_named(
    tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "pictures" / "3.png").unlink()
    assert inspect(recipe, "stages.0.batch_tokens=30", "--stage", "align") == 0
    told = capsys.readouterr().out
    assert "refused: " in told
    assert "(picture-3)" in told
    assert "more than the pack's budget of 30" in told
    assert "(picture-2)" in told


def test_a_stage_as_json(tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    arguments = ("--stage", "instruct", "--id", "picture-2", "--json", "--out", out)
    assert inspect(write_recipe(tmp_path), *arguments) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["name"], [stage["name"] for stage in value["stages"]]) == ("tiny", ["instruct"])
    (sample,) = value["stages"][0]["chosen"]
    assert (sample["id"], sample["visual"]) == ("picture-2", 4)
    assert "<article" in out.read_text(encoding="utf-8")


MIXED = [{"name": "a", "number": 3}, {"name": "b", "weight": 1.5}, {"name": "c", "share": 0.25}]
STREAMED = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5}]


@pytest.mark.parametrize(
    ("sources", "changes", "available", "epoch"),
    [
        (MIXED, {"epochs": 2}, 24, 20),  # 3, 12, and a fourth of all
        (STREAMED, {"order": "stream", "steps": 3}, 2048, None),
        ([{"name": "a"}], {}, 8, 8),
    ],
)
def test_plan_and_inspect_say_the_same_numbers(
    tmp_path: Path,
    inspect: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sources: list[dict[str, Any]],
    changes: dict[str, Any],
    available: int,
    epoch: int | None,
) -> None:
    (stage, _) = recipe_value(tmp_path)["stages"]
    (file,) = stage["data"]
    recipe = write_recipe(tmp_path, stages=[stage | {"data": [file | source for source in sources]} | changes])
    assert inspect(recipe, "--json") == 0
    (seen,) = json.loads(capsys.readouterr().out)["stages"]
    monkeypatch.setattr(sys, "argv", ["opsin", "plan", str(recipe), "--json"])
    with pytest.raises(SystemExit):
        cli.app()
    (planned,) = json.loads(capsys.readouterr().out)
    assert (planned["available"], planned["epoch"]) == (available, epoch)
    same = ("available", "epoch", "samples", "tokens", "visual", "patches", "packs", "steps")
    assert [seen[key] for key in same] == [planned[key] for key in same]
    assert (seen["learned"], seen["fill"]) == (planned["supervised"], pytest.approx(planned["efficiency"]))
    for one, other in zip(seen["sources"], planned["sources"], strict=True):
        keys = ("name", "kinds", "tokens", "visual", "patches")
        assert [one[key] for key in keys] == [other[key] for key in keys]
        assert (one["available"], one["learned"]) == (other["samples"], other["supervised"])
    assert all(sample["pack"] is not None for sample in seen["chosen"])
    assert sum(planned["histogram"]) == planned["samples"]


def test_without_colours_what_is_learned_stands_in_brackets(
    tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(write_recipe(tmp_path), "--stage", "align", "--id", "text-1") == 0
    told = capsys.readouterr().out
    assert "⟦learned⟧" in told
    assert "⟦the answer is 1<|im_end|>⟧" in told


def test_a_data_file_without_a_model(tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_data(tmp_path), tmp_path / "page.html"
    assert inspect(data, "--out", out, "--samples", "2") == 0
    html = out.read_text(encoding="utf-8")
    assert html.count("<article") == 2
    assert "30×40 pixels (height × width)" in html
    capsys.readouterr()
    assert inspect(data, "--id", "picture-2", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["kinds"] == {"text": 2, "image": 6}
    assert [one["id"] for one in value["chosen"]] == ["picture-2"]
    assert inspect(data, "--id", "text-1") == 0
    assert "assistant: the answer is 1" in capsys.readouterr().out


def test_media_of_a_data_file_can_lie_elsewhere(
    tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path)
    moved = data.rename(tmp_path / "pictures" / "data.json")
    assert inspect(moved, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 6
    assert inspect(moved, "--image-root", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_a_data_file_as_a_recipes_model_sees_it(
    tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "page.html"
    (tmp_path / "pictures" / "3.png").unlink()
    assert inspect(tmp_path / "data.json", "--model", recipe, "--out", out) == 0
    html = out.read_text(encoding="utf-8")
    assert "&lt;image: 4 tokens&gt;" in html
    assert "Refused: 1" in html
    assert "In no pack" not in html
    capsys.readouterr()
    assert inspect(tmp_path / "data.json", "--model", recipe, "--id", "text-1") == 0
    assert "data.json: 7 samples" in capsys.readouterr().out


def test_a_data_file_as_a_checkpoints_model_sees_it(
    tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub_dir(tmp_path / "hub", "qwen2_vl")
    assert inspect(write_data(tmp_path), "--model", folder, "--id", "picture-1", "--json") == 0
    (sample,) = json.loads(capsys.readouterr().out)["stages"][0]["chosen"]
    assert sample["visual"] > 0
    assert sample["pack"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe.yaml", "--model", "recipe.yaml"], "--model is for data files"),
        (["recipe.yaml", "--image-root", "."], "--image-root is for data files"),
        (["data.json", "--stage", "align"], "--stage is for recipes (.yaml)"),
        (["data.json", "seed=3"], "seed=3 is for recipes (.yaml)"),
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["data.json", "--id", "text-11"], "no sample has the id 'text-11'; did you mean 'text-1'?"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path,
    inspect: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert inspect(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "aling"], "--stage aling: the recipe has no such stage; it has align, instruct"),
        (["--id", "picture-22"], "no sample has the id 'picture-22'; did you mean 'picture-"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, inspect: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert inspect(write_recipe(tmp_path), *arguments) == 2
    assert message in capsys.readouterr().err


def test_it_does_not_wait_for_torch(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['opsin', 'inspect', *sys.argv[1:]]\n"
        "from opsin.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: print('left:', left.code)\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    recipe, out = write_recipe(tmp_path), tmp_path / "p.html"
    for arguments in (["--help"], ["missing.yaml"], [recipe, "--out", out], [tmp_path / "data.json"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout.endswith("heavy: []\n"), done.stderr
