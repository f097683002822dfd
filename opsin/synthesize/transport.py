"""The HTTP connections below the client of a chat endpoint: several small pools, and responses of bounded size."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from opsin.synthesize.retry import AttemptError, Then, TooLargeError

CONNECTIONS_PER_POOL = 4
"""A pool looks at all of its connections whenever a request begins or ends; so at 100 connections, one pool would take
a third of all the time that a request needs."""


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Spreads requests over small pools, and reads no more of a response than `most_bytes`.

    The number of connections is bounded by that of the requests: whoever uses this says how many there are at a time.
    """

    def __init__(self, url: str, connections: int, most_bytes: int) -> None:
        is_secure = urlsplit(url).scheme == "https"  # loading all certificates takes a tenth of a second
        verify = httpx2.create_ssl_context() if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._pools = [
            httpx2.AsyncHTTPTransport(verify=verify, limits=limits, proxy=_proxy(url))
            for _ in range(-(-connections // CONNECTIONS_PER_POOL))
        ]
        self._next = itertools.cycle(self._pools)
        self._most_bytes = most_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request by the next pool."""
        response = await next(self._next).handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        encoding = response.headers.get("content-encoding", "identity")
        response.stream = _Bounded(response.stream, self._most_bytes, encoding)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most_bytes: int, encoding: str) -> None:
        self._stream = stream
        self._most_bytes = most_bytes
        self._encoding = encoding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._encoding != "identity":  # a few compressed bytes may stand for any number of others
            raise AttemptError(
                f"answered with Content-Encoding {self._encoding[:40]!r}, though asked for none",
                Then.GIVE_UP,
                perhaps_charged=True,
            )
        count = 0
        async for part in self._stream:
            count += len(part)
            if count > self._most_bytes:
                raise TooLargeError(f"more than {self._most_bytes:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address (`https_proxy`, `no_proxy`)."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme, proxies.get("all"))
