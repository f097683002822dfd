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
FINISHES: Mapping[str, Finish] = {
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
    **dict.fromkeys(("content_filter", "refusal", "safety", "recitation", "prohibited_content"), "refusal"),
}
"""What endpoints call the end of an answer; all others are `stop`."""
BROKEN = frozenset({"error", "abort"})
"""What they call the end of one that broke off."""
FILTERED = frozenset({"content_filter", "content_policy_violation"})
"""Codes of an error that is a refusal of what was asked."""


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
        return self._read(response, most)

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

    def _read(self, response: httpx2.Response, most: Usage) -> Answer:
        content = response.content
        if self._key:  # an endpoint that quotes the key must not get it into files
            content = content.replace(self._key.encode(), b"[key]")
        if response.status_code != httpx2.codes.OK:
            return self._refused(response.status_code, content, response.headers, most)
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AttemptError(
                f"answered with what is not JSON ({self.printable(str(error))})", Then.ASK_AGAIN, perhaps_charged=True
            ) from None
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            if status := _status_of(value):  # gateways pass an error on in a good response
                return self._refused(status, content, response.headers, most)
            said = self.printable(_told(content)[1])
            raise AttemptError(f"answered without choices ({said})", Then.ASK_AGAIN, perhaps_charged=True)
        return read_completion(value, self.teacher, most)

    def _refused(self, status: int, content: bytes, headers: Mapping[str, str], most: Usage) -> Answer:
        if refusal := read_refusal(content, self.teacher, most):
            return refusal
        code, said = _told(content)
        told = {**headers, "location": self.printable(headers.get("location", "nowhere"))}
        raise after_status(status, code, self.printable(said), told)


def printable(text: str) -> str:
    """A text from outside on one line, not too long."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 8 * SHOWN]).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


def read_completion(value: Mapping[str, Any], teacher: OpenAI, most: Usage, *, batch: bool = False) -> Answer:
    """The answer in a chat completion that has `choices`.

    Raises:
        AttemptError: there is none among them.
    """
    choices = value["choices"]
    usage = _usage(value.get("usage"), teacher.price, batch=batch)
    if not choices:
        raise AttemptError("answered with no choice", Then.ASK_AGAIN, usage=usage, perhaps_charged=usage is None)
    if (ended := _ended(choices)) in BROKEN:
        raise AttemptError(f"broke off ({ended})", Then.ASK_AGAIN, usage=usage, perhaps_charged=usage is None)
    text, finish = _one_text(choices)
    if usage is None:
        length = min(most.answer_tokens, len(text.encode("utf-8", "surrogatepass")))
        usage = _priced(most.prompt_tokens, length, teacher.price, batch=batch)
    model = value.get("model")
    return Answer(text, finish, usage, model[:200] if isinstance(model, str) else teacher.model)


def read_refusal(content: bytes, teacher: OpenAI, most: Usage, *, batch: bool = False) -> Answer | None:
    """The answer of an endpoint whose filter refuses a request, which it will whenever that is sent; else nothing.

    It counts with all of its prompt, since some charge for that.
    """
    code, said = _told(content)
    if code not in FILTERED:
        return None
    usage = _priced(most.prompt_tokens, 0, teacher.price, batch=batch)
    return Answer(printable(f"{code}: {said}"), "refusal", usage, teacher.model)


def _one_text(choices: list[Any]) -> tuple[str, Finish]:
    """The text of an answer and how it ended; what is not one text, as JSON: it is paid for, and may be repaired."""
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    text = message.get("content") if isinstance(message, dict) else 0
    if len(choices) != 1 or not isinstance(message, dict) or not isinstance(text, str | None):
        try:
            return json.dumps(choices), "malformed"
        except RecursionError:
            return "(nested too deeply)", "malformed"
    refusal, finish = message.get("refusal"), FINISHES.get(_ended(choices), "stop")
    if isinstance(refusal, str) and refusal and not text:
        return refusal, "refusal"
    return text or "", "refusal" if text is None and finish == "stop" else finish


def _ended(choices: list[Any]) -> str:
    """How the first answer ended, in the endpoint's word."""
    ended = choices[0].get("finish_reason") if isinstance(choices[0], dict) else ""
    return ended.lower() if isinstance(ended, str) else ""


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


def _status_of(value: Any) -> int | None:
    """The status that an error in a good response would have had."""
    error = value.get("error") if isinstance(value, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code in (FILTERED | QUOTA):
        return 400 if code in FILTERED else 429
    number = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 0
    return number if 400 <= number < 600 else None


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
