"""Files of one JSON object a line, each line bounded and validated by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from opsin.core.errors import DataError
from opsin.core.validate import explained
from opsin.core.yaml_lines import dotted

MOST_LINE_BYTES = 1_000_000

Line = TypeVar("Line", bound=BaseModel)


class LineBase(BaseModel):
    """What a line holds; unknown keys are problems."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read_lines(path: Path, model: type[Line], problems: list[str]) -> Iterator[tuple[str, Line]]:
    """Every usable line with its place (`file:12`); what is wrong with the others goes to `problems`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MOST_LINE_BYTES:
                    problems.append(f"{where}: more than {MOST_LINE_BYTES:,} bytes in one line")
                    _skip_to_end(file)
                elif line.strip():
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    try:
                        yield where, model.model_validate_json(line)
                    except ValidationError as error:
                        problems.append(f"{where}: {_told(error, line, model)}")
    except OSError as error:
        raise DataError([f"{path}: cannot be read: {error.strerror}"]) from error


def _skip_to_end(file: object) -> None:
    while (rest := file.readline(MOST_LINE_BYTES)) and not rest.endswith(b"\n"):  # type: ignore[attr-defined]
        pass


def _told(error: ValidationError, line: bytes, model: type[BaseModel]) -> str:
    """The first thing that is wrong, and how many more there are."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        reason = first["ctx"]["error"].replace("line 1 column", "character")
        return f"not JSON ({reason}); write one object, {{...}}, on each line"
    path, problem = next(explained(error, from_json(line), model))
    rest = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{dotted(path) + ': ' if path else ''}{problem}{rest}"
