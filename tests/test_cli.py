"""The command line as a user meets it: in its own process, with exit codes and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.models import recipe_value


def opsin(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"OPSIN_HOME": str(home or "unused"), "PATH": "", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "opsin", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )


def write_recipe(folder: Path) -> Path:
    """The tiny recipe of the training tests, as a file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe_value(folder), default=str))), encoding="utf-8")
    return path


def test_help_names_every_command() -> None:
    done = opsin("--help")
    assert done.returncode == 0
    for command in ("quickstart", "train", "chat"):
        assert command in done.stdout


def test_version() -> None:
    assert opsin("--version").stdout.startswith("opsin ")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "missing.yaml"]])
def test_help_and_recipe_errors_do_not_wait_for_torch(arguments: list[str]) -> None:
    script = (
        "import sys; sys.argv = ['opsin', *sys.argv[1:]]\n"
        "from opsin.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.endswith("heavy: []\n")


def test_a_missing_recipe_is_one_clear_line() -> None:
    done = opsin("train", "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml: cannot be read: No such file or directory; correct the path" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_recipe_problems_come_at_once_with_their_lines(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    text = recipe.read_text(encoding="utf-8").replace("batch_tokens:", "batch_tokenz:").replace("seed: 3", "seed: many")
    recipe.write_text(text, encoding="utf-8")
    done = opsin("train", str(recipe))
    assert done.returncode == 2
    assert "unknown key; did you mean 'batch_tokens'?" in done.stderr
    assert "seed: expected an integer, got 'many'" in done.stderr
    assert f"{recipe}:" in done.stderr


def test_train_resume_and_a_changed_byte(tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    done = opsin("train", str(recipe), "--out", str(run), "--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    checkpoint = Path(json.loads(done.stdout)["checkpoint"])
    again = opsin("train", "--resume", str(run), home=tmp_path / "home")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    chat = opsin("chat", str(checkpoint))
    assert chat.returncode == 2
    assert "model.safetensors was altered: its sha256 is" in chat.stderr


def test_a_recipe_or_a_run_not_both() -> None:
    done = opsin("train")
    assert done.returncode == 2
    assert "give a recipe to train, or --resume RUN to go on with a run" in done.stderr
