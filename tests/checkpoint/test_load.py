from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import opsin
from opsin.checkpoint.compare import ask, compare
from opsin.checkpoint.load import load, read_model_config
from opsin.checkpoint.model import write_model
from opsin.checkpoint.store import commit
from opsin.core.errors import CheckpointError, ModelError, RenderError
from opsin.core.types import Conversation, Turn
from opsin.model.config import ModelConfig
from opsin.model.encoder_values import ClipEncoder
from opsin.model.vlm import Vlm
from opsin.text.templates import ChatML
from tests.support.hub import FAMILIES, hub_dir, in_memory_layout, media_of, read, write
from tests.support.models import packed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opsin.checkpoint.model import Loaded


def state(path: Path) -> dict[str, torch.Tensor]:
    return load(path).model.state_dict()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a directory."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def media_ids(loaded: Loaded, family: str) -> dict[str, int]:
    return {token: loaded.tokenizer.control(token) for token in media_of(family)}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(checkpoint: Callable[..., Path], family: str) -> None:
    folder = checkpoint(family, "saved")
    loaded = load(folder)
    asked = ask(loaded.model, loaded.preparation, family)  # type: ignore[arg-type]
    found = compare(asked, loaded.model.config, folder, family, media_ids(loaded, family))  # type: ignore[arg-type]
    clips = ["video"] if family in {"llava_onevision", "qwen2_vl"} else []
    assert [c.prompt for c in found] == ["text", "image", *clips]
    assert max(c.difference for c in found) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_does_not_matter(checkpoint: Callable[..., Path], tmp_path: Path, family: str) -> None:
    saved = checkpoint(family, "saved")
    expected = state(saved)
    assert_same(state(checkpoint(family, "hub")), expected)
    assert_same(state(in_memory_layout(saved, tmp_path / "memory")), expected)


def test_every_tensor_of_the_file_is_in_the_model(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2_vl")
    loaded = state(folder)
    file = load_file(folder / "model.safetensors")
    assert len(loaded) == len(file)
    patches = file["visual.patch_embed.proj.weight"]
    assert torch.equal(loaded["encoder.vit.patch_embed.weight"], patches.flatten(1))
    assert torch.equal(loaded["decoder.lm.model.embed_tokens.weight"], file["model.embed_tokens.weight"])


@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "bf16"), (torch.float16, "fp32")])
def test_weights_keep_the_files_type(tmp_path: Path, dtype: torch.dtype, precision: str) -> None:
    loaded = load(hub_dir(tmp_path, "llava_onevision", dtype=dtype))
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert loaded.model.precision == precision
    batch = packed(
        [Conversation("a", (Turn("user", ("Hello?",)), Turn("assistant", ("Yes.",))))],
        loaded.preparation,
    )
    with torch.no_grad(), loaded.model.computing():
        assert loaded.model(batch).isfinite().all()


