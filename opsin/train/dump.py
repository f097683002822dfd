"""Packs of a step that went wrong, written down so that they can be looked at and computed again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file

from opsin.core.types import Batch, Layout
from opsin.data.collate import TENSORS

LAYOUTS = TypeAdapter(tuple[Layout, ...])
FACTS = [field.name for field in fields(Batch) if field.name not in (*TENSORS, "layouts")]


def write_dump(folder: Path, name: str, batches: Sequence[Batch], rank: int = 0) -> Path:
    """Write one rank's packs of a step to `folder/name-rankN/`, one safetensors file each; returns that folder."""
    place = folder / f"{name}-rank{rank}"
    place.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(batches):
        tensors = {key: value.cpu() for key in TENSORS if (value := getattr(batch, key)) is not None}
        facts = {key: getattr(batch, key) for key in FACTS}
        metadata = {"facts": json.dumps(facts), "layouts": LAYOUTS.dump_json(batch.layouts).decode()}
        save_file(tensors, place / f"{number}.safetensors", metadata=metadata)
    return place


def read_dump(folder: Path) -> list[Batch]:
    """The packs that `write_dump` wrote there."""
    batches = []
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem)):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is not a dict)
        facts: dict[str, Any] = {key: tuple(value) for key, value in json.loads(metadata["facts"]).items()}
        batches.append(Batch(**tensors, **facts, layouts=LAYOUTS.validate_json(metadata["layouts"])))
    return batches
