"""The webhook sink: one POST per event, all of it within one deadline."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import httpx

from postbus import __version__, telemetry
from postbus.event.model import Event
from postbus.sinks import Health, Outcome, Rejected, Retry, Sent
from postbus.sinks.budget import Budget
from postbus.sinks.settings import SecretMissingError, WebhookSettings, signing_key
from postbus.sinks.tls import client_context
from postbus.sinks.webhook.answers import GONE, failure_of, outcome_of
from postbus.sinks.webhook.egress import Egress, names_inside
from postbus.sinks.webhook.request import request_of
from postbus.sinks.webhook.transport import Client, Transport

CONNECTION_LOST = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError, aiohttp.ClientConnectionResetError)
"""How a connection ends that the receiver closed while it was idle: the request is worth one more try at once, on a new one."""
NOT_MADE: tuple[tuple[type[Exception], str], ...] = (
    (httpx.InvalidURL, "the URL is not one that can be connected to"),
    (ValueError, "a secret is missing or none"),
    (OSError, "a certificate cannot be read"),
)
"""Why there is no client: an operator's mistake, each."""
USER_AGENT = f"postbus/{__version__}"


@dataclass(frozen=True, slots=True)
class Equipment:
    """What requests are made with: made once, since it reads secrets and certificates."""

    http: Client
    url: httpx.URL
    headers: tuple[tuple[str, str], ...]
    keys: tuple[bytes, ...]


class WebhookSink:
    """Posts events to an HTTP endpoint; see ``postbus.sinks.Sink``. *clock*: seconds since the Unix epoch, for the time stamp."""

    kind = "webhook"
    durable = True
    octets = False  # Standard Webhooks verifiers take text, and structured mode is text: raw mail goes as base64 in JSON

    def __init__(self, name: str, settings: WebhookSettings, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self._clock = clock
        self.secure = settings.url.startswith("https:")
        self.event_max_octets = settings.event_max_octets
        self.concurrency = settings.concurrency
        self._settings = settings
        self._budget = Budget(settings.in_flight_max_octets)
        self._client: Equipment | None = None
        self._making = asyncio.Lock()
        self._flying = 0
        self._landed = asyncio.Event()
        self._trouble: str | None = None
        self._stopping = False

    # --- the contract

    async def start(self) -> None:
        """Read secrets and certificates; what is wrong with them is trouble of the sink, not of the start."""
        telemetry.library_quieted(logger="httpx")
        await self._made()

    async def send(self, event: Event) -> Outcome:
        """Post *event*; ``timeout_s`` is over all of it."""
        self._flying += 1
        try:
            outcome = await self._attempt(event)
        finally:
            self._flying -= 1
            if self._stopping:
                self._landed.set()
        self._note(outcome)
        return outcome

    async def stop(self, timeout_s: float) -> None:
        """Wait for requests in flight, at most *timeout_s*, then close their connections."""
        self._stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._flying:
                    self._landed.clear()
                    await self._landed.wait()
        except TimeoutError:
            telemetry.sink_abandoned(sink=self.name, events=self._flying)
        client, self._client = self._client, None
        if client is not None:
            await client.http.aclose()

    def health(self) -> Health:
        """Return how the last request went."""
        return Health(ok=self._trouble is None, detail=self._trouble or "posting")

    # --- one event

    async def _attempt(self, event: Event) -> Outcome:
        """Return what became of one request."""
        client = self._client or await self._made()
        if client is None or self._stopping:
            return Retry("stopping" if self._stopping else self._trouble or "not ready")
        headers, body = request_of(event, mode=self._settings.mode, fixed=client.headers, keys=client.keys, now_s=int(self._clock()))
        if len(body) > self._settings.event_max_octets:
            return Rejected(f"the event has {len(body)} octets, this sink takes {self._settings.event_max_octets}")
        deadline_s = time.monotonic() + self._settings.timeout_s
        if not await self._budget.take(len(body), self._settings.timeout_s):
            return Retry(f"{self._budget.used_octets} octets are in flight already")
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                return await self._posted(client, headers, body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Retry(failure_of(error) or "the request failed")
        finally:
            self._budget.give(len(body))

    async def _posted(self, client: Equipment, headers: list[tuple[str, str]], body: bytes) -> Outcome:
        """Post once, and once more when the receiver had closed the connection before it could see the request."""
        request = httpx.Request("POST", client.url, headers=headers, content=body)
        if client.http.is_closed:
            return Retry("stopping")
        try:
            answer = await client.http.send(request)
        except CONNECTION_LOST:
            if self._stopping:
                raise
            answer = await client.http.send(request)
        return outcome_of(answer.status_code, answer.headers.get("retry-after"), datetime.now(UTC))

    def _note(self, outcome: Outcome) -> None:
        """Remember for health how it went, and say once what is wrong."""
        if isinstance(outcome, Sent):
            self._trouble = None
        elif isinstance(outcome, Retry) and outcome.sink_down and not self._stopping:
            if outcome.why != self._trouble:
                telemetry.sink_troubled(sink=self.name, why=outcome.why, error="")
                if outcome.why.endswith(f"({GONE})"):
                    telemetry.sink_endpoint_gone(sink=self.name)
            self._trouble = outcome.why

    # --- the client

    async def _made(self) -> Equipment | None:
        """Return the client, making it where there is none yet; ``None``, with the trouble noted, when it cannot be made."""
        async with self._making:
            if self._client is None and not self._stopping:
                try:
                    self._client = await self._make()
                except tuple(cause for cause, _ in NOT_MADE) as error:
                    why = next(why for cause, why in NOT_MADE if isinstance(error, cause))
                    if why != self._trouble:
                        telemetry.sink_troubled(sink=self.name, why=why, error=str(error))
                    self._trouble = why
            return self._client

    async def _make(self) -> Equipment:
        """Return a client; raises what NOT_MADE lists."""
        settings = self._settings
        url = httpx.URL(settings.url)
        headers, keys, context = await asyncio.to_thread(self._read)
        private = settings.private if settings.private is not None else names_inside(settings.url)
        transport = Transport(
            tls=context,
            egress=Egress(private=private, allow=settings.allow),
            connections=settings.concurrency,
            connect_timeout_s=settings.connect_timeout_s,
            response_max_octets=settings.response_max_octets,
        )
        http = Client(transport=transport, trust_env=False, follow_redirects=False, timeout=None)
        return Equipment(http, url, headers, keys)

    def _read(self) -> tuple[tuple[tuple[str, str], ...], tuple[bytes, ...], ssl.SSLContext | bool]:
        """Read secrets and certificates: in a thread, since loading the system's authorities takes 20 ms."""
        settings = self._settings
        headers = [("user-agent", USER_AGENT), *settings.headers.items()]
        if settings.authorization is not None:
            value = settings.authorization.read()
            if not (value.isprintable() and value.isascii()):
                raise SecretMissingError("`authorization` is not printable ASCII")
            headers.append(("authorization", value))
        keys = tuple(signing_key(secret.read()) for secret in settings.signing_secrets)
        return tuple(headers), keys, client_context(settings.tls) if self.secure else True
