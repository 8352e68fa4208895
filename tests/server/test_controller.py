"""A server in a thread."""

from __future__ import annotations

import asyncio
import os
import pickle
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest

from postbus.server import SMTP, Controller, ListenerSettings, UnixSocketController
from postbus.server import controller as module
from postbus.server.controller import UnixSocketUnthreadedController, UnthreadedController
from postbus.server.settings import LimitSettings
from tests.e2e.harness import wait_until
from tests.server.test_smtp import Box, HeloCounter, Now
from tests.server.wire import client_context, server_context


def test_the_talks_helo_counter_behind_a_controller() -> None:
    """The server exposes its handler; the port is known once started."""
    controller = Controller(HeloCounter(), port=0)
    controller.start()
    try:
        with smtplib.SMTP(controller.hostname, controller.port) as client:
            assert client.helo("x") == (250, b"OK")
            assert client.helo("x") == (250, b"OK")
            assert controller.smtpd is not None
            assert controller.smtpd.event_handler.helos == 2
    finally:
        controller.stop()


class NowController(Controller):
    """Serves a subclass."""

    def factory(self) -> SMTP:
        """Return the talk's first example."""
        return Now(self.handler, **self.SMTP_kwargs)


def test_a_factory_of_ones_own() -> None:
    """The talk's NOW."""
    controller = NowController(Box(), port=0, server_hostname="here.example")
    controller.start()
    try:
        with smtplib.SMTP(controller.hostname, controller.port) as client:
            assert client.docmd("NOW")[0] == 250
            assert client.ehlo("x")[1].startswith(b"here.example\n")
    finally:
        controller.stop()


def test_a_message_with_smtputf8_and_a_size_limit() -> None:
    """The parameters of SMTP pass through; SMTPUTF8 is on."""
    box = Box()
    controller = Controller(box, port=0, data_size_limit=2000)
    controller.start()
    try:
        with smtplib.SMTP(controller.hostname, controller.port) as client:
            client.sendmail("a@x", ["\u00fc@x"], b"x\r\n", mail_options=["SMTPUTF8"])
            assert client.esmtp_features["size"] == "2000"
            with pytest.raises(smtplib.SMTPSenderRefused):
                client.sendmail("a@x", ["b@x"], b"x" * 3000)
        assert box.envelopes[0].rcpt_tos == ["\u00fc@x"]
        assert box.envelopes[0].smtp_utf8
    finally:
        controller.stop()


def test_implicit_tls() -> None:
    """``ssl_context`` is spoken from the first octet."""
    controller = Controller(Box(), port=0, ssl_context=server_context())
    controller.start()
    try:
        with smtplib.SMTP_SSL("localhost", controller.port, context=client_context()) as client:
            assert client.noop()[0] == 250
        with socket.create_connection(("127.0.0.1", controller.port), timeout=5) as plain:
            plain.sendall(b"EHLO x\r\n")
            assert not plain.recv(100).startswith(b"220")
    finally:
        controller.stop()


def test_a_unix_socket(tmp_path: Path) -> None:
    """LMTP's usual way."""
    controller = UnixSocketController(Box(), tmp_path / "mx.sock")
    controller.start()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "mx.sock"))
            assert client.recv(100).startswith(b"220 ")
            client.sendall(b"QUIT\r\n")
            assert client.recv(100).startswith(b"221 ")
    finally:
        controller.stop()
    assert not (tmp_path / "mx.sock").exists()


class Broken(Controller):
    """Has no server to offer."""

    def factory(self) -> Any:
        """Forget to return."""
        return None


class Raising(Controller):
    """Cannot make one."""

    def factory(self) -> SMTP:
        """Raise."""
        raise KeyError("no")


@pytest.mark.parametrize(
    ("controller", "error"), [pytest.param(Broken, RuntimeError, id="None"), pytest.param(Raising, KeyError, id="raises")]
)
def test_a_broken_factory_fails_the_start(controller: type[Controller], error: type[Exception]) -> None:
    """Not the first client."""
    with pytest.raises(error):
        controller(Box(), port=0).start()


