"""The whole running program: ordered start, supervision, reload, drain.

Start: sidecar (so that probes have an answer) -> sinks -> spool -> dispatcher -> listeners. The end goes the other way round and loses
nothing (design 2): not ready -> stop accepting -> each message in transfer gets its true reply -> deliveries in flight end, or stay in
the spool -> sinks flushed -> spool closed -> sidecar, last.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from postbus import __version__, telemetry
from postbus.app import guide, rooms
from postbus.app.view import Admin, View
from postbus.bridge.dispatcher import Dispatcher
from postbus.bridge.fates import Fates
from postbus.bridge.hold import Courier
from postbus.bridge.intake import PublishingHandler, Terms
from postbus.bridge.parsing import Parser
from postbus.bridge.renderer import Renderer
from postbus.bridge.spool import Spool, SpoolFault, SpoolRefused
from postbus.config import ConfigurationError, Loaded, Settings, certificates, changes, check, load
from postbus.server.listener import Listener
from postbus.server.tls import TlsUnusable
from postbus.sidecar.app import make_app
from postbus.sidecar.pulse import Pulse
from postbus.sidecar.server import BindError, Sidecar
from postbus.sidecar.status import Reloaded
from postbus.sidecar.token import tokens
from postbus.sinks import Sink
from postbus.smtp.replies import Reply

FLUSH_SHARE = 0.2
"""Of the drain's time this share is kept for sinks and spool; sessions have the rest."""
SINK_STOP_S = 5.0
LIMITS_INTERVAL_S = 1.0

SPOOL_UNHEALTHY = Reply(421, "Service not available, try again later", "4.3.2")

_BIND_REMEDIES: Mapping[int, str] = {
    errno.EADDRINUSE: "stop what listens there, or choose another address",
    errno.EACCES: "ports below 1024 need privileges, a socket's folder must be writable: choose another address",
    errno.EADDRNOTAVAIL: "no interface of this machine has it: choose another address",
}

State = Literal["starting", "serving", "draining", "stopped"]


class StartError(Exception):
    """Postbus cannot start; the text says what is in the way and what would help."""


