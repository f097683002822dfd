"""Do the tensors of a file fit a model? By name and shape, before any of them is copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin.core.errors import ModelError

MOST_NAMED = 50


def misfits(own: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]) -> list[str]:
    """What does not fit between the shapes of a model and of a file: missing, unexpected, of another shape."""
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in own]
    problems += [
        f"{name} is {tuple(given[name])}, expected {tuple(own[name])}"
        for name in own
        if name in given and tuple(own[name]) != tuple(given[name])
    ]
    return problems


def refuse(source: object, problems: Sequence[str]) -> None:
    """Raise ModelError with the problems, if there are any."""
    if not problems:
        return
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    count = f"{len(problems)} tensor{'s do' if len(problems) > 1 else ' does'} not fit"
    raise ModelError(f"{source}: {count}: {'; '.join(problems[:MOST_NAMED])}{more}")
