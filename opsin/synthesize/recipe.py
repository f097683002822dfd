"""A synthesis as one validated value: pictures, kinds of samples, a teacher, limits, checks. No torch, no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.errors import RecipeError
from opsin.core.packaged import SYNTHESIS, find_recipe
from opsin.core.validate import load_config
from opsin.synthesize.check_values import Checks
from opsin.synthesize.kinds import Kind
from opsin.synthesize.sources import PictureSource
from opsin.synthesize.teacher_values import Limits, Rules, Teacher, misfits


class Synthesis(BaseModel):
    """What `opsin synthesize` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    seed: int = 0
    pictures: list[PictureSource] = Field(min_length=1)
    kinds: list[Kind] = Field(min_length=1)
    teacher: Teacher
    limits: Limits = Limits()
    checks: Checks = Checks()
    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of the pictures whose samples go into a file of their own, to evaluate with."""


def load_synthesis(
    path: Path, overrides: Sequence[str] = (), *, variables: Mapping[str, str] | None = None
) -> Synthesis:
    """Read and validate a synthesis recipe; file paths in it are relative to its folder.

    `path` may be the name of a packaged recipe, whose paths are relative to the working directory. `variables` fill
    `${NAME}` in its texts, by default from the environment.

    Raises:
        RecipeError: every problem at once, each with its line.
    """
    path, folder = find_recipe(path, SYNTHESIS)
    recipe = load_config(path, Synthesis, overrides, variables=variables, folder=folder)
    if problems := list(_misfits(recipe)):
        raise RecipeError(str(path), [f"{path}: {problem}" for problem in problems])
    return recipe


def _misfits(recipe: Synthesis) -> Iterator[str]:
    """What kinds and limits ask of the teacher that it cannot do, and names that are not unique."""
    yield from misfits(recipe.teacher, recipe.limits)
    for index, kind in enumerate(recipe.kinds):
        if isinstance(recipe.teacher, Rules):
            if not kind.by_rules_possible:
                yield f"kinds.{index}: {kind.kind} cannot be made by rules; take the teacher `openai`, or leave it out"
        elif kind.needs_vision and not recipe.teacher.vision:
            yield (
                f"kinds.{index}: {kind.kind} shows pictures to the teacher; take a model that sees them and say "
                "`vision: true` of the teacher, or leave the kind out"
            )
    for name, count in Counter(kind.name for kind in recipe.kinds).items():
        if count > 1:
            yield f"kinds: {count} entries would be called {name!r}; make one of them, with `draws` for several samples"
