"""The whole running program: ordered start, supervision, reload, drain.

Start: sidecar (so that probes have an answer) -> sinks -> spool -> dispatcher -> listeners. The end goes the other way round and loses
nothing that was accepted: not ready -> stop accepting -> each message in transfer gets its true reply -> deliveries in flight end, or
stay in the spool -> sinks flushed -> spool closed -> sidecar, last.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import ssl
import time
import traceback
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from postbus.bridge.load import Load
from postbus.bridge.parsing import Parser
from postbus.bridge.renderer import Renderer
from postbus.bridge.spool import Spool, SpoolFault, SpoolRefused
from postbus.config import ConfigurationError, Loaded, Settings, certificates, changes, check, load
from postbus.server import users
from postbus.server.clients import Refusal
from postbus.server.listener import Listener
from postbus.server.settings import ListenerSettings
from postbus.server.tls import TlsUnusable, server_context
from postbus.server.users import Users, UsersUnusable
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
LAST_STEP_S = 2.0
"""What a step of the end gets beyond its share."""
LIMITS_INTERVAL_S = 1.0

SPOOL_UNHEALTHY = Refusal(Reply(421, "Service not available, try again later", "4.3.2"), "spool")

_BIND_REMEDIES: Mapping[int, str] = {
    errno.EADDRINUSE: "stop what listens there, or choose another address",
    errno.EACCES: "ports below 1024 need privileges, a socket's folder must be writable: choose another address",
    errno.EADDRNOTAVAIL: "no interface of this machine has it: choose another address",
}

State = Literal["starting", "serving", "draining", "stopped"]


class StartError(Exception):
    """Postbus cannot start; the text says what is in the way and what would help."""


class ChangeRefusedError(Exception):
    """A new configuration cannot be put into force; the text says why. Nothing has changed."""


@dataclass(frozen=True, slots=True)
class Change:
    """A new configuration, ready to be put into force: its rooms with sinks started; TLS contexts and users of listeners that have some."""

    loaded: Loaded
    rooms: rooms.Rooms
    contexts: Mapping[str, ssl.SSLContext]
    users: Mapping[str, Users]


class Process:
    """One running postbus.

    Attributes:
        loaded: the configuration in force; file: where it came from.
        state: where it is in its life.
        pulse: how late the loop is.
        problems: why the last reload was refused; empty after one that worked.
        fates: what became of the last transactions.
        load: how much is taken on.
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
        self.load = Load()
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
            self.rooms = rooms.build(settings, await asyncio.to_thread(rooms.marks, settings))
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
            all_spool=lambda: self.rooms is not None and self.rooms.all_spool,
            hops_max=lambda: self.settings.hops_max,
            terms=Terms(settings.source, settings.hold.timeout_s, settings.hold.in_flight_max_octets, settings.received),
            courier=self._courier,
            keeper=self.spool,
            now_ms=lambda: time.time_ns() // 1_000_000,
            random=os.urandom,
            all_tls=self._all_tls,
        )
        spill = self.spool.spill_folder if self.spool is not None else self._temporary_folder()
        return {
            name: Listener(
                handler,
                self._named(said),
                name=name,
                spill_folder=spill,
                gate=self._gate,
                size_octets=lambda: self.rooms.size_octets if self.rooms else None,
                requiretls=self._all_tls,
                load=lambda: max(handler.load, self.spool.load if self.spool is not None else 0.0),
            )
            for name, said in settings.listeners.items()
        }

    def _all_tls(self) -> bool:
        """Return whether what is taken now travels on by TLS alone."""
        return self.rooms is not None and self.rooms.all_tls

    def _temporary_folder(self) -> Path:
        """Return where large content goes while it is held, without a spool to be renamed into; it ends with the process."""
        self._temporary = TemporaryDirectory(prefix="postbus-", ignore_cleanup_errors=True)
        return Path(self._temporary.name)

    async def _bind(self, name: str, listener: Listener) -> None:
        try:
            await listener.start()
        except TlsUnusable as error:
            raise StartError(f"listeners.{name}.tls: {error}") from error
        except UsersUnusable as error:
            raise StartError(f"listeners.{name}.auth.users: {error}; {error.remedy}") from error
        except OSError as error:
            reason = (os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)).lower()
            remedy = _BIND_REMEDIES.get(error.errno or 0, "choose another address")
            raise StartError(f"listeners.{name}.address {listener.settings.address}: {reason}; {remedy}") from error
        self.listeners[name] = listener
        for address in listener.addresses:
            telemetry.listener_bound(listener=name, address=address, protocol=listener.settings.protocol, tls=listener.settings.tls.mode)

    def _gate(self) -> Refusal | None:
        """Turn connections away while too much is taken on, or while no mail could be: every route needs the spool, and it is broken."""
        if self.load.refusal is not None:
            return self.load.refusal
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
        """Reload when the configuration, a certificate or a secret is another file; polled: Kubernetes swaps what it mounts."""
        seen = await asyncio.to_thread(rooms.marks, self.settings, self.file)
        while True:
            await asyncio.sleep(self.settings.watch_interval_s or 3600.0)
            now = await asyncio.to_thread(rooms.marks, self.settings, self.file)
            if now != seen and self.settings.watch_interval_s:
                seen = now
                await self.reload()

    def _look_at_load(self) -> None:
        """See whether memory, and the disk under what is held without a spool, last."""
        least = self.settings.spool.free_min_octets
        short = self._temporary is not None and shutil.disk_usage(self._temporary.name).free < least
        self.load.look(self.settings.load, time.monotonic(), disk_short=short)

    async def _follow_limits(self) -> None:
        """Route by what sinks carry now: a Kafka sink learns its topics' limits only once it is connected. And look at our own load."""
        while True:
            self._look_at_load()
            await asyncio.sleep(LIMITS_INTERVAL_S)
            known = self.rooms
            if known is not None and known.outdated():
                self.rooms = rooms.routed(self.settings, known.sinks, known.marks)

    def _look_at_certificates(self) -> None:
        """Tell when each listener's certificate ends. Blocks."""
        for name, listener in self.settings.listeners.items():
            if listener.tls.certificate is not None and listener.tls.mode != "none":
                expires_s = certificates.look(listener.tls.certificate, listener.tls.key).expires_s
                if expires_s is not None:
                    telemetry.certificate_expires(listener=name, expires_s=expires_s)

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
            if rooms.needs_spool(loaded.settings) and self.spool is None:
                return self._refused(["acceptance: a route needs the spool now, which opens at start only; restart postbus"])
            try:
                change = await self._prepare(loaded)
            except ChangeRefusedError as error:
                return self._refused([str(error)])
            changed, restart = changes(self.settings, loaded.settings), rooms.needs_restart(self._started_with, loaded.settings)
            self._swap(change)
            self._started_with = rooms.upgraded(self._started_with, loaded.settings)
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

    async def _prepare(self, loaded: Loaded) -> Change:
        """Build and start what *loaded* brings, beside what is in force.

        Raises:
            ChangeRefusedError: something of it cannot be used; nothing has changed.
        """
        before = self.sinks
        began: list[Sink] = []
        try:
            contexts = await asyncio.to_thread(self._contexts, loaded.settings)
            known = await asyncio.to_thread(self._users, loaded.settings)
            marks = await asyncio.to_thread(rooms.marks, loaded.settings)
            new = rooms.build(loaded.settings, marks, self.settings, self.rooms)
            for name, sink in new.sinks.items():
                if before.get(name) is not sink:
                    began.append(sink)
                    await sink.start()
        except (rooms.UnbuildableError, TlsUnusable, UsersUnusable) as error:
            raise ChangeRefusedError(str(error)) from error
        except Exception as error:
            for sink in began:
                await self._end(f"stop of sink {sink.name}", sink.stop(SINK_STOP_S), SINK_STOP_S)
            telemetry.task_restarted(task="reload", error=repr(error), after_s=0.0, traceback=traceback.format_exc())
            raise ChangeRefusedError(f"a part of it cannot be started: {type(error).__name__}; the log says more") from error
        return Change(loaded, new, contexts, known)

    def _contexts(self, settings: Settings) -> dict[str, ssl.SSLContext]:
        """Return the TLS context of each listener that has one, from its files as they are now. Blocks."""
        contexts = {}
        for name, said in settings.listeners.items():
            tls = said.tls
            if tls.mode != "none" and tls.certificate is not None:
                try:
                    required = tls.client_certificate == "required"
                    contexts[name] = server_context(tls.certificate, tls.key, tls.client_ca, client_required=required)
                except TlsUnusable as error:
                    raise TlsUnusable(f"listeners.{name}.tls: {error}") from error
        return contexts

    def _users(self, settings: Settings) -> dict[str, Users]:
        """Return the users of each listener that has a file of them, as it is now. Blocks."""
        found = {}
        for name, said in settings.listeners.items():
            if said.auth.users is not None:
                try:
                    found[name] = users.read(said.auth.users)
                except UsersUnusable as error:
                    raise UsersUnusable(f"listeners.{name}.auth.users: {error}", error.remedy) from error
        return found

    def _swap(self, change: Change) -> None:
        """Put *change* into force. Nothing in here can fail or wait, so nobody sees half of it."""
        old, before, settings = self.settings, self.sinks, change.loaded.settings
        self.loaded, self.rooms = change.loaded, change.rooms
        if self.dispatcher is not None:
            self.dispatcher.replace(change.rooms.sinks, settings.retry)
        for name, listener in self.listeners.items():
            if name in settings.listeners:
                listener.reconfigure(
                    self._named(settings.listeners[name]), tls_context=change.contexts.get(name), known=change.users.get(name)
                )
        said = settings.telemetry
        if said != old.telemetry:
            telemetry.configure(level=said.log_level, log_format=said.log_format, addresses=said.log_addresses)
        for name, sink in before.items():
            if change.rooms.sinks.get(name) is not sink:
                self._spawn(self._end(f"stop of sink {name}", sink.stop(SINK_STOP_S), 2 * SINK_STOP_S), f"stop of sink {name}")

    def _named(self, said: ListenerSettings) -> ListenerSettings:
        """Return a listener's settings with the name it says: its own, else the process's, else the machine's."""
        if said.hostname is not None or self.settings.hostname is None:
            return said
        return said.model_copy(update={"hostname": self.settings.hostname})

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
        """End deliveries, sinks, parser and spool, in this order, each within its share; whatever one does, the next one is ended too."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name, listener in self.listeners.items():
            await self._end(f"listener {name}", listener.close(), LAST_STEP_S)
        await self._end("hold", self._courier.drain(within_s / 3), within_s / 3 + LAST_STEP_S)
        if self.dispatcher is not None:
            await self._end("dispatcher", self.dispatcher.drain(within_s / 3), within_s / 3 + LAST_STEP_S)
        stop_s = max(0.5, within_s / 4)
        await asyncio.gather(*(self._end(f"sink {name}", sink.stop(stop_s), stop_s + LAST_STEP_S) for name, sink in self.sinks.items()))
        await self._end("parser", self._parser.stop(), LAST_STEP_S)
        if self.spool is not None:
            await self._end("spool", self.spool.close(), within_s / 4 + LAST_STEP_S)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    async def _end(self, what: str, work: Awaitable[object], within_s: float) -> None:
        """Await one step of an end; one that fails or hangs is told, and that is all: what matters is in the spool."""
        try:
            async with asyncio.timeout(within_s):
                await work
        except TimeoutError:
            telemetry.end_failed(what=what, why=f"not ended within {within_s:.1f} s", traceback=None)
        except Exception as error:  # noqa: BLE001 - the top of a step: the others must still be ended
            telemetry.end_failed(what=what, why=repr(error), traceback=traceback.format_exc())

    async def abandon(self) -> None:
        """Undo a start that failed half-way."""
        await self._close(0.0)
        if self._sidecar is not None:
            await self._sidecar.stop()