def test_what_is_loaded_is_ready_to_use_and_not_trainable(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    loaded = opsin.load(str(folder))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert (loaded.path, loaded.meta) == (folder, {"source": "llava"})
    assert loaded.tokenizer.control("<image>") == read(folder / "config.json")["image_token_index"]


def test_load_is_found_in_the_package() -> None:
    assert opsin.load is load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = opsin.lode


def test_a_run_and_a_checkpoint_of_opsin(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load(checkpoint("qwen2_vl"))
    own = commit(
        tmp_path / "run" / "checkpoints" / "1",
        lambda x: write_model(x, loaded.model, loaded.tokenizer, {}),
        {"step": 1},
    )
    for path in (own, tmp_path / "run"):
        assert_same(state(path), loaded.model.state_dict())
        assert read_model_config(path).resolution == loaded.model.config.resolution
    with pytest.raises(CheckpointError, match="opsin's own checkpoint, which holds its tower"):
        load(own, vision_tower=tmp_path)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_a_tied_model_has_no_head_in_its_file(tmp_path: Path, family: str) -> None:
    folder = hub_dir(tmp_path, family, tie_word_embeddings=True)
    assert not [name for name in load_file(folder / "model.safetensors") if "lm_head" in name]
    decoder = load(folder).model.decoder
    assert decoder.head_weight is decoder.input_weight
    embedding = (
        "language_model.model.embed_tokens.weight" if family == "llava_onevision" else "model.embed_tokens.weight"
    )
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    assert load(folder).model.decoder.head_weight is not None  # once more, but the same
    edit(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match=r"ties lm_head\.weight to the embedding, but the file holds another one"):
        load(folder)


def test_a_head_that_is_missing_is_not_made_up(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    edit(folder, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    with pytest.raises(ModelError, match=r"1 tensor does not fit: missing decoder\.lm\.lm_head\.weight"):
        load(folder)


def test_everything_that_does_not_fit_is_named(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["multi_modal_projector.linear_1.bias"]
        tensors["language_model.model.norm.weight"] = torch.zeros(31)
        tensors["something.else"] = torch.zeros(1)
        tensors["model.multi_modal_projector.linear_2.bias"] = torch.zeros(32)

    edit(folder, change)
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    for part in (
        "4 tensors do not fit",
        "missing connection.connector.layers.0.bias",
        "unexpected something.else",
        "decoder.lm.model.norm.weight is (31,), expected (32,)",
        "is there twice, under two names of connection.connector.layers.2.bias",
    ):
        assert part in message


def test_a_convolution_of_another_form_is_not_flattened(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2_vl")
    name = "visual.patch_embed.proj.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name].transpose(1, 2).contiguous()}))
    with pytest.raises(ModelError, match=r"patch_embed\.weight is \(16, 2, 3, 14, 14\), expected \(16, 1176\)"):
        load(folder)


def test_weights_that_are_no_numbers_with_a_point(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    name = "language_model.model.norm.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int64)}))
    with pytest.raises(ModelError, match=r"norm\.weight is stored as int64; weights are floating-point"):
        load(folder)


def test_a_config_larger_than_the_weights_is_refused_before_memory_is_taken(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    config = read(folder / "config.json")
    config["text_config"] |= {"hidden_size": 65_536, "intermediate_size": 1_000_000, "head_dim": 128}
    write(folder / "config.json", config)  # a layer of it would take 800 GB
    with pytest.raises(ModelError, match="tensors do not fit"):
        load(folder)


def test_listed_tensors_of_no_use_are_passed_over(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava_onevision")
    expected = state(folder)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 16)
        tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(16)[None]
        tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    edit(folder, change)
    assert_same(state(folder), expected)


def test_shards_and_pickles_without_code(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    expected = state(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, part in halves.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    places = {name: file for file, part in halves.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert_same(state(folder), expected)


def test_damage_is_named(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint("llava")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load(folder)
    with pytest.raises(CheckpointError, match="no such directory"):
        load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(No such file"):
        load(tmp_path / "empty")


def test_a_directory_without_a_tokenizer_takes_another_ones(checkpoint: Callable[..., Path]) -> None:
    folder, other = checkpoint("llava"), checkpoint("llava")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load(folder)
    assert load(folder, tokenizer=other).tokenizer.control("<image>")


def test_a_template_of_another_models_tokens_is_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(RenderError, match=r"no control token '<\|im_end\|>'.*choose a template that fits"):
        load(checkpoint("llava"), template=ChatML())


def test_a_config_is_read_without_weights(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava_next")
    expected = load(folder).model.config
    (folder / "model.safetensors").unlink()
    assert read_model_config(folder) == expected


def test_several_layers_of_features_are_those_of_transformers(tmp_path: Path) -> None:
    folder = hub_dir(tmp_path, "llava", vision_feature_layer=[-2, 1])
    model = load(folder).model
    assert isinstance(model.config.encoder, ClipEncoder)
    theirs = AutoModelForImageTextToText.from_pretrained(folder)
    pixels = torch.arange(56 * 56 * 3).to(torch.uint8)
    layout = model.config.layout(56, 56, "single")
    with torch.no_grad():
        ours = model.connection(model.encoder(pixels, [layout]), [layout])
        normalised: Any = model.encoder.normalise(pixels.view(1, 3, 56, 56))  # type: ignore[operator]
        expected = theirs.model.get_image_features(normalised, return_dict=True).pooler_output[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_buffers_that_no_file_has_are_as_in_a_model_built_with_memory(checkpoint: Callable[..., Path]) -> None:
    for family in FAMILIES:
        loaded = load(checkpoint(family)).model
        config: ModelConfig = loaded.config
        built = dict(Vlm(config, weights=False).named_buffers())
        for name, buffer in loaded.named_buffers():
            assert torch.equal(buffer, built[name]), name
