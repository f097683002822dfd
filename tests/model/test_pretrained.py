from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from opsin.core.errors import ModelError
from opsin.model.config import ModelConfig
from opsin.model.pretrained import NEVER_FROM_A_FILE, read_hf_config
from opsin.model.vlm import Vlm
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


@pytest.mark.parametrize(
    ("part", "key", "hint"),
    [
        ("language", "hidden_sizee", "did you mean 'hidden_size'"),
        ("encoder", "num_hidden_layer", "did you mean 'num_hidden_layers'"),
        ("encoder", "foo", "encoder.config: unknown 'foo'"),
    ],
)
def test_misspelt_keys_of_a_new_models_config_are_refused(part: str, key: str, hint: str, tmp_path: Path) -> None:
    value: dict[str, Any] = model_value(chatml_tokenizer_dir(tmp_path), encoder="siglip")
    value[part]["config"][key] = 5
    with pytest.raises(ModelError, match=hint):
        Vlm(ModelConfig.model_validate(value).resolved())


@pytest.mark.parametrize(
    "facts", [{"num_attention_heads": 5, "head_dim": None}, {"head_dim": 7}, {"num_key_value_heads": 3}]
)
def test_heads_that_do_not_divide_are_refused_before_anything_is_built(facts: dict[str, Any], tmp_path: Path) -> None:
    value: dict[str, Any] = model_value(chatml_tokenizer_dir(tmp_path), **facts)
    with pytest.raises(ModelError, match="the heads must divide the width into even parts"):
        ModelConfig.model_validate(value).resolved()


def test_a_whole_llava_is_not_taken_for_an_encoder(tmp_path: Path) -> None:
    config = {"model_type": "llava", "text_config": {}, "vision_config": {"model_type": "clip_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    value: dict[str, Any] = model_value(chatml_tokenizer_dir(tmp_path)) | {
        "encoder": {"kind": "clip", "path": tmp_path}
    }
    with pytest.raises(ModelError, match="a whole llava model; to train on it, give it as 'start_from'"):
        ModelConfig.model_validate(value).resolved()
