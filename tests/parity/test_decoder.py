"""opsin's loop over stock layers, packed, against transformers' own forward, one document at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opsin.core.errors import ModelError
from opsin.model.attention import PackedAttention
from opsin.model.config import LANGUAGE_MODELS, LanguageModel
from opsin.model.decoder import Decoder, load_decoder
from tests.support.models import language_facts

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = [7, 19, 1, 20, 8]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, scaled rotary": (
        "llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        },
    ),
    "mistral": ("mistral", {}),
    "mistral, window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
}


def pair(kind: str) -> tuple[Decoder, Any]:
    """A decoder, and a stock model of the same weights."""
    model_type, changes = KINDS[kind]
    facts = language_facts(model_type, **changes)
    torch.manual_seed(0)
    ours = load_decoder(LanguageModel.model_validate({"config": facts, "tokenizer": "."}))
    config = AutoConfig.for_model(**facts)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    theirs.load_state_dict(ours.lm.state_dict())
    return ours, theirs


def test_every_supported_kind_is_compared() -> None:
    assert {model_type for model_type, _ in KINDS.values()} == set(LANGUAGE_MODELS)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_and_gradients_equal_transformers_one_by_one(kind: str) -> None:
    ours, theirs = pair(kind)
    documents = [torch.randint(0, 512, (1, n), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None, None]
    attend = PackedAttention.plan(LENGTHS, torch.device("cpu"))
    logits = ours.logits(ours(ours.embed(torch.cat(documents, dim=1)), positions, attend))[0]
    one_by_one = torch.cat([theirs(input_ids=ids, use_cache=False).logits[0] for ids in documents])
    assert logits.std() > 0.1  # the comparison means something
    torch.testing.assert_close(logits, one_by_one, atol=1e-5, rtol=1e-5)

    targets = torch.cat(documents, dim=1)[0].roll(-1)
    for values in (logits, one_by_one):
        torch.nn.functional.cross_entropy(values, targets).backward()
    gradients = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in ours.lm.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-4, msg=name)
        compared += 1
    assert compared == len(gradients)


def test_a_window_changes_the_result() -> None:
    wide, narrow = pair("mistral")[0], pair("mistral, window")[0]
    ids = torch.arange(20)[None]
    attend = PackedAttention.plan([20], torch.device("cpu"))
    one, other = (model(model.embed(ids), torch.arange(20)[None, None], attend)[0] for model in (wide, narrow))
    torch.testing.assert_close(one[:5], other[:5])
    assert (one[5:] - other[5:]).abs().max() > 1e-2


def test_weights_of_a_directory_are_loaded_and_checked(tmp_path: Path) -> None:
    _, theirs = pair("qwen2")
    theirs.save_pretrained(tmp_path / "lm")
    language = LanguageModel.model_validate({"path": tmp_path / "lm"}).resolved()
    loaded = load_decoder(language)
    for name, value in theirs.state_dict().items():
        assert torch.equal(loaded.lm.state_dict()[name], value), name
    deeper = language.model_copy(update={"config": language.facts | {"num_hidden_layers": 3, "layer_types": None}})
    with pytest.raises(ModelError, match=r"do not match the config \(missing keys: model.layers.2"):
        load_decoder(deeper)


def test_unsupported_and_quantised_models_are_refused(tmp_path: Path) -> None:
    value = {"config": language_facts("gpt2"), "tokenizer": "."}
    with pytest.raises(ModelError, match="model_type 'gpt2'; supported: llama, mistral, qwen2, qwen3"):
        load_decoder(LanguageModel.model_validate(value))
    value = {"config": language_facts("llama", quantization_config={"bits": 4}), "path": tmp_path}
    with pytest.raises(ModelError, match="quantised; convert them to bfloat16 safetensors first"):
        load_decoder(LanguageModel.model_validate(value))
