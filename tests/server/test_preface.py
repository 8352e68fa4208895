"""Behind a load balancer: the PROXY header before the session, plain and before TLS, and everybody who comes without a good one."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from postbus.server import SMTP, Controller, Listener, ListenerSettings
from postbus.server.preface import Preface
from postbus.server.proxy_protocol import ProxyData
from postbus.server.proxy_settings import ProxySettings
from postbus.server.settings import LimitSettings, TlsSettings
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_proxy_protocol import TCP4, v2
from tests.server.wire import Wire, client_context, listening, roster_of, server_context, until

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\n"
CLIENT = ("192.0.2.1", 40_000)


class Witness:
    """Takes everything and remembers whose session it was; *judges* is what ``handle_PROXY`` returns, if there is one."""

    def __init__(self, judges: Any = None) -> None:
        self.sessions: list[Any] = []
        self.seen: list[ProxyData] = []
        if judges is not None:
            self.judges = judges
            self.handle_PROXY = self._judge

    def _judge(self, server: Any, session: Any, envelope: Any, proxy_data: ProxyData) -> Any:
        self.seen.append(proxy_data)
        self.sessions.append(session)
        assert session.proxy_data is proxy_data
        if isinstance(self.judges, Exception):
            raise self.judges
        return self.judges

    def handle_CONNECT(self, server: Any, session: Any, envelope: Any) -> None:
        """Remember."""
        self.sessions.append(session)


class Slow(Witness):
    """Judges in a coroutine."""

    async def _judge(self, server: Any, session: Any, envelope: Any, proxy_data: ProxyData) -> Any:
        await asyncio.sleep(0)
        return super()._judge(server, session, envelope, proxy_data)


def behind(*trusted: str, timeout_s: float = 5, tls: bool = False, **more: Any) -> ListenerSettings:
    """Return settings of a listener that wants a header, from loopback unless told otherwise."""
    proxy = ProxySettings(header=True, trusted=trusted or ("127.0.0.0/8",), header_timeout_s=timeout_s)
    mode = TlsSettings.model_construct(mode="implicit" if tls else "none")
    return ListenerSettings.model_construct(**{"address": "127.0.0.1:0", "hostname": "mx.example", "proxy": proxy, "tls": mode, **more})


@asynccontextmanager
async def served(handler: Any, settings: ListenerSettings, **options: Any) -> AsyncIterator[tuple[Listener, Wire]]:
    """Run a listener and connect to it, saying nothing."""
    async with listening(handler, settings, tls_context=server_context(), **options) as listener, Wire.to(listener, banner=False) as wire:
        yield listener, wire


async def ended(wire: Wire) -> str:
    """Return what comes before the end of the connection; a reset ends it too."""
    try:
        return await wire.rest()
    except ConnectionError:
        return ""


def refusals(reason: str) -> float:
    """Return how many connections were refused for *reason* so far."""
    return NUMBERS.reading("postbus_proxy_refused_total").get(("test", reason), 0)


@pytest.mark.parametrize("header", [V1, v2(TCP4)], ids=["v1", "v2"])
@pytest.mark.parametrize("split", ["whole", "bytewise"])
def test_the_session_is_the_clients(header: bytes, split: str, run: Run) -> None:
    """Whatever arrives how: the peer is the client, the proxy stays known, and what came with the header is SMTP."""

    async def scenario() -> None:
        handler = Witness()
        async with served(handler, behind()) as (listener, wire):
            octets = header + b"EHLO client.example\r\n"
            for at in range(len(octets)) if split == "bytewise" else [0]:
                wire.send(octets[at : at + 1] if split == "bytewise" else octets)
                await asyncio.sleep(0)
            assert (await wire.reply()).startswith("220 mx.example")
            assert (await wire.reply()).startswith("250-mx.example")
            session = handler.sessions[0]
            assert CLIENT == session.peer
            assert session.proxy_peer[0] == "127.0.0.1"
            assert session.proxy_data.whole_raw == header
            assert roster_of(listener).prefaces == set()
            assert await wire.talk("MAIL FROM:<a@client.example>", "QUIT") == ["250", "221"]

    run(scenario())


@pytest.mark.parametrize(
    "header",
    [b"PROXY UNKNOWN\r\n", v2(b"", command=0x20, family=0), v2(TCP4, command=0x20), v2(b"", family=0)],
    ids=["unknown", "local", "local with an address", "unspecified"],
)
def test_the_real_peer_stays_where_the_proxy_speaks_for_itself(header: bytes, run: Run) -> None:
    """LOCAL and UNKNOWN: health checks, mostly."""

    async def scenario() -> None:
        handler = Witness()
        async with served(handler, behind()) as (_, wire):
            wire.send(header)
            assert (await wire.reply()).startswith("220")
            assert handler.sessions[0].peer == wire.writer.get_extra_info("sockname")
            assert handler.sessions[0].proxy_peer is None

    run(scenario())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "implicit TLS"])
@pytest.mark.parametrize("trusted", ["10.0.0.0/8", "::1/128", "unix"])
def test_nobody_else_is_listened_to(trusted: str, tls: bool, run: Run) -> None:
    """A peer outside the trusted networks is closed before the banner, whatever it sends or does not send."""

    async def scenario() -> None:
        before = refusals("untrusted")
        async with served(Witness(), behind(trusted, tls=tls)) as (listener, wire):
            assert await ended(wire) == ""
            assert listener.sessions == 0
        assert refusals("untrusted") == before + 1

    run(scenario())


def test_nobody_is_trusted_by_default(run: Run) -> None:
    """A header is wanted and nobody may send one: nobody gets in."""

    async def scenario() -> None:
        settings = behind()
        async with served(Witness(), settings.model_copy(update={"proxy": ProxySettings(header=True)})) as (_, wire):
            assert await ended(wire) == ""

    run(scenario())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "implicit TLS"])
@pytest.mark.parametrize(
    "octets",
    [b"EHLO client.example\r\n", b"\x16\x03\x01\x02\x00", b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n", b"PROXY UNKNOWN" + b"x" * 120,
     v2(TCP4[:-1]), v2(TCP4, command=0x31), v2(b"", length=60_000)],
    ids=["SMTP", "TLS", "port", "endless", "truncated", "version", "length"],
)  # fmt: skip
def test_a_bad_header_ends_it_without_a_word(octets: bytes, tls: bool, run: Run) -> None:
    """No banner, no reply, and the reason is counted."""

    async def scenario() -> None:
        before = refusals("malformed")
        async with served(Witness(), behind(tls=tls)) as (listener, wire):
            wire.send(octets)
            assert await ended(wire) == ""
            await until(lambda: refusals("malformed") == before + 1)
            assert listener.sessions == 0

    run(scenario())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "implicit TLS"])
@pytest.mark.parametrize("octets", [b"", V1[:-1], v2(TCP4)[:-1]], ids=["silence", "v1 unfinished", "v2 unfinished"])
def test_a_header_has_its_time(octets: bytes, tls: bool, run: Run) -> None:
    """Nothing, or not the whole: closed without a banner."""

    async def scenario() -> None:
        before = refusals("timeout")
        async with served(Witness(), behind(timeout_s=0.05, tls=tls), sweep_interval_s=0.01) as (listener, wire):
            wire.send(octets)
            assert await ended(wire) == ""
            await until(lambda: refusals("timeout") == before + 1)
            assert listener.sessions == 0

    run(scenario())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "implicit TLS"])
def test_a_peer_that_leaves_first_is_no_session(tls: bool, run: Run) -> None:
    """As health checks do that only connect; also in the middle of a header."""

    async def scenario() -> None:
        before = refusals("lost")
        async with listening(Witness(), behind(tls=tls), tls_context=server_context()) as listener:
            for octets in (b"", V1[:9]):
                async with Wire.to(listener, banner=False) as wire:
                    wire.send(octets)
                    await asyncio.sleep(0)
                    wire.writer.write_eof()
                    assert await ended(wire) == ""
            await until(lambda: refusals("lost") == before + 2)
            assert roster_of(listener).prefaces == set()

    run(scenario())


@pytest.mark.parametrize("header", [V1, v2(TCP4)], ids=["v1", "v2"])
@pytest.mark.parametrize("cut", ["one segment", "bytewise", "apart"])
def test_the_header_comes_before_tls(header: bytes, cut: str, run: Run) -> None:
    """A real TLS client behind a proxy: its ClientHello shares the header's segment, follows it, or the header dribbles in."""

    async def scenario() -> None:
        handler = Witness()
        async with listening(handler, behind(tls=True), tls_context=server_context()) as listener:
            port = int(listener.addresses[0].rpartition(":")[2])
            replies = await asyncio.to_thread(talk_tls, port, header, cut)
        assert [reply[:4] for reply in replies] == ["220 ", "250-", "221 "]
        assert CLIENT == handler.sessions[0].peer
        assert handler.sessions[0].tls.version == "TLSv1.3"
        assert handler.sessions[0].proxy_peer[0] == "127.0.0.1"

    run(scenario())