def test_a_port_in_use_fails_the_start_and_another_start_works() -> None:
    """The controller can be used again, after stop too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        controller = Controller(Box(), port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            controller.start()
    for _ in range(2):
        controller.start()
        with smtplib.SMTP(controller.hostname, controller.port) as client:
            assert client.noop()[0] == 250
        controller.stop()


def test_stop_without_start() -> None:
    """It says so, unless told not to."""
    with pytest.raises(AssertionError):
        Controller(Box()).stop()
    Controller(Box()).stop(no_assert=True)


def test_a_bare_protocol_without_a_listener() -> None:
    """SMTP is an asyncio protocol: any loop's ``create_server`` serves it."""

    async def scenario() -> None:
        box = Box()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(box, hostname="mx.example"), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]

            def send() -> None:
                with smtplib.SMTP("127.0.0.1", port) as client:
                    client.sendmail("a@x", ["b@x"], "x\r\n")

            await asyncio.to_thread(send)
        assert [envelope.content for envelope in box.envelopes] == [b"x\r\n"]

    asyncio.run(scenario())


def test_a_size_limit_of_a_few_octets() -> None:
    """Tests of clients set one to see a 552; it is the server's, and no listener's setting narrows it."""
    controller = Controller(Box(), port=0, data_size_limit=100)
    controller.start()
    try:
        with smtplib.SMTP(controller.hostname, controller.port) as client:
            client.ehlo("x")
            assert client.esmtp_features["size"] == "100"
            with pytest.raises(smtplib.SMTPSenderRefused, match=r"5\.3\.4"):
                client.sendmail("a@x", ["b@x"], "x" * 200)
    finally:
        controller.stop()


def serves(controller: Any) -> None:
    """Assert that a mail gets through."""
    with smtplib.SMTP(controller.hostname, controller.port, timeout=5) as client:
        client.sendmail("a@x", ["b@x"], "x\r\n")


def server_of(controller: Controller) -> Any:
    """Return its server as it is now."""
    return controller.server


def test_the_sockets_are_known_as_asyncios_servers_have_them() -> None:
    """``controller.server.sockets`` is how programs learn the port; while it does not run there is no server."""
    controller = Controller(Box(), port=0)
    assert server_of(controller) is None
    controller.start()
    try:
        server = server_of(controller)
        assert server.is_serving()
        assert controller.loop is server.get_loop()
        assert controller.port == server.sockets[0].getsockname()[1]
    finally:
        controller.stop()
    assert server_of(controller) is None
    assert not server.is_serving()
    assert () == server.sockets


def test_implicit_tls_has_its_socket_too() -> None:
    """Which the listener accepts from by itself."""
    controller = Controller(Box(), port=0, ssl_context=server_context())
    controller.start()
    try:
        assert controller.port == server_of(controller).sockets[0].getsockname()[1]
    finally:
        controller.stop()


def test_the_environment_says_how_slow_a_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for aiosmtpd, over what the program says."""
    assert 5.0 == Controller(Box()).ready_timeout
    monkeypatch.setenv("AIOSMTPD_CONTROLLER_TIMEOUT", "12.5")
    assert 12.5 == Controller(Box(), ready_timeout=1).ready_timeout


def test_a_loop_that_does_not_start_in_time() -> None:
    """Says so, instead of waiting for ever; what it comes to later is stopped."""
    release = threading.Event()

    class Slow(Controller):
        def factory(self) -> SMTP:
            release.wait(5)
            return super().factory()

    controller = Slow(Box(), port=0, ready_timeout=0.05)
    with pytest.raises(TimeoutError, match="ready_timeout"):
        controller.start()
    release.set()
    controller.stop()


def test_old_server_kwargs_are_taken_with_a_warning() -> None:
    """And give way to keyword arguments."""
    with pytest.warns(DeprecationWarning, match="server_kwargs"):
        controller = Controller(Box(), server_kwargs={"data_size_limit": 5, "ident": "old"}, data_size_limit=6)
    assert {"enable_SMTPUTF8": True, "data_size_limit": 6, "ident": "old"} == controller.SMTP_kwargs


@pytest.mark.parametrize("controller", [Controller, UnthreadedController], ids=["threaded", "unthreaded"])
def test_a_context_that_turns_clients_away_is_warned_of(controller: type[Controller | UnthreadedController]) -> None:
    """Once, at the start: most clients have no certificate, and a context made for clients asks for one."""
    loop = asyncio.new_event_loop()
    ours = controller(Box(), "127.0.0.1", 0, loop=loop, tls_context=ssl.create_default_context())
    begin, end = (ours.start, ours.stop) if isinstance(ours, Controller) else (ours.begin, ours.end)
    try:
        with pytest.warns(UserWarning, match="CERT_REQUIRED") as warned:
            begin()
        assert 1 == len(warned)
        end()
    finally:
        if not loop.is_closed():
            loop.close()


def test_limits_of_the_listener_can_be_given() -> None:
    """Beyond aiosmtpd: what only a listener knows."""
    settings = ListenerSettings(limits=LimitSettings(connections_max=1))
    controller = Controller(Box(), port=0, settings=settings, timeout=7)
    controller.start()
    try:
        with socket.create_connection((controller.hostname, controller.port)) as one:
            assert one.recv(100).startswith(b"220")
            with socket.create_connection((controller.hostname, controller.port)) as two:
                assert two.recv(100).startswith(b"421 4.3.2")
    finally:
        controller.stop()


class Holding(Box):
    """Is at work on a message when it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = threading.Event()
        self.release = asyncio.Event()

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        """Wait."""
        self.at_work.set()
        await self.release.wait()
        return "250 2.0.0 Done"


