"""`opsin inspect`: a page or the terminal, for a recipe of every resolution, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from opsin import cli
from tests.support.models import RESOLUTIONS, model_value, recipe_value
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
            cli.main()
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
    for arguments in (["--help"], ["missing.yaml"], [str(write_recipe(tmp_path)), "--out", str(tmp_path / "p.html")]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout.endswith("heavy: []\n"), done.stderr
