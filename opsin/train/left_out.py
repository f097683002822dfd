"""RUN/skipped.txt and RUN/shortened.txt: the samples that a run leaves out or makes shorter, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from opsin.core.files import write_text
from opsin.train.data import StageData

SKIPPED = "skipped.txt"
SHORTENED = "shortened.txt"

DAMAGED = re.compile(r"([^:, ]+), step ([0-9]+): ")
"""How a line begins that names a sample whose medium turned out to be damaged when its step came: stage and step."""


def name_affected(out: Path, stage: str, data: StageData, on_line: Callable[[str], None]) -> None:
    """Say how many samples of a stage are left out or made shorter, and write down which and why."""
    lost = (*data.found.refused, *data.found.dropped)
    if lost:
        used = f"stage {stage!r}: {len(data.examples):,} samples"
        on_line(f"{used}; problems skipped: {len(lost):,}, see {out / SKIPPED}")
    if shortened := data.found.shortened:
        on_line(f"stage {stage!r}: samples made shorter: {len(shortened):,}, see {out / SHORTENED}")
    _append(out / SKIPPED, [f"{stage}: {line}\n" for line in lost])
    _append(out / SHORTENED, [f"{stage}: {line}\n" for line in shortened])


def name_damaged(out: Path, stage: str, step: int, line: str, on_line: Callable[[str], None]) -> None:
    """Say and write down that a step leaves out a sample, because a medium of it is damaged."""
    on_line(f"stage {stage!r}, step {step}: left out: {line}")
    _append(out / SKIPPED, [f"{stage}, step {step}: {line}\n"])


def tell_damaged(out: Path, stage: str, on_line: Callable[[str], None]) -> None:
    """Say how many samples the steps of a stage left out, if any."""
    if count := sum(found is not None and found[1] == stage for found in map(DAMAGED.match, _lines(out / SKIPPED))):
        on_line(f"stage {stage!r}: left out because a picture or video is damaged: {count:,}, see {out / SKIPPED}")


def forget_damaged(out: Path, stages: Sequence[str], stage: int, step: int) -> None:
    """Drop what steps behind a step of a stage left out: they are taken again."""

    def kept(line: str) -> bool:
        found = DAMAGED.match(line)
        return found is None or (stages.index(found[1]), int(found[2])) <= (stage, step)

    if (out / SKIPPED).exists():
        write_text(out / SKIPPED, "".join(filter(kept, _lines(out / SKIPPED))))


def _append(path: Path, lines: Sequence[str]) -> None:
    """Append lines that are not there yet: a stream that is read again after a resume finds the same ones again."""
    there = set(_lines(path))
    if new := [line for line in lines if line not in there]:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(new)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, if there is one; a killed run can have left the last one half written."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))