def shaken(tls: ssl.SSLObject) -> bool:
    """Shake hands; say that it is done."""
    tls.do_handshake()
    return True


def talk_tls(port: int, header: bytes, cut: str) -> list[str]:
    """Send *header*, shake hands, greet and leave; return what was answered."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    replies = []
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(5)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if cut == "apart":
            peer.sendall(header)
        elif cut == "bytewise":
            for at in range(len(header)):
                peer.sendall(header[at : at + 1])
        first = header if cut == "one segment" else b""

        def step(work: Any) -> Any:
            nonlocal first
            while True:
                try:
                    done = work()
                except ssl.SSLWantReadError:
                    done = None
                out = outgoing.read()
                if first or out:
                    peer.sendall(first + out)
                    first = b""
                if done is not None:
                    return done
                incoming.write(peer.recv(65_536))

        step(lambda: shaken(tls))
        for command in (None, b"EHLO client.example\r\n", b"QUIT\r\n"):
            if command is not None:
                step(lambda said=command: tls.write(said))
            replies.append(step(lambda: tls.read(65_536)).decode())
    return replies


@pytest.mark.parametrize("kind", [Witness, Slow], ids=["plain function", "coroutine"])
@pytest.mark.parametrize(
    ("judges", "goes_on"),
    [(True, True), ("yes", True), (False, False), ("", False), (ValueError("a mistake"), False)],
    ids=["true", "truthy", "false", "falsy", "exception"],
)
def test_handle_proxy_decides(kind: type[Witness], judges: Any, goes_on: bool, run: Run) -> None:
    """Truthy goes on; anything else closes before the banner."""

    async def scenario() -> None:
        handler = kind(judges)
        async with served(handler, behind()) as (listener, wire):
            wire.send(V1)
            if goes_on:
                assert (await wire.reply()).startswith("220")
                assert len(handler.sessions) == 2
            else:
                assert await ended(wire) == ""
                await until(lambda: listener.sessions == 0)
            assert CLIENT == handler.seen[0].client

    run(scenario())


@pytest.mark.parametrize("judges", [True, None], ids=["with handle_PROXY", "without"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "implicit TLS"])
def test_the_library_has_aiosmtpds_parameter(judges: Any, tls: bool) -> None:
    """``proxy_protocol_timeout``: ``handle_PROXY`` must be there and agree; the session's peer stays the proxy."""
    handler = Witness(judges)
    controller = Controller(handler, port=0, proxy_protocol_timeout=5, ssl_context=server_context() if tls else None)
    controller.start()
    try:
        if tls and judges:
            assert talk_tls(controller.port, V1, "one segment")[0].startswith("220")
        elif not tls:
            with socket.create_connection(("127.0.0.1", controller.port), timeout=5) as peer:
                peer.sendall(V1)
                assert peer.recv(100).startswith(b"220") is bool(judges)
    finally:
        controller.stop()
    if judges:
        assert handler.sessions[0].peer[0] == "127.0.0.1"
        assert str(handler.sessions[0].proxy_data.src_addr) == CLIENT[0]


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_is_more_than_nothing(timeout: float) -> None:
    """As in aiosmtpd."""

    async def scenario() -> None:
        with pytest.raises(ValueError, match="must be > 0"):
            SMTP(Witness(), proxy_protocol_timeout=timeout)

    asyncio.run(scenario())


