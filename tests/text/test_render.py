from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import RenderError
from opsin.core.types import Conversation, Part, Picture, Turn
from opsin.text.render import Rendered, joined, render
from opsin.text.templates import MMTAG_SYSTEM, ChatML, Control, Llama2, Plain, Template, Text, VicunaV1
from opsin.text.tokenizer import Tokenizer
from tests.support import published
from tests.support.tokenizers import CHATML_CONTROLS, LLAMA_CONTROLS, chatml_tokenizer_dir, llama_tokenizer_dir

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "llava_templates.json").read_text(encoding="utf-8"))
# With one exchange the two SentencePiece modes agree; after `</s>` opsin follows the legacy one, which Vicuna uses.
TEMPLATES: dict[str, Template] = {
    "v1": VicunaV1(),
    "v1_mmtag": VicunaV1(system=MMTAG_SYSTEM, image_tags=True),
    "llava_llama_2": Llama2(),
    "plain": Plain(),
}
# LLaVA's v0 is no template of opsin's: what its code learns drifts into the questions.
ROWS = [row for row in GOLDEN["rows"] if row["template"] in TEMPLATES]
COMPARABLE = [row for row in ROWS if row["tokenizer"].endswith("=True") or len(row["dialog"]) < 4]
PICTURE_ID = -200
IGNORED = -100
PICTURE = Picture(path=Path("cat.jpg"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(llama_tokenizer_dir(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(chatml_tokenizer_dir(tmp_path_factory.mktemp("chatml")))


def golden_conversation(row: dict[str, Any]) -> Conversation:
    """A golden row as LLaVA sees it after moving its picture; a first gpt turn is dropped by the reader."""
    turns = []
    for said, text in zip(row["dialog"], row["after_preprocess_multimodal"], strict=True):
        before, mark, after = text.replace("<Image><image></Image>", "<image>").partition("<image>")
        parts: tuple[Part, ...] = (before, PICTURE, after) if mark else (text,)
        turns.append(Turn("user" if said["from"] == "human" else "assistant", parts))
    return Conversation(id=row["name"], turns=tuple(turns[turns[0].role == "assistant" :]))


def as_llava(rendered: Rendered) -> tuple[list[int], list[int]]:
    """Ids and labels with -200 where a picture is."""
    ids = list(rendered.ids)
    labels = [token if learned else IGNORED for token, learned in zip(ids, rendered.supervised, strict=True)]
    for index, _ in reversed(rendered.media):
        ids.insert(index, PICTURE_ID)
        labels.insert(index, IGNORED)
    return ids, labels


def chat(*texts: str, picture: bool = False) -> Conversation:
    turns = [Turn("assistant" if i % 2 else "user", (text,)) for i, text in enumerate(texts)]
    if picture:
        turns[0] = Turn("user", (PICTURE, texts[0]))
    return Conversation(id="s1", where="data.json:7", turns=tuple(turns))


@pytest.mark.network
@pytest.mark.parametrize("row", COMPARABLE, ids=lambda row: f"{row['name']}-{row['tokenizer']}")
def test_ids_and_labels_are_llavas(row: dict[str, Any], tmp_path: Path) -> None:
    model = published.package_file("mistral_common", "data/tokenizer.model.v1")
    if model is None:
        pytest.skip("the package mistral-common is not installed")
    tokenizer = Tokenizer.load(published.sentencepiece_dir(model, tmp_path))
    rendered = render(golden_conversation(row), TEMPLATES[row["template"]], tokenizer)
    assert as_llava(rendered) == (row["input_ids"], row["labels"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['name']}-{row['template']}-{row['tokenizer']}")
def test_supervised_text_is_llavas(row: dict[str, Any], llama: Tokenizer) -> None:
    ids, labels = as_llava(render(golden_conversation(row), TEMPLATES[row["template"]], llama))
    assert ids[0] == llama.bos_id
    spans: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            spans[-1].append(label)
        elif spans[-1]:
            spans.append([])
    found = [llama.decode(span, keep_control=True).strip(" ") for span in spans if span]
    assert found == [span["text"].strip(" ") for span in row["supervised"]]
    assert ids.count(PICTURE_ID) == row["input_ids"].count(PICTURE_ID)


def test_a_lone_space_stands_before_the_picture_and_one_after_it(llama: Tokenizer) -> None:
    ids, _ = as_llava(render(chat("\nQ", "A", picture=True), VicunaV1(), llama))
    at = ids.index(PICTURE_ID)
    space = llama.encode("\n")[0]
    assert ids[at - 1] == ids[at + 1] == space


def test_the_answer_starts_with_a_word_piece_and_no_space_follows_the_end_mark(llama: Tokenizer) -> None:
    rendered = render(chat("Q", "A cat.", "Q", "A"), VicunaV1(system=""), llama)
    end = llama.control("</s>")
    first, second, rest = llama.encode("USER: Q ASSISTANT:"), llama.encode("A cat."), llama.encode("A")
    assert rendered.ids == (1, *first, *second, end, *first, *rest, end)
    assert rendered.supervised == (
        False, *[False] * len(first), *[True] * len(second), True, *[False] * len(first), *[True] * len(rest), True
    )  # fmt: skip


def test_neighbouring_texts_of_one_part_are_joined() -> None:
    answer = [Text("c", "answer"), Text("d", "answer")]
    segments = [Text("a"), Text(""), Text("b"), *answer, Control("x"), Text(""), Text("e")]
    assert joined(segments) == [Text("ab"), Text("cd", "answer"), Control("x"), Text("e")]


PIECES = (
    *CHATML_CONTROLS,
    *LLAMA_CONTROLS,
    "<image>",
    "<|im_",
    "end|>",
    " ASSISTANT: ",
    "USER:",
    "\n",
    " ",
    "cat",
    "🐈",
)
said = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=5).map("".join)
dialogs = st.lists(st.tuples(said, said), min_size=1, max_size=3)


@pytest.mark.parametrize(("template", "name"), [(ChatML(system="s"), "chatml"), (VicunaV1(), "llama")])
@given(dialog=dialogs, picture=st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_prompt_is_a_prefix_of_what_was_trained_on(
    template: Template, name: str, dialog: list[tuple[str, str]], picture: bool, llama: Tokenizer, chatml: Tokenizer
) -> None:
    tokenizer = chatml if name == "chatml" else llama
    texts = [text for pair in dialog for text in pair]
    texts[1] += "x"
    whole = render(chat(*texts, picture=picture), template, tokenizer)
    for end in range(1, len(texts), 2):
        prompt = render(chat(*texts[:end], picture=picture), template, tokenizer, open_for_generation=True)
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert whole.supervised[: len(prompt.ids)] == prompt.supervised
        assert whole.media == prompt.media
        assert any(whole.supervised[len(prompt.ids) :])


@pytest.mark.parametrize(("template", "name"), [(ChatML(), "chatml"), (VicunaV1(), "llama")])
@given(dialog=dialogs)
@settings(max_examples=80, deadline=None)
def test_the_number_of_control_ids_depends_on_the_structure_only(
    template: Template, name: str, dialog: list[tuple[str, str]], llama: Tokenizer, chatml: Tokenizer
) -> None:
    tokenizer = chatml if name == "chatml" else llama
    texts = [text + "x" for pair in dialog for text in pair]
    rendered = render(chat(*texts), template, tokenizer)
    count = sum(token in tokenizer.control_ids for token in rendered.ids)
    assert count == (2 * len(texts) if name == "chatml" else 1 + len(dialog))


@pytest.mark.parametrize("template", [ChatML(), VicunaV1(), Plain()])
@pytest.mark.parametrize("answer", ["", "  ", "\n\t "])
def test_nothing_to_learn(template: Template, answer: str, llama: Tokenizer) -> None:
    with pytest.raises(RenderError) as caught:
        render(chat("Q", answer, picture=True), template, llama)
    assert str(caught.value) == (
        "data.json:7: (s1): nothing to learn: 0 of 2 turns hold an answer with text other than spaces; "
        "remove the sample"
    )


def test_tokenizer_problems_name_the_sample(llama: Tokenizer) -> None:
    with pytest.raises(
        RenderError, match=r"^data\.json:7: \(s1\): the tokenizer has no control token '<\|im_start\|>'"
    ):
        render(chat("Q", "A"), ChatML(), llama)


def test_plain_has_no_end_mark(chatml: Tokenizer) -> None:
    rendered = render(chat("Describe.", "a dog", picture=True), Plain(), chatml)
    assert rendered.ids == tuple(chatml.encode("a dog\n"))
    assert rendered.supervised == (True,) * len(rendered.ids)
    assert rendered.media == ((0, PICTURE),)
