"""An OpenAI-compatible chat endpoint: one attempt at one request, and every way in which it can go wrong."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from opsin.core.errors import MissingExtraError, TeacherError
from opsin.synthesize.request import Answer, Finish, Message, Request, Usage
from opsin.synthesize.retry import QUOTA, AttemptError, Then, TooLargeError, after_status
from opsin.synthesize.teacher_values import Limits, OpenAI, Price

try:
    import httpx2
    import openai

    from opsin.synthesize.transport import BoundedTransport
except ImportError:
    raise MissingExtraError("openai", "synthesize") from None

CONNECT_SECONDS = 20.0
SHOWN = 300
"""Characters of an endpoint's message."""
MOST_TOKENS = 1_000_000_000
"""Of one request; a larger count is not believed."""
FINISHES: Mapping[str, Finish] = {"length": "length", "content_filter": "refusal"}
"""What endpoints call the end of an answer; all others are `stop`."""


class Endpoint:
    """Asks once, without retries and without limits, and tells what came of it."""

    def __init__(self, teacher: OpenAI, limits: Limits, environment: Mapping[str, str] = os.environ) -> None:
        """Raises TeacherError if there is no key and the endpoint is not on this machine."""
        self.teacher = teacher
        self._seconds = limits.timeout_seconds
        self.url = teacher.base_url or environment.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._key = _key(environment.get(teacher.key_env, "").strip(), teacher.key_env, self.url)
        connect = min(CONNECT_SECONDS, limits.timeout_seconds)
        client = openai.AsyncOpenAI(api_key=self._key or "none", base_url=self.url)
        # The client says once what is sent where. Its own `post` says it again for each request, which takes a quarter
        # of the processor time that a request needs.
        said = {**client.default_headers, **client.auth_headers, "Accept-Encoding": "identity"}
        self._http = httpx2.AsyncClient(
            base_url=client.base_url,
            headers={name: value for name, value in said.items() if isinstance(value, str)},
            timeout=httpx2.Timeout(limits.timeout_seconds, connect=connect),
            transport=BoundedTransport(self.url, limits.concurrency, limits.max_answer_bytes),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def body(self, request: Request) -> bytes:
        """What is sent for a request."""
        return json.dumps(body(self.teacher, request), separators=(",", ":")).encode()

    async def ask(self, content: bytes, key: str, most: Usage) -> Answer:
        """One attempt; `most` is what it uses at most, which is taken for its usage where the endpoint tells none.

        Raises:
            AttemptError: there is no usable answer.
        """
        try:
            async with asyncio.timeout(self._seconds):
                response = await self._http.post("chat/completions", content=content, headers={"Idempotency-Key": key})
        except TimeoutError:
            raise AttemptError(
                f"no whole answer within timeout_seconds={self._seconds:g}", Then.ASK_AGAIN, perhaps_charged=True
            ) from None
        except TooLargeError:  # kept as an answer that was cut off, so that it is paid once, and the teacher told
            return Answer("", "length", most, self.teacher.model)
        except httpx2.HTTPError as error:
            raise self._unreached(error) from None
        if response.status_code != httpx2.codes.OK:
            code, said = _told(response.content)
            headers = dict(response.headers)
            headers["location"] = self.printable(headers.get("location", "nowhere"))
            raise after_status(response.status_code, code, self.printable(said), headers)
        return self._read(response.content, most)

    def printable(self, text: str) -> str:
        """A text from outside on one line, not too long, without the key."""
        return printable(text.replace(self._key, "[key]") if self._key else text)

    def _unreached(self, cause: BaseException) -> AttemptError:
        """A connection that was not made, or that broke."""
        told = self.printable(str(cause)) or type(cause).__name__
        links = list(_links(cause))
        if any(isinstance(link, ssl.SSLCertVerificationError) for link in links):
            advice = "; if it is one of your own, set SSL_CERT_FILE to the certificate of who issued it"
            return AttemptError(f"its certificate is not trusted ({told}){advice}", Then.STOP)
        if any(isinstance(link, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError) for link in links):
            return AttemptError(f"it cannot be asked ({told})", Then.STOP)
        early = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
        problem = "no connection" if early else "the connection broke"
        return AttemptError(f"{problem} ({told})", Then.ASK_AGAIN, perhaps_charged=not early)

    def _read(self, content: bytes, most: Usage) -> Answer:
        if self._key:  # an endpoint that quotes the key must not get it into files
            content = content.replace(self._key.encode(), b"[key]")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AttemptError(
                f"answered with what is not JSON ({self.printable(str(error))})", Then.ASK_AGAIN, perhaps_charged=True
            ) from None
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            said = self.printable(_told(content)[1])
            raise AttemptError(f"answered without choices ({said})", Then.ASK_AGAIN, perhaps_charged=True)
        return read_completion(value, self.teacher, most)


def printable(text: str) -> str:
    """A text from outside on one line, not too long."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 8 * SHOWN]).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


def read_completion(value: Mapping[str, Any], teacher: OpenAI, most: Usage, *, batch: bool = False) -> Answer:
    """The answer in a chat completion that has `choices`.

    Raises:
        AttemptError: it is not one answer of text.
    """
    choices = value["choices"]
    usage = _usage(value.get("usage"), teacher.price, batch=batch)
    if len(choices) != 1:
        raise _unusable(f"{len(choices)} choices instead of one", usage)
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise _unusable("a choice without a message", usage)
    text, refusal, ended = message.get("content"), message.get("refusal"), choices[0].get("finish_reason")
    finish = FINISHES.get(ended, "stop") if isinstance(ended, str) else "stop"
    if text is not None and not isinstance(text, str):
        raise _unusable(f"content that is no text but a {type(text).__name__}", usage)
    if isinstance(refusal, str) and refusal and not text:
        text, finish = refusal, "refusal"
    elif text is None and finish == "stop":
        finish = "refusal"
    text = text or ""
    model = value.get("model")
    if usage is None:
        length = min(most.answer_tokens, len(text.encode("utf-8", "surrogatepass")))
        usage = _priced(most.prompt_tokens, length, teacher.price, batch=batch)
    return Answer(text, finish, usage, model[:200] if isinstance(model, str) else teacher.model)


def body(teacher: OpenAI, request: Request) -> dict[str, Any]:
    """The fields of a request."""
    return {
        "model": request.model,
        "messages": [{"role": message.role, "content": _content(message)} for message in request.messages],
        teacher.token_parameter: request.max_tokens,
        "temperature": request.temperature,
        **teacher.extra_body,
    }


def is_here(url: str) -> bool:
    """Whether an address is that of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _key(key: str, variable: str, url: str) -> str:
    if not key and not is_here(url):
        raise TeacherError(f"{url}: needs a key; set the variable {variable}, or name another one with key_env")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise TeacherError(f"the key in the variable {variable} holds characters that no key has; set it again")
    return key


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.pictures:
        return message.text
    shown = [
        {"type": "image_url", "image_url": {"url": f"data:{one.mime};base64,{base64.b64encode(one.data).decode()}"}}
        for one in message.pictures
    ]
    return [*shown, {"type": "text", "text": message.text}]


def _told(content: bytes) -> tuple[str | None, str]:
    """The code and the message of an error, in the forms that endpoints give them; else what there is."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None, content[: 4 * SHOWN].decode("utf-8", "replace") or "no message"
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return None, str(error)
    codes = [code for code in (error.get("code"), error.get("type")) if isinstance(code, str) and code.isprintable()]
    code = next((code for code in codes if code in QUOTA), codes[0][:60] if codes else None)
    said = error.get("message") or error.get("detail") or "no message"
    return code, str(said)


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unusable(what: str, usage: Usage | None) -> AttemptError:
    return AttemptError(f"answered with {what}", Then.GIVE_UP, usage=usage, perhaps_charged=usage is None)


def _usage(value: Any, price: Price | None, *, batch: bool) -> Usage | None:
    """What the endpoint says was used, if it says so."""
    if not isinstance(value, dict):
        return None
    prompt, answer = _count(value.get("prompt_tokens")), _count(value.get("completion_tokens"))
    return None if prompt is None or answer is None else _priced(prompt, answer, price, batch=batch)


def _count(value: Any) -> int | None:
    """A number of tokens, if it is one."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _priced(prompt: int, answer: int, price: Price | None, *, batch: bool) -> Usage:
    return Usage(prompt, answer) if price is None else price.of(prompt, answer, batch=batch)