def test_without_the_setting_proxy_is_an_unknown_command(run: Run) -> None:
    """And the peer is whoever connected."""

    async def scenario() -> None:
        handler = Witness()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            assert (await wire.say(V1.decode().strip())).startswith("500 5.5.1")
            assert handler.sessions[0].peer == wire.writer.get_extra_info("sockname")
            assert handler.sessions[0].proxy_data is None

    run(scenario())


def test_a_unix_socket_can_be_trusted(tmp_path: Path, run: Run) -> None:
    """``unix`` is who connects over it."""

    async def scenario() -> None:
        handler = Witness()
        async with served(handler, behind("unix", address=f"unix:{tmp_path}/mx.sock", socket_mode=0o600)) as (_, wire):
            wire.send(V1)
            assert (await wire.reply()).startswith("220")
            assert CLIENT == handler.sessions[0].peer

    run(scenario())


def test_who_waits_counts_as_a_connection_and_ends_with_the_listener(run: Run) -> None:
    """Headers awaited are bounded by ``connections_max``; a drain does not wait for them."""

    async def scenario() -> None:
        settings = behind(limits=LimitSettings(connections_max=1))
        async with served(Witness(), settings) as (listener, first):
            await until(lambda: len(roster_of(listener).prefaces) == 1)
            async with Wire.to(listener, banner=False) as second:
                assert (await second.reply()).startswith("421 4.3.2")
            assert await listener.drain(1)
            assert await ended(first) == ""

    run(scenario())


