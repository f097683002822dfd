"""A recipe's outlook as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opsin.train.outlook import StageOutlook

BAR = 30


def lines(stages: Sequence[StageOutlook], rate: float | None) -> Iterator[str]:
    """All stages, one below the other; `rate` (tokens a second) adds hours."""
    for stage in stages:
        yield from _stage(stage, rate)
    if len(stages) > 1 and rate is not None:
        yield f"all stages: {sum(stage.tokens for stage in stages) / rate / 3600:.2f} h at {rate:,.0f} tokens/s"


def _stage(stage: StageOutlook, rate: float | None) -> Iterator[str]:
    yield f"stage {stage.name}: {stage.samples:,} samples, {stage.packs:,} packs ({stage.efficiency:.1%} full)"
    yield f"  steps        {stage.steps:,}"
    text = stage.tokens - stage.visual
    yield f"  tokens       {stage.tokens:,} = {text:,} text + {stage.visual:,} visual; {stage.supervised:,} supervised"
    yield f"  patches      {stage.patches:,}"
    if rate is not None:
        yield f"  time         {stage.tokens / rate / 3600:.2f} h at {rate:,.0f} tokens/s"
    yield f"  balance      busiest rank {stage.balance[0]:+.1%} tokens, {stage.balance[1]:+.1%} patches over the mean"
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in stage.memory.items())
    yield f"  memory, GB   about {sum(stage.memory.values()) / 1e9:.2f}: {parts}"
    yield "  lengths"
    for edge, count in zip(stage.edges, stage.histogram, strict=True):
        yield f"    to {edge:>7,}  {'#' * round(BAR * count / max(1, *stage.histogram)):<{BAR}} {count:,}"
    yield "  most expensive samples"
    for sample in stage.costliest:
        yield f"    {sample.tokens:>7,} tokens, {sample.patches:,} patches  {sample.sample}"
    if stage.refused:
        yield f"  refused: {len(stage.refused):,}"
        yield from (f"    {problem}" for problem in stage.refused)
