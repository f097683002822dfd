"""The real command in bad surroundings: directories that go away, full disks, odd locales and clocks, no network."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from opsin import cli
from opsin.checkpoint.store import candidates, verify
from opsin.train.loop import StageLoop
from tests.support.models import draw_picture, recipe_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from opsin.train.metrics import StepMetrics


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of one stage with 9 steps or so, of which each is saved."""
    value = recipe_value(folder, save_every=1, device="cpu") | changes
    value["stages"] = [value["stages"][0] | {"batch_tokens": 60, "epochs": 2}]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    return path


def train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `opsin train` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["opsin", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.app()
    return int(left.value.code or 0)


def weights(run: Path) -> bytes:
    return next(run.glob("checkpoints/*-done/model.safetensors")).read_bytes()


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], object]) -> None:
    original = StageLoop.take_step

    def take_step(loop: StageLoop) -> StepMetrics:
        done = original(loop)
        if done.step == step:
            do()
        return done

    monkeypatch.setattr(StageLoop, "take_step", take_step)


@pytest.mark.parametrize("out", ["/sys", "/sys/opsin-run"])  # not even root can make files there
def test_a_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    assert train(monkeypatch, write_recipe(tmp_path), "--out", out) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(f"error: {out}")
    assert "Traceback" not in told


def test_a_directory_that_vanishes_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, save_in_background=False)
    after_step(monkeypatch, 3, lambda: shutil.rmtree(run))
    assert train(monkeypatch, recipe, "--out", run) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(f"error: {run}/metrics.jsonl: No such file or directory; check the path")
    assert "Traceback" not in told


def test_names_of_every_kind_without_a_terminal_or_a_locale(tmp_path: Path) -> None:
    folder = tmp_path / "größe 大 (1)"
    folder.mkdir()
    recipe = write_recipe(folder)
    turns = [{"from": "human", "value": "<image>\nWas ist das? 何ですか"}, {"from": "gpt", "value": "Größe 大"}]
    record = {"id": "ид 一", "image": "pictures/bild 大.png", "conversations": turns}
    draw_picture(folder / "pictures" / "bild 大.png", 1)
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    broken = record | {"id": "kaputt ö", "image": "pictures/fehlt é.png"}
    (folder / "data.json").write_text(json.dumps([*data, record, broken], ensure_ascii=False), encoding="utf-8")
    names = ("LANG", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "opsin", "train", recipe.name, "--skip-bad", "--out", "lauf ü"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120, stdin=None)
    told = done.stderr.decode("utf-8")
    assert done.returncode == 0, told
    end = next((folder / "lauf ü").glob("checkpoints/*-done")).relative_to(folder)
    assert done.stdout.decode("utf-8") == f"checkpoint  {end}\n"
    assert "\x1b" not in told
    assert "problems skipped: 1, see lauf ü/skipped.txt" in told
    skipped = (folder / "lauf ü" / "skipped.txt").read_text(encoding="utf-8")
    assert "(kaputt ö)" in skipped
    assert "fehlt é.png" in skipped


def test_a_clock_that_runs_backwards_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    assert train(monkeypatch, recipe, "--out", tmp_path / "whole") == 0
    jumps = count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 2e9 - 1000.0 * next(jumps))
        assert train(monkeypatch, recipe, "--out", tmp_path / "back") == 0
    assert weights(tmp_path / "back") == weights(tmp_path / "whole")
    lines = (tmp_path / "back" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["seconds"] > 0 for line in lines)


def test_nothing_reaches_for_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []

    def refuse(_socket: socket.socket, address: object) -> None:
        called.append(address)
        raise OSError(errno.ENETUNREACH, "no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: called.append(where) or [])
    run = tmp_path / "run"
    assert train(monkeypatch, write_recipe(tmp_path), "--out", run) == 0
    shutil.rmtree(next(run.glob("checkpoints/*-done")))
    assert train(monkeypatch, "--resume", run) == 0
    assert called == []


class FullDisk:
    """Writes of the n-th checkpoint find the disk full, from its second call on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.hit = 0
        write = os.write

        def full(descriptor: int, data: Any) -> int:
            if f".{name}.partial/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                self.hit += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr("opsin.core.files.os.write", full)


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_is_full_stops_the_run_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], background: bool
) -> None:
    recipe, run = write_recipe(tmp_path, save_in_background=background), tmp_path / "run"
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, "00-align-000000003")
        assert train(patch, recipe, "--out", run) == 2
    assert disk.hit
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: {run}/checkpoints/00-align-000000003: could not be saved (No space left on device; "
    )
    assert last.endswith(" MB free); earlier checkpoints are untouched")
    there = candidates(run / "checkpoints")
    emergency = f"emergency-00-align-00000000{4 if background else 3}"  # what was done since, once there is space again
    assert [path.name for path in there] == [emergency, "00-align-000000002", "00-align-000000001"]
    assert [verify(path)["step"] for path in there[1:]] == [2, 1]
    assert train(monkeypatch, "--resume", run) == 0


def test_a_run_that_is_told_to_goes_on_when_a_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = write_recipe(tmp_path, on_save_error="continue", keep=9), tmp_path / "run"
    FullDisk(monkeypatch, "00-align-000000003")
    assert train(monkeypatch, recipe, "--out", run) == 0
    told = capsys.readouterr().err
    assert f"{run}/checkpoints/00-align-000000003: could not be saved (No space left on device; " in told
    assert "earlier checkpoints are untouched; training goes on, and the next save tries again" in told
    steps = [verify(path)["step"] for path in reversed(candidates(run / "checkpoints"))]
    assert steps[:3] == [1, 2, 4]
