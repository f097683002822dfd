"""Metrics for TensorBoard, as the recipe's key `tensorboard` asks: RUN/tensorboard, with a run for every stage."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from opsin.core.errors import MissingExtraError
from opsin.train.checks import Checked
from opsin.train.metrics import StepMetrics


def require_tensorboard() -> None:
    """Say so if nothing can be written.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "track")


class Scalars:
    """Writes the numbers of a stage's steps, from `first` on; what an earlier process wrote of those is hidden."""

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=first)

    def step(self, metrics: StepMetrics) -> None:
        """One optimiser step."""
        found = {
            "loss": metrics.loss,
            "gradient norm/all": metrics.grad_norm,
            "tokens a second": metrics.tokens / metrics.seconds,
            "supervised tokens a second": metrics.supervised / metrics.seconds,
            "waiting for data": metrics.waited / metrics.seconds,
            "memory GB": metrics.memory / 1e9,
        }
        found |= {f"gradient norm/{plan}": norm for plan, norm in metrics.norms.items()}
        found |= {f"learning rate/{plan}": rate for plan, rate in metrics.rates.items()}
        found |= {f"loss of/{source}": loss / n for source, (loss, n) in metrics.sources.items() if n}
        self._write(found, metrics.step)

    def check(self, step: int, checked: Checked) -> None:
        """What was measured after a step."""
        found = {"validation loss": checked.loss}
        for name, scores in checked.benchmarks.items():
            found |= {f"{name}/{score}": value for score, value in scores.items()}
        self._write(found, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, found: dict[str, float | None], step: int) -> None:
        for name, value in found.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
