"""An engine against the scripted endpoint, with waits that are short enough for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from opsin.synthesize.endpoint import Endpoint
from opsin.synthesize.engine import Engine
from opsin.synthesize.ledger import Ledger
from opsin.synthesize.request import Answer, Message, Request
from opsin.synthesize.teacher_values import Limits, OpenAI, Price

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-secret-0123456789abcdef"
ENVIRONMENT = {"OPENAI_API_KEY": KEY}
Result = TypeVar("Result")


def request(number: int | str = 0, **changes: Any) -> Request:
    fields = {
        "model": "tiny",
        "messages": (Message("user", f"picture {number}"),),
        "max_tokens": 50,
        "temperature": 0.0,
    }
    return Request(**(fields | changes))  # type: ignore[arg-type]


def with_engine(
    folder: Path, url: str, work: Callable[[Engine], Awaitable[Result]], *, price: Price | None = None, **limits: Any
) -> Result:
    """What `work` returns, with an engine on the ledger of a folder; waits are a thousandth of what they are."""
    values = Limits(**{"longest_wait_seconds": 0.005, "timeout_seconds": 2.0, **limits})
    teacher = OpenAI(model="tiny", base_url=url, price=price)

    async def run() -> Result:
        with Ledger.open(folder / "ledger.sqlite") as ledger:
            async with Engine(
                Endpoint(teacher, values, ENVIRONMENT), ledger, values, first_wait_seconds=0.001
            ) as engine:
                return await work(engine)

    return asyncio.run(run())


def ask(folder: Path, url: str, requests: Sequence[Request], **options: Any) -> list[Answer | BaseException]:
    """The answers to requests that are asked together, or what was raised in place of them."""

    async def work(engine: Engine) -> list[Answer | BaseException]:
        return await asyncio.gather(*(engine.answer(one) for one in requests), return_exceptions=True)

    return with_engine(folder, url, work, **options)
