"""Small real tokenizers, made in the test: what the published ones look like, without a download."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from pathlib import Path

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What is in the picture? ASSISTANT: A cat.",
    "user assistant system What colour is the cat? Black and white. a dog on grass, two red squares",
    "<|im_start|> <|im_end|> <s> </s> <unk> <image> im_start im_end </s </ s> |im|",
    "Grüße aus Köln, 猫がいます, 🐈 naïve café",
] * 4

CHATML_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>")
LLAMA_3_CONTROLS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_CONTROLS = ("<s>", "</s>")
WORD_CONTROLS = ("[BOS]", "[EOS]", "[PAD]")


def chatml_tokenizer_dir(tmp_path: Path) -> Path:
    """Byte-level BPE with ChatML's control tokens, a tool mark that is not special, and a token of spaces."""
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("    ", normalized=False)])
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}}
    return _saved(backend, config, tmp_path / "chatml")


def qwen_vl_tokenizer_dir(tmp_path: Path) -> Path:
    """As ChatML's, with the marks around pictures."""
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"])
    return _saved(backend, {"eos_token": "<|im_end|>"}, tmp_path / "qwen_vl")


def llama_3_tokenizer_dir(tmp_path: Path) -> Path:
    """Byte-level BPE with Llama 3's control tokens; it puts the first of them before every text."""
    backend = _byte_level(list(LLAMA_3_CONTROLS))
    begin = LLAMA_3_CONTROLS[0]
    backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    return _saved(backend, {"bos_token": begin, "eos_token": "<|eot_id|>"}, tmp_path / "llama_3")


def llama_tokenizer_dir(tmp_path: Path) -> Path:
    """SentencePiece-like BPE as in Llama and Vicuna: a dummy space before every text, bytes for unknown characters."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Trained on words: without a pre-tokenizer a merge could otherwise span spaces, which SentencePiece forbids.
    words = [f"▁{word}" for line in CORPUS for word in line.split()]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.train_from_iterator(words, trainer)
    trained = json.loads(plain.to_str())["model"]
    spec = json.loads(backend.to_str())
    spec["model"] |= {"vocab": trained["vocab"], "merges": trained["merges"]}
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "add_bos_token": True}
    return _saved(backend, config, tmp_path / "llama")


def word_tokenizer_dir(tmp_path: Path) -> Path:
    """Whole words looked up in the vocabulary, where a control token's name would be found if it were left there."""
    words = ["[UNK]", *WORD_CONTROLS, "a", "cat", "user", "assistant", "."]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[UNK]", *WORD_CONTROLS])
    config = {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    return _saved(backend, config, tmp_path / "words")


def unigram_tokenizer_dir(tmp_path: Path) -> Path:
    """Unigram with a control token in the middle of the vocabulary and two added behind it."""
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        *((piece, -3.0) for piece in ("▁", "a", "cat", "/", "s", "<", ">", "▁cat")),
    ]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "</s>", "<extra_0>", "<extra_1>"])
    return _saved(backend, {"eos_token": "</s>"}, tmp_path / "unigram")


def whole_word_bpe_dir(tmp_path: Path) -> Path:
    """BPE that takes a whole word from the vocabulary before it merges (`ignore_merges`, as in Llama 3)."""
    vocab = {piece: index for index, piece in enumerate(["<", "e", "o", "s", ">", "<eos>", "<e", "os", "os>"])}
    merges = [("<", "e"), ("o", "s"), ("os", ">"), ("<e", "os>")]
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.add_special_tokens(["<eos>"])
    return _saved(backend, {"eos_token": "<eos>"}, tmp_path / "whole_word")


def _byte_level(special_tokens: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=sorted(alphabet), special_tokens=special_tokens, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _saved(backend: Tokenizer, config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
