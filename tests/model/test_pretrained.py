from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from opsin.model.config import ModelConfig
from opsin.model.pretrained import NEVER_FROM_A_FILE, read_hf_config
from tests.support.models import model_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("key", NEVER_FROM_A_FILE)
def test_keys_that_could_run_code_are_dropped_from_a_file_at_any_depth(key: str, tmp_path: Path) -> None:
    config = {"a": 1, key: "evil/kernels", "vision_config": {"b": [{key: "evil/kernels", "c": 2}]}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_hf_config(tmp_path) == {"a": 1, "vision_config": {"b": [{"c": 2}]}}


@pytest.mark.parametrize("part", ["encoder", "language"])
@pytest.mark.parametrize("key", NEVER_FROM_A_FILE)
def test_keys_that_could_run_code_are_refused_in_a_recipe(key: str, part: str, tmp_path: Path) -> None:
    value: dict[str, Any] = model_value(chatml_tokenizer_dir(tmp_path), encoder="clip")
    value[part]["config"][key] = "evil/kernels"
    with pytest.raises(ValidationError, match="may not choose code or kernels: remove auto_map"):
        ModelConfig.model_validate(value)
