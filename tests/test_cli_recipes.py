"""Packaged recipes on the command line: listed, shown, copied, and run by name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opsin.cli import app, main
from opsin.core.packaged import SYNTHESIS, packaged
from tests.support.backbones import TINY, variables

RUNNER = CliRunner()
TINY_LLAVA = next(tiny for tiny in TINY if tiny.recipe == "llava-v1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in variables(tmp_path / "parts", TINY_LLAVA.recipe).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["opsin", *arguments])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0)
    return 0


def test_the_list_says_what_each_recipe_is_and_trains() -> None:
    found = {one["name"]: one for one in json.loads(RUNNER.invoke(app, ["recipes", "list", "--json"]).output)}
    assert found.keys() == packaged().keys() | packaged(SYNTHESIS).keys()
    assert found["llava-instruct"]["stages"] == {"synthesize": ["conversation", "detail", "reasoning"]}
    assert found["llava-v1"]["about"].startswith("LLaVA (2304.08485): CLIP")
    assert found["llava-1.5-lora"]["stages"] == {"align": ["connector"], "instruct": ["connector", "language (LoRA)"]}
    assert found["qwen2-vl"]["stages"]["vision"] == ["vision", "connector"]
    shown = RUNNER.invoke(app, ["recipes", "list"]).output
    assert all(one["about"] in shown for one in found.values())


def test_the_list_needs_no_torch_and_little_time() -> None:
    code = (
        "import sys, opsin.cli; from typer.testing import CliRunner; "
        "CliRunner().invoke(opsin.cli.app, ['recipes', 'list']); print(*sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 3  # on a busy machine; 0.4 s on a quiet one
    assert {"torch", "transformers", "numpy"} & set(done.stdout.split()) == set()
    assert "opsin.core.yaml_lines" in done.stdout.split()


def test_a_recipe_is_shown_and_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = packaged()["llava-1.5"].read_text(encoding="utf-8")
    assert RUNNER.invoke(app, ["recipes", "show", "llava-1.5"]).output == text
    (tmp_path / "own").mkdir()
    for words, made in (((), "llava-1.5.yaml"), (("mine.yaml",), "mine.yaml"), (("own",), "own/llava-1.5.yaml")):
        assert RUNNER.invoke(app, ["recipes", "copy", "llava-1.5", *words]).exit_code == 0
        assert (tmp_path / made).read_text(encoding="utf-8") == text


def test_a_copy_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine", encoding="utf-8")
    assert run("recipes", "copy", "llava-1.5", str(path)) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"


def test_a_misspelt_name_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["recipes", "show"], ["train"], ["plan"]):
        assert run(*words, "lava-1.5") == 2
        assert "did you mean 'llava-1.5'?" in capsys.readouterr().err


def test_a_packaged_recipe_is_planned_and_inspected_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "llava-v1", "--ranks", "2", *TINY_LLAVA.overrides) == 0
    assert " of 4 samples, in " in capsys.readouterr().out
    assert run("inspect", "llava-v1", "--stage", "align", "--samples", "1", *TINY_LLAVA.overrides) == 0
    assert "picture-" in capsys.readouterr().out
    assert sorted(path.name for path in here.iterdir()) == ["parts"]


def test_a_dry_run_plans_and_audits_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "llava-v1", *TINY_LLAVA.overrides, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert shown.index("  steps        8 of 4 samples") < shown.index("stage align: gradient audit passed")
    assert "connector" in shown[shown.index("stage instruct: gradient audit passed") :]
    assert run("train", "llava-v1", *TINY_LLAVA.overrides, "--dry-run", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in value["plan"]] == [stage["stage"] for stage in value["audit"]]
    assert sorted(path.name for path in here.iterdir()) == ["parts"]


def test_a_dry_run_ends_where_samples_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "parts" / "media" / "captions.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    records[0]["image"] = "gone.png"
    path.write_text(json.dumps(records), encoding="utf-8")
    assert run("train", "llava-v1", *TINY_LLAVA.overrides, "--dry-run") == 2
    shown = capsys.readouterr().out
    assert "refused: 1" in shown
    assert "gradient audit" not in shown


def test_one_stage_goes_on_from_another_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*TINY_LLAVA.overrides, "stages.0.steps=2", "stages.1.steps=2"]
    assert run("train", "llava-v1", *settings, "--stages", "align", "--out", "first") == 0
    begin = "start_from=first#align"
    assert run("train", "llava-v1", *settings, begin, "--stages", "instruct", "--out", "second") == 0
    recorded = json.loads((here / "second" / "recipe.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in recorded["stages"]] == ["instruct"]
    assert Path(recorded["start_from"]).name.endswith("-align-000000002-done")
    assert run("train", "llava-v1", *settings, "--stages", "instruct", "--out", "third") == 2
    assert "would train a new model, whose connector has learned nothing" in capsys.readouterr().err
    assert run("train", "llava-v1", *settings, "--stages", "instuct") == 2
    assert "'instuct': the recipe has no such stage; did you mean 'instruct'?" in capsys.readouterr().err
    assert run("train", "llava-v1", *settings, "start_from=first#instruct") == 2
    assert "no whole checkpoint of that stage's end; the run has ended align" in capsys.readouterr().err
