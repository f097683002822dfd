"""What a step adds up to: over its packs, its sources, and all ranks."""

from __future__ import annotations

import math
import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from opsin.core.types import Batch, Layout
from opsin.train.objective import Weighing
from opsin.train.parts import PartName


@dataclass(frozen=True)
class Learned:
    """Loss and gradient norms of a step, by plan, too; of one without anything to learn, none."""

    loss: float | None = None
    norm: float | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def trouble(self) -> str:
        """What is not finite."""
        if self.loss is not None and not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        if self.norm is not None and not math.isfinite(self.norm):
            return f"the norm of the gradients is {self.norm}"
        return ""


def parts_left_out(sums: Mapping[str, float]) -> set[PartName]:
    """Parts that nothing in a step reaches."""
    if not sums["pictures"]:
        return {"vision", "connector", "newline"}
    return set() if sums["newlines"] else {"newline"}


def count(batches: Sequence[Batch], weighings: Sequence[Weighing]) -> dict[str, Any]:
    """What one rank's packs of a step hold."""
    return {
        "mass": sum(weighing.mass for weighing in weighings),
        "tokens": sum(batch.num_tokens for batch in batches),
        "supervised": sum(batch.num_supervised for batch in batches),
        "samples": sum(len(batch.lengths) for batch in batches),
        "pictures": sum(len(batch.layouts) for batch in batches),
        "patches": sum(layout.patches for batch in batches for layout in batch.layouts),
        "packs": len(weighings),
        "newlines": sum(_has_newlines(layout) for batch in batches for layout in batch.layouts),
        "skipped": sum(len(batch.skipped) for batch in batches),
    }


def _has_newlines(layout: Layout) -> bool:
    return any(block.newline or block.tail for block in layout.blocks)


def all_finite(values: Collection[float]) -> bool:
    """None of the numbers is infinite, or no number."""
    return all(map(math.isfinite, values))


def joined(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, int]]:
    """Sums and counts of all ranks."""
    found = {name: (0.0, 0) for part in parts for name in sorted(part)}
    for part in parts:
        for name, (total, count) in part.items():
            found[name] = found[name][0] + total, found[name][1] + int(count)
    return found


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: of the device, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
