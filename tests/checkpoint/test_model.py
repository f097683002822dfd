from __future__ import annotations

import json
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opsin.checkpoint.model import fill_model, find_checkpoint, load_model, read_config, unique_state, write_model
from opsin.checkpoint.shards import Weights
from opsin.checkpoint.store import commit
from opsin.core.errors import CheckpointError, ModelError
from opsin.core.types import Picture
from opsin.model.config import Lora
from opsin.model.lora import MARK, add_lora, merge_lora
from opsin.model.vlm import Vlm
from tests.support.models import ENCODERS, build, dialogue, draw_picture, packed, tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opsin.data.example import Preparation
    from opsin.model.config import ModuleName


def saved(path: Path, model: Vlm, prepare: Preparation, lora: dict[ModuleName, Lora] | None = None) -> Path:
    return commit(path, lambda folder: write_model(folder, model, prepare.tokenizer, lora or {}), {"step": 1})


def assert_same(one: Vlm, other: Vlm) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_round_trip_is_bit_identical(tmp_path: Path, encoder: str, tied: bool) -> None:
    model, prepare = tiny_vlm(tmp_path, encoder=encoder, tie_word_embeddings=tied)
    loaded = load_model(saved(tmp_path / "x", model, prepare))
    assert_same(model, loaded.model)
    assert loaded.meta == {"step": 1}
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    embedding = loaded.model.decoder.lm.model.embed_tokens.weight
    assert (embedding.data_ptr() == loaded.model.decoder.head_weight.data_ptr()) is tied

    picture = Picture(path=draw_picture(tmp_path / "a.png", 1))
    batch = packed([dialogue("a", "What?", "A cat.", [picture])], prepare)
    assert torch.equal(model.eval()(batch), loaded.model(batch))
    assert loaded.tokenizer.encode("A cat.") == prepare.tokenizer.encode("A cat.")


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path, tie_word_embeddings=True)
    names = load_file(saved(tmp_path / "x", model, prepare) / "model.safetensors").keys()
    assert [name for name in names if "lm_head" in name or "embed_tokens" in name] == [
        "decoder.lm.model.embed_tokens.weight"
    ]


def test_mixed_dtypes_and_the_precision_come_back(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path, tie_word_embeddings=True)
    for part in (model.encoder, model.decoder):
        for parameter in part.parameters():
            parameter.data = parameter.data.bfloat16()
    model.precision = "bf16"
    loaded = load_model(saved(tmp_path / "x", model, prepare)).model
    assert_same(model, loaded)
    assert loaded.precision == "bf16"
    assert {p.dtype for p in loaded.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.connection.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_when_a_checkpoint_is_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    model, prepare = tiny_vlm(tmp_path)
    for parameter in model.decoder.parameters():
        parameter.data = parameter.data.to(dtype)
    lora = Lora(rank=2, alpha=4)
    add_lora(model.decoder, lora)
    for name, parameter in model.named_parameters():
        if MARK in name:
            parameter.data = torch.randn_like(parameter)
    path = saved(tmp_path / "x", model, prepare, {"language": lora})
    assert read_config(path).lora == {"language": lora}
    loaded = load_model(path).model
    assert not [name for name in loaded.state_dict() if MARK in name]
    merge_lora(model.decoder)
    assert_same(model, loaded)


def test_a_checkpoint_does_not_need_the_machine_that_made_it(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path / "first")
    path = saved(tmp_path / "first" / "x", model, prepare)
    assert str(tmp_path) not in (path / "model.json").read_text(encoding="utf-8")
    moved = path.rename(tmp_path / "moved")
    (tmp_path / "first").rename(tmp_path / "gone")
    loaded = load_model(moved)
    assert loaded.model.config.language.tokenizer == moved / "tokenizer"
    assert_same(model, loaded.model)


def test_a_damaged_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    path = saved(tmp_path / "x", model, prepare)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors was altered"):
        load_model(path)


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    path = saved(tmp_path / "x", model, prepare)
    other = build(model.config.model_dump() | {"connector": {"kind": "linear"}})
    with pytest.raises(ModelError, match=r"2 tensors do not fit: unexpected connection\.connector\.layers\.2\."):
        fill_model(other, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_filled_one_tensor_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model, prepare = tiny_vlm(tmp_path, encoder="clip", tie_word_embeddings=True)
    model.to(dtype)
    path = saved(tmp_path / "x", model, prepare)
    other = build(model.config.model_dump(), seed=1)
    read, alive = Weights.read, []

    def counted(weights: Weights, names: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in read(weights, names):
            alive.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
            if dtype == torch.float32:  # of another type, the file's tensor becomes the model's
                assert sum(reference() is not None for reference in alive[:-1]) <= 1

    monkeypatch.setattr(Weights, "read", counted)
    fill_model(other, path)
    assert len(alive) > 10
    assert_same(model, other)
    assert other.decoder.head_weight.data_ptr() == other.decoder.input_weight.data_ptr()


def test_weights_that_are_a_pickle_are_never_run(tmp_path: Path) -> None:
    model, _ = tiny_vlm(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(unique_state(model.connection)))
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        fill_model(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: no such file"):
        fill_model(model, tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {}, "lora": {}, "precision": "fp32"}'])
def test_an_unreadable_model_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.json: "):
        read_config(tmp_path)


def test_a_run_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    saved(tmp_path / "run" / "checkpoints" / "00-a-000001", model, prepare)
    newest = saved(tmp_path / "run" / "checkpoints" / "00-a-000002", model, prepare)
    assert find_checkpoint(tmp_path / "run") == newest
    assert load_model(tmp_path / "run").path == newest
    with pytest.raises(CheckpointError, match="no such directory; give a run or a checkpoint of one"):
        find_checkpoint(tmp_path / "none")


def test_unique_state_keeps_every_storage_once() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3, bias=False), "b": torch.nn.Linear(2, 3, bias=False)})
    module["b"].weight = module["a"].weight
    assert list(unique_state(module)) == ["a.weight"]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    value = json.loads((saved(tmp_path / "x", model, prepare) / "model.json").read_text(encoding="utf-8"))
    assert value["precision"] == "fp32"
    assert value["model"]["language"]["tokenizer"] == "tokenizer"
    save_file({}, tmp_path / "empty.safetensors")  # a model is never written as an empty file
    assert (tmp_path / "x" / "model.safetensors").stat().st_size > (tmp_path / "empty.safetensors").stat().st_size
