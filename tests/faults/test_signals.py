"""Signals end a run in good order, whenever they come: what was done is saved, and goes on as if it had never ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from opsin.checkpoint.saver import Saver
from opsin.checkpoint.store import candidates, newest_whole, verify
from opsin.core.errors import StoppedError
from opsin.data.corpus import Corpus
from opsin.train.checks import Checker
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    value = recipe_value(folder, save_every=2)
    checks = {"every": 2, "data": value["stages"][0]["data"], "samples": 4}
    value["stages"] = [stage | {"batch_tokens": 60, "checks": checks} for stage in value["stages"]]
    made = Recipe.model_validate(value | changes)
    return made.model_copy(update={"model": made.composition.resolved()})


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def in_step(stage: str, step: int, number: int) -> Hooks:
    def note(current: Stage, done: StepMetrics, _total: int) -> None:
        if (current.name, done.step) == (stage, step):
            kill(number)

    return Hooks(on_step=note)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize(("stage", "step"), [("align", 1), ("align", 4), ("instruct", 3)])
def test_a_signal_ends_the_step_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, number: signal.Signals, stage: str, step: int
) -> None:
    whole = start(recipe_of(tmp_path), tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(StoppedError) as caught:
        start(recipe_of(tmp_path), out, in_step(stage, step, number))
    assert caught.value.signal == number
    assert f"ended by {number.name} after step {step} of " in str(caught.value)
    assert f"of stage {stage!r}, which is saved; go on with: opsin train --resume {out}" in str(caught.value)
    newest, skipped = newest_whole(out / "checkpoints")
    assert skipped == []
    assert newest.name.endswith(f"-{stage}-{step:09d}")
    assert weights(resume(out)) == weights(whole)


def test_a_signal_in_the_last_step_of_a_stage_ends_the_run_before_the_next(tmp_path: Path) -> None:
    whole = start(recipe_of(tmp_path), tmp_path / "whole")
    last = int(next((tmp_path / "whole" / "checkpoints").glob("00-*-done")).name.split("-")[2])
    out = tmp_path / "cut"
    with pytest.raises(StoppedError):
        start(recipe_of(tmp_path), out, in_step("align", last, signal.SIGTERM))
    assert newest_whole(out / "checkpoints")[0].name == f"00-align-{last:09d}-done"
    assert weights(resume(out)) == weights(whole)


WHERE: dict[str, tuple[type, str]] = {
    "a save": (Saver, "_run"),
    "waiting for data": (Corpus, "_read"),
    "a check": (Checker, "loss"),
}


@pytest.mark.parametrize("where", WHERE)
def test_a_signal_in_the_middle_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    whole = start(recipe_of(tmp_path), tmp_path / "whole")
    owner, name = WHERE[where]
    original: Callable[..., Any] = getattr(owner, name)
    sent: list[int] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        if training and not sent:
            sent.append(signal.SIGTERM)
            kill(signal.SIGTERM)
        return original(*args, **options)

    training: list[Stage] = []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(StoppedError):
            start(
                recipe_of(tmp_path), tmp_path / "cut", Hooks(on_step=lambda stage, _done, _all: training.append(stage))
            )
    assert sent
    folder = tmp_path / "cut" / "checkpoints"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert not any("partial" in path for path in names)  # never two saves at once, nor half of one
    assert newest_whole(folder)[1] == []
    assert weights(resume(tmp_path / "cut")) == weights(whole)


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT], 130), ([signal.SIGINT] * 2, 130)]
)
def test_the_command_ends_as_shells_expect(tmp_path: Path, signals: list[int], code: int) -> None:
    value = recipe_of(tmp_path).model_dump_json(exclude={"model": {"encoder": {"path"}}})
    recipe = tmp_path / "recipe.json"
    recipe.write_text(value, encoding="utf-8")
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "opsin",
        "train",
        str(recipe),
        "stages.0.epochs=900",
        "--out",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "finishing the step, then saving; Ctrl-C again: leave at once" in told
    assert "Traceback" not in told
    if len(signals) == 1:
        assert "which is saved; go on with: opsin train --resume" in told
    for path in candidates(run / "checkpoints"):  # whatever there is, is whole
        verify(path)
