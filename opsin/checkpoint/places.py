"""Names in a run's folder of checkpoints: which checkpoint comes after which, and what its shards are called.

A name says how far the run was (`01-instruct-000000120`, `01-instruct-000000240-done`), so that checkpoints stand in
order even when one of them is damaged and nothing in it can be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from opsin.core.errors import CheckpointError

MODEL = "model"
OPTIMISER = "optimiser"
"""Beginnings of the names of tensor files."""

EMERGENCY = "emergency-"
DONE = "-done"
NAME = re.compile(rf"({EMERGENCY})?(\d+)-(.+)-(\d+)({DONE})?", re.DOTALL)


@dataclass(frozen=True, order=True)
class Place:
    """How far a run was at a checkpoint; of two of the same place the ordinary one is the later."""

    stage: int
    step: int
    done: bool = False
    ordinary: bool = True

    def name(self, stage: str) -> str:
        """The name of the checkpoint, `stage` being what the recipe calls the stage."""
        emergency, done = "" if self.ordinary else EMERGENCY, DONE if self.done else ""
        return f"{emergency}{self.stage:02d}-{stage}-{self.step:09d}{done}"


def place_of(path: Path) -> Place | None:
    """The place that a checkpoint's name tells; None for a folder that somebody else made."""
    found = NAME.fullmatch(path.name)
    if found is None:
        return None
    emergency, stage, _, step, done = found.groups()
    return Place(int(stage), int(step), done is not None, emergency is None)


def shard_name(stem: str, rank: int, ranks: int) -> str:
    """What rank `rank` of `ranks` calls its file; ranks count from 0, shards from 1 as everywhere else."""
    return f"{stem}.safetensors" if ranks == 1 else f"{stem}-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def is_shard(name: str, stem: str) -> bool:
    """Whether a file of a checkpoint is one of a stem's shards."""
    return re.fullmatch(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors", name) is not None


def shard_files(folder: Path, stem: str) -> list[Path]:
    """The files that hold the tensors of a stem, whatever number of ranks wrote them; the only one may be missing.

    Raises:
        CheckpointError: some of several shards are missing.
    """
    found = sorted(path for path in folder.glob(f"{stem}*.safetensors") if is_shard(path.name, stem))
    if not found:
        return [folder / shard_name(stem, 0, 1)]
    if [path.name for path in found] != [shard_name(stem, rank, len(found)) for rank in range(len(found))]:
        raise CheckpointError(f"{folder}: {len(found)} shards, which are not all: {', '.join(p.name for p in found)}")
    return found
