"""What a run writes for people while it trains: its report, a few samples of each stage, and TensorBoard's files.

Only one rank has a `Watch`, and nothing that goes wrong in it ends the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from opsin.core.errors import OpsinError
from opsin.core.files import write_text
from opsin.report.inspect import samples
from opsin.report.live import LiveReport
from opsin.report.run import SAMPLES
from opsin.report.stage_view import StageView, varied
from opsin.train.checks import Checked
from opsin.train.loop import StageLoop
from opsin.train.metrics import StepMetrics
from opsin.train.stream import StreamSteps
from opsin.train.tensorboard import Scalars

SHOWN = 3
"""Samples of a stage in the report."""


class Watch:
    """Keeps RUN/report.html new, and RUN/tensorboard if that is wanted."""

    def __init__(self, run: Path, on_line: Callable[[str], None], *, tensorboard: bool) -> None:
        self._run = run
        self._on_line = on_line
        self._tensorboard = tensorboard
        self._live = LiveReport(run, on_line)
        self._scalars: Scalars | None = None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a report, or a library for one, must not end the training)
            self._on_line(f"the report or TensorBoard could not be written: {type(error).__name__}: {error}")

    def begin(self, loop: StageLoop) -> None:
        """Before the steps of a stage."""
        with self._harmless():
            self._keep_samples(loop)
            if self._tensorboard:
                self._scalars = Scalars(self._run / "tensorboard" / loop.stage.name, loop.step + 1)
            self._live.write()

    def step(self, metrics: StepMetrics) -> None:
        """After a step whose line is in metrics.jsonl."""
        with self._harmless():
            if self._scalars is not None:
                self._scalars.step(metrics)
            self._live.update()

    def check(self, step: int, checked: Checked) -> None:
        """After a check whose line is in metrics.jsonl."""
        with self._harmless():
            if self._scalars is not None:
                self._scalars.check(step, checked)

    def close(self) -> None:
        """After the steps of a stage, whatever has ended them."""
        with self._harmless():
            if self._scalars is not None:
                self._scalars.close()
            self._scalars = None
            self._live.write()

    def _keep_samples(self, loop: StageLoop) -> None:
        """Some of the samples as the model sees them; a stream's are not known yet."""
        if isinstance(loop.steps, StreamSteps):
            return
        stage, patch = loop.stage, loop.model.config.encoder.patch_size
        view = StageView(stage.name, loop.data.examples, patch, stage.budget, loop.steps, len(loop.steps))
        try:
            part = samples(replace(view, chosen=varied(view, SHOWN)))
            write_text(self._run / SAMPLES / f"{stage.name}.html", part)
        except (OpsinError, OSError) as error:
            self._on_line(f"the report shows no samples of stage {stage.name!r}: {error}")
