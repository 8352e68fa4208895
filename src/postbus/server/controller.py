"""A server in a thread: for tests, scripts and programs that have no event loop of their own."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from pathlib import Path
from typing import Any

from postbus.server.listener import Listener
from postbus.server.settings import ListenerSettings, TimeoutSettings
from postbus.server.smtp import SMTP

READY_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 1.0  # for messages in transfer, when stop() is called


class ThreadedController:
    """Runs one listener in a thread; ``Controller`` and ``UnixSocketController`` say where it listens.

    Override ``factory`` to serve a class of your own.

    Attributes:
        handler: whose hooks are called.
        loop: the thread's event loop; None before ``start``.
        smtpd: the protocol ``factory`` made last, connected or not.
        listener: the listener, while it runs.
    """

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ready_timeout: float = READY_TIMEOUT_S,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        **SMTP_parameters: Any,  # noqa: N803 - aiosmtpd's name
    ) -> None:
        """Take what it serves with.

        Args:
            handler: an object with ``handle_<VERB>`` hooks.
            loop: to run in the thread; None: a new one.
            ready_timeout: seconds ``start`` waits.
            ssl_context: TLS from the first octet, with this context.
            server_hostname: our name.
            SMTP_parameters: what ``SMTP`` takes; SMTPUTF8 is on unless they say otherwise.
        """
        self.handler = handler
        self.loop = loop
        self.ssl_context = ssl_context
        self.ready_timeout = float(os.environ.get("AIOSMTPD_CONTROLLER_TIMEOUT", ready_timeout))
        self.SMTP_kwargs: dict[str, Any] = {"enable_SMTPUTF8": True, **SMTP_parameters}
        if server_hostname:
            self.SMTP_kwargs["hostname"] = server_hostname
        self.smtpd: SMTP | None = None
        self.listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stopping: asyncio.Event | None = None
        self._failures: list[BaseException] = []

    def factory(self) -> SMTP:
        """Return the protocol of one connection."""
        return SMTP(self.handler, **self.SMTP_kwargs)

    def address(self) -> str:
        """Return where to listen, as ``ListenerSettings.address`` has it."""
        raise TypeError(f"{type(self).__name__} listens nowhere")

    def start(self) -> None:
        """Start the thread and wait until the server accepts.

        Raises:
            TimeoutError: it does not within ``ready_timeout``.
            Exception: whatever kept it from starting, a broken ``factory`` included.
        """
        assert self._thread is None, "SMTP daemon already running"
        self._ready.clear()
        self._failures.clear()
        self._thread = threading.Thread(target=self._run, name="postbus-controller", daemon=True)
        self._thread.start()
        ready = self._ready.wait(self.ready_timeout)
        if self._failures:
            self._join()
            raise self._failures.pop()
        if not ready:
            raise TimeoutError("SMTP server failed to start within allotted time; try a larger ready_timeout")

    def stop(self, *, no_assert: bool = False) -> None:
        """Stop the server: a message in transfer has STOP_TIMEOUT_S to get its reply; then end the thread."""
        assert no_assert or self._thread is not None, "SMTP daemon not running"
        if self._thread is not None and self.loop is not None and self._stopping is not None:
            self.loop.call_soon_threadsafe(self._stopping.set)
            self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.smtpd = None
        self.listener = None

    def _run(self) -> None:
        """The thread's work."""
        loop = self.loop = self.loop if self.loop is not None and not self.loop.is_closed() else asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - told by ``start``
            self._failures.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._make()  # a factory that fails should fail ``start``, not the first client
        listener = self.listener = Listener(self.handler, self._settings(), factory=self._make, tls_context=self.ssl_context)
        await listener.start()
        self.bound(listener.addresses)
        self._ready.set()
        await self._stopping.wait()
        await listener.drain(STOP_TIMEOUT_S)

    def bound(self, addresses: list[str]) -> None:
        """The listener is bound to *addresses*."""

    def _make(self) -> SMTP:
        server: Any = self.factory()
        if not isinstance(server, SMTP):
            raise RuntimeError(f"factory() returned {type(server).__name__}")  # noqa: TRY004 - aiosmtpd's error
        self.smtpd = server
        return server

    def _settings(self) -> ListenerSettings:
        settings = ListenerSettings(
            address=self.address(),
            timeouts=TimeoutSettings(command_timeout_s=self.SMTP_kwargs.get("timeout", 300)),
        )
        if self.ssl_context is not None:
            settings = settings.model_copy(update={"tls": settings.tls.model_copy(update={"mode": "implicit"})})
        return settings


class Controller(ThreadedController):
    """A server on a TCP port; attributes ``hostname`` and ``port`` say which (port 0: a free one, known once started)."""

    def __init__(
        self, handler: Any, hostname: str | None = None, port: int = 8025, loop: asyncio.AbstractEventLoop | None = None, **parameters: Any
    ) -> None:
        """Args are aiosmtpd's; *hostname* None: loopback."""
        super().__init__(handler, loop, **parameters)
        self.hostname = "127.0.0.1" if hostname is None else hostname
        self.port = port

    def address(self) -> str:
        """Return ``host:port``."""
        return f"[{self.hostname}]:{self.port}" if ":" in self.hostname else f"{self.hostname}:{self.port}"

    def bound(self, addresses: list[str]) -> None:
        """Remember the port the system chose."""
        self.port = int(addresses[0].rpartition(":")[2])


class UnixSocketController(ThreadedController):
    """A server on a Unix socket."""

    def __init__(self, handler: Any, unix_socket: str | Path, loop: asyncio.AbstractEventLoop | None = None, **parameters: Any) -> None:
        """Args are aiosmtpd's; *unix_socket* is the path to listen on."""
        super().__init__(handler, loop, **parameters)
        self.unix_socket = str(unix_socket)

    def address(self) -> str:
        """Return ``unix:/path``."""
        return f"unix:{Path(self.unix_socket).absolute()}"
