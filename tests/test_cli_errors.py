"""What a user sees when a command cannot go on: one line, an exit code, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from opsin import cli
from opsin.core.errors import DataError
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from pathlib import Path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit code of a command, run here."""
    monkeypatch.setattr(sys, "argv", ["opsin", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.app()
    return caught.value.code


def raising(error: BaseException) -> object:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_file_in_place_of_the_run_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    assert call(monkeypatch, "quickstart", "--tiny", "--out", str(tmp_path / "mine.txt")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {tmp_path}/mine.txt: Not a directory; check the path, its permissions and the space left"


def test_a_file_in_place_of_the_run_directory_of_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(json.loads(json.dumps(recipe_value(tmp_path), default=str))), encoding="utf-8")
    (tmp_path / "mine.txt").touch()
    assert call(monkeypatch, "train", str(recipe), "--out", str(tmp_path / "mine.txt")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/mine.txt: ")


def test_an_error_of_the_system_without_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("opsin.quickstart.run.quickstart", raising(OSError(28, "No space left on device")))
    assert call(monkeypatch, "quickstart", "--out", str(tmp_path / "run")) == 2
    assert "error: No space left on device; check the path" in capsys.readouterr().err


def test_a_message_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("opsin.quickstart.run.quickstart", raising(DataError(["a.json:1: (\x1b[2J) no image"])))
    assert call(monkeypatch, "quickstart", "--out", str(tmp_path / "run")) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "1 problem in the data\na.json:1: (\N{REPLACEMENT CHARACTER}[2J) no image" in told


def test_an_interrupt_is_said_and_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("opsin.quickstart.run.quickstart", raising(KeyboardInterrupt()))
    assert call(monkeypatch, "quickstart", "--out", str(tmp_path / "run")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


AT_EXIT = "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
WHILE_TELLING = """
first = cli.Console.print
def interrupted(*args, **options):
    cli.Console.print = first
    os.kill(os.getpid(), signal.SIGINT)
cli.Console.print = interrupted"""


@pytest.mark.parametrize("when", [AT_EXIT, WHILE_TELLING])
def test_ctrl_c_while_a_command_ends_is_no_traceback(tmp_path: Path, when: str) -> None:
    code = f"import atexit, os, signal\nfrom opsin import cli\n{when}\ncli.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path / "missing")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("value", ["0", "1.5", "nan"])
def test_top_p_out_of_range_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert call(monkeypatch, "chat", "nowhere", "--top-p", value) == 2
    told = capsys.readouterr().err
    assert "Usage:" in told
    assert "top" in told.split("Usage")[1]
    assert "Traceback" not in told
