"""httpx's requests over aiohttp's connections, for requests whose answer's body is of no interest.

httpx's own pool costs 4.8 ms of CPU per request at 32 connections. The published bridge to aiohttp (``httpx-aiohttp``) is fast but
calls every failure a connect timeout, has no total timeout and hands out whole bodies; this one does only what a webhook needs:

- exceptions are aiohttp's own, unchanged: ``answers.failure_of`` names them;
- the answer's body is read up to a bound, undecoded, and thrown away, so that the connection can be used again; a longer or slower
  one closes the connection. The status has been given by then, and it decides;
- no redirects, no proxies or credentials from the environment, no cookies, no retries. httpx's client would add nothing but a third of
  the cost, so requests go to this transport without one.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator

import aiohttp
import httpx
from yarl import URL

from postbus.sinks.webhook.egress import Egress

BODY_TIMEOUT_S = 1.0
"""How long an answer's body may take once its head is here. Longer than any honest one, short of the sink's deadline."""
KEEPALIVE_S = 15.0
"""An idle connection is closed after this: servers' own limits begin at 5 s (Node), commonly 60 s and more."""
READ_OCTETS = 16 * 1024
WHOLE_MAX_OCTETS = 256 * 1024
"""A larger body is written piece by piece as the receiver takes it, not handed to the socket whole."""
WANTED_HEADERS = (b"retry-after",)


class Octets(httpx.AsyncByteStream):
    """A body that is in memory: httpx would copy it, and reckon headers that aiohttp reckons again."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield all of it."""
        yield self.octets


NO_BODY = Octets(b"")


def forget_frames(error: BaseException) -> None:
    """Take their tracebacks off *error* and whatever led to it.

    Frames of aiohttp's hold their own exception, and through ours the body of the request: each failure would keep one, which no budget
    counts any more, until the garbage collector comes.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]


class Transport(httpx.AsyncBaseTransport):
    """Sends httpx requests to one URL through one aiohttp session. Make it on the running loop.

    Attributes:
        url: where every request goes.

    Raises:
        httpx.InvalidURL: *url* is none.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | bool,
        egress: Egress,
        connections: int,
        connect_timeout_s: float,
        response_max_octets: int,
    ) -> None:
        self.url = httpx.URL(url)
        try:
            self._target = URL(str(self.url), encoded=True)
        except ValueError as error:
            raise httpx.InvalidURL(str(error)) from error
        connector = aiohttp.TCPConnector(
            limit=connections,
            ssl=tls,
            use_dns_cache=False,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=egress.socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        )
        self._response_max_octets = response_max_octets

    @property
    def closed(self) -> bool:
        """No request can be made any more."""
        return self._session.closed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return status and the wanted headers of the answer to *request*, whose stream is ``Octets``; raises aiohttp's exceptions."""
        body = request.stream
        assert isinstance(body, Octets), "a retry sends the same octets again"
        sending = self._session.request(
            request.method,
            self._target,
            data=body.octets if len(body.octets) <= WHOLE_MAX_OCTETS else io.BytesIO(body.octets),
            headers=request.headers.multi_items(),
            allow_redirects=False,
        )
        async with sending as response:
            headers = [(name, value) for name, value in response.raw_headers if name.lower() in WANTED_HEADERS]
            if not await self._drained(response):
                response.close()
            return httpx.Response(response.status, headers=headers, stream=NO_BODY)

    async def aclose(self) -> None:
        """Close every connection; requests in flight fail."""
        await self._session.close()

    async def _drained(self, response: aiohttp.ClientResponse) -> bool:
        """Read the body away; return whether all of it came within the bounds."""
        if response.content.at_eof():
            return True
        left = self._response_max_octets
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while left >= 0 and (piece := await response.content.read(READ_OCTETS)):
                    left -= len(piece)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        return left >= 0