class Process:
    """One running postbus.

    Attributes:
        loaded: the configuration in force; file: where it came from.
        state: where it is in its life.
        pulse: how late the loop is.
        problems: why the last reload was refused; empty after one that worked.
        fates: what became of the last transactions.
    """

    def __init__(self, loaded: Loaded, file: Path | None) -> None:
        self.loaded = loaded
        self.file = file
        self.state: State = "starting"
        self.started_s = time.time()
        self.pulse = Pulse()
        self.problems: Sequence[str] = ()
        self.spool: Spool | None = None
        self.dispatcher: Dispatcher | None = None
        self.listeners: dict[str, Listener] = {}
        self.rooms: rooms.Rooms | None = None
        self._sidecar: Sidecar | None = None
        self._parser = Parser(self.settings.parsing)
        self._renderer = Renderer(self._parser)
        self.fates = Fates()
        self._courier = Courier(lambda: self.sinks, self._renderer, self.fates)
        self._started_with = loaded.settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self._temporary: TemporaryDirectory[str] | None = None
        self._reloading = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._why = ""
        self._draining_s = 0.0

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.loaded.settings

    @property
    def sinks(self) -> Mapping[str, Sink]:
        """The sinks in force."""
        return {} if self.rooms is None else self.rooms.sinks

    # --- start

    async def start(self) -> None:
        """Build and start everything.

        Raises:
            StartError: with words for the operator. Call ``abandon`` then.
        """
        began = time.monotonic()
        settings = self.settings
        try:
            await self._start_sidecar()
            self.rooms = rooms.build(settings)
            for sink in self.sinks.values():
                await sink.start()
            await self._parser.start()
            if rooms.needs_spool(settings):
                await self._start_spool()
            for name, listener in self._make_listeners().items():
                await self._bind(name, listener)
        except (BindError, SpoolRefused, SpoolFault, rooms.UnbuildableError) as error:
            raise StartError(str(error)) from error
        self._spawn(self.pulse.run(), "pulse")
        self._spawn(self._watch(), "watch")
        self._spawn(self._follow_limits(), "limits")
        await asyncio.to_thread(self._look_at_certificates)
        self.state = "serving"
        self._tell(time.monotonic() - began)

    async def _start_sidecar(self) -> None:
        settings = self.settings.sidecar
        if not settings.enabled:
            return
        admin = Admin(self)
        app = make_app(View(self), dead_letters=admin, actions=admin, token=tokens(settings, os.environ))
        self._sidecar = Sidecar(app, settings)
        await self._sidecar.start()

    async def _start_spool(self) -> None:
        spool = Spool(self.settings.spool)
        await spool.open()
        self.spool = spool
        self.dispatcher = Dispatcher(
            spool, self.sinks, self._renderer, retry=self.settings.retry, dispatch=self.settings.dispatch, fates=self.fates
        )
        self.dispatcher.start()

    def _make_listeners(self) -> dict[str, Listener]:
        settings = self.settings
        handler = PublishingHandler(
            route=lambda address: self.rooms.router.match(address) if self.rooms else None,
            terms=Terms(settings.source, settings.hold.timeout_s, settings.hold.in_flight_max_octets),
            courier=self._courier,
            keeper=self.spool,
            now_ms=lambda: time.time_ns() // 1_000_000,
            random=os.urandom,
        )
        spill = self.spool.spill_folder if self.spool is not None else self._temporary_folder()
        return {
            name: Listener(
                handler,
                said if said.hostname or settings.hostname is None else said.model_copy(update={"hostname": settings.hostname}),
                name=name,
                spill_folder=spill,
                gate=self._gate,
                size_octets=lambda: self.rooms.size_octets if self.rooms else None,
            )
            for name, said in settings.listeners.items()
        }

    def _temporary_folder(self) -> Path:
        """Return where large content goes while it is held, without a spool to be renamed into; it ends with the process."""
        self._temporary = TemporaryDirectory(prefix="postbus-", ignore_cleanup_errors=True)
        return Path(self._temporary.name)

    async def _bind(self, name: str, listener: Listener) -> None:
        try:
            await listener.start()
        except TlsUnusable as error:
            raise StartError(f"listeners.{name}.tls: {error}") from error
        except OSError as error:
            reason = (os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)).lower()
            remedy = _BIND_REMEDIES.get(error.errno or 0, "choose another address")
            raise StartError(f"listeners.{name}.address {listener.settings.address}: {reason}; {remedy}") from error
        self.listeners[name] = listener
        for address in listener.addresses:
            telemetry.listener_bound(listener=name, address=address, protocol=listener.settings.protocol, tls=listener.settings.tls.mode)

    def _gate(self) -> Reply | None:
        """Turn connections away while no route could take mail: the spool is broken and every route needs it."""
        if self.spool is not None and self.spool.gate() == "unhealthy" and self.rooms is not None and self.rooms.all_spool:
            return SPOOL_UNHEALTHY
        return None

    def _tell(self, seconds: float) -> None:
        assert self.rooms is not None
        routes = rooms.told(self.settings)
        addresses = {name: listener.addresses for name, listener in self.listeners.items()}
        http = self._sidecar.address if self._sidecar else ""
        for name, match, acceptance, mode, sinks in routes:
            telemetry.route_told(route=name, match=match, acceptance=acceptance, mode=mode, sinks=sinks)
        telemetry.app_started(version=__version__, seconds=seconds, try_with=guide.next_step(self.settings, addresses, http))
        folder = None if self.spool is None else self.settings.spool.folder
        telemetry.say(guide.welcome(self.settings, addresses, http, routes, folder))

    # --- while it runs

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours that dies is a mistake of ours; the process cannot be trusted, so it drains."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            text = "".join(traceback.format_exception(error))
            telemetry.task_restarted(task=task.get_name(), error=repr(error), after_s=0.0, traceback=text)
            self.stop(f"{task.get_name()} died")

    async def _watch(self) -> None:
        """Reload when the configuration's file or a certificate is another one; polled, since Kubernetes swaps mounted files by a link."""
        seen = await asyncio.to_thread(self._fingerprint)
        while True:
            await asyncio.sleep(self.settings.watch_interval_s or 3600.0)
            now = await asyncio.to_thread(self._fingerprint)
            if now != seen and self.settings.watch_interval_s:
                seen = now
                await self.reload()

    async def _follow_limits(self) -> None:
        """Route by what sinks carry now: a Kafka sink learns its topics' limits only once it is connected."""
        while True:
            await asyncio.sleep(LIMITS_INTERVAL_S)
            known = self.rooms
            if known is not None and known.outdated():
                self.rooms = rooms.routed(self.settings, known.sinks)

    def _look_at_certificates(self) -> None:
        """Tell when each listener's certificate ends. Blocks."""
        for name, listener in self.settings.listeners.items():
            if listener.tls.certificate is not None and listener.tls.mode != "none":
                expires_s = certificates.look(listener.tls.certificate, listener.tls.key).expires_s
                if expires_s is not None:
                    telemetry.certificate_expires(listener=name, expires_s=expires_s)

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        """Return what tells one state of the watched files from another. Blocks."""
        paths = [self.file] if self.file else []
        for listener in self.settings.listeners.values():
            paths += [path for path in (listener.tls.certificate, listener.tls.key, listener.tls.client_ca) if path]
        found: list[tuple[int, int, int] | None] = []
        for path in paths:
            try:
                stat = path.stat()
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    # --- reload

    def reload_soon(self) -> None:
        """Reload from a signal handler."""
        self._spawn(self._reload_quietly(), "reload")

    async def _reload_quietly(self) -> None:
        await self.reload()

    async def reload(self) -> Reloaded:
        """Read the configuration again and put what changed into force; a bad one changes nothing and says so."""
        async with self._reloading:
            try:
                loaded = await asyncio.to_thread(load, self.file)
                findings = await asyncio.to_thread(check, loaded)
            except ConfigurationError as error:
                findings = list(error.findings)
                return self._refused([str(finding) for finding in findings])
            errors = [str(finding) for finding in findings if finding.severity == "error"]
            if errors:
                return self._refused(errors)
            old = self.settings
            if rooms.needs_spool(loaded.settings) and self.spool is None:
                return self._refused(["acceptance: a route needs the spool now, which opens at start only; restart postbus"])
            changed, restart = changes(old, loaded.settings), rooms.needs_restart(self._started_with, loaded.settings)
            try:
                await self._swap(loaded)
            except rooms.UnbuildableError as error:
                return self._refused([str(error)])
            problems = self._reload_listeners()
            if problems:
                return self._refused(problems)
            self.problems = ()
            await asyncio.to_thread(self._look_at_certificates)
            telemetry.reloaded(changed=", ".join(changed), needs_restart=", ".join(restart))
            return Reloaded(changed=changed, needs_restart=restart)

    def _refused(self, problems: Sequence[str]) -> Reloaded:
        self.problems = tuple(problems)
        telemetry.reload_failed()
        for problem in problems:
            telemetry.reload_refused(problem=problem)
        return Reloaded(problems=problems)

    async def _swap(self, loaded: Loaded) -> None:
        """Put routes and sinks into force: new sinks are started before anything leads to them, old ones stopped after."""
        old, before = self.settings, self.sinks
        new = rooms.build(loaded.settings, old, before)
        for name, sink in new.sinks.items():
            if before.get(name) is not sink:
                await sink.start()
        self.loaded, self.rooms = loaded, new
        if self.dispatcher is not None:
            self.dispatcher.replace(new.sinks, loaded.settings.retry)
        said = loaded.settings.telemetry
        if said != old.telemetry:
            telemetry.configure(level=said.log_level, log_format=said.log_format, addresses=said.log_addresses)
        for name, sink in before.items():
            if new.sinks.get(name) is not sink:
                self._spawn(sink.stop(SINK_STOP_S), f"stop of sink {name}")

    def _reload_listeners(self) -> list[str]:
        """Give listeners their new limits and certificates, which are read again in any case."""
        problems = []
        for name, listener in self.listeners.items():
            said = self.settings.listeners.get(name)
            if said is None:
                continue
            try:
                listener.reconfigure(
                    said
                    if said.hostname or self.settings.hostname is None
                    else said.model_copy(update={"hostname": self.settings.hostname})
                )
            except TlsUnusable as error:
                problems.append(f"listeners.{name}.tls: {error}")
        return problems

    # --- the end

    def stop(self, why: str) -> None:
        """Begin to drain; asked a second time, cut it short. What is in the spool stays there."""
        if self._stopping.is_set():
            self._hurry.set()
        else:
            self._why = why
            self._stopping.set()

    async def stopped(self) -> None:
        """Wait until somebody asks to stop, then drain."""
        await self._stopping.wait()
        drain = asyncio.get_running_loop().create_task(self._drain())
        hurry = asyncio.get_running_loop().create_task(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not drain.done():
            drain.cancel()
            with suppress(asyncio.CancelledError):
                await drain
            await self._close(0.0)
            self._tell_stopped(in_time=False)
        await drain if not drain.cancelled() else None
        if self._sidecar is not None:
            await self._sidecar.stop()
        self.state = "stopped"

    async def _drain(self) -> None:
        began, deadline_s = time.monotonic(), self.settings.drain_timeout_s
        self.state = "draining"
        self._draining_s = began
        telemetry.app_draining(why=self._why, deadline_s=deadline_s)
        telemetry.say(guide.farewell(sum(listener.sessions for listener in self.listeners.values()), deadline_s))
        in_time = await asyncio.gather(*(listener.drain(deadline_s * (1 - FLUSH_SHARE)) for listener in self.listeners.values()))
        await self._close(max(1.0, began + deadline_s - time.monotonic()))
        self._tell_stopped(in_time=all(in_time))

    def _tell_stopped(self, *, in_time: bool) -> None:
        left = 0 if self.spool is None else self.spool.numbers.messages
        telemetry.app_stopped(seconds=time.monotonic() - self._draining_s, in_time=in_time, left_in_spool=left)

    async def _close(self, within_s: float) -> None:
        """End deliveries, sinks, parser and spool, in this order."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self.listeners.values():
            await listener.close()
        await self._courier.drain(within_s / 3)
        if self.dispatcher is not None:
            await self.dispatcher.drain(within_s / 3)
        await asyncio.gather(*(sink.stop(max(0.5, within_s / 4)) for sink in self.sinks.values()))
        await self._parser.stop()
        if self.spool is not None:
            await self.spool.close()
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    async def abandon(self) -> None:
        """Undo a start that failed half-way."""
        await self._close(0.0)
        if self._sidecar is not None:
            await self._sidecar.stop()
