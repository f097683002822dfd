"""JSON files of other people, read with a bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opsin.core.errors import CheckpointError


def read_json(path: Path, most_bytes: int) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        CheckpointError: it is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise CheckpointError(
                f"{path}: {path.stat().st_size:,} bytes, more than the {most_bytes:,} such a file needs"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value
