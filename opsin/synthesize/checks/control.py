"""Marks and characters that no text of a sample may hold: a trainer could take them for its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from opsin.synthesize.checks.words import shown
from opsin.synthesize.outcome import Finding

CONTROL = "control"

_MARKS = re.compile(
    r"(?i:</?(?:image|img|video|audio|im_start|im_end|im_patch|img_context|image_soft_token|start_of_image|end_of_image"
    r"|s|pad|unk|bos|eos|mask|start_of_turn|end_of_turn|extra_id_\d+|fake_token\w*|user|assistant|system)>)"
    r"|<[|｜][^\n]{0,60}?[|｜]>"  # <|im_end|>, <|eot_id|>, and with full-width bars
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|PAD|CLS|SEP|MASK)\]|<</?SYS>>"
    r"|</?(?:think|tool_call|vision_start|vision_end)>|<unused\d+>"
    r"|(?im:^[^\S\n]*(?:user|assistant|system|human|gpt|bot)[^\S\n]*:)"
    r"|(?im:^[^\S\n]*#{2,}[^\S\n]*(?:user|assistant|system|human|instruction|response|gpt)\b)",
)
"""Of all chat templates in use, ours (`opsin.text.templates`) among them, whichever the sample will be trained with."""

_CHARACTERS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffd\ud800-\udfff]"
)
"""Controls but newline, return and tab; invisible marks of direction; U+FFFD, left by a wrong decoding; half a pair."""


def control(text: str, name: str) -> Iterator[Finding]:
    """Every different mark or character of that sort; `name` says where it stands."""
    marks = dict.fromkeys(match[0].strip() for match in _MARKS.finditer(text))
    if marks:
        yield Finding(CONTROL, f"{name} holds the mark {', '.join(map(shown, marks))}; write plain text without any")
    characters = sorted(set(_CHARACTERS.findall(text)))
    if characters:
        told = ", ".join(f"U+{ord(character):04X}" for character in characters[:8])
        yield Finding(CONTROL, f"{name} holds the control character {told}; write plain text without any")
