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
    yield f"  mixture      {stage.mixture[:16]}"
    yield from _sources(stage)
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
    yield from (f"  note: {note}" for note in stage.notes)
    for what, lines in (("shortened", stage.shortened), ("dropped", stage.dropped), ("refused", stage.refused)):
        if lines:
            yield f"  {what}: {len(lines):,}"
            yield from (f"    {line}" for line in lines)


def _sources(stage: StageOutlook) -> Iterator[str]:
    """A line for every source: what there is, what an epoch takes, and its share of the tokens of all epochs."""
    width = max(len(source.name) for source in stage.sources)
    for source in stage.sources:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in source.kinds.items())
        share = source.tokens / max(1, stage.tokens)
        yield (
            f"    {source.name:<{width}}  {source.taken:>9,} of {source.samples:,} an epoch ({kinds}), "
            f"{share:.1%} of the tokens ({source.visual:,} visual, {source.supervised:,} supervised)"
        )
