from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from opsin.core.errors import RenderError
from opsin.core.types import Conversation, Part, Picture, Turn
from opsin.text.templates import (
    QWEN_SYSTEM,
    ChatML,
    Control,
    Media,
    Mistral,
    Opening,
    Plain,
    Segment,
    Template,
    Text,
    VicunaV1,
)

PICTURE = Picture(path=Path("cat.jpg"))


def conversation(*turns: tuple[Literal["system", "user", "assistant"], Part | list[Part]]) -> Conversation:
    return Conversation(
        id="s1",
        where="data.json:7",
        turns=tuple(Turn(role, tuple(parts) if isinstance(parts, list) else (parts,)) for role, parts in turns),
    )


TWO_TURNS = conversation(("user", [PICTURE, "\nQ1"]), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2"))


def written(segments: list[Segment]) -> str:
    """Segments as the reference's prompt string."""
    return "".join(
        segment.text if isinstance(segment, Text) else segment.token if isinstance(segment, Control) else "<image>"
        for segment in segments
        if not isinstance(segment, Opening)
    )


def learned(segments: list[Segment]) -> str:
    return written([s for s in segments if isinstance(s, Text | Control) and s.part in {"answer", "end"}])


def test_vicuna_prompt_is_llavas() -> None:
    segments = VicunaV1(system="S.").segments(TWO_TURNS)
    assert written(segments) == "S. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>"
    assert learned(segments) == " A1</s> A2</s>"


def test_mistral_prompt_is_llavas() -> None:
    asked = conversation(("user", [PICTURE, "\nQ1"]), ("assistant", "A1"), ("user", "Q2"))
    segments = Mistral().segments(asked, open_for_generation=True)
    assert written(segments) == "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]"  # LLaVA's mistral_instruct
    assert learned(Mistral().segments(TWO_TURNS)) == " A1 </s> A2 </s>"
    told = conversation(("system", "S."), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2"))
    assert written(Mistral().segments(told)) == (
        "[INST] <<SYS>>\nS.\n<</SYS>>\n\nQ1 [/INST] A1 </s>[INST] Q2 [/INST] A2 </s>"
    )


def test_qwen2_vl_prompt_is_the_published_one() -> None:
    template = ChatML(system=QWEN_SYSTEM, around_picture=("<|vision_start|>", "<|vision_end|>"))
    asked = conversation(
        ("user", [PICTURE, "Hello, how are you?"]),
        ("assistant", "I'm doing well."),
        ("user", ["Can you describe these images?", PICTURE, PICTURE, "These are from my vacation."]),
    )
    picture = "<|vision_start|><image><|vision_end|>"
    assert written(template.segments(asked, open_for_generation=True)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{picture}Hello, how are you?<|im_end|>\n"
        "<|im_start|>assistant\nI'm doing well.<|im_end|>\n"
        f"<|im_start|>user\nCan you describe these images?{picture}{picture}These are from my vacation.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chatml_learns_answers_and_their_end_marks_only() -> None:
    segments = ChatML().segments(TWO_TURNS)
    assert written(segments).startswith(
        "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    )
    assert learned(segments) == "A1<|im_end|>A2<|im_end|>"


@pytest.mark.parametrize("template", [VicunaV1(system="default"), ChatML(system="default")])
def test_a_system_turn_wins_over_the_templates_own(template: Template) -> None:
    text = written(template.segments(conversation(("system", "mine"), ("user", "Q"), ("assistant", "A"))))
    assert "mine" in text
    assert "default" not in text


def test_plain_is_picture_caption_newline() -> None:
    sample = conversation(("user", [PICTURE, "Give a brief caption."]), ("assistant", "a dog"))
    assert Plain().segments(sample) == [
        Opening(), Media(PICTURE), Text("a dog", "answer"), Text("\n", "answer")
    ]  # fmt: skip
    assert Plain().segments(sample, open_for_generation=True)[2:] == [Text("a dog", "answer")]


@pytest.mark.parametrize("template", [VicunaV1(), ChatML()])
def test_an_open_answer_is_continued(template: Template) -> None:
    closed = written(template.segments(TWO_TURNS))
    begun = written(template.segments(TWO_TURNS, open_for_generation=True))
    asked = Conversation(id="q", turns=TWO_TURNS.turns[:3])
    empty = written(template.segments(asked, open_for_generation=True))
    assert closed.startswith(begun)
    assert begun.endswith("A2")
    assert begun.startswith(empty)
    assert "A1" + template.stop_tokens[0] in begun


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (conversation(), "has no user turn; remove the sample"),
        (conversation(("system", "s")), "has no user turn; remove the sample"),
        (
            conversation(("assistant", "A"), ("user", "Q")),
            "turn 1 of 2 is from the assistant, expected the user: "
            "an optional system turn, then user and assistant in turns",
        ),
        (
            conversation(("system", "s"), ("user", "Q"), ("user", "Q")),
            "turn 3 of 3 is from the user, expected the assistant: "
            "an optional system turn, then user and assistant in turns",
        ),
        (
            conversation(("user", "Q"), ("assistant", ["A", PICTURE])),
            "turn 2, from the assistant, has 1 picture; only user turns can hold pictures: move them to the question",
        ),
        (
            conversation(("system", [PICTURE, PICTURE]), ("user", "Q"), ("assistant", "A")),
            "turn 1, from the system, has 2 pictures; only user turns can hold pictures: move them to the question",
        ),
        (
            conversation(("user", "Q")),
            "ends with a user turn (1 turns), nothing answers it; remove that turn",
        ),
    ],
)
@pytest.mark.parametrize("template", [VicunaV1(), ChatML(), Plain()])
def test_turns_out_of_order(template: Template, sample: Conversation, message: str) -> None:
    with pytest.raises(RenderError) as caught:
        template.segments(sample)
    assert str(caught.value) == f"data.json:7: (s1): {message}"


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (TWO_TURNS, "takes one user turn and one caption, the sample has 4 turns; use a chat template"),
        (conversation(("user", "Q"), ("assistant", "A")), "needs a picture, the sample has 0; use a chat template"),
    ],
)
def test_plain_refuses_chats(sample: Conversation, message: str) -> None:
    with pytest.raises(RenderError) as caught:
        Plain().segments(sample)
    assert str(caught.value) == f"data.json:7: (s1): template 'plain' {message}"


def test_templates_are_configuration_values() -> None:
    adapter: TypeAdapter[Template] = TypeAdapter(Template)
    for template in (Plain(), VicunaV1(system="s"), ChatML(around_picture=("a", "b"))):
        assert adapter.validate_python(template.model_dump()) == template
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "chatml", "sytem": "x"})
