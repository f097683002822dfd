from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opsin.core.errors import RenderError
from opsin.core.types import Conversation, Part, Picture, Turn
from opsin.text.labels import Labels
from opsin.text.render import Rendered, render
from opsin.text.templates import MPT_SYSTEM, QWEN_SYSTEM, ChatML, Llama2, Llama3, Template
from opsin.text.tokenizer import Tokenizer
from tests.support.tokenizers import chatml_tokenizer_dir, llama_3_tokenizer_dir, llama_tokenizer_dir

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden" / "llavanext_qwen_templates.json").read_text(encoding="utf-8")
)
MARKS = {GOLDEN["special_ids"][name] for name in ("im_start", "im_end", "newline")}
PICTURE_ID = -200
QUESTION_NEWLINE = 1000
PICTURE = Picture(path=Path("cat.jpg"))
QWEN_LABELS: tuple[Labels, ...] = ("answer_only", "qwen_finetune", "llava_next")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(chatml_tokenizer_dir(tmp_path_factory.mktemp("chatml")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As Qwen's tokenizer, a question mark and a newline are one token."""
    folder = chatml_tokenizer_dir(tmp_path_factory.mktemp("qwen"))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["vocab"]["?Ċ"] = QUESTION_NEWLINE
    spec["model"]["merges"].append(["?", "Ċ"])
    spec["pre_tokenizer"]["use_regex"] = False
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return Tokenizer.load(folder)


def talk(*texts: str) -> Conversation:
    turns = (Turn("assistant" if i % 2 else "user", (text,)) for i, text in enumerate(texts))
    return Conversation(id="s1", where="data.json:7", turns=tuple(turns))


def golden_talk(row: dict[str, Any]) -> Conversation:
    turns = []
    for said, text in zip(row["dialog"], row["after_preprocess_multimodal"], strict=True):
        parts: list[Part] = []
        for index, piece in enumerate(text.split("<image>")):
            parts += [PICTURE, piece] if index else [piece]
        turns.append(Turn("user" if said["from"] == "human" else "assistant", tuple(part for part in parts if part)))
    return Conversation(id=row["name"], turns=tuple(turns[turns[0].role == "assistant" :]))


def spans(rendered: Rendered, tokenizer: Tokenizer) -> list[str]:
    """The texts of the runs that are learned, parted also where a picture is."""
    places = {index for index, _ in rendered.media}
    runs: list[list[int]] = [[]]
    for index, (token, learned) in enumerate(zip(rendered.ids, rendered.supervised, strict=True)):
        if not learned or index in places:
            runs.append([])
        if learned:
            runs[-1].append(token)
    return [tokenizer.decode(run, keep_control=True) for run in runs if run]


def test_the_golden_rows_are_what_the_policy_says() -> None:
    for row in GOLDEN["rows"]:
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            assert label == token or token not in MARKS


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["name"])
def test_llava_next_learns_what_its_code_learns(row: dict[str, Any], qwen: Tokenizer) -> None:
    rendered = render(golden_talk(row), ChatML(system=QWEN_SYSTEM, labels="llava_next"), qwen)
    assert spans(rendered, qwen) == [span["text"] for span in row["supervised"]]
    assert len(rendered.media) == row["input_ids"].count(PICTURE_ID)


def test_llava_next_learns_a_newline_only_where_it_is_a_token_of_its_own(qwen: Tokenizer) -> None:
    rendered = render(talk("a\nb?\nc", "A"), ChatML(labels="llava_next"), qwen)
    assert dict(zip(rendered.ids, rendered.supervised, strict=True))[QUESTION_NEWLINE] is False
    assert spans(rendered, qwen)[:3] == ["<|im_start|>", "\n", "\n"]  # before `user`, behind it, between a and b


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("answer_only", ["A1<|im_end|>", "A2<|im_end|>"]),
        ("qwen_finetune", ["A1<|im_end|>\n", "A2<|im_end|>\n"]),
    ],
)
def test_qwens_policies(labels: Labels, expected: list[str], chatml: Tokenizer) -> None:
    # Qwen's own code takes a question that begins with "assistant" for an answer.
    rendered = render(talk("assistant\nQ1", "A1", "Q2\n", "A2"), ChatML(system="S\n", labels=labels), chatml)
    assert spans(rendered, chatml) == expected


@pytest.mark.parametrize("labels", QWEN_LABELS)
def test_what_is_learned_changes_no_id(labels: Labels, chatml: Tokenizer) -> None:
    said = talk("\n\nQ1\n", "\n\nA1", "Q2", " A2\n")
    assert render(said, ChatML(labels=labels), chatml).ids == render(said, ChatML(), chatml).ids


@pytest.mark.parametrize("labels", QWEN_LABELS)
def test_headers_alone_teach_nothing(labels: Labels, chatml: Tokenizer) -> None:
    with pytest.raises(RenderError, match="nothing to learn"):
        render(talk("Q", " \n"), ChatML(labels=labels), chatml)


def test_a_tokenizer_without_a_newline_of_its_own_cannot_learn_as_llava_next(tmp_path: Path) -> None:
    folder = llama_tokenizer_dir(tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for index, mark in enumerate(("<|im_start|>", "<|im_end|>")):
        token = {"id": 600 + index, "content": mark, "special": True}
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        spec["added_tokens"].append(token | dict.fromkeys(flags, False))
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(RenderError, match="this tokenizer writes a newline as 2 tokens; use labels 'answer_only'"):
        render(talk("Q", "A"), ChatML(labels="llava_next"), Tokenizer.load(folder))


@pytest.mark.parametrize(
    ("template", "make", "expected"),
    [
        (Llama2(), llama_tokenizer_dir, ["A1 </s>", "A2 </s>"]),
        (Llama3(), llama_3_tokenizer_dir, ["A1<|eot_id|>", "A2<|eot_id|>"]),
        (ChatML(system=MPT_SYSTEM, after_mark=""), chatml_tokenizer_dir, ["A1<|im_end|>", "A2<|im_end|>"]),
    ],
    ids=["llama_2", "llama_3", "mpt"],
)
def test_answers_and_their_end_marks(template: Template, make: Any, expected: list[str], tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make(tmp_path))
    assert spans(render(talk("Q1", "A1", "Q2", "A2"), template, tokenizer), tokenizer) == expected
