"""Golden loss curves of the published recipes. To write them anew, when they are meant to change:

OMP_NUM_THREADS=1 python -m tests.support.loss_curves
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from opsin.train.hooks import Hooks
from opsin.train.parts import part_of
from opsin.train.recipe import load_recipe
from opsin.train.run import start
from tests.support.backbones import TINY, Tiny, variables

FILE = Path(__file__).parents[1] / "golden" / "loss_curves.json"


@dataclass
class Trained:
    """What a tiny run did: losses of all its steps, the parts that every stage changed, its last checkpoint."""

    recipe: Any
    losses: list[float] = field(default_factory=list)
    changed: dict[str, set[str]] = field(default_factory=dict)
    checkpoint: Path = Path()


def run_tiny(tiny: Tiny, folder: Path) -> Trained:
    """Run a published recipe through all its stages."""
    recipe = load_recipe(Path(tiny.recipe), tiny.overrides, variables=variables(folder, tiny.recipe))
    done = Trained(recipe)
    before: dict[str, Tensor] = {}

    def remember(model: Any) -> None:
        before.update({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    def compare(stage: Any, model: Any) -> None:
        now = model.state_dict()
        assert now.keys() == before.keys()
        done.changed[stage.name] = {part_of(name) for name, old in before.items() if not old.equal(now[name])}
        remember(model)

    def step(_stage: Any, metrics: Any, _total: int) -> None:
        done.losses.append(metrics.loss)

    hooks = Hooks(before_stages=remember, after_stage=compare, on_step=step)
    done.checkpoint = start(recipe, folder / "run", hooks)
    return done


def curves() -> dict[str, list[float]]:
    """The losses of all published recipes."""
    found = {}
    for tiny in TINY:
        with tempfile.TemporaryDirectory() as folder:
            found[tiny.recipe] = [round(loss, 6) for loss in run_tiny(tiny, Path(folder)).losses]
    return found


if __name__ == "__main__":
    lines = ",\n".join(f'  "{name}": {json.dumps(losses)}' for name, losses in curves().items())
    FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
