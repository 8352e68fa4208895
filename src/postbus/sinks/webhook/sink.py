"""The webhook sink: one POST per event, all of it within one deadline."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import aiohttp
import httpx

from postbus import __version__, telemetry
from postbus.event.model import Event
from postbus.sinks import Health, Outcome, Rejected, Retry, Sent
from postbus.sinks.budget import Budget, weight_of
from postbus.sinks.deadlines import Deadlines
from postbus.sinks.settings import SecretMissingError, WebhookSettings, signing_key
from postbus.sinks.tls import client_context
from postbus.sinks.webhook.answers import GONE, failure_of, outcome_of
from postbus.sinks.webhook.egress import Egress, names_inside
from postbus.sinks.webhook.request import Headers, request_of
from postbus.sinks.webhook.transport import Octets, Transport, forget_frames

CONNECTION_LOST = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError, aiohttp.ClientConnectionResetError)
"""How a connection ends that the receiver closed while it was idle: the request is worth one more try at once, on a new one."""
NOT_MADE: tuple[tuple[type[Exception], str], ...] = (
    (httpx.InvalidURL, "the URL is not one that can be connected to"),
    (ValueError, "a secret is missing or none"),
    (OSError, "a certificate cannot be read"),
)
"""Why there is no client: an operator's mistake, each."""
APART_OCTETS = 1024 * 1024
"""A larger event is made into a request and signed in a thread: 25 MiB would keep the loop for a tenth of a second."""
REFUSABLE_OCTETS = 64 * 1024
"""A 413 to a smaller event is a verdict on the event: no server has so small a limit by default (100 kB: Express, 1 MiB: nginx)."""
LEARNT_SHARE = 7 / 8
"""Of a refused size this share is thought to pass: few steps lead to the limit, and little that would pass is held back."""
LEARNT_S = 3600.0
"""How long a learnt limit is believed: somebody will have looked by then."""
USER_AGENT = f"postbus/{__version__}"


@dataclass(frozen=True, slots=True)
class Equipment:
    """What requests are made with: made once, since it reads secrets and certificates."""

    transport: Transport
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
        self._deadlines = Deadlines()
        self._making = asyncio.Lock()
        self._flying = 0
        self._landed = asyncio.Event()
        self._trouble: str | None = None
        self._unlearning: asyncio.TimerHandle | None = None
        self._stopping = False

    # --- the contract

    async def start(self) -> None:
        """Read secrets and certificates; what is wrong with them is trouble of the sink, not of the start."""
        await self._made()

    async def send(self, event: Event) -> Outcome:
        """Post *event*, once there is room among the octets in flight; from then on ``timeout_s`` is over all of it."""
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
        self._unlearn()
        try:
            async with asyncio.timeout(timeout_s):
                while self._flying:
                    self._landed.clear()
                    await self._landed.wait()
        except TimeoutError:
            telemetry.sink_abandoned(sink=self.name, events=self._flying)
        client, self._client = self._client, None
        if client is not None:
            await client.transport.aclose()

    def health(self) -> Health:
        """Return how the last request went."""
        learnt = f"; no event above {self.event_max_octets} octets since a 413" if self._unlearning else ""
        return Health(ok=self._trouble is None, detail=(self._trouble or "posting") + learnt)

    # --- one event

    async def _attempt(self, event: Event) -> Outcome:
        """Return what became of one request."""
        weight = weight_of(event)
        # Whoever waits here has not failed, and neither has the receiver: those before him end within their time, each.
        await self._budget.take(weight, None)
        try:
            client = self._client or await self._made()
            if client is None or self._stopping:
                return Retry("stopping" if self._stopping else self._trouble or "not ready")
            with self._deadlines.until(asyncio.get_running_loop().time() + self._settings.timeout_s):
                headers, body = await self._request(event, client)
                if len(body) > self._settings.event_max_octets:
                    return Rejected(f"the event has {len(body)} octets, this sink takes {self._settings.event_max_octets}", too_large=True)
                return await self._posted(client, headers, body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            outcome = Retry(failure_of(error) or "the request failed")
            forget_frames(error)
            return outcome
        finally:
            self._budget.give(weight)

    async def _request(self, event: Event, client: Equipment) -> tuple[Headers, bytes]:
        """Return headers and body; a large body is made, and signed, off the loop."""
        make = partial(request_of, event, mode=self._settings.mode, fixed=client.headers, keys=client.keys, now_s=int(self._clock()))
        return make() if len(event.data) <= APART_OCTETS else await asyncio.to_thread(make)

    async def _posted(self, client: Equipment, headers: Headers, body: bytes) -> Outcome:
        """Post once, and once more when the receiver had closed the connection before it could see the request."""
        request = httpx.Request("POST", client.transport.url, headers=headers, stream=Octets(body))
        if client.transport.closed:
            return Retry("stopping")
        try:
            answer = await client.transport.handle_async_request(request)
        except CONNECTION_LOST:
            if self._stopping:
                raise
            answer = await client.transport.handle_async_request(request)
        outcome = outcome_of(answer.status_code, answer.headers.get("retry-after"), datetime.now(UTC))
        if isinstance(outcome, Rejected) and outcome.too_large:
            if len(body) <= REFUSABLE_OCTETS:
                return replace(outcome, too_large=False)
            self._learn(len(body))
        return outcome

    def _learn(self, refused_octets: int) -> None:
        """Say from now on, for a while, that less than *refused_octets* is carried: the receiver, or a proxy before it, has a limit."""
        limit = max(REFUSABLE_OCTETS, int(refused_octets * LEARNT_SHARE))
        if limit < self.event_max_octets:
            self._unlearn()
            self.event_max_octets = limit
            self._unlearning = asyncio.get_running_loop().call_later(LEARNT_S, self._unlearn)
            telemetry.sink_limit_learnt(sink=self.name, octets=limit)

    def _unlearn(self) -> None:
        """Carry again what the settings say."""
        if self._unlearning is not None:
            self._unlearning.cancel()
            self._unlearning = None
            self.event_max_octets = self._settings.event_max_octets

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
        headers, keys, context = await asyncio.to_thread(self._read)
        private = settings.private if settings.private is not None else names_inside(settings.url)
        transport = Transport(
            settings.url,
            tls=context,
            egress=Egress(private=private, allow=settings.allow),
            connections=settings.concurrency,
            connect_timeout_s=settings.connect_timeout_s,
            response_max_octets=settings.response_max_octets,
        )
        return Equipment(transport, headers, keys)

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
