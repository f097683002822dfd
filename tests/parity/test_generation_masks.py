"""Row D9: what is learned is what transformers marks as generated, for templates that say so by `{% generation %}`.

Equal are ids and masks, whether the end mark is inside of the template's block or behind it: opsin always learns the
mark that ends an answer. They differ where an answer begins with a space or a newline. transformers encodes it together
with the header before it, so that a token can hold the end of one and the beginning of the other; in opsin no token
does, because a prompt must be a prefix of what was trained. And where a block ends with a character of several tokens,
transformers marks only the first of them; opsin learns them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from opsin.core.types import Conversation, Turn
from opsin.text.render import Rendered, render
from opsin.text.templates import ChatML, Llama3, Template
from opsin.text.tokenizer import Tokenizer
from tests.support.tokenizers import chatml_tokenizer_dir, llama_3_tokenizer_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCKS = {
    "mark inside": "{% generation %}{{ m.content }}MARK{% endgeneration %}",
    "mark behind": "{% generation %}{{ m.content }}{% endgeneration %}MARK",
}
TURNS = (
    "{% for m in messages %}HEAD{% if m.role == 'assistant' %}BLOCK{% else %}{{ m.content }}MARK{% endif %}TAIL"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Pair:
    """One tokenizer, as opsin and as transformers read it."""

    own: Tokenizer
    peer: Any


@dataclass(frozen=True)
class Case:
    template: Template
    make: Callable[[Path], Path]
    opening: str
    head: str
    mark: str
    tail: str

    def jinja(self, block: str) -> str:
        body = TURNS.replace("BLOCK", BLOCKS[block])
        for word, text in (("HEAD", self.head), ("MARK", self.mark), ("TAIL", self.tail)):
            body = body.replace(word, text)
        return self.opening + body


ROLE = "{{ m.role }}"
CASES = {
    "chatml": Case(ChatML(), chatml_tokenizer_dir, "", f"<|im_start|>{ROLE}\n", "<|im_end|>", r"{{ '\n' }}"),
    "llama_3": Case(
        Llama3(),
        llama_3_tokenizer_dir,
        "<|begin_of_text|>",
        f"<|start_header_id|>{ROLE}<|end_header_id|>{{{{ '\\n\\n' }}}}",
        "<|eot_id|>",
        "",
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    loaded = {}
    for name, case in CASES.items():
        folder = case.make(tmp_path_factory.mktemp(name))
        peer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        loaded[name] = Pair(Tokenizer.load(folder), peer)
    return lambda name: loaded[name]


def both(
    name: str, block: str, texts: list[str], system: str | None, tokenizers: Callable[[str], Pair]
) -> tuple[Rendered, list[int], list[bool]]:
    """opsin's rendering, and transformers' ids and mask, of the same words."""
    said = [("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
    said = said if system is None else [("system", system), *said]
    found = tokenizers(name).peer.apply_chat_template(
        [{"role": role, "content": text} for role, text in said],
        chat_template=CASES[name].jinja(block),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    turns = tuple(Turn(role, (text,)) for role, text in said)  # type: ignore[arg-type]
    rendered = render(Conversation("s", turns), CASES[name].template, tokenizers(name).own)
    return rendered, found["input_ids"], [bool(learned) for learned in found["assistant_masks"]]


# Without `<`: what spells a control token becomes one in transformers, and never in opsin (tests/text).
words = st.text(alphabet="ab CD.,?'\n\tüé猫0 ", max_size=12)
answers = words.map(lambda text: "x" + text)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", CASES)
@given(dialog=st.lists(st.tuples(words, answers), min_size=1, max_size=3), system=st.none() | words)
@settings(max_examples=60, deadline=None)
def test_ids_and_masks_are_transformers(
    name: str,
    block: str,
    dialog: list[tuple[str, str]],
    system: str | None,
    tokenizers: Callable[[str], Pair],
) -> None:
    last = "x" if block == "mark behind" else ""
    texts = [text for question, answer in dialog for text in (question, answer + last)]
    rendered, ids, mask = both(name, block, texts, system, tokenizers)
    assert list(rendered.ids) == ids
    mark = tokenizers(name).own.control(CASES[name].mark)
    ends = [token == mark and before for token, before in zip(ids[1:], rendered.supervised, strict=False)]
    assert sum(ends) == len(dialog)
    expected = mask if block == "mark inside" else [m or e for m, e in zip(mask, [False, *ends], strict=True)]
    assert list(rendered.supervised) == expected


def test_all_tokens_of_an_answers_last_character_are_learned(tokenizers: Callable[[str], Pair]) -> None:
    rendered, ids, mask = both("chatml", "mark behind", ["Q", "a ü"], None, tokenizers)
    assert list(rendered.ids) == ids
    assert sum(rendered.supervised) == sum(mask) + 2  # the second byte, and the end mark


def test_no_token_holds_the_end_of_a_header_and_the_beginning_of_an_answer(
    tokenizers: Callable[[str], Pair],
) -> None:
    tokenizer = tokenizers("chatml").own
    rendered, ids, _ = both("chatml", "mark inside", ["Q", "\n a cat"], None, tokenizers)
    learned = [token for token, is_learned in zip(rendered.ids, rendered.supervised, strict=True) if is_learned]
    assert tokenizer.decode(learned, keep_control=True) == "\n a cat<|im_end|>"
    assert tokenizer.decode(rendered.ids, keep_control=True) == tokenizer.decode(ids, keep_control=True)
