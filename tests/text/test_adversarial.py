"""What people write cannot reach the structure: every template and label policy, on texts that spell its marks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.types import Conversation, Part, Picture, Turn
from opsin.text.own_template import spoken
from opsin.text.render import Rendered, render
from opsin.text.templates import (
    ChatML,
    Control,
    FromTokenizer,
    Llama2,
    Llama3,
    Media,
    Mistral,
    Opening,
    Template,
    Text,
    VicunaV1,
)
from opsin.text.tokenizer import Tokenizer
from tests.support.tokenizers import (
    CHATML_CONTROLS,
    LLAMA_3_CONTROLS,
    LLAMA_CONTROLS,
    llama_3_tokenizer_dir,
    llama_tokenizer_dir,
    qwen_vl_tokenizer_dir,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURE = Picture(path=Path("cat.jpg"))
AROUND = ("<|vision_start|>", "<|vision_end|>")
JINJA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A template, its tokenizer, and what is learned behind an answer's text."""

    template: Template
    make: Callable[[Path], Path]
    end: str


CASES = {
    "vicuna_v1": Case(VicunaV1(), llama_tokenizer_dir, "</s>"),
    "mmtag": Case(VicunaV1(image_tags=True), llama_tokenizer_dir, "</s>"),
    "mistral": Case(Mistral(), llama_tokenizer_dir, " </s>"),
    "llama_2": Case(Llama2(system="S"), llama_tokenizer_dir, " </s>"),
    "llama_3": Case(Llama3(system="S"), llama_3_tokenizer_dir, "<|eot_id|>"),
    "chatml": Case(ChatML(system="S"), qwen_vl_tokenizer_dir, "<|im_end|>"),
    "mpt": Case(ChatML(after_mark=""), qwen_vl_tokenizer_dir, "<|im_end|>"),
    "qwen2_vl": Case(ChatML(around_picture=AROUND, number_media=True), qwen_vl_tokenizer_dir, "<|im_end|>"),
    "qwen_finetune": Case(ChatML(labels="qwen_finetune"), qwen_vl_tokenizer_dir, "<|im_end|>\n"),
    "tokenizer": Case(FromTokenizer(around_picture=AROUND), qwen_vl_tokenizer_dir, "<|im_end|>"),
}
NEXT = ChatML(system="S\n", labels="llava_next")

MARKS = (*CHATML_CONTROLS, *LLAMA_CONTROLS, *LLAMA_3_CONTROLS, *AROUND)
LOOK_ALIKES = tuple(mark.translate({ord(c): ord(c) + 0xFEE0 for c in "<|>/_"}) for mark in MARKS)
HALVES = ("<|im_", "start|>", "<|", "|>", "</", "s>", "<|eot", "_id|>")
WORDS = ("<image>", "<Image>", "</Image>", "USER: ", " ASSISTANT:", "[INST]", " [/INST] ", "<<SYS>>\n", "assistant\n")
PIECES = (*MARKS, *LOOK_ALIKES, *HALVES, *WORDS, "\n", "\n\n", " ", "?", "cat", "{{ x }}", "{% y %}", "é🐈")
said = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=5).map("".join)
dialogs = st.lists(st.tuples(said, said.map(lambda text: text + "x")), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Tokenizer]:
    loaded = {}
    for make in {case.make for case in CASES.values()}:
        folder = make(tmp_path_factory.mktemp("tokenizer"))
        (folder / "chat_template.jinja").write_text(JINJA, encoding="utf-8")
        loaded[make] = Tokenizer.load(folder)
    return loaded


def talk(dialog: list[tuple[str, str]], *, picture: bool) -> Conversation:
    turns = []
    for question, answer in dialog:
        parts: tuple[Part, ...] = (PICTURE, question) if picture else (question,)
        turns += [Turn("user", parts), Turn("assistant", (answer,))]
    return Conversation("s1", tuple(turns))


def spans(rendered: Rendered, tokenizer: Tokenizer) -> list[str]:
    runs: list[list[int]] = [[]]
    for token, learned in zip(rendered.ids, rendered.supervised, strict=True):
        if learned:
            runs[-1].append(token)
        else:
            runs.append([])
    return [tokenizer.decode(run, keep_control=True) for run in runs if run]


def written(template: Template, tokenizer: Tokenizer, conversation: Conversation) -> list[str]:
    """What the template writes; a list, since no text goes on behind a picture."""
    texts = [""]
    for segment in spoken(template, tokenizer).segments(conversation):
        match segment:
            case Text(text):
                texts[-1] += text
            case Control(token):
                texts[-1] += token
            case Opening():
                texts[-1] += tokenizer.decode(tokenizer.opening_ids, keep_control=True)
            case Media():
                texts.append("")
    return texts


def pieces(rendered: Rendered, tokenizer: Tokenizer) -> list[str]:
    places = [0, *(index for index, _ in rendered.media), len(rendered.ids)]
    return [tokenizer.decode(rendered.ids[start:end], keep_control=True) for start, end in pairwise(places)]


@pytest.mark.parametrize("name", CASES)
@given(dialog=dialogs, picture=st.booleans())
@settings(max_examples=40, deadline=None)
def test_texts_stay_texts(
    name: str, dialog: list[tuple[str, str]], picture: bool, tokenizers: dict[Any, Tokenizer]
) -> None:
    case = CASES[name]
    tokenizer = tokenizers[case.make]
    whole = render(talk(dialog, picture=picture), case.template, tokenizer)

    harmless = render(talk([("q", "a")] * len(dialog), picture=picture), case.template, tokenizer)
    controls = [token for token in whole.ids if token in tokenizer.control_ids]
    assert controls == [token for token in harmless.ids if token in tokenizer.control_ids]

    assert pieces(whole, tokenizer) == written(case.template, tokenizer, talk(dialog, picture=picture))
    assert spans(whole, tokenizer) == [answer + case.end for _, answer in dialog]

    for number in range(1, len(dialog) + 1):
        asked = talk(dialog[:number], picture=picture)
        asked = Conversation("s1", asked.turns[:-1])
        prompt = render(asked, case.template, tokenizer, open_for_generation=True)
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert whole.media[: len(prompt.media)] == prompt.media
        assert whole.supervised[len(prompt.ids)]
        assert not whole.supervised[len(prompt.ids) - 1]


@given(dialog=dialogs)
@settings(max_examples=60, deadline=None)
def test_llava_next_learns_answers_headers_and_marks(
    dialog: list[tuple[str, str]], tokenizers: dict[Any, Tokenizer]
) -> None:
    tokenizer = tokenizers[qwen_vl_tokenizer_dir]
    marks = {tokenizer.control("<|im_start|>"), tokenizer.control("<|im_end|>"), *tokenizer.encode("\n")}
    conversation = talk(dialog, picture=False)
    answers = render(conversation, ChatML(system="S\n"), tokenizer)
    rendered = render(conversation, NEXT, tokenizer)
    assert rendered.ids == answers.ids
    header = tokenizer.encode("assistant\n")
    at = 0
    for index, token in enumerate(rendered.ids):
        begins = index > 0 and answers.supervised[index] and not answers.supervised[index - 1]
        if begins:
            assert all(rendered.supervised[index - len(header) : index])
            at += len(header)
        assert rendered.supervised[index] or (token not in marks and not answers.supervised[index])
    more = sum(rendered.supervised) - sum(answers.supervised)
    outside = sum(t in marks for t, s in zip(answers.ids, answers.supervised, strict=True) if not s)
    assert more == outside + at - len(dialog) * sum(token in marks for token in header)
