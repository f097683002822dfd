"""What a plan trains, shown by real gradients, the optimiser's groups and the audit; and plans that cannot work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opsin.core.errors import RecipeError, TrainError
from opsin.core.types import Picture
from opsin.model.lora import MARK
from opsin.model.loss import supervised_loss
from opsin.train.audit import audit_gradients
from opsin.train.optimiser import build_optimiser, prepare_parts, store_parts
from opsin.train.parts import PARTS, Trained, part_of
from opsin.train.recipe import load_recipe
from tests.support.models import dialogue, draw_picture, packed, recipe_value, stage_of, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.model.vlm import Vlm
    from opsin.train.audit import Audit

EVERYTHING = {"encoder": "clip", "resolution": "any_res"}
GATED = {"encoder": "clip", "fusion": "gated_cross_attention"}


class Step:
    """One real step of a plan: what moved, by which rate, and what the audit found."""

    def __init__(self, folder: Path, train: dict[str, Any], model: dict[str, Any]) -> None:
        self.model, prepare = tiny_vlm(folder, **model)
        picture = Picture(path=draw_picture(folder / "a.png", 1, (96, 64)))
        batch = packed([dialogue("a", "What?", "A cat.", [picture]), dialogue("b", "Hi?", "Hello.")], prepare)
        stage = stage_of(train)
        store_parts(self.model, [stage], "fp32")
        prepare_parts(self.model, stage)
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        optimiser = build_optimiser(self.model, stage)
        supervised_loss(self.model(batch), self.model.decoder.head_weight, batch.targets_T).backward()
        self.audit: Audit = audit_gradients(self.model, stage, optimiser)
        optimiser.step()
        self.moved = {name for name, p in self.model.named_parameters() if not p.equal(before[name])}
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.groups: dict[str, set[str]] = {}
        self.rates: dict[str, set[float]] = {}
        for group in optimiser.param_groups:
            self.groups.setdefault(group["part"], set()).update(names[id(p)] for p in group["params"])
            self.rates.setdefault(group["part"], set()).add(group["lr"])


def weights(model: Vlm, *patterns: str) -> set[str]:
    """Weights whose names match one of some patterns."""
    return {name for name, _ in model.named_parameters() if any(re.search(pattern, name) for pattern in patterns)}


EMBEDDINGS = (r"embed_tokens", r"lm_head")
NORM = r"lm\.model\.norm"
NEWLINE, GATES = r"connection\.newline", r"connection\.gated"
CONNECTOR, LAYERS = r"connection\.connector", r"decoder\.lm\.model\.layers"

PLANS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, tuple[str, ...]]]] = {
    "newline goes with the connector": (EVERYTHING, {"connector": {"lr": 1e-2}}, {"connector": (CONNECTOR, NEWLINE)}),
    "newline frozen": (
        EVERYTHING,
        {"connector": {"lr": 1e-2}, "newline": "frozen"},
        {"connector": (CONNECTOR,)},
    ),
    "newline alone": (EVERYTHING, {"newline": {"lr": 1e-2}}, {"newline": (NEWLINE,)}),
    "newline at a rate of its own": (
        EVERYTHING,
        {"connector": {"lr": 1e-2}, "newline": {"lr": 1e-3}},
        {"connector": (CONNECTOR,), "newline": (NEWLINE,)},
    ),
    "gates go with the connector": (GATED, {"connector": {"lr": 1e-2}}, {"connector": (CONNECTOR, GATES)}),
    "gates alone": (GATED, {"gates": {"lr": 1e-2}}, {"gates": (GATES,)}),
    "embeddings go with the language model": (
        EVERYTHING,
        {"language": {"lr": 1e-3}},
        {"language": (LAYERS, NORM, *EMBEDDINGS)},
    ),
    "embeddings frozen": (
        EVERYTHING,
        {"language": {"lr": 1e-3}, "embeddings": "frozen"},
        {"language": (LAYERS, NORM)},
    ),
    "embeddings alone, tied": (
        EVERYTHING | {"tie_word_embeddings": True},
        {"embeddings": {"lr": 1e-3}},
        {"embeddings": ("embed_tokens",)},
    ),
    "embeddings beside adapters": (
        EVERYTHING,
        {"language": {"lr": 1e-3, "lora": {"rank": 2}}, "embeddings": {"lr": 1e-4}},
        {"language": (rf"{LAYERS}.*{MARK}",), "embeddings": EMBEDDINGS},
    ),
    "a range of layers and no more": (
        EVERYTHING,
        {"language": {"lr": 1e-3, "layers": "1-1"}},
        {"language 1-1": (rf"{LAYERS}\.1\.",)},
    ),
    "layers at rates of their own": (
        EVERYTHING,
        {"vision": [{"lr": 1e-4, "layers": "0-0"}, {"lr": 1e-3, "layers": "1-1"}], "language": {"lr": 1e-5}},
        {
            "vision 0-0": (r"encoder\.tower\..*layers\.0\.",),
            "vision 1-1": (r"encoder\.tower\..*layers\.1\.",),
            "language": (LAYERS, NORM, *EMBEDDINGS),
        },
    ),
    "one layer apart from the rest": (
        EVERYTHING,
        {"language": [{"lr": 1e-3}, {"lr": 1e-5, "layers": "0-0"}]},
        {"language": (rf"{LAYERS}\.1\.", NORM, *EMBEDDINGS), "language 0-0": (rf"{LAYERS}\.0\.",)},
    ),
    "adapters in some layers": (
        EVERYTHING,
        {
            "vision": {"lr": 1e-3, "layers": "0-0", "lora": {"rank": 2, "targets": ["q_proj"]}},
            "language": [{"lr": 1e-4, "layers": "0-0"}, {"lr": 1e-2, "layers": "1-1", "lora": {"rank": 2}}],
        },
        {
            "vision 0-0": (rf"encoder\..*layers\.0\..*q_proj\.{MARK}",),
            "language 0-0": (rf"{LAYERS}\.0\.",),
            "language 1-1": (rf"{LAYERS}\.1\..*{MARK}",),
        },
    ),
}
"""Model, plan, and the weights that each of its groups must hold."""


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_trains_just_what_it_names(tmp_path: Path, name: str) -> None:
    kinds, train, expected = PLANS[name]
    step = Step(tmp_path, train, kinds)
    groups = {group: weights(step.model, *patterns) for group, patterns in expected.items()}
    assert all(groups.values())
    assert step.groups == groups
    plans = {group.name: group.plan for group in stage_of(train).train.groups}
    assert step.rates == {group: {plans[group].lr} for group in groups}
    numbers = {name: p.numel() for name, p in step.model.named_parameters()}
    assert step.audit.scalars == {group: sum(numbers[name] for name in held) for group, held in groups.items()}
    planned = set().union(*groups.values())
    assert step.moved <= planned
    assert all(step.moved & held for held in groups.values())


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "overlapping ranges": (
        EVERYTHING,
        {"language": [{"lr": 1e-3, "layers": "0-1"}, {"lr": 1e-4, "layers": "1-1"}]},
        "language: two plans for layer 1; let their 'layers' not overlap",
    ),
    "two plans for all": (EVERYTHING, {"vision": [{"lr": 1e-3}, {"lr": 1e-4}]}, "2 plans for the whole part"),
    "a range backwards": (EVERYTHING, {"vision": {"lr": 1e-3, "layers": "1-0"}}, "the last one comes before"),
    "layers of the connector": (
        EVERYTHING,
        {"connector": {"lr": 1e-3, "layers": "0-0"}},
        "connector has no layers to choose from; 'layers' is for vision and language",
    ),
    "layers beyond the language model": (
        EVERYTHING,
        {"language": {"lr": 1e-3, "layers": "1-2"}},
        "language.layers: 1-2, but it has 2 layers; the last that can be named is 1",
    ),
    "layers beyond the encoder": (
        EVERYTHING,
        {"vision": {"lr": 1e-3, "layers": "3-3"}},
        "vision.layers: 3-3, but it has 3 layers; the last that can be named is 2",
    ),
    "layers of convolutions": (
        {},
        {"vision": {"lr": 1e-3, "layers": "0-1"}},
        "an encoder efficientnet_lite is trained as a whole; remove 'layers'",
    ),
    "no newline": ({}, {"newline": {"lr": 1e-3}}, "newline: the model has none"),
    "no gates": ({}, {"gates": {"lr": 1e-3}}, "gates: the model has none; remove them, or give it 'fusion:"),
    "nothing": ({}, {"connector": "frozen"}, "a stage must train at least one of: vision, connector"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_plan_that_cannot_be_is_refused_with_the_recipe(tmp_path: Path, name: str) -> None:
    kinds, train, problem = REFUSED[name]
    value = recipe_value(tmp_path)
    model, _ = tiny_vlm(tmp_path, **kinds)
    value["model"] = model.config.model_dump(mode="json", exclude_none=True)
    value["stages"][0]["train"] = train
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    (found,) = caught.value.problems
    assert problem in found
    assert "stages.0.train" in found


def test_adapters_that_find_no_layer_are_refused(tmp_path: Path) -> None:
    model, _ = tiny_vlm(tmp_path, encoder="clip")
    for train in (
        {"language": {"lr": 1e-3, "lora": {"targets": ["qkv"]}}},
        {"language": {"lr": 1e-3}, "embeddings": {"lr": 1e-3, "lora": {}}},
    ):
        with pytest.raises(TrainError, match=r"no linear layers for the adapters of (language|embeddings); correct"):
            prepare_parts(model, stage_of(train))


@st.composite
def plans_of(draw: st.DrawFn) -> dict[str, Any]:
    """Any plan for the parts without ranges, something trained."""
    plan = st.sampled_from([None, "frozen", {"lr": 1e-3}])
    return draw(
        st.fixed_dictionaries(dict.fromkeys(PARTS, plan)).filter(
            lambda train: any(isinstance(value, dict) for value in train.values())
        )
    )


WEIGHTS = (
    "encoder.tower.layers.0.weight",
    "connection.connector.layers.0.weight",
    "connection.newline",
    "connection.gated.blocks.1.out.weight",
    "decoder.lm.model.layers.1.mlp.up_proj.weight",
    "decoder.lm.model.embed_tokens.weight",
    "decoder.lm.lm_head.weight",
)


@given(plans_of())
def test_a_weight_goes_by_its_own_part_and_else_by_the_one_it_belongs_to(train: dict[str, Any]) -> None:
    trained = Trained.model_validate(train)
    whole = {"newline": "connector", "gates": "connector", "embeddings": "language"}
    for name in WEIGHTS:
        part: str = part_of(name)
        decides = part if train[part] is not None else whole.get(part, part)
        group = trained.group_of(name)
        assert (group.part if group else None) == (decides if isinstance(train[decides], dict) else None)
        assert trained.trains(part_of(name)) == (group is not None)
