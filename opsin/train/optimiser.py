"""What trains: freezing, parameter groups, the learning-rate schedule, and the audit that proves the plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from opsin.checkpoint.snapshot import placed_like
from opsin.core.errors import TrainError
from opsin.model.config import Lora, ModuleName
from opsin.model.lora import MARK, add_lora, chosen, linear_layers
from opsin.model.vlm import Vlm
from opsin.train.recipe import Schedule, Stage

MODULES: tuple[ModuleName, ...] = ("vision", "connector", "language")
PREFIXES: dict[ModuleName, str] = {"vision": "encoder.", "connector": "connection.", "language": "decoder."}


def store_parts(model: Vlm, stages: Sequence[Stage], precision: str) -> None:
    """Store in bfloat16, if that is the precision, the modules whose own weights no stage trains; all else in float32.

    A module of which any stage trains a weight stays in float32 throughout: nothing that is trained is ever rounded.
    """
    for module in MODULES:
        trained = any(is_trained(stage, name) for stage in stages for name in _names(model, module))
        _store_as(model.part(module), torch.float32 if trained or precision == "fp32" else torch.bfloat16)


def is_trained(stage: Stage, name: str) -> bool:
    """The stage trains this very weight, not adapters beside it."""
    group = stage.train.group_of(name)
    return group is not None and (group.plan.lora is None or MARK in name)


def _names(model: Vlm, module: ModuleName) -> list[str]:
    """Names in the whole model of a module's weights."""
    return [PREFIXES[module] + name for name, _ in model.part(module).named_parameters()]


def adapters(model: Vlm, stage: Stage) -> dict[ModuleName, Lora]:
    """The adapters that a stage trains, by module, with the names of all the layers that they stand beside.

    Raises:
        TrainError: a plan's adapters find no linear layer, or those of one module differ.
    """
    found: dict[ModuleName, Lora] = {}
    reached: set[str] = set()
    for module in MODULES:
        wanted: dict[str, Lora] = {}
        for name in linear_layers(model.part(module)):
            group = stage.train.group_of(f"{PREFIXES[module]}{name}.weight")
            if group is not None and group.plan.lora is not None and chosen(name, group.plan.lora):
                wanted[name] = group.plan.lora
                reached.add(group.name)
        if len({lora.model_dump_json(exclude={"targets"}) for lora in wanted.values()}) > 1:
            raise TrainError(
                f"stage {stage.name!r}: adapters of {module} differ in rank, alpha or dropout; make them equal"
            )
        for lora in wanted.values():
            found[module] = lora.model_copy(update={"targets": list(wanted)})
    missed = [group.name for group in stage.train.groups if group.plan.lora is not None and group.name not in reached]
    if missed:
        raise TrainError(
            f"stage {stage.name!r}: no linear layers for the adapters of {', '.join(missed)}; correct 'targets' or "
            "'layers', or train all weights instead"
        )
    return found


def prepare_parts(model: Vlm, stage: Stage) -> dict[ModuleName, Lora]:
    """Freeze what the stage does not train, add adapters; what is trained is float32 (autocast computes in bfloat16).

    Returns the adapters. Modules without anything trained are in evaluation mode, so that no dropout disturbs them.

    Raises:
        TrainError: a plan finds no weights.
    """
    model.requires_grad_(requires_grad=False).eval()
    added = adapters(model, stage)
    for module, lora in added.items():
        add_lora(model.part(module), lora)
    for module in MODULES:
        part = model.part(module)
        named = dict(zip(_names(model, module), part.parameters(), strict=True))
        trained = {name for name in named if is_trained(stage, name)}
        if trained:
            part.train()
        if any(MARK not in name for name in trained):
            _store_as(part, torch.float32)
        for name, parameter in named.items():
            parameter.requires_grad_(name in trained)
    return added


def _store_as(part: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of weights only: rotary frequencies and normalisation constants are exact in float32."""
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)


def trained_parameters(model: Vlm, stage: Stage) -> dict[str, dict[str, nn.Parameter]]:
    """Trainable parameters by the name of their plan and by their own; a tied weight appears once, as the embedding.

    Raises:
        TrainError: a plan holds no weight of this model.
    """
    found: dict[str, dict[str, nn.Parameter]] = {group.name: {} for group in stage.train.groups}
    for name, parameter in model.named_parameters():
        group = stage.train.group_of(name)
        if parameter.requires_grad and group is not None:
            found[group.name][name] = parameter
    empty = [plan for plan, parameters in found.items() if not parameters]
    if empty:
        raise TrainError(
            f"stage {stage.name!r} trains {', '.join(empty)}, but the model has no such weights; correct 'train'"
        )
    return found


def build_optimiser(model: Vlm, stage: Stage) -> torch.optim.AdamW:
    """AdamW with two groups a plan; no weight decay on vectors (norms and biases)."""
    groups = []
    trained = trained_parameters(model, stage)
    for group in stage.train.groups:
        plan, parameters = group.plan, trained[group.name]
        matrices = [p for p in parameters.values() if p.dim() > 1]
        vectors = [p for p in parameters.values() if p.dim() <= 1]
        for members, decay in ((matrices, plan.weight_decay), (vectors, 0.0)):
            if members:
                rates = {"lr": plan.lr, "peak": plan.lr, "weight_decay": decay}
                groups.append({"params": members, "part": group.name, **rates})
    adam = stage.adam
    return torch.optim.AdamW(groups, betas=(adam.beta1, adam.beta2), eps=adam.epsilon, fused=True)


def rate_factor(step: int, total: int, rising: int, schedule: Schedule = "cosine", least: float = 0.0) -> float:
    """The share of the peak rate in a step: a linear rise over `rising` steps (the first one moves), then the fall.

    The fall is one from 1 to `least`, which the step after the last one would have.
    """
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    done = (step - rising) / max(1, total - rising)
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return least + (1 - least) * left


def rising_steps(stage: Stage, total: int) -> int:
    """Steps of a stage's warmup."""
    return stage.warmup_steps if stage.warmup_steps is not None else math.ceil(stage.warmup * total)


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's rate to its peak times `factor`; returns the rates by part."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["part"]: group["lr"] for group in optimiser.param_groups}


def optimiser_state(model: Vlm, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under their parameters' names: `{parameter}/{exp_avg, exp_avg_sq, step}`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }


def restore_optimiser(model: Vlm, optimiser: torch.optim.Optimizer, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """The reverse of `optimiser_state`, one tensor in memory at a time.

    Raises:
        TrainError: tensors belong to other parameters (all named).
    """
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in held}
    unknown: dict[str, None] = {}
    for key, tensor in tensors:
        name, _, kind = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            unknown[name] = None
        else:
            # Counts of steps are numbers, of no shape that could be divided.
            placed = placed_like(tensor, parameter) if tensor.dim() else tensor.to(parameter.device)
            optimiser.state[parameter][kind] = placed
    if unknown:
        raise TrainError(f"the saved optimiser state is of other parameters: {', '.join(sorted(unknown)[:10])}")
