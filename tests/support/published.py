"""Published tokenizers from installed packages, for tests marked `network`; None where the package is missing."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def package_file(package: str, pattern: str) -> Path | None:
    """A data file of an installed package, without importing the package."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob(pattern)):
            return path
    return None


def sentencepiece_dir(model: Path, folder: Path) -> Path:
    """A SentencePiece BPE model as a tokenizer.json like Llama's."""
    pieces = [_piece(message) for number, message in _messages(model.read_bytes()) if number == 1]
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    merges = []
    for piece, score, kind in pieces:
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))] if kind == 1 else []
        local = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += [(-score, pair) for pair in sorted(local, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    merges.sort(key=lambda merge: merge[0])
    control = [
        {"id": i, "content": piece, "special": True} for i, (piece, _, kind) in enumerate(pieces) if kind in (2, 3)
    ]
    spec = {
        "version": "1.0",
        "added_tokens": [
            token | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) for token in control
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [pair for _, pair in merges],
        },
    }
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "add_bos_token": True}
    return _written(spec, config, folder)


def gguf_dir(model: Path, folder: Path) -> Path:
    """The byte-level BPE of a GGUF file (SmolLM2) as a tokenizer.json."""
    from gguf import GGUFReader

    reader = GGUFReader(model)
    tokens = [str(token) for token in reader.fields["tokenizer.ggml.tokens"].contents()]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [str(merge) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }
    return _written(spec, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, folder)


def _written(spec: dict[str, Any], config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _piece(message: bytes) -> tuple[str, float, int]:
    fields = dict(_messages(message))
    return fields[1].decode("utf-8"), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1)


def _messages(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        size = {5: 4, 1: 8}.get(tag & 7)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if size is None:
            size, at = _varint(data, at)
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
