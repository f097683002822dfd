"""What one optimiser step did: a line of RUN/metrics.jsonl, summed over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimiser step. Without a loss nothing was left of its packs, or it was skipped; no weight was changed then.

    - `loss`: of a supervised token (or as `loss.average` says), before the rates of this step are applied
    - `grad_norm`: of all gradients together before clipping, `norms` by plan; `rates`: learning rates by plan
    - `tokens`, `supervised`, `samples`, `pictures`, `patches`: what was trained on; `packs`: of which so many
    - `sources`: by source, the sum of the losses of its supervised tokens and their number
    - `seconds` from the end of the step before, `waited` of them for data (by the rank that waited longest)
    - `flops`: operations that any correct implementation must do (see `opsin.train.flops`)
    - `memory`: bytes at the peak so far: of the device, or of the process where there is none
    - `skipped`: samples that were left out, because a medium of them is damaged
    - `trouble`: why the step was skipped as a whole: a loss or gradient that is not finite
    """

    step: int
    loss: float | None
    grad_norm: float | None
    rates: Mapping[str, float]
    tokens: int
    supervised: int
    pictures: int
    seconds: float
    norms: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    patches: int = 0
    packs: int = 0
    sources: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    waited: float = 0.0
    flops: float = 0.0
    memory: int = 0
    skipped: int = 0
    trouble: str = ""

    def as_dict(self, stage: str) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        line = {
            "stage": stage,
            "step": self.step,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "norms": dict(self.norms),
            "lr": dict(self.rates),
            "tokens": self.tokens,
            "supervised": self.supervised,
            "samples": self.samples,
            "pictures": self.pictures,
            "patches": self.patches,
            "packs": self.packs,
            "sources": {name: list(value) for name, value in self.sources.items()},
            "seconds": round(self.seconds, 4),
            "waited": round(self.waited, 4),
            "flops": self.flops,
            "memory": self.memory,
        }
        line |= {"skipped": self.skipped} if self.skipped else {}
        return line | ({"trouble": self.trouble} if self.trouble else {})
