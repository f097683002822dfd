"""A recipe's outlook as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opsin.report.words import amounts
from opsin.train.outlook import StageOutlook

BAR = 30


def lines(stages: Sequence[StageOutlook], rate: float | None) -> Iterator[str]:
    """All stages, one below the other; `rate` (tokens a second) adds hours."""
    for stage in stages:
        yield from _stage(stage, rate)
    if len(stages) > 1 and rate is not None:
        yield f"all stages: {_time(sum(stage.tokens for stage in stages), rate)}"


def _stage(stage: StageOutlook, rate: float | None) -> Iterator[str]:
    told = amounts(stage.available, stage.epoch, stage.samples, stage.packs, stage.efficiency)
    yield f"stage {stage.name}: {told}"
    yield f"  mixture      {stage.mixture[:16]}"
    yield from _sources(stage)
    yield f"  steps        {stage.steps:,}{_step(stage)}"
    text = stage.tokens - stage.visual
    yield f"  tokens       {stage.tokens:,} = {text:,} text + {stage.visual:,} visual; {stage.supervised:,} supervised"
    yield f"  patches      {stage.patches:,}"
    if rate is not None:
        yield f"  time         {_time(stage.tokens, rate)}"
    if any(stage.balance):  # one process alone is always even with itself
        tokens, patches = stage.balance
        yield f"  balance      busiest rank {tokens:+.1%} tokens, {patches:+.1%} patches over the mean"
    if stage.uneven:
        yield f"               {stage.uneven}"
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


def _step(stage: StageOutlook) -> str:
    """What a step holds, where it is counted in samples."""
    if stage.samples_per_step is None:
        return ""
    mean, most = stage.packs_per_step
    return f" of {stage.samples_per_step:,} samples, in {mean:.1f} packs on average and {most:,} at most"


def _time(tokens: int, rate: float) -> str:
    """How long so many tokens take at a rate."""
    minutes = tokens / rate / 60
    return f"{f'{minutes / 60:.1f} h' if minutes >= 60 else f'{minutes:.1f} min'} at {rate:,.0f} tokens/s"


def _sources(stage: StageOutlook) -> Iterator[str]:
    """A row for every source: what there is, what an epoch takes, and what it gives to all epochs."""
    rows: list[tuple[str, ...]] = [
        ("source", "samples", "an epoch", "tokens", "of all", "visual", "supervised", "kinds")
    ]
    for source in stage.sources:
        share = f"{source.tokens / max(1, stage.tokens):.1%}"
        numbers = [f"{n:,}" for n in (source.samples, source.taken, source.tokens, source.visual, source.supervised)]
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in source.kinds.items())
        rows.append((source.name, *numbers[:3], share, *numbers[3:], kinds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, kinds in rows:
        cells = "  ".join(f"{number:>{width}}" for number, width in zip(numbers, widths[1:-1], strict=True))
        yield f"    {name:<{widths[0]}}  {cells}  {kinds}"