def begun(controller: Controller, content: bytes = b"x\r\n") -> socket.socket:
    """Return a client whose message, *content*, waits for its answer."""
    client = socket.create_connection((controller.hostname, controller.port), timeout=5)
    client.recv(100)
    for command in (b"EHLO x\r\n", b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@x>\r\n", b"DATA\r\n"):
        client.sendall(command)
        client.recv(1000)
    client.sendall(content + b".\r\n")
    return client


def test_stop_lets_a_message_in_transfer_have_its_reply() -> None:
    """Aiosmtpd cuts it, after the handler may have taken it."""
    handler = Holding()
    controller = Controller(handler, port=0)
    controller.start()
    with begun(controller) as client:
        assert handler.at_work.wait(5)
        controller.loop.call_soon_threadsafe(controller.loop.call_later, 0.05, handler.release.set)
        controller.stop()
        assert client.recv(100).startswith(b"250 2.0.0 Done")


def test_stop_does_not_wait_for_ever() -> None:
    """For a hook that never ends, for a peer that never leaves, for a task of the handler's own."""
    handler = Holding()
    controller = Controller(handler, port=0)
    controller.start()
    with begun(controller), socket.create_connection((controller.hostname, controller.port)) as idle:
        assert handler.at_work.wait(5)
        assert idle.recv(100).startswith(b"220")
        started = time.monotonic()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(1000), controller.loop)
        controller.stop()
        assert time.monotonic() - started < 6


