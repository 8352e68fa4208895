"""A server beside a program: in a thread of its own, or on an event loop the program has.

The names, parameters and points to override are aiosmtpd's: ``factory`` makes the protocol of each connection, ``_create_server`` binds.
What differs: ``start`` asks ``factory`` once instead of connecting to itself; ``stop`` lets a message in transfer have its reply and never
waits for ever; ``port`` says which port the system chose; *hostname* None is 127.0.0.1, which every machine and container has.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import tempfile
import threading
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet, finalize

from postbus.server.listener import Listener
from postbus.server.settings import ListenerSettings
from postbus.server.smtp import SMTP
from postbus.server.tls import doubt

DEFAULT_READY_TIMEOUT = 5.0  # seconds
STOP_TIMEOUT_S = 1.0  # for messages in transfer, when stop() is called
STOP_MAX_S = 10.0  # for the thread to end; a hook that blocks the loop keeps it longer, and is left behind
ACCEPTING_TURNS = 4  # of the loop, from the kernel's accept to ``connection_made``
CUTS = 20  # looks at who is still connected in that time
SYSTEM_FOLDER: Literal[""] = ""
"""Content goes below wherever ``tempfile`` puts things: TMPDIR, else /tmp."""
SPILL_PREFIX = "postbus-spill-"
LOCALHOST: Literal["127.0.0.1"] = "127.0.0.1"


def get_localhost() -> Literal["::1", "127.0.0.1"]:
    """Return the loopback address a controller takes without a *hostname*: IPv4, unless this machine has none."""
    try:
        with socket.socket(socket.AF_INET) as probe:
            probe.bind((LOCALHOST, 0))
    except OSError:
        return "::1"
    return LOCALHOST


class ListenerServer(asyncio.AbstractServer):
    """A listener as asyncio's servers are used: ``sockets``, ``close``, ``wait_closed``.

    Attributes:
        listener: what does the work.
    """

    def __init__(self, listener: Listener, spill_folder: Path | None = None) -> None:
        """Serve by *listener*; *spill_folder* is removed with it, or when the program ends without having closed it."""
        self.listener = listener
        self._loop = asyncio.get_running_loop()
        self._tidy = None if spill_folder is None else finalize(self, shutil.rmtree, spill_folder, ignore_errors=True)

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets; empty once closed."""
        return self.listener.sockets

    def close(self) -> None:
        """Stop accepting."""
        self.listener.stop_accepting()

    async def wait_closed(self) -> None:
        """Let messages in transfer have their replies, for STOP_TIMEOUT_S; then cut what is left."""
        try:
            await self.listener.drain(STOP_TIMEOUT_S)
        finally:
            if self._tidy is not None:
                self._tidy()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop it runs on."""
        return self._loop

    def is_serving(self) -> bool:
        """Return whether connections are accepted."""
        return bool(self.listener.addresses)

    async def start_serving(self) -> None:
        """Nothing to do: it was started when it was made."""

    async def serve_forever(self) -> None:
        """Wait until cancelled."""
        await self._loop.create_future()


class BaseController(metaclass=ABCMeta):
    """What every controller has.

    Attributes:
        handler: whose hooks are called.
        ssl_context: TLS from the first octet, or None.
        SMTP_kwargs: what ``factory`` gives to ``SMTP``.
        settings: limits, timeouts and policies of the listener.
        spill_folder: below which large content goes while it arrives and waits for its handler.
        smtpd: the protocol ``factory`` made last, connected or not; None while nothing runs.
        server: the server, while it runs: ``server.sockets`` are what it listens on.
    """

    smtpd: SMTP | None = None
    server: asyncio.AbstractServer | None = None
    server_coro: Awaitable[asyncio.AbstractServer] | None = None
    _thread_exception: BaseException | None = None

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        settings: ListenerSettings | None = None,
        spill_folder: Path | str | None = SYSTEM_FOLDER,
        **SMTP_parameters: Any,  # noqa: N803 - aiosmtpd's name
    ) -> None:
        """Take what it serves with.

        Args:
            handler: an object with ``handle_<VERB>`` hooks.
            loop: to serve on; None: a new one.
            ssl_context: TLS from the first octet, with this context.
            server_hostname: our name in banner and EHLO.
            settings: limits, timeouts and policies of the listener; its address and TLS are the controller's. None: the defaults.
            spill_folder: where a folder is made for content beyond ``settings.spill_threshold_octets``, mode 0700, removed by the stop;
                its files have no names, so that nothing is left of a process that is killed. ``""``: the system's temporary folder;
                None: none, content stays in memory. ``envelope.content`` reads it.
            SMTP_parameters: what ``SMTP`` takes; SMTPUTF8 is on unless they say otherwise. ``server_kwargs``, a mapping of the same, is
                deprecated.
        """
        self.handler = handler
        self._loop = loop
        self.ssl_context = ssl_context
        self.settings = settings or ListenerSettings()
        self.spill_folder = spill_folder
        if "server_kwargs" in SMTP_parameters:
            warnings.warn("server_kwargs is deprecated: give its items as keyword arguments", DeprecationWarning, stacklevel=3)
            SMTP_parameters = {**SMTP_parameters.pop("server_kwargs"), **SMTP_parameters}  # noqa: N806 - aiosmtpd's name
        self.SMTP_kwargs: dict[str, Any] = {"enable_SMTPUTF8": True, **SMTP_parameters}
        if server_hostname:
            self.SMTP_kwargs["hostname"] = server_hostname
        self._factory_invoked = threading.Event()
        self._made: WeakSet[SMTP] = WeakSet()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves: as given, or made when it is first asked for."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def factory(self) -> SMTP:
        """Return the protocol of one connection. Override it to serve a class of your own."""
        return SMTP(self.handler, **self.SMTP_kwargs)

    def _factory_invoker(self) -> SMTP:
        """Return what ``factory`` makes, and remember it.

        Warns:
            UserWarning: the first one's context for STARTTLS may turn clients away.

        Raises:
            RuntimeError: it made no SMTP protocol.
        """
        first = not self._factory_invoked.is_set()
        self._factory_invoked.set()
        server: Any = self.factory()
        if not isinstance(server, SMTP):
            raise RuntimeError(f"factory() returned {type(server).__name__}")  # noqa: TRY004 - aiosmtpd's error
        trouble = doubt(server.tls_context) if first and server.tls_context is not None else None
        if trouble is not None:
            warnings.warn(trouble, stacklevel=2)
        self.smtpd = server
        self._made.add(server)
        return server

    @abstractmethod
    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        """Bind, and return the server; connections are to be made by ``_factory_invoker``."""

    async def _listen(self, address: str) -> ListenerServer:
        """Return a started server on *address*, as ``ListenerSettings.address`` has it."""
        tls = {"tls": self.settings.tls.model_copy(update={"mode": "implicit" if self.ssl_context is not None else "none"})}
        update: dict[str, Any] = {"address": address, **tls}
        if "timeout" in self.SMTP_kwargs:
            update["timeouts"] = self.settings.timeouts.model_copy(update={"command_timeout_s": self.SMTP_kwargs["timeout"]})
        settings = self.settings.model_copy(update=update)
        folder = self._own_folder()
        listener = Listener(
            self.handler,
            settings,
            factory=self._factory_invoker,
            tls_context=self.ssl_context,
            spill_folder=folder,
            spill_nameless=True,
        )
        try:
            await listener.start()
        except BaseException:
            if folder is not None:
                folder.rmdir()
            raise
        return ListenerServer(listener, folder)

    def _own_folder(self) -> Path | None:
        """Return a new folder for large content; None: it is to stay in memory.

        Warns:
            RuntimeWarning: the system's temporary folder cannot be used; content stays in memory.

        Raises:
            OSError: *spill_folder* cannot be used.
        """
        if self.spill_folder is None:
            return None
        try:
            return Path(tempfile.mkdtemp(prefix=SPILL_PREFIX, dir=self.spill_folder or None))  # mode 0700
        except OSError as error:
            if self.spill_folder != SYSTEM_FOLDER:
                raise
            warnings.warn(
                f"no temporary folder ({error}): large messages stay in memory; give a spill_folder", RuntimeWarning, stacklevel=2
            )
            return None

    async def _close(self, server: asyncio.AbstractServer) -> None:
        """Close *server*; one that a subclass made knows nothing of draining: its sessions are cut, those too that it is just accepting."""
        server.close()
        if isinstance(server, ListenerServer):
            await server.wait_closed()
            return
        closed = asyncio.ensure_future(server.wait_closed())
        for _ in range(ACCEPTING_TURNS):
            await asyncio.sleep(0)
        for _ in range(CUTS):
            for connection in tuple(self._made):
                if connection.transport is not None:
                    connection.abort("drain")
            await asyncio.wait({closed}, timeout=STOP_TIMEOUT_S / CUTS)
            if closed.done():
                return
        closed.cancel()

    def _cleanup(self) -> None:
        """Forget the server that was."""
        self._thread_exception = None
        self._factory_invoked.clear()
        self.server_coro = None
        self.server = None
        self.smtpd = None

    def cancel_tasks(self, stop_loop: bool = True) -> None:
        """Cancel every task of the loop and, unless told otherwise, stop it. Call it by ``loop.call_soon_threadsafe``."""
        if stop_loop:
            self.loop.stop()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()


class BaseThreadedController(BaseController, metaclass=ABCMeta):
    """A server in a thread of its own: ``start`` and ``stop``, as often as you like.

    Attributes:
        ready_timeout: seconds ``start`` waits; the environment variable AIOSMTPD_CONTROLLER_TIMEOUT overrides it, for slow machines.
    """

    _thread: threading.Thread | None = None

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ready_timeout: float = DEFAULT_READY_TIMEOUT,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        settings: ListenerSettings | None = None,
        spill_folder: Path | str | None = SYSTEM_FOLDER,
        **SMTP_parameters: Any,  # noqa: N803 - aiosmtpd's name
    ) -> None:
        """As ``BaseController``; *ready_timeout* in seconds."""
        super().__init__(
            handler,
            loop,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            settings=settings,
            spill_folder=spill_folder,
            **SMTP_parameters,
        )
        self.ready_timeout = float(os.environ.get("AIOSMTPD_CONTROLLER_TIMEOUT", ready_timeout))

    def start(self) -> None:
        """Start the thread and wait until the server accepts.

        Raises:
            TimeoutError: it does not within ``ready_timeout``.
            Exception: whatever kept it from starting, a broken ``factory`` included.
        """
        assert self._thread is None, "SMTP daemon already running"
        self._cleanup()
        if self.loop.is_closed():  # by the last stop()
            self._loop = None
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="postbus-controller", daemon=True)
        self._thread.start()
        accepted = ready.wait(self.ready_timeout)
        if self._thread_exception is not None:
            error = self._thread_exception
            self._join()
            raise error
        if not accepted:
            raise TimeoutError("SMTP server failed to start within allotted time; try a larger ready_timeout")

    def stop(self, no_assert: bool = False) -> None:
        """Stop accepting, give a message in transfer STOP_TIMEOUT_S to get its reply, cancel what is left and end the thread.

        A hook that blocks the loop for more than STOP_MAX_S is left behind in its daemon thread, with a ResourceWarning.
        """
        assert no_assert or self._thread is not None, "SMTP daemon not running"
        if self._thread is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self.loop.call_soon_threadsafe(self.loop.stop)
            self._join()
        self._cleanup()

    def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join(STOP_MAX_S)
        if thread.is_alive():
            warnings.warn("a hook blocks the event loop; its thread was left behind", ResourceWarning, stacklevel=3)
            self._loop = None

    def _run(self, ready_event: threading.Event) -> None:
        """The thread's work."""
        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            self._factory_invoker()  # one that fails should fail ``start``, not the first client
            self.server_coro = self._create_server()
            self.server = loop.run_until_complete(self.server_coro)
            loop.call_soon(ready_event.set)
            loop.run_forever()
            loop.run_until_complete(self._close(self.server))
        except BaseException as error:  # noqa: BLE001 - told by ``start``
            self._thread_exception = error
        finally:
            self.cancel_tasks(stop_loop=False)
            loop.run_until_complete(_cancelled())
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()
            ready_event.set()


