"""Who answers, what it costs, and how fast and for how much it may be asked: values of the recipe, without a client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from opsin.synthesize.request import Usage

PER = 1_000_000
"""Tokens that a price is for."""

OURS = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "n",
        "best_of",
        "max_output_tokens",
        "stream",
        "stream_options",
    }
)
"""Fields of a request that `extra_body` must not change: they decide what an answer is, and how it is read."""


class Value(BaseModel):
    """Base of the values: unknown keys refused, never changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(Value):
    """Of a million tokens, in one currency for everything."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    currency: str = Field(default="USD", min_length=1, max_length=10)
    batch_discount: float = Field(
        default=0.5, ge=0, le=1, description="share of the price that the batch API takes off"
    )

    def of(self, prompt_tokens: int, answer_tokens: int, *, batch: bool = False) -> Usage:
        """So many tokens with what they cost."""
        cost = (prompt_tokens * self.input + answer_tokens * self.output) / PER
        return Usage(prompt_tokens, answer_tokens, cost * (1 - self.batch_discount) if batch else cost)


class Rules(Value):
    """The offline teacher: it states what the annotations make true, and nothing else."""

    kind: Literal["rules"] = "rules"


class OpenAI(Value):
    """Any endpoint with OpenAI's chat completions: a provider's, or one's own (vLLM, SGLang, llama.cpp, Ollama)."""

    kind: Literal["openai"] = "openai"
    model: str = Field(min_length=1, max_length=200)
    base_url: str | None = Field(default=None, description="by default $OPENAI_BASE_URL, or else OpenAI's own")
    key_env: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="variable that holds the key; an endpoint on this machine needs none",
    )
    vision: bool = Field(default=False, description="whether it sees pictures")
    price: Price | None = None
    token_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the endpoint calls the limit of an answer's tokens"
    )
    tokens_per_picture: int = Field(
        default=30_000,
        ge=1,
        le=100_000,
        description="the most tokens that it counts for a picture, for budgets; some small models count 25,000",
    )
    extra_body: dict[str, Any] = Field({}, description="more fields of each request, such as those of vLLM")

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"expected an address such as https://host/v1, got {url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "an address has no name, password or query in it; the key belongs into the variable key_env"
            )
        return url

    @field_validator("extra_body")
    @classmethod
    def _is_extra(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & body.keys()):
            raise ValueError(f"cannot set {', '.join(taken)}: opsin sets them itself, from the recipe's other keys")
        return body


Teacher = Annotated[Rules | OpenAI, Field(discriminator="kind")]


class Limits(Value):
    """How a teacher may be asked. The budgets are those of the output directory, over all of its runs."""

    concurrency: int = Field(default=16, ge=1, le=2_000, description="requests at a time")
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tokens_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    timeout_seconds: float = Field(
        default=120.0, gt=0, le=3_600, description="of one request from its first byte to the last one of its answer"
    )
    retries: int = Field(default=6, ge=0, le=50, description="how often a request is asked again that went wrong")
    longest_wait_seconds: float = Field(
        default=60.0,
        ge=0,
        le=600,
        description="the longest wait before asking again, if the endpoint does not say how long",
    )
    max_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="in the currency of the price")
    max_requests: int | None = Field(
        default=None, ge=0, description="sent over the network, those that are repeated included"
    )
    max_answer_bytes: int = Field(
        default=200_000, ge=1_000, le=100_000_000, description="of one response; more is not read"
    )


def misfits(teacher: Rules | OpenAI, limits: Limits) -> Iterator[str]:
    """What the limits ask for that cannot be known of the teacher."""
    if limits.max_cost is not None and isinstance(teacher, OpenAI) and teacher.price is None:
        yield (
            "limits.max_cost: what a request costs is not known; give `price: {input: ..., output: ...}` "
            "(of a million tokens) to the teacher, or limit `max_requests`"
        )
