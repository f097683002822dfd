"""Adapters in peft's format: peft, on the models of others, computes what opsin computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from opsin.checkpoint.adapters import adapter_tensors, write_adapters
from opsin.checkpoint.compare import ask, inputs, text_places
from opsin.checkpoint.export import export_adapters
from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.load import load
from opsin.core.types import Picture
from opsin.model.lora import MARK
from opsin.train.optimiser import prepare_parts
from tests.support.hub import read
from tests.support.models import dialogue, draw_picture, packed, stage_of, tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opsin.model.config import Lora, ModuleName
    from opsin.model.vlm import Vlm

peft = pytest.importorskip("peft")

TRAINED: dict[str, dict[str, Any]] = {
    "all layers": {part: {"lr": 1e-3, "lora": {"rank": 2}} for part in ("vision", "language")},
    "some targets": {
        part: {"lr": 1e-3, "lora": {"rank": 3, "alpha": 5, "targets": ["q_proj", "self_attn.v_proj"]}}
        for part in ("vision", "language")
    },
    "some layers": {
        "vision": {"lr": 1e-3, "layers": "0-0", "lora": {"rank": 2, "dropout": 0.5}},
        "language": {"lr": 1e-3, "layers": "1-1", "lora": {"rank": 2}},
    },
}


def trained(model: Vlm, train: dict[str, Any]) -> dict[ModuleName, Lora]:
    """Give a model adapters as after some training."""
    lora = prepare_parts(model, stage_of(train))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if MARK in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.requires_grad_(requires_grad=False).eval()
    return lora


@pytest.mark.parametrize("plan", TRAINED)
def test_peft_puts_them_on_the_language_model_and_the_tower(tmp_path: Path, plan: str) -> None:
    model, prepare = tiny_vlm(tmp_path, encoder="clip", language="qwen2")
    tower = copy.deepcopy(model.encoder.tower)
    model.decoder.lm.save_pretrained(tmp_path / "base")
    batch = packed([dialogue("a", "What is it?", "A cat.")], prepare)
    pixels = torch.rand(2, 3, 32, 32)
    bare = model.decoder.logits(model(batch))
    lora = trained(model, TRAINED[plan])
    write_adapters(tmp_path, adapter_tensors(model, lora), lora)

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapters" / "language").eval()
    ours = model.decoder.logits(model(batch))
    with torch.no_grad():
        logits = theirs(input_ids=batch.tokens_T[None]).logits[0]
    torch.testing.assert_close(logits, ours, atol=1e-5, rtol=0)
    assert (ours - bare).abs().max() > 0.1

    looking = peft.PeftModel.from_pretrained(tower, tmp_path / "adapters" / "vision").eval()
    with torch.no_grad():
        seen, own = looking(pixels).last_hidden_state, model.encoder.tower(pixels).last_hidden_state
    torch.testing.assert_close(seen, own, atol=1e-5, rtol=0)


def test_a_tuned_adapter_comes_back_as_it_was(tmp_path: Path) -> None:
    model, _ = tiny_vlm(tmp_path, encoder="clip")
    model.decoder.lm.save_pretrained(tmp_path / "base")
    lora = trained(model, TRAINED["some targets"])
    written = adapter_tensors(model, lora)
    write_adapters(tmp_path, written, lora)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapters" / "language")
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 5)
    theirs.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == written["language"].keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in written["language"].items())


def test_adapters_of_the_connection_go_on_opsins_own_module(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path, encoder="clip", fusion="gated_cross_attention")
    connection = copy.deepcopy(model.connection)
    lora = trained(model, {"connector": {"lr": 1e-3, "lora": {"rank": 2}}})
    tensors = adapter_tensors(model, lora)
    write_adapters(tmp_path, tensors, lora)
    theirs = peft.PeftModel.from_pretrained(connection, tmp_path / "adapters" / "connector")
    held = {name for name, _ in theirs.named_parameters() if MARK in name}
    assert {name.replace(".default", "") for name in held} == set(tensors["connector"])
    batch = packed([dialogue("a", "What?", "A cat.", [Picture(path=draw_picture(tmp_path / "a.png", 1))])], prepare)
    torch.testing.assert_close(connection(model.encode(batch), batch.layouts), model.look(batch))


CLASSES = {
    "llava": LlavaForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
}


@pytest.mark.parametrize("family", CLASSES)
def test_adapters_alone_go_on_the_familys_class(
    checkpoint: Callable[..., Path], tmp_path: Path, family: Family
) -> None:
    loaded = load(checkpoint(family))
    lora = trained(
        loaded.model,
        {
            "vision": {"lr": 1e-3, "lora": {"rank": 2}},
            "connector": {"lr": 1e-3, "lora": {"rank": 4}},
            "language": {"lr": 1e-3, "lora": {"rank": 3, "alpha": 5}},
        },
    )
    assert export_adapters(replace(loaded, lora=lora), tmp_path / "out") == family
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = CLASSES[family].from_pretrained(checkpoint(family))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    config = loaded.model.config
    ids = ids_of(checkpoint(family))
    for one in ask(loaded.model, loaded.preparation, family):
        given = inputs(config, one.batch, family, ids, is_clip=one.prompt == "video")
        with torch.no_grad():
            other = theirs(**given, use_cache=False, logits_to_keep=text_places(one.batch)).logits[0]
        torch.testing.assert_close(other, one.logits, atol=1e-4, rtol=1e-4, msg=one.prompt)


def ids_of(folder: Path) -> dict[str, int]:
    """The ids of media's tokens, by the tokens."""
    added = read(folder / "tokenizer.json")["added_tokens"]
    return {token["content"]: token["id"] for token in added}
