"""What people are shown of a run while it trains."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from opsin.core.errors import MissingExtraError
from opsin.train import tensorboard
from opsin.train.checks import Checked
from opsin.train.data import plan_steps, read_stage
from opsin.train.loop import StageLoop
from opsin.train.metrics import StepMetrics
from opsin.train.objective import Objective
from opsin.train.optimiser import build_optimiser, prepare_parts
from opsin.train.recipe import Loss, Stage
from opsin.train.tensorboard import Scalars, require_tensorboard
from opsin.train.watch import Watch
from opsin.train.world import World
from tests.support.models import tiny_vlm, write_data
from tests.support.runs import write_run

if TYPE_CHECKING:
    from pathlib import Path

METRICS = StepMetrics(
    step=4,
    loss=2.0,
    grad_norm=0.5,
    rates={"connector": 1e-3},
    norms={"connector": 0.25},
    tokens=100,
    supervised=40,
    pictures=2,
    seconds=0.5,
    sources={"captions": (30.0, 20), "none": (0.0, 0)},
    waited=0.1,
    memory=2_000_000_000,
)
CHECKED = Checked(1.5, {"small": {"accuracy": 0.75}}, 0.1)


class Writer:
    """Stands for TensorBoard's."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.first, self.closed = folder, purge_step, False
        self.found: dict[tuple[str, int], float] = {}
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.found[name, step] = value

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


@pytest.fixture
def loop(tmp_path: Path) -> StageLoop:
    model, prepare = tiny_vlm(tmp_path)
    source = {"kind": "llava", "path": str(write_data(tmp_path))}
    stage = Stage.model_validate({"name": "align", "data": [source], "train": {"connector": {"lr": 1e-3}}})
    prepare_parts(model, stage)
    data = read_stage(stage, model.config, prepare.tokenizer)
    world = World(0, 1, torch.device("cpu"))
    return StageLoop(
        Objective(model, Loss()), stage, data, plan_steps(data, stage, 0), build_optimiser(model, stage), world
    )


def test_scalars_of_steps_and_checks(tmp_path: Path, writers: list[Writer]) -> None:
    scalars = Scalars(tmp_path / "align", 4)
    scalars.step(METRICS)
    scalars.check(4, CHECKED)
    scalars.step(
        StepMetrics(5, None, None, {}, tokens=0, supervised=0, pictures=0, seconds=0.5, trouble="the loss is nan")
    )
    scalars.close()
    (writer,) = writers
    assert (writer.folder, writer.first, writer.closed) == (str(tmp_path / "align"), 4, True)
    assert {name: value for (name, step), value in writer.found.items() if step == 4} == {
        "loss": 2.0,
        "gradient norm/all": 0.5,
        "gradient norm/connector": 0.25,
        "learning rate/connector": 1e-3,
        "tokens a second": 200.0,
        "supervised tokens a second": 80.0,
        "waiting for data": 0.2,
        "memory GB": 2.0,
        "loss of/captions": 1.5,
        "validation loss": 1.5,
        "small/accuracy": 0.75,
    }
    assert ("loss", 5) not in writer.found


def test_a_missing_extra_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'opsin\[track\]'"):
        require_tensorboard()


def test_a_stage_is_watched(tmp_path: Path, loop: StageLoop, writers: list[Writer]) -> None:
    run = write_run(tmp_path / "run", [])
    watch = Watch(run, pytest.fail, tensorboard=True)
    watch.begin(loop)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count('<article class="card sample">') == 3
    assert "No step has been taken yet." in html
    assert "picture-" in html
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for line in (METRICS.as_dict("align"), CHECKED.as_dict("align", 4)):
            metrics.write(json.dumps(line) + "\n")
    watch.step(METRICS)
    watch.check(4, CHECKED)
    watch.close()
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "Benchmarks: accuracy" in html
    (writer,) = writers
    assert (writer.folder, writer.first, writer.closed) == (str(run / "tensorboard" / "align"), 1, True)
    assert {("loss", 4), ("validation loss", 4)} <= writer.found.keys()


def test_samples_that_cannot_be_shown_end_nothing(tmp_path: Path, loop: StageLoop, writers: list[Writer]) -> None:
    run = write_run(tmp_path / "run", [])
    (run / "samples").write_text("a file where a folder should be", encoding="utf-8")
    lines: list[str] = []
    Watch(run, lines.append, tensorboard=False).begin(loop)
    assert lines[0].startswith("the report shows no samples of stage 'align': ")
    assert writers == []
