"""The recipes that come with opsin, each known by its name. Nothing here imports torch."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from opsin.core.errors import RecipeError

SUFFIXES = (".yaml", ".yml")

TRAINING = ""
SYNTHESIS = "synthesis"
"""Subfolders of `opsin/recipes`: what a recipe is for."""


def packaged(purpose: str = TRAINING) -> dict[str, Path]:
    """Every recipe's file, by its name."""
    folder = Path(str(files("opsin.recipes"))) / purpose
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def is_packaged(path: Path, purpose: str = TRAINING) -> bool:
    """The path is the name of a packaged recipe, and no file of that name hides it."""
    return not path.is_file() and str(path) in packaged(purpose)


def find_recipe(path: Path, purpose: str = TRAINING) -> tuple[Path, Path]:
    """A recipe's file and the folder at which its relative paths start.

    Those of a packaged recipe start where the command is run, since its data cannot lie within the package.

    Raises:
        RecipeError: there is no such file, and no packaged recipe of that name.
    """
    if is_packaged(path, purpose):
        return packaged(purpose)[str(path)], Path.cwd()
    if not path.exists() and path.suffix not in SUFFIXES and path.name == str(path):
        raise RecipeError(str(path), [no_such(str(path), packaged(purpose))])
    return path, path.absolute().parent


def no_such(name: str, known: dict[str, Path]) -> str:
    """What to say of a name that none of the known packaged recipes has."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return f"{name}: no such file, and no recipe of that name; {hint}"