def test_a_drain_turns_away_who_has_just_sent_its_header(run: Run) -> None:
    """Admission is asked when the client is known."""

    async def scenario() -> None:
        async with served(Witness(), behind()) as (listener, wire):
            await until(lambda: roster_of(listener).prefaces)
            roster_of(listener).draining = True
            wire.send(V1)
            assert (await wire.reply()).startswith("421 4.3.2")
            assert await ended(wire) == ""

    run(scenario())


def test_starttls_behind_a_proxy_keeps_the_client(run: Run) -> None:
    """What the proxy said is no word of the client's, so it outlives the handshake."""

    async def scenario() -> None:
        handler = Witness()
        tls = TlsSettings.model_construct(mode="starttls")
        async with served(handler, behind().model_copy(update={"tls": tls})) as (listener, wire):
            wire.send(V1)
            assert (await wire.reply()).startswith("220")
            assert (await wire.say("EHLO client.example")).startswith("250")
            await wire.start_tls()
            (connection,) = roster_of(listener).connections
            server: Any = connection
            await until(lambda: server.session.tls)
            session = server.session
            assert CLIENT == session.peer
            assert session.proxy_peer[0] == "127.0.0.1"
            assert session.proxy_data is not None

    run(scenario())


def test_nothing_is_left_of_the_preface(run: Run) -> None:
    """Idle sessions behind a proxy have no task, no timer and no reader of headers."""

    async def scenario() -> None:
        async with listening(Witness(), behind()) as listener, AsyncExitStack() as stack:
            tasks = len(asyncio.all_tasks())
            for _ in range(20):
                wire = await stack.enter_async_context(Wire.to(listener, banner=False))
                wire.send(V1)
                assert (await wire.reply()).startswith("220")
            gc.collect()
            assert listener.sessions == 20
            roster = roster_of(listener)
            assert [each for each in gc.get_objects() if type(each) is Preface and each._server.roster is roster] == []
            assert len(asyncio.all_tasks()) == tasks

    run(scenario())
