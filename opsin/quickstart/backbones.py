"""The quick start's two pretrained backbones: from the files in their packages to folders that opsin loads.

`convert_*` write into an empty folder; `opsin.quickstart.built.build_once` makes that atomic and checks it later.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor

from opsin.core.errors import AssetError, MissingExtraError, ModelError
from opsin.core.files import write_json, write_text
from opsin.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# -- SmolLM2: GGUF -> Hugging Face folder ---------------------------------------------------------------------------

_GGUF_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that plain text must never produce."""

_GGUF_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class GgufLlama:
    """A Llama with tied embeddings from a GGUF file: its metadata, and weights under Hugging Face's names."""

    metadata: Mapping[str, Any]
    state: Mapping[str, Tensor]


def convert_smollm2(gguf_path: Path, out_dir: Path) -> None:
    """Write a Hugging Face folder (bf16 weights, config, tokenizer, chat template) from the GGUF file of SmolLM2."""
    content = read_gguf_llama(gguf_path)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in content.state.items()}
    save_file(weights, out_dir / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(out_dir / CONFIG_FILE, llama_config(content.metadata))
    write_tokenizer(content.metadata, out_dir)


def read_gguf_llama(path: Path) -> GgufLlama:
    """Metadata and de-quantised float32 weights: those that transformers gives, in a third of its time."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise MissingExtraError("gguf", "quickstart") from error

    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise AssetError(f"{path}: holds the architecture {architecture!r}, expected 'llama'")
    heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        num_heads = heads.get(_layer_part(tensor.name))
        state[hugging_face_name(tensor.name)] = weight if num_heads is None else split_rotary_halves(weight, num_heads)
    return GgufLlama(metadata=metadata, state=state)


def _layer_part(gguf_name: str) -> str:
    match = _GGUF_LAYER_NAME.fullmatch(gguf_name)
    return match[2] if match else ""


def hugging_face_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if (match := _GGUF_LAYER_NAME.fullmatch(gguf_name)) and match[2] in _GGUF_LAYER:
        return f"model.layers.{match[1]}.{_GGUF_LAYER[match[2]]}.weight"
    if (stem := gguf_name.removesuffix(".weight")) in _GGUF_TOP_LEVEL:
        return f"{_GGUF_TOP_LEVEL[stem]}.weight"
    raise AssetError(f"GGUF tensor {gguf_name!r} has no place in a Llama with tied embeddings")


def split_rotary_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Undo GGUF's order of query and key rows: it interleaves the halves that Hugging Face's rotary embedding pairs."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def llama_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's `config.json` of the model that GGUF metadata describe."""
    heads, width = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": width,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def write_tokenizer(metadata: Mapping[str, Any], out_dir: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokens = metadata["tokenizer.ggml.tokens"]
    build_tokenizer(metadata).save(str(out_dir / "tokenizer.json"))
    write_text(out_dir / "chat_template.jinja", metadata["tokenizer.chat_template"])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
    }
    write_json(out_dir / "tokenizer_config.json", config)


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE that GGUF metadata describe, control tokens marked as special.

    transformers' own GGUF reader drops the splitting of digits that the kind "smollm" stands for.
    """
    if (kind := metadata.get("tokenizer.ggml.pre")) != "smollm":
        raise AssetError(f"GGUF tokenizer of the kind {kind!r}, expected 'smollm': its splitting rules are not known")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    kinds = zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
    special = [
        AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == _GGUF_CONTROL_TOKEN
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


# -- EfficientNet-Lite2: weights of the package efficientnet-lite-pytorch -> our folder -----------------------------

BATCH_NORM_EPSILON = 1e-3
"""Of the published weights (not PyTorch's default)."""

_PACKAGE_LAYERS = {  # convolution of the package -> the batch norm behind it, and our name
    "_conv_stem": ("_bn0", "stem"),
    "_expand_conv": ("_bn0", "expand"),
    "_depthwise_conv": ("_bn1", "depthwise"),
    "_project_conv": ("_bn2", "project"),
    "_conv_head": ("_bn1", "head"),
}
_PACKAGE_WEIGHT = re.compile(rf"(_blocks\.\d+\.)?({'|'.join(_PACKAGE_LAYERS)})\.weight")
_CLASSIFIER = {"_fc.weight", "_fc.bias"}


def convert_efficientnet_lite2(pth_path: Path, out_dir: Path) -> None:
    """Write `config.json` and `model.safetensors` from a weights file whose sha256 the caller has verified."""
    config = EfficientNetLiteConfig("lite2")
    state = convert_state_dict(torch.load(pth_path, map_location="cpu", weights_only=True))
    try:
        EfficientNetLite(config).load_state_dict(state)
    except RuntimeError as error:  # names every tensor that is missing, left over or of another shape
        raise ModelError(f"{pth_path}: not the weights of EfficientNet-Lite2: {error}") from error
    save_file(state, out_dir / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(out_dir / CONFIG_FILE, asdict(config))


def convert_state_dict(package_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights named as in the package -> float32 weights of `EfficientNetLite`, batch norms folded into convolutions.

    The classifier is dropped; every other tensor must be understood, or `ModelError` names what is left over.
    """
    ours: dict[str, Tensor] = {}
    used = set(_CLASSIFIER)
    for name in package_state:
        if not (match := _PACKAGE_WEIGHT.fullmatch(name)):
            continue
        block, convolution = match[1] or "", match[2]
        norm, layer = _PACKAGE_LAYERS[convolution]
        prefix = block.removeprefix("_") + layer
        ours[f"{prefix}.weight"], ours[f"{prefix}.bias"] = _fold(package_state, name, f"{block}{norm}")
        used |= {name, *(key for key in package_state if key.startswith(f"{block}{norm}."))}
    if unknown := sorted(package_state.keys() - used):
        raise ModelError(
            f"EfficientNet-Lite weights: {len(unknown)} of {len(package_state)} tensors are not known, the first is "
            f"{unknown[0]!r}; expected the names of the package efficientnet-lite-pytorch"
        )
    return ours


def _fold(state: Mapping[str, Tensor], weight_name: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does what a convolution and its frozen batch norm do."""
    names = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    if missing := [name for name in names if name not in state]:
        raise ModelError(f"EfficientNet-Lite weights: {weight_name!r} has no batch norm: {', '.join(missing)} missing")
    gain, bias, mean, variance = (state[name].double() for name in names)
    scale = gain / torch.sqrt(variance + BATCH_NORM_EPSILON)
    weight = state[weight_name].double() * scale[:, None, None, None]
    return weight.float().contiguous(), (bias - mean * scale).float()