def test_a_hook_that_blocks_the_loop_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warning; the controller can be started again."""
    monkeypatch.setattr(module, "STOP_MAX_S", 0.1)
    release, blocked = threading.Event(), threading.Event()

    class Blocking(Box):
        def handle_NOOP(self, server: SMTP, session: Any, envelope: Any, arg: Any) -> str:
            blocked.set()
            release.wait(10)
            return "250 OK"

    controller = Controller(Blocking(), port=0)
    controller.start()
    with socket.create_connection((controller.hostname, controller.port)) as client:
        client.sendall(b"NOOP\r\n") if client.recv(100) else None
        assert blocked.wait(5)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "postbus-controller"]
        with pytest.warns(ResourceWarning, match="blocks the event loop"):
            controller.stop()
    release.set()
    thread.join(10)
    controller.port = 0
    controller.start()
    controller.stop()


def test_cancel_tasks_stops_the_loop() -> None:
    """As programs do that end by themselves; stop() then only tidies up."""
    controller = Controller(Box(), port=0)
    controller.start()
    thread = controller._thread
    assert thread is not None
    controller.loop.call_soon_threadsafe(controller.cancel_tasks)
    thread.join(5)
    controller.stop()


class OwnServer(Controller):
    """Binds by itself, as the point to override allows."""

    async def _create_server(self) -> asyncio.AbstractServer:
        server = await self.loop.create_server(self._factory_invoker, self.hostname, 0)
        self.port = server.sockets[0].getsockname()[1]
        return server


def test_a_server_made_by_a_subclass() -> None:
    """Serves, and ends although a client stays (from Python 3.12 on, ``wait_closed`` waits for it)."""
    controller = OwnServer(Box())
    controller.start()
    serves(controller)
    with socket.create_connection((controller.hostname, controller.port)):
        controller.stop()


@pytest.mark.parametrize("running", [False, True], ids=["stands still", "runs"])
def test_an_unthreaded_controller_on_the_programs_loop(running: bool) -> None:
    """``begin`` before the loop runs; ``end`` while it runs or after, and ``ended`` says when it is done."""
    loop = asyncio.new_event_loop()
    controller = UnthreadedController(Box(), port=0, loop=loop)
    controller.begin()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        serves(controller)
        if running:
            loop.call_soon_threadsafe(controller.end)
            assert controller.ended.wait(5)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    if not running:
        controller.end()
    assert controller.ended.is_set()
    assert controller.server is None
    loop.run_until_complete(controller.finalize())
    loop.close()
    asyncio.set_event_loop(None)


def test_an_unthreaded_controller_on_a_unix_socket(tmp_path: Path) -> None:
    """A relative or absolute path."""
    loop = asyncio.new_event_loop()
    controller = UnixSocketUnthreadedController(Box(), tmp_path / "mx.sock", loop)
    controller.begin()

    async def scenario() -> bytes:
        reader, writer = await asyncio.open_unix_connection(controller.unix_socket)
        banner = await reader.readline()
        writer.close()
        await controller.finalize()
        return banner

    assert loop.run_until_complete(scenario()).startswith(b"220 ")
    loop.close()
    asyncio.set_event_loop(None)


def test_a_server_is_asyncios() -> None:
    """``start_serving`` has nothing to do, ``serve_forever`` waits until cancelled."""
    controller = Controller(Box(), port=0)
    controller.start()
    assert controller.server is not None

    async def scenario(server: asyncio.AbstractServer) -> None:
        await server.start_serving()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.serve_forever(), 0.01)

    asyncio.run_coroutine_threadsafe(scenario(controller.server), controller.loop).result(5)
    controller.stop()


@pytest.mark.parametrize(("refused", "expected"), [(False, "127.0.0.1"), (True, "::1")])
def test_loopback(refused: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv4, unless the machine has none."""

    class NoIPv4(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError

    if refused:
        monkeypatch.setattr(socket, "socket", NoIPv4)
    assert expected == module.get_localhost()


WITHOUT_UVLOOP = """
import smtplib, sys
sys.modules["uvloop"] = None
from postbus.server import Controller
from postbus.testing import Smtpd
with Smtpd() as smtpd, smtplib.SMTP(*smtpd.address) as client:
    client.sendmail("a@x.example", ["b@x.example"], "x")
    print(smtpd.wait()[0].rcpt_tos)
"""


def test_no_uvloop_is_needed() -> None:
    """Where it cannot be imported, the standard library's loop serves."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT_UVLOOP], check=True, capture_output=True, text=True)
    assert "('b@x.example',)" == done.stdout.strip()


LARGE_OCTETS = 4 * 1024 * 1024
LARGE_LINE = b"x" * 1022 + b"\r\n"


class Waiting:
    """Holds every message until it is let go, then reads it."""

    def __init__(self) -> None:
        self.held = 0
        self.go = threading.Event()
        self.read: list[int] = []
        self.kept: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Wait, read, answer."""
        self.held += 1
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        self.read.append(len(envelope.content))
        return "250 OK"


class Keeping(Waiting):
    """Keeps envelopes and looks at none."""

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # type: ignore[override]
        """Keep it."""
        self.kept.append(envelope)
        return "250 OK"


def sent_large(controller: Any, size_octets: int = LARGE_OCTETS) -> socket.socket:
    """Return a connection that has sent a large message and not read the reply."""
    return begun(controller, LARGE_LINE * (size_octets // len(LARGE_LINE)))


def folders(under: Path) -> list[Path]:
    """Return the spill folders in *under*."""
    return sorted(under.glob("postbus-spill-*"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, of this test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_large_messages_wait_in_files_until_they_are_read(temporary: Path) -> None:
    """Forty of 4 MiB cost the process a fraction; the folder is ours alone, its files have no names, and it ends with the server."""
    handler = Waiting()
    controller = Controller(handler, port=0)
    controller.start()
    try:
        (folder,) = folders(temporary)
        assert folder.stat().st_mode & 0o777 == 0o700
        before = psutil.Process().memory_info().rss
        peers = [sent_large(controller) for _ in range(40)]
        wait_until(lambda: handler.held == len(peers), "all messages wait for their handler")
        assert psutil.Process().memory_info().rss - before < len(peers) * LARGE_OCTETS / 2
        assert list(folder.iterdir()) == []
        handler.go.set()
        for peer in peers:
            with peer:
                peer.settimeout(10)
                assert peer.recv(1000).startswith(b"250")
        assert handler.read == [LARGE_OCTETS] * len(peers)
    finally:
        handler.go.set()
        controller.stop()
    assert folders(temporary) == []


def test_an_envelope_that_is_kept_keeps_its_content(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the answer and the stop, as in aiosmtpd; copies too; few descriptors are spent on it."""
    monkeypatch.setattr("postbus.server.roster.KEPT_FILES_MAX", 2)
    handler = Keeping()
    controller = Controller(handler, port=0)
    controller.start()
    try:
        for _ in range(4):
            with sent_large(controller, 1024 * 1024) as peer:
                assert peer.recv(1000).startswith(b"250")
    finally:
        controller.stop()
    assert folders(temporary) == []
    assert [envelope.body.file is not None for envelope in handler.kept].count(True) == 2
    twins = [pickle.loads(pickle.dumps(envelope)) for envelope in handler.kept]
    assert all(len(envelope.content) == len(deepcopy(envelope).content) == 1024 * 1024 for envelope in handler.kept + twins)


def test_a_folder_that_was_swept_is_made_again(temporary: Path) -> None:
    """Temporary folders lose what nobody has touched for days."""
    handler = Waiting()
    handler.go.set()
    controller = Controller(handler, port=0)
    controller.start()
    try:
        folders(temporary)[0].rmdir()
        with sent_large(controller) as peer:
            assert peer.recv(1000).startswith(b"250")
        assert folders(temporary)[0].stat().st_mode & 0o777 == 0o700
    finally:
        controller.stop()
    assert folders(temporary) == []


@pytest.mark.parametrize("chosen", [pytest.param(True, id="a folder of one's own"), pytest.param(False, id="none")])
def test_where_large_content_goes_can_be_said(chosen: bool, temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A path is taken instead of the system's folder; None switches it off."""
    other = tmp_path_factory.mktemp("other")
    handler = Keeping()
    controller = Controller(handler, port=0, spill_folder=other if chosen else None)
    controller.start()
    try:
        assert (len(folders(temporary)), len(folders(other))) == (0, int(chosen))
        with sent_large(controller) as peer:
            assert peer.recv(1000).startswith(b"250")
        assert (handler.kept[0].body.octets is None) is chosen
    finally:
        controller.stop()
    assert folders(other) == []


def test_a_temporary_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's: a warning, and content stays in memory; one that was named: an error, and nothing listens."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    handler = Keeping()
    controller = UnthreadedController(handler, loop=asyncio.new_event_loop(), port=0)
    with pytest.warns(RuntimeWarning, match="no temporary folder .*stay in memory"):
        controller.begin()
    controller.end()
    controller.loop.close()
    with pytest.raises(FileNotFoundError, match="missing"):
        Controller(handler, port=0, spill_folder=tmp_path / "missing").start()


def test_a_port_in_use_leaves_no_folder(temporary: Path) -> None:
    """It was made before."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Controller(Keeping(), "127.0.0.1", taken.getsockname()[1]).start()
    assert folders(temporary) == []


@pytest.mark.parametrize(("end", "left"), [("pass", 0), ("os.kill(os.getpid(), 9)", 1)], ids=["ends", "is killed"])
def test_a_program_that_never_stops_its_controller(end: str, left: int, tmp_path: Path) -> None:
    """At its end the folder goes with it; killed while content is in files, it leaves an empty one."""
    program = (
        "import os, socket\n"
        "from tests.server.test_controller import Controller, Waiting, sent_large, wait_until\n"
        "handler = Waiting()\n"
        "controller = Controller(handler, port=0)\n"
        "controller.start()\n"
        "peer = sent_large(controller)\n"
        "wait_until(lambda: handler.held, 'it is there')\n"
        f"{end}\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60)
    assert [len(folders(tmp_path)), [list(folder.iterdir()) for folder in folders(tmp_path)]] == [left, [[]] * left]
