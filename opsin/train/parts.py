"""What a stage trains and how fast: plans for parts of the model, or for layers of them. Nothing here needs torch.

vision       the encoder                       newline     the learned vector behind rows of visual tokens
connector    encoder -> language model         gates       gated cross-attention blocks
language     the language model                embeddings  its embedding and its output layer

A part that is not named is frozen, but `newline` and `gates` go with `connector`, and `embeddings` with `language`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opsin.model.config import Lora, ModelConfig
from opsin.model.pretrained import Value

PartName = Literal["vision", "connector", "newline", "gates", "language", "embeddings"]
PARTS: tuple[PartName, ...] = ("vision", "connector", "newline", "gates", "language", "embeddings")
GOES_WITH: dict[PartName, PartName] = {"newline": "connector", "gates": "connector", "embeddings": "language"}

LAYERED: tuple[PartName, ...] = ("vision", "language")
"""Parts whose layers can be told apart."""

Rate = Annotated[float, Field(gt=0, lt=1)]

_PLACES: tuple[tuple[str, PartName], ...] = (
    ("encoder.", "vision"),
    ("connection.newline", "newline"),
    ("connection.gated.", "gates"),
    ("connection.", "connector"),
    ("decoder.lm.model.embed_tokens.", "embeddings"),
    ("decoder.lm.lm_head.", "embeddings"),
    ("decoder.", "language"),
)
"""How the names of a part's weights begin; the first that fits holds."""

_LAYER = re.compile(r"\.(?:layers|layer|blocks)\.(\d+)\.")


class PartPlan(Value):
    """How a part, or some of its layers, is trained: all its weights, or low-rank adapters on its linear layers."""

    lr: Rate
    weight_decay: float = Field(0.0, ge=0, lt=1)
    lora: Lora | None = None
    layers: str | None = Field(
        None, pattern=r"^[0-9]{1,4}-[0-9]{1,4}$", description="only these, both counted in, from 0: 0-11"
    )

    @model_validator(mode="after")
    def _rising(self) -> PartPlan:
        if not self.span:
            raise ValueError(f"layers {self.layers}: the last one comes before the first")
        return self

    @property
    def span(self) -> range:
        """The layers."""
        if self.layers is None:
            return range(1 << 30)
        first, last = map(int, self.layers.split("-"))
        return range(first, last + 1)


def _as_list(value: Any) -> Any:
    """One plan stands for a list of one, `frozen` for none."""
    if isinstance(value, dict | PartPlan):
        return [value]
    return [] if value == "frozen" else value


Plans = Annotated[list[PartPlan] | None, BeforeValidator(_as_list)]
"""One plan, a list of them for different layers, `frozen`, or nothing."""


@dataclass(frozen=True)
class Group:
    """A part, or some of its layers, with its plan; the optimiser has one group of each."""

    part: PartName
    plan: PartPlan

    @property
    def name(self) -> str:
        """`language`, or `language 0-11`."""
        return f"{self.part} {self.plan.layers}" if self.plan.layers is not None else self.part


class Trained(Value):
    """What a stage trains."""

    vision: Plans = None
    connector: Plans = None
    newline: Plans = None
    gates: Plans = None
    language: Plans = None
    embeddings: Plans = None

    @model_validator(mode="after")
    def _something(self) -> Trained:
        if not self.groups:
            raise ValueError(f"a stage must train at least one of: {', '.join(PARTS)}")
        for part in PARTS:
            _check_layers(part, self._plans(part) or [])
        return self

    def _plans(self, part: PartName) -> list[PartPlan] | None:
        plans: list[PartPlan] | None = getattr(self, part)
        return plans

    @property
    def groups(self) -> tuple[Group, ...]:
        """All plans with their parts, in order."""
        return tuple(Group(part, plan) for part in PARTS for plan in self._plans(part) or [])

    def trains(self, part: PartName) -> bool:
        """Some of the part's weights are trained, or adapters on them."""
        plans = self._plans(part)
        if plans is None and part in GOES_WITH:
            return self.trains(GOES_WITH[part])
        return bool(plans)

    def group_of(self, name: str) -> Group | None:
        """The plan that a weight goes by, from its name in the whole model; None if it is frozen.

        A plan for the weight's own layer comes before one for the whole part.
        """
        part = part_of(name)
        plans = self._plans(part)
        if plans is None and part in GOES_WITH:
            part = GOES_WITH[part]
            plans = self._plans(part)
        layer = _LAYER.search(name)
        number = int(layer[1]) if layer is not None else None
        for plan in sorted(plans or [], key=lambda plan: plan.layers is None):
            if plan.layers is None or (number is not None and number in plan.span):
                return Group(part, plan)
        return None


def part_of(name: str) -> PartName:
    """The part that a weight belongs to, by its name in the whole model."""
    return next(part for start, part in _PLACES if name.startswith(start))


def missing_parts(trained: Trained, model: ModelConfig) -> Iterator[str]:
    """What of a plan a model does not have, each with what to do; its weights need not be read to know."""
    depths = {"vision": model.encoder.depth, "language": model.language.layers}
    for group in trained.groups:
        if group.part == "newline" and not (model.resolution.newline and model.connector.spatial):
            yield "newline: the model has none (its resolution is without, or its connector keeps no rows); remove it"
        if group.part == "gates" and model.spliced:
            yield "gates: the model has none; remove them, or give it 'fusion: {kind: gated_cross_attention}'"
        if group.plan.layers is None:
            continue
        depth = depths[group.part]
        if depth is None:
            yield f"{group.part}.layers: an encoder {model.encoder.kind} is trained as a whole; remove 'layers'"
        elif group.plan.span.stop > depth:
            yield (
                f"{group.part}.layers: {group.plan.layers}, but it has {depth} layers; the last that can be named is "
                f"{depth - 1}"
            )


def _check_layers(part: PartName, plans: Sequence[PartPlan]) -> None:
    """Refuse plans of one part that speak of the same layers."""
    if part not in LAYERED and any(plan.layers is not None for plan in plans):
        raise ValueError(f"{part} has no layers to choose from; 'layers' is for {' and '.join(LAYERED)}")
    whole = [plan for plan in plans if plan.layers is None]
    spans = sorted((plan.span for plan in plans if plan.layers is not None), key=lambda span: span.start)
    if len(whole) > 1:
        raise ValueError(f"{part}: {len(whole)} plans for the whole part; give all but one of them 'layers'")
    for one, other in pairwise(spans):
        if other.start < one.stop:
            raise ValueError(f"{part}: two plans for layer {other.start}; let their 'layers' not overlap")
