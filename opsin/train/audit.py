"""The gradient audit: what a recipe says is trained, against real gradients, the optimiser, and what a save writes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from opsin.core.errors import TrainError
from opsin.core.ranks import ALONE, Ranks
from opsin.model.vlm import Vlm
from opsin.train.optimiser import trained_parameters
from opsin.train.recipe import Stage
from opsin.train.sharding import local

TEXT_PARTS = ("language", "embeddings")
"""Parts that a batch without pictures reaches."""


@dataclass(frozen=True)
class Audit:
    """What the audit found: trained numbers by plan, and trained tensors that nothing reaches."""

    scalars: dict[str, int]
    unreached: tuple[str, ...]


def audit_gradients(
    model: Vlm,
    stage: Stage,
    optimiser: torch.optim.Optimizer,
    *,
    pictures: bool = True,
    saved: Collection[str] | None = None,
    ranks: Ranks = ALONE,
) -> Audit:
    """Compare the declared plan with the gradients of a real step, the optimiser's groups, and the keys of a save.

    Without `pictures` in that step, nothing can reach the encoder and the connector, and nothing is expected to.

    Raises:
        TrainError: a frozen parameter has a gradient, a trained part has none at all, a gradient is not finite, the
            optimiser holds other parameters than the plan, or a save would leave one out; every case is listed.
    """
    groups = trained_parameters(model, stage)
    from_text = {group.name for group in stage.train.groups if group.part in TEXT_PARTS}
    planned = {name: p for parameters in groups.values() for name, p in parameters.items()}
    reachable = {plan: members for plan, members in groups.items() if pictures or plan in from_text}
    # Behind closed gates (a model with gated cross-attention begins so) gradients are there, but zero at first.
    opening = any(told["opening"] for told in ranks.gather({"opening": model.connection.opening}))
    told = ranks.gather(
        {
            "reached": [plan for plan, members in reachable.items() if _reached(members, opening=opening)],
            "infinite": [name for name, p in planned.items() if not _finite(p)],
            "graded": [name for name, p in planned.items() if p.grad is not None],
        }
    )
    reached = {plan for one in told for plan in one["reached"]}
    graded = {name for one in told for name in one["graded"]}
    problems = [
        f"{name}: frozen by the plan, but it has a gradient"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name not in planned
    ]
    stuck = "; the gates of its cross-attention are closed, and only training all of 'connector' opens them"
    problems += [
        f"{plan}: trained by the plan, but no gradient reaches any of its {len(members)} tensors"
        + stuck * (model.connection.closed and not opening)
        for plan, members in reachable.items()
        if plan not in reached
    ]
    problems += [f"{name}: gradient is not finite" for one in told for name in one["infinite"]]
    problems += _elsewhere(planned, optimiser, saved)
    if problems:
        raise TrainError("\n  ".join([f"stage {stage.name!r}: the gradient audit failed", *problems]))
    return Audit(
        scalars={plan: sum(p.numel() for p in members.values()) for plan, members in groups.items()},
        unreached=tuple(name for members in reachable.values() for name in members if name not in graded),
    )


def _elsewhere(
    planned: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, saved: Collection[str] | None
) -> list[str]:
    """Where the optimiser, or what is saved, is not what the plan trains."""
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    problems = [
        f"{name}: trained by the plan, but not in the optimiser" for name, p in planned.items() if id(p) not in held
    ]
    problems += ["the optimiser holds parameters that the plan does not train"] * bool(
        held - {id(p) for p in planned.values()}
    )
    missing = [] if saved is None else [name for name in planned if name not in saved]
    return problems + [f"{name}: trained by the plan, but a checkpoint would not hold it" for name in missing]


def _reached(members: dict[str, nn.Parameter], *, opening: bool) -> bool:
    """Some gradient of a plan is there, and not all zero; behind gates that open in this step, all of them are zero."""
    return any(p.grad is not None and (opening or bool(local(p.grad).any())) for p in members.values())


def _finite(parameter: nn.Parameter) -> bool:
    return parameter.grad is None or bool(torch.isfinite(local(parameter.grad)).all())
