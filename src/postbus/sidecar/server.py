"""uvicorn inside our loop, on a socket bound beforehand, supervised, and last to go.

What the stock server would do wrong for us, and what is done instead:

- it takes SIGTERM, even where the loop has a handler of its own, and its port refuses while sessions drain: signals are left alone;
- a bind error ends the process (``sys.exit``): the socket is bound here, and a failure has a message;
- it waits for ever for a request that never ends, and counts such a connection against the limit that answers probes with 503:
  every connection has a deadline, and a crowd closes the one that has been slow for longest, so that a probe always gets in.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from postbus import telemetry
from postbus.sidecar.settings import SidecarSettings, address_of

RESTART_MIN_S = 0.1
RESTART_MAX_S = 30.0
STEADY_S = 60.0
"""A server that ran this long starts from the shortest pause again."""
STOP_MAX_S = 2.0
"""What requests under way get at the end."""
BACKLOG = 128


class BindError(Exception):
    """The sidecar's address cannot be had; the text says which, why, and what would help."""


def bind(address: str) -> socket.socket:
    """Return a listening socket on *address* (``host:port``).

    Raises:
        BindError: it is taken, not ours, or needs rights we lack.
    """
    host, port = address_of(address)
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        family, _, _, _, target = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]  # noqa: S104 - asked for by an empty host
        return socket.create_server(target, family=family, backlog=BACKLOG)
    except OSError as exc:
        raise BindError(f"sidecar.address {address}: {_reason(exc)}") from exc


def _reason(exc: OSError) -> str:
    reasons = {
        errno.EADDRINUSE: "something else listens there already; choose another port, or 0 for any free one",
        errno.EACCES: "this user may not listen there; ports below 1024 need privileges",
        errno.EADDRNOTAVAIL: "no interface of this machine has that address",
    }
    if isinstance(exc, socket.gaierror):
        return f"the name cannot be resolved: {(exc.strerror or 'no reason given').lower()}"
    return reasons.get(exc.errno or 0) or (exc.strerror or str(exc)).lower()


class _Server(uvicorn.Server):
    """A server that leaves signals to the program round it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


class Connection(H11Protocol):
    """An HTTP connection with a deadline: a whole request must arrive, and its answer be taken, within ``request_timeout_s``.

    Beyond ``connections_max`` the connection that has been without progress for longest is closed.
    """

    connections_max = 100
    request_timeout_s = 15.0
    since = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, and make room."""
        super().connection_made(transport)
        self._wind()
        if len(self.connections) > self.connections_max:
            others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
            min(others, key=lambda other: other.since).evict("crowded")

    def on_response_complete(self) -> None:
        """Start the clock for the next request, or for the peer to take this answer."""
        self._wind()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def evict(self, reason: str) -> None:
        """Close at once, without waiting for the peer to take what is written."""
        if self._deadline is not None:
            self._deadline.cancel()
        self.connections.discard(self)
        telemetry.http_evicted(reason=reason)
        self.transport.abort()

    def _wind(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.since = self.loop.time()
        self._deadline = self.loop.call_later(self.request_timeout_s, self.evict, "slow")


def _connection_class(settings: SidecarSettings) -> type[Connection]:
    class Bounded(Connection):
        connections_max = settings.connections_max
        request_timeout_s = settings.request_timeout_s

    return Bounded


class Sidecar:
    """The HTTP server of *app*: ``await start()``, and ``await stop()`` after everything else has stopped."""

    def __init__(self, app: ASGIApp, settings: SidecarSettings) -> None:
        self._settings = settings
        self._config = uvicorn.Config(
            app,
            loop="none",
            http=_connection_class(settings),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=2 * settings.connections_max,
            h11_max_incomplete_event_size=settings.request_max_octets,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=int(STOP_MAX_S),
        )
        self.address = ""
        """The address bound, ``host:port``, with the port really taken where 0 was asked for; empty before ``start``."""
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Bind, and serve from a task of our own.

        Raises:
            BindError: the address cannot be had.
        """
        self._socket = bind(self._settings.address)
        self._socket.setblocking(False)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._task = asyncio.create_task(self._supervise(self._socket), name="sidecar")
        telemetry.http_started(address=self.address)

    async def stop(self) -> None:
        """Close the socket and end requests under way within ``STOP_MAX_S``; idempotent."""
        self._stopping.set()
        if self._server is not None:
            self._server.should_exit = True
        task, self._task = self._task, None
        if task is not None:
            await task
            telemetry.http_stopped()
        if self._socket is not None:
            self._socket.close()

    async def _supervise(self, bound: socket.socket) -> None:
        """Serve; where the server ends by itself, pause and serve again. New connections wait in the socket's queue meanwhile."""
        pause_s = RESTART_MIN_S
        while not self._stopping.is_set():
            began = time.monotonic()
            error, trace = await self._serve(bound)
            if self._stopping.is_set():
                return
            pause_s = RESTART_MIN_S if time.monotonic() - began > STEADY_S else pause_s
            telemetry.task_restarted(task="sidecar", error=error, after_s=pause_s, traceback=trace)
            await self._pause(pause_s)
            pause_s = min(RESTART_MAX_S, pause_s * 2)

    async def _serve(self, bound: socket.socket) -> tuple[str, str | None]:
        """Run one server to its end, and return why it ended. It closes its copy of the socket, never ours."""
        self._server = server = _Server(self._config)
        try:
            with bound.dup() as copy:
                await server.serve(sockets=[copy])
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - the top of a task; uvicorn exits where it cannot start
            return type(exc).__name__, traceback.format_exc()
        finally:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
        return "ended", None

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
