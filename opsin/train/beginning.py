"""What a run begins with: a new model, a checkpoint, or the end of a stage of another run (`runs/x#align`)."""

from __future__ import annotations

from pathlib import Path

from opsin.checkpoint.load import load
from opsin.checkpoint.model import CHECKPOINTS
from opsin.checkpoint.places import DONE, NAME
from opsin.checkpoint.store import verify
from opsin.core.errors import CheckpointError
from opsin.model.vlm import Vlm
from opsin.train.recipe import Recipe


def first_model(recipe: Recipe) -> Vlm:
    """The model as the first stage finds it, all of it trainable until the stage says what is."""
    if recipe.start_from is None:
        return Vlm(recipe.composition)
    return load(recipe.start_from).model.requires_grad_(requires_grad=True).train()


def stage_end(run: Path, stage: str) -> Path:
    """The newest whole checkpoint of the end of a run's stage.

    Raises:
        CheckpointError: there is none; every one that is damaged is named.
    """
    folder = run / CHECKPOINTS
    names = [path.name for path in sorted(folder.iterdir(), reverse=True)] if folder.is_dir() else []
    ends = {name: found[3] for name in names if (found := NAME.fullmatch(name)) and found[5] == DONE}
    damaged = []
    for name in (name for name, ended in ends.items() if ended == stage):
        try:
            verify(folder / name)
        except CheckpointError as error:
            damaged.append(f"\n  {error}")
            continue
        return folder / name
    held = ", ".join(dict.fromkeys(reversed(ends.values()))) or "no stage"
    raise CheckpointError(
        f"{run}#{stage}: no whole checkpoint of that stage's end; the run has ended {held}" + "".join(damaged)
    )
