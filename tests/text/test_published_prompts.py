"""The prompts of LLaVA, LLaVA-NeXT and Qwen2-VL, character by character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opsin.core.types import Clip, Conversation, Part, Picture, Turn
from opsin.text.templates import (
    CHATML_DIRECT_SYSTEM,
    MMTAG_SYSTEM,
    MPT_SYSTEM,
    QWEN_SYSTEM,
    ChatML,
    Control,
    Llama2,
    Llama3,
    Media,
    Mistral,
    Template,
    Text,
    VicunaV1,
)
from tests.support.golden import golden

PICTURE = Picture(path=Path("cat.jpg"))
CLIP = Clip(path=Path("cat.mp4"))
# As the golden prompts were made: LLaVA moves the picture to the front and asks again.
ASKED = Conversation(
    "s1", (Turn("user", (PICTURE, "\nQ1")), Turn("assistant", ("A1",)), Turn("user", ("Q2",)))
)  # fmt: skip
HUMAN = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
DIRECT = ChatML(system=CHATML_DIRECT_SYSTEM, after_mark="")
LLAVA: dict[str, Template] = {
    "v1": VicunaV1(),
    "vicuna_v1": VicunaV1(),
    "llava_v1": VicunaV1(system=HUMAN + "detailed, and polite answers to the human's questions."),
    "llava_llama_2": Llama2(),
    "mistral_instruct": Mistral(),
    "mpt": ChatML(system=MPT_SYSTEM, after_mark=""),
    "chatml_direct": DIRECT,
    "mistral_direct": DIRECT,
}
NEXT: dict[str, Template] = {
    "v1": VicunaV1(),
    "llava_llama_2": Llama2(),
    "llava_llama_2_simple": Llama2(system="Answer the questions about the visual content that the user provides."),
    "llava_mistral_instruct": Mistral(),
    "mpt": ChatML(system=MPT_SYSTEM, after_mark=""),
    "chatml_direct": DIRECT,
    "qwen_1_5": ChatML(system=QWEN_SYSTEM),
    "qwen_2": ChatML(system=QWEN_SYSTEM),
}
CASES = [("llava_templates", *case) for case in LLAVA.items()] + [
    ("llavanext_qwen_templates", *case) for case in NEXT.items()
]


def written(template: Template, conversation: Conversation, picture: str, clip: str = "", *, is_open: bool) -> str:
    pieces = []
    for segment in template.segments(conversation, open_for_generation=is_open):
        if isinstance(segment, Media):
            pieces.append(picture if isinstance(segment.medium, Picture) else clip)
        elif isinstance(segment, Text | Control):
            pieces.append(segment.text if isinstance(segment, Text) else segment.token)
    return "".join(pieces)


@pytest.mark.parametrize(("file", "name", "template"), CASES, ids=[f"{file}-{name}" for file, name, _ in CASES])
def test_llavas_prompts(file: str, name: str, template: Template) -> None:
    assert written(template, ASKED, "<image>", is_open=True) == golden(file)["rendered_prompts"][name]


def test_llavas_prompt_with_image_tags() -> None:
    # The golden prompt was made without the step that puts the tags around the picture; its row of ids has them.
    prompt = golden("llava_templates")["rendered_prompts"]["v1_mmtag"]
    template = VicunaV1(system=MMTAG_SYSTEM, image_tags=True)
    assert written(template, ASKED, "<image>", is_open=True) == prompt.replace("<image>", "<Image><image></Image>")


def test_llama_3s_prompt() -> None:
    assert written(Llama3(system="S"), ASKED, "<image>", is_open=True) == (
        "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def qwen_turn(message: dict[str, Any]) -> Turn:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    media: dict[str, Part] = {"image": PICTURE, "video": CLIP}
    return Turn(message["role"], tuple(media.get(part["type"]) or part["text"] for part in parts))


@pytest.mark.parametrize("case", golden("qwen2vl_chat_template")["cases"])
def test_qwen2_vls_prompts(case: dict[str, Any]) -> None:
    template = ChatML(
        system=QWEN_SYSTEM,
        around_picture=("<|vision_start|>", "<|vision_end|>"),
        number_media=case.get("add_vision_id", False),
    )
    talk = Conversation("s1", tuple(map(qwen_turn, case["messages"])))
    is_open = case["add_generation_prompt"]
    assert written(template, talk, "<|image_pad|>", "<|video_pad|>", is_open=is_open) == case["text"]
