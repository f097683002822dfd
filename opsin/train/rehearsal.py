"""A run without its steps: every stage's model, one of its packs, a real backward pass, and the gradient audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from opsin.core.types import Batch
from opsin.data.collate import to_device
from opsin.data.loader import Loader
from opsin.data.plan import Pack
from opsin.model.lora import merge_lora
from opsin.model.loss import supervised_loss
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.audit import audit_gradients
from opsin.train.beginning import first_model
from opsin.train.checks import read_checker
from opsin.train.data import StageData, plan_steps, read_stage
from opsin.train.optimiser import build_optimiser, prepare_parts, store_parts
from opsin.train.parts import Group
from opsin.train.recipe import Recipe, Stage
from opsin.train.work import check_reach
from opsin.train.world import device_of

STREAMED = 20
"""Steps that are looked at of a stage that streams."""


@dataclass(frozen=True)
class Planned:
    """A part that a stage trains: how many numbers, and how fast; `lora` is the rank of its adapters."""

    name: str
    numbers: int
    lr: float
    weight_decay: float
    lora: int | None


@dataclass(frozen=True)
class Rehearsed:
    """What a stage trains, and what one of its packs gave; `unreached` are trained weights without a gradient."""

    stage: str
    plans: tuple[Planned, ...]
    frozen: int
    samples: int
    tokens: int
    pictures: int
    loss: float
    unreached: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def rehearse(recipe: Recipe) -> Iterator[Rehearsed]:
    """Yield what every stage trains; no weight is changed, and nothing is written.

    Raises:
        DataError: a record of a stage cannot be used.
        TrainError: what would be trained is not what the recipe says; every case is listed.
        OpsinError: parts, media or weights cannot be read.
    """
    tokenizer = Tokenizer.load(recipe.composition.language.tokenizer_path)
    torch.manual_seed(recipe.seed)
    model = first_model(recipe).to(device_of(recipe.device))
    model.precision = recipe.precision
    store_parts(model, recipe.stages, recipe.precision)
    for stage in recipe.stages:
        data = read_stage(stage, recipe.composition, tokenizer, skip_bad=recipe.skip_bad)
        steps = plan_steps(data, stage, recipe.seed)
        check_reach(stage, steps)
        read_checker(stage, recipe.composition, tokenizer, seed=recipe.seed, skip_bad=recipe.skip_bad)
        yield _stage(model, stage, data, _telling(steps))


def _telling(steps: Sequence[tuple[Pack, ...]]) -> Pack:
    """The first pack that shows something, so that gradients can reach every part; else the first one."""
    packs = [pack for step in steps[:STREAMED] for pack in step]
    return next((pack for pack in packs if pack.patches), packs[0])


def _stage(model: Vlm, stage: Stage, data: StageData, pack: Pack) -> Rehearsed:
    adapters = prepare_parts(model, stage)
    optimiser = build_optimiser(model, stage)
    batch = _batch(data, pack)
    with model.computing():
        moved = to_device(batch, model.device)
        loss = supervised_loss(model(moved), model.decoder.head_weight, moved.targets_T) / batch.num_supervised
    if loss.requires_grad:  # text alone reaches no weight of a stage that trains the connector only
        loss.backward()  # type: ignore[no-untyped-call]
    audit = audit_gradients(model, stage, optimiser, pictures=bool(batch.layouts))
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    model.zero_grad(set_to_none=True)
    for part in adapters:  # still zero, so what they stand beside stays as it is
        merge_lora(model.part(part))
    return Rehearsed(
        stage=stage.name,
        plans=tuple(_planned(group, audit.scalars[group.name]) for group in stage.train.groups),
        frozen=frozen,
        samples=len(batch.ids),
        tokens=batch.num_tokens,
        pictures=len(batch.layouts),
        loss=loss.item(),
        unreached=audit.unreached,
    )


def _planned(group: Group, numbers: int) -> Planned:
    plan = group.plan
    return Planned(group.name, numbers, plan.lr, plan.weight_decay, None if plan.lora is None else plan.lora.rank)


def _batch(data: StageData, pack: Pack) -> Batch:
    examples = data.examples
    return next(Loader(examples, data.preparation, [pack], name_of=examples.name, pick=examples.pick))


def lines(stages: Sequence[Rehearsed]) -> Iterator[str]:
    """What was found, for the terminal."""
    for stage in stages:
        yield f"stage {stage.stage}: gradient audit passed"
        rows = [(plan.name, f"{plan.numbers:,}", _how(plan)) for plan in stage.plans]
        rows.append(("frozen", f"{stage.frozen:,}", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        for name, numbers, how in rows:
            yield f"  {name:<{widths[0]}}  {numbers:>{widths[1]}}{how}"
        yield (
            f"  one pack: {stage.samples:,} samples, {stage.tokens:,} tokens, {stage.pictures:,} pictures; "
            f"loss {stage.loss:.4f}"
        )
        if stage.unreached:
            yield f"  not used in this stage, so unchanged: {', '.join(stage.unreached)}"


def _how(plan: Planned) -> str:
    decay = f", weight decay {plan.weight_decay:g}" if plan.weight_decay else ""
    return f" at {plan.lr:.1e}{decay}" + (f", adapters of rank {plan.lora}" if plan.lora is not None else "")
