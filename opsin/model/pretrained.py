"""Base of configuration values, and parts that come from a Hugging Face directory. Nothing here imports torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opsin.core.errors import ModelError
from opsin.core.paths import ExistingFolder

NEVER_FROM_A_FILE = (
    "auto_map",
    "trust_remote_code",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
"""Keys with which a config could make transformers fetch and run code (CVE-2026-4372, for one)."""
MAX_CONFIG_BYTES = 1_000_000


class Value(BaseModel):
    """Base of configuration values: unknown keys refused, never changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face directory, without the keys that could make a loader run code or change kernels.

    Raises:
        ModelError: the directory or the file is missing or is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json there; expected a Hugging Face model directory")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes; this is not a model config")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    harmless: dict[str, Any] = _without_code(config)
    return harmless


EXTRA_KEYS = ("head_dim", "rope_theta", "rope_scaling", "architectures", "torch_dtype", "transformers_version")
"""Keys of published config.json files that transformers' own classes do not list, or no longer do."""


def refuse_unknown_keys(name: str, config: dict[str, Any], known: Iterable[str]) -> None:
    """Find misspelt keys of a config that a recipe gives, which transformers would keep without a word.

    Raises:
        ModelError: with every such key, and what it may have been meant to be.
    """
    known = sorted({*known, *EXTRA_KEYS})
    wrong = []
    for key in config:
        if key not in known and not key.startswith("_"):
            close = difflib.get_close_matches(key, known, n=1)
            wrong.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    if wrong:
        raise ModelError(f"{name}.config: unknown {', '.join(wrong)}")


def _without_code(value: Any) -> Any:
    """A JSON value without the keys of `NEVER_FROM_A_FILE`, at any depth."""
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in NEVER_FROM_A_FILE}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


class Pretrained(Value):
    """Something with weights at `path`, or from scratch by `config`."""

    path: ExistingFolder | None = Field(default=None, description="a Hugging Face directory, whose weights are loaded")
    config: dict[str, Any] | None = Field(
        default=None, description="in its place the keys of a config.json, for a part of random weights"
    )

    @model_validator(mode="after")
    def _named_once(self) -> Pretrained:
        if self.path is None and self.config is None:
            raise ValueError("give either 'path' (a model directory) or 'config' (to start from random weights)")
        if self.config is not None and _without_code(self.config) != self.config:
            raise ValueError(f"'config' may not choose code or kernels: remove {', '.join(NEVER_FROM_A_FILE)}")
        return self

    def resolved(self) -> Pretrained:
        """The same value with `config` filled from `path`."""
        if self.config is not None or self.path is None:
            return self
        return self.model_copy(update={"config": self._read(self.path)})

    def _read(self, path: Path) -> dict[str, Any]:
        return read_hf_config(path)

    @property
    def facts(self) -> dict[str, Any]:
        """The config of a resolved value."""
        if self.config is None:
            raise ModelError(f"{self.path}: not resolved yet; call .resolved() first")
        return self.config
