"""What a recipe will cost, before anything is trained: samples, tokens, packs, steps, memory, and what is refused.

Everything about data is exact, since it is read from the same examples and packs that training takes; nothing is
decoded. Memory is an estimate, part by part, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opsin.checkpoint.filling import weightless
from opsin.data.corpus import Corpus
from opsin.data.costs import Kind
from opsin.data.held import Held
from opsin.data.plan import Pack, Plan, rank_share
from opsin.model.loss import CHUNK_LOGITS
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import StageData, mixture_digest, plan_steps, read_stage
from opsin.train.optimiser import MODULES, prepare_parts, store_parts
from opsin.train.recipe import Recipe, Stage
from opsin.train.stream import Progress, quiet

COSTLIEST = 5
BINS = 10
TRAINED_BYTES = 4 + 4 + 8
"""Of a trained weight: itself, its gradient, AdamW's two moments, all in float32."""

ACTIVATION_BYTES = {"none": 34, "selective": 24, "full": 2}
"""Of a token, in a layer, in a channel of its width (arXiv 2205.05198, without attention scores): all that a layer
makes, or its matrix products and its input, or its input alone."""


@dataclass(frozen=True)
class Costly:
    """One of the most expensive samples."""

    sample: str
    tokens: int
    patches: int


@dataclass(frozen=True)
class SourceOutlook:
    """What a stage takes of one of its sources: `samples` that it can use, `taken` of them in an epoch (or a stream).

    `tokens`, `visual`, `supervised` and `patches` are those of all epochs; `kinds` counts the samples that can be used.
    """

    name: str
    path: str
    samples: int
    kinds: dict[Kind, int]
    taken: int
    tokens: int
    visual: int
    supervised: int
    patches: int


@dataclass(frozen=True)
class StageOutlook:
    """What a stage will do. `histogram` counts `samples` by length, up to each of `edges` (tokens).

    - `available`: samples that it can use; of a stream those that were read to plan it
    - `epoch`: how many samples an epoch takes; None for a stream
    - `samples`: different ones that the packs of all epochs hold; `costliest` are the longest of them
    - `mixture`: a hash of the contents of its sources and of how much is taken of each
    - `steps`: their number, each of `samples_per_step` samples where the recipe counts them so
    - `packs_per_step`: mean and most
    - `efficiency`: the share of the packs' token budgets that is filled
    - `balance`: how much more than the mean the busiest of `ranks` processes has to do in a step, in tokens and patches
    - `uneven`: what in the recipe makes that so, if it does, and what to do about it
    - `memory`: bytes by part
    - `refused`: what cannot be used, and `dropped` or `shortened` by the stage's length policy
    """

    name: str
    mixture: str
    sources: tuple[SourceOutlook, ...]
    available: int
    epoch: int | None
    samples: int
    packs: int
    steps: int
    samples_per_step: int | None
    packs_per_step: tuple[float, int]
    tokens: int
    visual: int
    supervised: int
    patches: int
    efficiency: float
    edges: tuple[int, ...]
    histogram: tuple[int, ...]
    costliest: tuple[Costly, ...]
    balance: tuple[float, float]
    uneven: str
    memory: dict[str, int]
    refused: tuple[str, ...]
    dropped: tuple[str, ...]
    shortened: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def look_ahead(recipe: Recipe, ranks: int = 1, on_progress: Progress = quiet) -> list[StageOutlook]:
    """Read, render and pack every stage; what would be refused is listed instead of raised.

    Raises:
        DataError: a stage has no sample that could be trained on.
    """
    tokenizer = Tokenizer.load(recipe.composition.language.tokenizer_path)
    return [_outlook(recipe, stage, tokenizer, ranks, on_progress) for stage in recipe.stages]


def _outlook(recipe: Recipe, stage: Stage, tokenizer: Tokenizer, ranks: int, on_progress: Progress) -> StageOutlook:
    data = read_stage(stage, recipe.composition, tokenizer, skip_bad=True, on_progress=on_progress)
    steps = list(plan_steps(data, stage, recipe.seed))
    plan = Plan(tuple(pack for step in steps for pack in step), stage.budget)
    held = Held.by(plan.packs, data.examples.costs)
    histogram, edges = np.histogram(held.lengths, bins=min(BINS, max(1, len(np.unique(held.lengths)))))
    return StageOutlook(
        name=stage.name,
        mixture=mixture_digest(stage),
        sources=_sources(data, stage, held),
        available=held.available,
        epoch=sum(data.amounts) if data.amounts else None,
        samples=len(held.samples),
        packs=len(plan.packs),
        steps=len(steps),
        samples_per_step=stage.samples_per_step,
        packs_per_step=(len(plan.packs) / len(steps), max(map(len, steps))),
        tokens=plan.tokens,
        visual=held.visual,
        supervised=plan.supervised,
        patches=plan.patches,
        efficiency=plan.efficiency if plan.packs else 0.0,
        edges=tuple(int(edge) for edge in edges[1:]),
        histogram=tuple(int(count) for count in histogram),
        costliest=_costliest(data.examples, held),
        balance=(_imbalance(steps, ranks, "tokens"), _imbalance(steps, ranks, "patches")),
        uneven=_uneven(stage, steps, ranks),
        memory=memory(recipe, stage),
        refused=tuple(data.found.refused),
        dropped=tuple(data.found.dropped),
        shortened=tuple(data.found.shortened),
        notes=tuple(data.found.notes),
    )


