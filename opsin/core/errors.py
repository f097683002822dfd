"""Errors a user can act on: what went wrong, where, the numbers, and what to do.

Every error opsin raises on purpose derives from `OpsinError`; the command line prints it without a traceback.
"""

from __future__ import annotations

import copyreg
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

SHOWN = 50
"""Lines of problems in a message."""

SHOWN_OF_A_KIND = 20
"""Problems with one cause that are listed one by one."""


def collapsed(problems: Sequence[str]) -> list[str]:
    """The problems, of each kind the first few, then how many more of it there are.

    A kind is the last part of a problem, behind its place, sample and path, whatever names and numbers are in it.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    lines = []
    for problem in problems:
        what = problem.rpartition(": ")[2]
        kind = re.sub(r"'[^']*'|\d[\d.,]*", "", re.sub(r"^\([^)]*\) ", "", what))
        first.setdefault(kind, what)
        counts[kind] += 1
        if counts[kind] <= SHOWN_OF_A_KIND:
            lines.append(problem)
    more = {kind: number - SHOWN_OF_A_KIND for kind, number in counts.items() if number > SHOWN_OF_A_KIND}
    return [*lines, *(f"... and {number:,} more of this kind: {first[kind]}" for kind, number in more.items())]


class OpsinError(Exception):
    """Base of all errors about input, files and configuration."""

    def __reduce__(self) -> tuple[Any, ...]:
        # As made, attributes and notes included: Python would call `__init__` again, with the message for the problems.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class RecipeError(OpsinError):
    """One or more problems of a recipe, all reported at once."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''} in the recipe"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class DataError(OpsinError):
    """One or more records that cannot be used; each problem starts with file:line. `advice` says what to do."""

    def __init__(self, problems: Sequence[str], advice: str = "") -> None:
        self.problems = tuple(problems)
        self.advice = advice
        lines = collapsed(self.problems)
        shown = lines[:SHOWN]
        tail = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        count = len(self.problems)
        tail += [advice] if advice else []
        super().__init__("\n".join([f"{count} problem{'s' if count != 1 else ''} in the data", *shown, *tail]))


class PictureError(OpsinError):
    """A picture that cannot be opened, or that the media policy refuses."""


class VideoError(OpsinError):
    """A video that cannot be opened or decoded, or that the media policy refuses."""


class DamagedError(OpsinError):
    """A medium with a good header that cannot be decoded: found only in training, which may leave its sample out."""


class DamagedPictureError(PictureError, DamagedError):
    """A picture that is damaged behind its header."""


class DamagedVideoError(VideoError, DamagedError):
    """A video that is damaged behind its header, or ends before its header says so."""


class LoaderError(OpsinError):
    """A worker process of the loader that was killed or hangs, or an error in it that nobody foresaw."""


class RenderError(OpsinError):
    """A conversation that a chat template cannot render."""


class ModelError(OpsinError):
    """Parts that do not fit together, or weights that do not fit a part."""


class CheckpointError(OpsinError):
    """A checkpoint that is missing, incomplete or altered."""


class TrainError(OpsinError):
    """A training run that must not go on (audit failed, loss not finite, nothing to learn)."""


class LostRankError(TrainError):
    """Another process of the training is gone, or does not answer."""


class OutOfMemoryError(TrainError):
    """A pack that does not fit into memory."""


class StoppedError(OpsinError):
    """A run that was asked to end by a signal, and has saved what it had."""

    def __init__(self, message: str, signal: int) -> None:
        self.signal = signal
        super().__init__(message)


class TeacherError(OpsinError):
    """A teacher that cannot be asked at all (wrong key, no such model, no quota left): asking on is of no use."""


class UnansweredError(OpsinError):
    """One request that got no answer after all retries; others may, and so may it in another run."""


class BudgetError(OpsinError):
    """The next request might cost more than what is left of the budget."""


class AssetError(OpsinError):
    """An asset that cannot be fetched, or whose checksum is wrong."""


class MissingExtraError(OpsinError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'opsin[{extra}]'")