class BaseUnthreadedController(BaseController, metaclass=ABCMeta):
    """A server on a loop that the program runs: ``begin`` before, ``finalize`` or ``end`` at the end.

    A program whose loop runs already has ``Listener`` (``await listener.start()``, ``await listener.drain(deadline_s)``).

    Attributes:
        ended: set once the server is closed.
    """

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        settings: ListenerSettings | None = None,
        spill_folder: Path | str | None = SYSTEM_FOLDER,
        **SMTP_parameters: Any,  # noqa: N803 - aiosmtpd's name
    ) -> None:
        """As ``BaseController``."""
        super().__init__(
            handler,
            loop,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            settings=settings,
            spill_folder=spill_folder,
            **SMTP_parameters,
        )
        self.ended = threading.Event()
        self._finalizing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Bind; connections are served while the loop runs, which is the program's to do.

        Raises:
            OSError: the address cannot be bound.
            RuntimeError: the loop runs already, or ``factory`` makes no SMTP protocol.
        """
        asyncio.set_event_loop(self.loop)
        self._factory_invoker()
        self.server_coro = self._create_server()
        self.server = self.loop.run_until_complete(self.server_coro)

    async def finalize(self) -> None:
        """Stop accepting, let messages in transfer have their replies, close; harmless when it is closed."""
        self.ended.clear()
        if self.server is not None:
            await self._close(self.server)
        self._cleanup()
        self.ended.set()

    def end(self) -> None:
        """Have ``finalize`` run: at once if the loop stands still, else soon, and ``ended`` says when."""
        self.ended.clear()
        if self.loop.is_running():
            self._finalizing = self.loop.create_task(self.finalize())
        else:
            self.loop.run_until_complete(self.finalize())


class InetMixin(BaseController, metaclass=ABCMeta):
    """Listens on a TCP port.

    Attributes:
        hostname: an address of this machine; ``""``: all of them.
        port: of TCP; 0: a free one, which it becomes once started.
    """

    def __init__(
        self, handler: Any, hostname: str | None = None, port: int = 8025, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any
    ) -> None:
        """As ``BaseController``; *hostname* None: loopback."""
        super().__init__(handler, loop, **kwargs)
        self._localhost = get_localhost()
        self.hostname = self._localhost if hostname is None else hostname
        self.port = port

    async def _create_server(self) -> asyncio.AbstractServer:
        server = await self._listen(f"[{self.hostname}]:{self.port}" if ":" in self.hostname else f"{self.hostname}:{self.port}")
        self.port = self.port or int(server.sockets[0].getsockname()[1])
        return server


class UnixSocketMixin(BaseController, metaclass=ABCMeta):
    """Listens on a Unix socket.

    Attributes:
        unix_socket: its path.
    """

    def __init__(self, handler: Any, unix_socket: str | Path, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any) -> None:
        """As ``BaseController``; *unix_socket* is the path to listen on."""
        super().__init__(handler, loop, **kwargs)
        self.unix_socket = str(unix_socket)

    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        return self._listen(f"unix:{Path(self.unix_socket).absolute()}")


class Controller(InetMixin, BaseThreadedController):
    """A server on a TCP port, in a thread."""


class UnixSocketController(UnixSocketMixin, BaseThreadedController):
    """A server on a Unix socket, in a thread."""


class UnthreadedController(InetMixin, BaseUnthreadedController):
    """A server on a TCP port, on the program's loop."""


class UnixSocketUnthreadedController(UnixSocketMixin, BaseUnthreadedController):
    """A server on a Unix socket, on the program's loop."""


async def _cancelled() -> None:
    """Wait for the tasks that were cancelled, for STOP_TIMEOUT_S."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
