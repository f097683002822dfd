"""What a caller of a run is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opsin.model.vlm import Vlm
from opsin.train.checks import Checked
from opsin.train.loop import StageLoop
from opsin.train.metrics import StepMetrics
from opsin.train.recipe import Stage


def _ignore(*_: object) -> None:
    """The default of every hook."""


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to be told. None of them can change the training."""

    on_line: Callable[[str], None] = _ignore
    on_read: Callable[[str, int], None] = _ignore
    on_features: Callable[[int, int], None] = _ignore
    on_stage: Callable[[Stage, StageLoop], None] = _ignore
    on_step: Callable[[Stage, StepMetrics, int], None] = _ignore
    on_check: Callable[[Stage, int, Checked], None] = _ignore
    before_stages: Callable[[Vlm], None] = _ignore
    after_stage: Callable[[Stage, Vlm], None] = _ignore
