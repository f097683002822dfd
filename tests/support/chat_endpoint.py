"""A chat endpoint on the loopback interface that plays a fault list: one reply per request, and a log of all of them.

In a test it runs in a thread (`with ChatEndpoint(replies) as endpoint`); for measurements it is a process of its own:
`python -m tests.support.chat_endpoint SECONDS` answers every request after so long, and prints its port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

KEY = b"idempotency-key: "


@dataclass(frozen=True)
class Reply:
    """What one request gets. `body` is a good answer if it is None.

    `delay` passes before the first byte and `pace` before each further one. After `cut` bytes of the response (head
    included) the connection is reset; with 0, before any.
    """

    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    pace: float = 0.0
    cut: int | None = None
    close: bool = False
    """Whether the connection ends in good order after the response, or after `cut` bytes of it."""


@dataclass(frozen=True)
class Asked:
    """One request as it came, and when (in `time.monotonic`)."""

    number: int
    key: str
    body: dict[str, Any]
    head: str
    at: float


def completion(content: Any, **changes: Any) -> bytes:
    """The body of a good answer, with some of its fields changed."""
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return json.dumps(value | changes).encode()


def refused(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as endpoints report it; `retry_after="1"` is the header Retry-After."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status, json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode(), named)


def echo(asked: Asked) -> str:
    """What every good answer says: a function of the request alone."""
    content = asked.body["messages"][-1]["content"]
    return f"On {content if isinstance(content, str) else content[-1]['text']}: yes."


@dataclass
class ChatEndpoint:
    """Serves while inside. `replies` are those of the first requests, or a function of the request; then all is well.

    With `idempotent`, a key that was answered is answered again from memory, and not charged. With `tls` it speaks
    HTTPS.
    """

    replies: Sequence[Reply] | Callable[[Asked], Reply] = ()
    latency: float = 0.0
    idempotent: bool = False
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(default_factory=list)
    charged: list[str] = field(default_factory=list)
    """Keys of the requests that were answered well, at the time when they came: the answer may not get through."""
    in_flight: int = 0
    most_in_flight: int = 0
    port: int = 0

    def __enter__(self) -> ChatEndpoint:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http{'' if self.tls is None else 's'}://127.0.0.1:{self.port}/v1"

    @property
    def keys(self) -> list[str]:
        """Of all requests, in the order in which they came."""
        return [asked.key for asked in self.asked]

    def _serve(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        starting = self._loop.create_server(lambda: _Connection(self), sock=listener, ssl=self.tls)
        server = self._loop.run_until_complete(starting)
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def reply(self, asked: Asked) -> Reply:
        """The reply to a request, with its body."""
        if self.idempotent and asked.key in self.charged:
            reply = Reply()
        elif callable(self.replies):
            reply = self.replies(asked)
        else:
            reply = self.replies[asked.number] if asked.number < len(self.replies) else Reply()
        if reply.status == 200 and not (self.idempotent and asked.key in self.charged):
            self.charged.append(asked.key)
        return replace(reply, body=completion(echo(asked))) if reply.body is None else reply


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request at a time; no more of it than the client needs."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self.endpoint = endpoint
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end])
        length = int(_value(head.lower(), b"content-length: ") or 0)
        if len(self.received) < end + 4 + length:
            return
        body = bytes(self.received[end + 4 : end + 4 + length])
        del self.received[: end + 4 + length]
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        endpoint = self.endpoint
        at = time.monotonic()
        key = _value(head.lower(), KEY).decode()
        asked = Asked(len(endpoint.asked), key, json.loads(body), head.decode("latin-1"), at)
        endpoint.asked.append(asked)
        endpoint.in_flight += 1
        endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
        reply = endpoint.reply(asked)
        loop = asyncio.get_running_loop()
        if reply.pace:
            self.task = loop.create_task(self._trickle(reply))
        elif delay := reply.delay or endpoint.latency:
            loop.call_later(delay, self._send, reply)
        else:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.endpoint.in_flight -= 1
        if self.transport.is_closing():
            return
        self.transport.write(_response(reply)[: reply.cut])
        if reply.close:
            self.transport.close()
        elif reply.cut is not None:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            self.transport.close()

    async def _trickle(self, reply: Reply) -> None:
        await asyncio.sleep(reply.delay)
        for byte in _response(reply):
            if self.transport.is_closing():
                break
            self.transport.write(bytes([byte]))
            await asyncio.sleep(reply.pace)
        self.endpoint.in_flight -= 1


def _value(head: bytes, name: bytes) -> bytes:
    start = head.find(b"\r\n" + name)
    return head[start + 2 + len(name) :].partition(b"\r\n")[0] if start >= 0 else b""


def _response(reply: Reply) -> bytes:
    body = reply.body or b""
    headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
    head = f"HTTP/1.1 {reply.status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}"
    return f"{head}\r\n".encode() + body


if __name__ == "__main__":
    with ChatEndpoint(latency=float(sys.argv[1])) as serving:
        print(serving.port, flush=True)  # noqa: T201
        sys.stdin.read()
