"""The recipes that come with opsin, each known by its name. Nothing here imports torch."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from opsin.core.errors import RecipeError

SUFFIXES = (".yaml", ".yml")


def packaged() -> dict[str, Path]:
    """Every recipe's file, by its name."""
    found = {path.stem: path for path in Path(str(files("opsin.recipes"))).glob("*.yaml")}
    return dict(sorted(found.items()))


def is_packaged(path: Path) -> bool:
    """The path is the name of a packaged recipe, and no file of that name hides it."""
    return not path.is_file() and str(path) in packaged()


def find_recipe(path: Path) -> tuple[Path, Path]:
    """A recipe's file and the folder at which its relative paths start.

    Those of a packaged recipe start where the command is run, since its data cannot lie within the package.

    Raises:
        RecipeError: there is no such file, and no packaged recipe of that name.
    """
    if is_packaged(path):
        return packaged()[str(path)], Path.cwd()
    if not path.exists() and path.suffix not in SUFFIXES and path.name == str(path):
        raise RecipeError(str(path), [no_such(str(path))])
    return path, path.absolute().parent


def no_such(name: str) -> str:
    """What to say of a name that no packaged recipe has."""
    close = difflib.get_close_matches(name, packaged(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(packaged())}"
    return f"{name}: no such file, and no recipe of that name; {hint}"
