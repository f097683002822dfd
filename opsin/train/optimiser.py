"""What trains: freezing, parameter groups, the learning-rate schedule, and the audit that proves the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opsin.core.errors import TrainError
from opsin.model.config import PartName
from opsin.model.lora import MARK, add_lora
from opsin.model.vlm import Vlm
from opsin.train.recipe import PartPlan, Stage

PARTS: tuple[PartName, ...] = ("vision", "connector", "language")


def store_parts(model: Vlm, stages: Sequence[Stage], precision: str) -> None:
    """Store in bfloat16, if that is the precision, the parts whose own weights no stage trains; all else in float32.

    A part that any stage trains stays in float32 throughout: nothing that is trained is ever rounded.
    """
    for name in PARTS:
        plans = [stage.train.parts[name] for stage in stages if name in stage.train.parts]
        untrained = all(plan.lora is not None for plan in plans)
        _store_as(model.part(name), torch.bfloat16 if precision == "bf16" and untrained else torch.float32)


def prepare_parts(model: Vlm, stage: Stage) -> None:
    """Freeze what the stage does not train, add adapters; what is trained is float32 (autocast computes in bfloat16).

    Frozen parts are in evaluation mode too, so that no dropout disturbs them.
    """
    model.requires_grad_(requires_grad=False).eval()
    for name in PARTS:
        part, plan = model.part(name), stage.train.parts.get(name)
        if plan is None:
            continue
        part.train()
        if plan.lora is None:
            _store_as(part, torch.float32)
        else:
            add_lora(part, plan.lora)
        for parameter_name, parameter in part.named_parameters():
            parameter.requires_grad_(plan.lora is None or MARK in parameter_name)


def _store_as(part: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of weights only: rotary frequencies and normalisation constants are exact in float32."""
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)


def trained_parameters(model: Vlm, stage: Stage) -> dict[PartName, dict[str, nn.Parameter]]:
    """Trainable parameters by part and by name in the whole model; a tied weight appears once."""
    groups: dict[PartName, dict[str, nn.Parameter]] = {}
    prefixes: dict[PartName, str] = {"vision": "encoder.", "connector": "connection.", "language": "decoder."}
    for name in stage.train.parts:
        groups[name] = {
            parameter_name: parameter
            for parameter_name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter_name.startswith(prefixes[name])
        }
    return groups


def build_optimiser(model: Vlm, stage: Stage) -> torch.optim.AdamW:
    """AdamW with one group a part; no weight decay on vectors (norms and biases)."""
    groups = []
    for name, parameters in trained_parameters(model, stage).items():
        plan: PartPlan = stage.train.parts[name]
        matrices = [p for p in parameters.values() if p.dim() > 1]
        vectors = [p for p in parameters.values() if p.dim() <= 1]
        for members, decay in ((matrices, plan.weight_decay), (vectors, 0.0)):
            if members:
                groups.append({"params": members, "lr": plan.lr, "peak": plan.lr, "weight_decay": decay, "part": name})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)


def rate_factor(step: int, total: int, warmup: float) -> float:
    """Cosine decay to zero after a linear rise over `warmup` of the steps (at least the first step moves)."""
    rising = max(1, math.ceil(warmup * total)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's rate to its peak times `factor`; returns the rates by part."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["part"]: group["lr"] for group in optimiser.param_groups}


@dataclass(frozen=True)
class Audit:
    """What the gradient audit found: parameters and scalars by part, and trained tensors that nothing reaches."""

    scalars: dict[PartName, int]
    unreached: tuple[str, ...]


def audit_gradients(model: Vlm, stage: Stage, optimiser: torch.optim.Optimizer, *, pictures: bool = True) -> Audit:
    """Compare the declared plan with the gradients of a real backward pass and with the optimiser's groups.

    Without `pictures` in that pass, nothing can reach the encoder and the connector, and nothing is expected to.

    Raises:
        TrainError: a frozen parameter has a gradient, a trained part has none at all, a gradient is not finite, or the
            optimiser holds other parameters than the plan; every case is listed.
    """
    groups = trained_parameters(model, stage)
    planned = {name: p for parameters in groups.values() for name, p in parameters.items()}
    problems = [
        f"{name}: frozen by the plan, but it has a gradient"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name not in planned
    ]
    reachable = {part: parameters for part, parameters in groups.items() if pictures or part == "language"}
    # Behind closed gates (a model with gated cross-attention begins so) gradients are there, but zero at first.
    opening = model.connection.opening
    stuck = "; the gates of its cross-attention are closed, and only training all of 'connector' opens them"
    for part, parameters in reachable.items():
        if not any(p.grad is not None and (opening or bool(p.grad.any())) for p in parameters.values()):
            problems.append(
                f"{part}: trained by the plan, but no gradient reaches any of its {len(parameters)} tensors"
                + stuck * (model.connection.closed and not opening)
            )
    problems += [f"{name}: gradient is not finite" for name, p in planned.items() if not _finite(p.grad)]
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    problems += [
        f"{name}: trained by the plan, but not in the optimiser" for name, p in planned.items() if id(p) not in held
    ]
    problems += ["the optimiser holds parameters that the plan does not train"] * bool(
        held - {id(p) for p in planned.values()}
    )
    if problems:
        raise TrainError("\n  ".join([f"stage {stage.name!r}: the gradient audit failed", *problems]))
    return Audit(
        scalars={part: sum(p.numel() for p in parameters.values()) for part, parameters in groups.items()},
        unreached=tuple(n for parameters in reachable.values() for n, p in parameters.items() if p.grad is None),
    )


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


def optimiser_state(model: Vlm, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under their parameters' names: `{parameter}/{exp_avg, exp_avg_sq, step}`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }


def restore_optimiser(model: Vlm, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimiser_state`.

    Raises:
        TrainError: the tensors belong to other parameters (all named).
    """
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in held}
    unknown = sorted({key.rpartition("/")[0] for key in tensors} - parameters.keys())
    if unknown:
        raise TrainError(f"the saved optimiser state is of other parameters: {', '.join(unknown[:10])}")
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition("/")
        optimiser.state[parameters[name]][kind] = tensor.to(parameters[name].device)