def _sources(data: StageData, stage: Stage, held: Held) -> tuple[SourceOutlook, ...]:
    """What every source gives to all epochs."""
    found = []
    for number, (name, own) in enumerate(held.by_source(data.examples).items()):
        taken = data.amounts[number] if data.amounts else own.drawn
        numbers = own.tokens, own.visual, own.supervised, own.patches
        path = str(stage.sources[name].path)
        found.append(SourceOutlook(name, path, own.available, own.costs.by_kind(), taken, *numbers))
    return tuple(found)


def _costliest(examples: Corpus, held: Held) -> tuple[Costly, ...]:
    most = held.samples[np.argsort(-held.lengths, kind="stable")[:COSTLIEST]].tolist()
    return tuple(Costly(examples.name(i), int(held.costs.tokens[i]), int(held.costs.patches[i])) for i in most)


def _imbalance(steps: Sequence[tuple[Pack, ...]], ranks: int, cost: str) -> float:
    """Mean over the steps of (the busiest rank's cost / the mean cost - 1)."""
    found = []
    for step in steps:
        loads = [sum(getattr(pack, cost) for pack in rank_share(step, rank, ranks)) for rank in range(ranks)]
        if sum(loads):
            found.append(max(loads) * ranks / sum(loads) - 1)
    return float(np.mean(found)) if found else 0.0


def _uneven(stage: Stage, steps: Sequence[tuple[Pack, ...]], ranks: int) -> str:
    """What the number of packs of a step means for the ranks that share them; nothing where all get as many."""
    if stage.samples_per_step is not None:
        uneven, few = sum(len(step) % ranks > 0 for step in steps), sum(len(step) < ranks for step in steps)
        if not uneven:
            return ""
        idle = f", and {few:,} leave some idle" if few else ""
        advice = f"a smaller batch_tokens than {stage.batch_tokens:,} makes more packs of a step, and the rest smaller"
        return f"{uneven:,} of {len(steps):,} steps give some of {ranks} ranks one pack more{idle}; {advice}"
    packs = stage.packs_per_step
    if packs % ranks == 0:
        return ""
    told = f"leaves {ranks - packs} of {ranks} ranks idle" if packs < ranks else f"gives some of {ranks} ranks one more"
    return f"packs_per_step {packs} {told}; make it a multiple of {ranks}"


def memory(recipe: Recipe, stage: Stage) -> dict[str, int]:
    """Bytes by part: weights with what training keeps of them, activations of one pack, logits held at a time."""
    with weightless():
        model = Vlm(recipe.composition, weights=False)
    store_parts(model, recipe.stages, recipe.precision)
    prepare_parts(model, stage)
    found: dict[str, int] = {}
    for part in MODULES:
        parameters = list(model.part(part).parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
        found[part] = trained * TRAINED_BYTES + frozen
    # Even under a frozen language model gradients pass through to the connector, and need its activations.
    found["activations"] = _activations(
        recipe, stage, stage.budget.tokens, len(model.decoder.layers), model.decoder.width
    )
    if stage.train.trains("vision"):
        depth = recipe.composition.encoder.depth or 0  # convolutions, of the one small network of them, are not counted
        found["activations"] += _activations(recipe, stage, stage.budget.patches, depth, model.encoder.width)
    found["logits"] = 2 * 4 * CHUNK_LOGITS
    return found


def _activations(recipe: Recipe, stage: Stage, tokens: int, layers: int, width: int) -> int:
    """Bytes that wait for the backward pass; where layers are computed again, one of them is whole at a time."""
    mode = stage.activation_checkpointing
    each = layers * ACTIVATION_BYTES[mode] + (ACTIVATION_BYTES["none"] if mode != "none" else 0)
    return tokens * width * each * (1 if recipe.precision == "bf16" else 2)
