"""Runs of models with gated cross-attention, whose gates begin closed: every set of trained parts, both precisions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.checkpoint.restore import restore_model
from opsin.core.errors import TrainError
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import start
from tests.support.models import model_value, open_gates, recipe_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.model.vlm import Vlm

RATE: dict[str, Any] = {"lr": 1e-2}
LORA: dict[str, Any] = {"lr": 1e-2, "lora": {"rank": 2}}
TRAINED: dict[str, dict[str, Any]] = {
    "connector": {"connector": RATE},
    "language": {"language": RATE},
    "vision and connector": {"vision": RATE, "connector": RATE},
    "connector, adapters on language": {"connector": RATE, "language": LORA},
    "connector, adapters on vision": {"connector": RATE, "vision": LORA},
    "everything": {"vision": RATE, "connector": RATE, "language": RATE},
}
STUCK: dict[str, dict[str, Any]] = {
    "vision": {"vision": RATE},
    "adapters on vision": {"vision": LORA},
    "adapters on connector": {"connector": LORA},
}
PREFIXES = {"vision": "encoder.", "connector": "connection.", "language": "decoder."}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))


def recipe(folder: Path, train: dict[str, Any], precision: str) -> Recipe:
    parts = {"encoder": "clip", "connector": "perceiver", "fusion": "gated_cross_attention"}
    value = recipe_value(folder, model=model_value(chatml_tokenizer_dir(folder), **parts), precision=precision)
    value["stages"] = [value["stages"][0] | {"train": train, "epochs": 2}]
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.composition.resolved()})


def run(recipe: Recipe, out: Path, **hooks: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Weights before and after, and the lines that were told."""
    before: dict[str, torch.Tensor] = {}
    lines: list[str] = []
    prepare = hooks.pop("before_stages", lambda _model: None)

    def note(model: Vlm) -> None:
        prepare(model)
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

    last = start(recipe, out, Hooks(on_line=lines.append, before_stages=note, **hooks))
    return before, restore_model(last).state_dict(), lines


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts with a weight that changed."""
    changed = {name for name in after if not torch.equal(after[name], before[name].to(after[name].dtype))}
    return {part for part, prefix in PREFIXES.items() if any(name.startswith(prefix) for name in changed)}


def gates(weights: dict[str, torch.Tensor]) -> list[float]:
    found = [float(tensor) for name, tensor in weights.items() if name.endswith("_gate")]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TRAINED)
def test_what_is_named_trains_from_closed_gates_on(tmp_path: Path, name: str, precision: str) -> None:
    train = TRAINED[name]
    before, after, lines = run(recipe(tmp_path, train, precision), tmp_path / "run")
    assert gates(before) == [0, 0]
    assert all((gate != 0) is ("connector" in train) for gate in gates(after))
    assert moved(before, after) == set(train)
    assert any("gradient audit passed" in line for line in lines)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STUCK)
def test_what_closed_gates_would_keep_from_learning_for_ever_is_refused(
    tmp_path: Path, name: str, precision: str
) -> None:
    (part,) = STUCK[name]
    with pytest.raises(
        TrainError,
        match=rf"{part}: trained by the plan, but no gradient reaches any of its \d+ tensors; the gates of its "
        "cross-attention are closed, and only training all of 'connector' opens them",
    ):
        run(recipe(tmp_path, STUCK[name], precision), tmp_path / "run")
    before, after, _ = run(recipe(tmp_path, STUCK[name], precision), tmp_path / "opened", before_stages=open_gates)
    assert moved(before, after) == {part}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_part_that_is_really_cut_off_fails_the_audit_behind_closed_gates_too(tmp_path: Path, precision: str) -> None:
    def cut(model: Vlm) -> None:
        model.encoder.register_forward_hook(lambda _module, _inputs, features: features.detach())

    made = recipe(tmp_path, TRAINED["vision and connector"], precision)
    for before_stages in (cut, lambda model: (cut(model), open_gates(model))):
        with pytest.raises(TrainError) as caught:
            run(made, tmp_path / "run", before_stages=before_stages)
        head, *problems = str(caught.value).splitlines()
        assert head == "stage 'align': the gradient audit failed"
        assert len(problems) == 1
        assert problems[0].startswith("  vision: trained by the plan, but no gradient reaches any of its ")
        assert problems[0].endswith(" tensors")
