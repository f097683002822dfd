"""What a teacher is asked and what it says: values, with a key by which a paid answer is found again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from opsin.core.files import sha256_bytes

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture in a message: its encoded bytes (JPEG, PNG or WebP) and their hash."""

    data: bytes
    mime: str

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes."""
        return sha256_bytes(self.data)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; pictures come before the text."""

    role: Role
    text: str
    pictures: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a chat endpoint. Its contents decide the answer, and so the key; the endpoint's URL does not."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    draw: int = 0
    """Which of several answers to the same messages (how many samples a picture gets of one kind)."""
    extra: str = ""
    """More fields that the endpoint is sent (the teacher's `extra_body`), as JSON."""

    @property
    def key(self) -> str:
        """Hex digest of all that is asked."""
        said = [
            {"role": message.role, "text": message.text, "pictures": [shown.sha256 for shown in message.pictures]}
            for message in self.messages
        ]
        asked = [self.model, said, self.max_tokens, self.temperature, self.draw, self.extra]
        return sha256_bytes(
            json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint counts them (or as they are estimated, where it does not say), and what they cost."""

    prompt_tokens: int
    answer_tokens: int
    cost: float = 0.0
    """In the currency of the recipe's prices."""

    @property
    def tokens(self) -> int:
        """All of them, as limits per minute count them."""
        return self.prompt_tokens + self.answer_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.cost + other.cost,
        )


Finish = Literal["stop", "length", "refusal", "malformed"]
"""How an answer ended; a malformed one is not one text, and kept as the JSON that came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request, as it came: nothing of it is checked but that it is a text of bounded size."""

    text: str
    finish: Finish
    usage: Usage
    model: str
    """The model that the endpoint says it was."""
    bought: bool = True
    """False if it was in the ledger already."""
