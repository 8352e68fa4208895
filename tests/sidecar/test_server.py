"""The embedded server: binding, signals, hostile clients, supervision, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from postbus.sidecar import server
from postbus.sidecar.server import BindError, Sidecar, bind
from postbus.sidecar.settings import SidecarSettings
from postbus.sidecar.status import Check
from postbus.telemetry.numbers import NUMBERS
from tests.sidecar.fakes import house

REQUEST = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a raw connection."""
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what the server still says before it closes, gently or not."""
    said = b""
    try:
        while data := await reader.read(65_536):
            said += data
    except ConnectionResetError:
        return said
    return said


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until *condition* holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def test_a_taken_address_has_a_clear_message() -> None:
    """The error names the setting, the address, and what would help."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BindError, match=rf"sidecar\.address {address}: something else listens there already"):
            bind(address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        pytest.param("192.0.2.1:0", "no interface of this machine has that address", id="foreign address"),
        pytest.param("no-such-host.invalid:0", "no-such-host.invalid:0: the name cannot be resolved", id="no such name"),
    ],
)
def test_an_address_that_cannot_be_bound_has_a_clear_message(address: str, words: str) -> None:
    """Every reason becomes a sentence."""
    with pytest.raises(BindError, match=words):
        bind(address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":0", "localhost:0"])
def test_forms_of_address(address: str) -> None:
    """Host and port, all interfaces, a name."""
    with bind(address) as bound:
        assert bound.getsockname()[1] > 0


async def test_signals_stay_with_the_program() -> None:
    """SIGTERM runs the handler that was there, and the server goes on answering: ready 503, live 200."""
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        async with house() as postbus:
            await postbus.http.get("/livez")
            assert handler is signal.getsignal(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            await heard.wait()
            postbus.status.ready_checks = [Check("draining", False, "SIGTERM")]
            assert 503 == (await postbus.http.get("/readyz")).status_code
            async with httpx.AsyncClient(base_url=f"http://{postbus.sidecar.address}", trust_env=False) as fresh:
                assert 503 == (await fresh.get("/readyz")).status_code
                assert 200 == (await fresh.get("/metrics")).status_code
                assert 200 == (await fresh.get("/livez")).status_code
        assert handler is signal.getsignal(signal.SIGTERM)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_crowd_of_slow_clients_does_not_keep_a_probe_out() -> None:
    """Beyond the limit the connection that has been slow for longest goes, so that a new one always gets its answer."""
    async with house(connections_max=8, request_timeout_s=60) as postbus:
        crowd = [await connect(postbus.sidecar.address) for _ in range(40)]
        for _, writer in crowd:
            writer.write(b"GET /livez HTTP/1.1\r\nx-slow: ")
        async with httpx.AsyncClient(base_url=f"http://{postbus.sidecar.address}", trust_env=False) as fresh:
            assert 200 == (await fresh.get("/livez")).status_code
        async with asyncio.timeout(10):
            assert b"" == await rest(crowd[0][0])
        for _, writer in crowd:
            writer.transport.abort()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="says nothing"),
        pytest.param(b"GET /livez HTTP/1.1\r\n", id="never ends its head"),
        pytest.param(REQUEST, id="stays after its answer"),
        pytest.param(b"POST /reload HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n", id="never sends its body"),
    ],
)
async def test_a_connection_has_a_deadline(sent: bytes) -> None:
    """Whatever it does not do, a connection ends."""
    async with house(request_timeout_s=0.2) as postbus:
        reader, writer = await connect(postbus.sidecar.address)
        writer.write(sent)
        async with asyncio.timeout(10):
            await rest(reader)
        writer.transport.abort()
        assert 200 == (await postbus.http.get("/livez")).status_code


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, id="TLS hello"),
        pytest.param(b"EHLO mail.example.com\r\n\r\n", id="SMTP"),
        pytest.param(b"GET /livez HTTP/1.1\r\nx: " + b"a" * 200_000, id="endless header"),
        pytest.param(b"GET /" + b"a" * 200_000, id="endless target"),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n" * 1_000, id="no host"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"POST /reload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", id="broken chunk"),
    ],
)
async def test_hostile_requests_end_their_own_connection_only(sent: bytes) -> None:
    """Nonsense gets 4xx or a closed connection; the server goes on."""
    async with house() as postbus:
        reader, writer = await connect(postbus.sidecar.address)
        writer.write(sent)
        async with asyncio.timeout(10):
            answer = await rest(reader)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        writer.transport.abort()
        assert 200 == (await postbus.http.get("/livez")).status_code


async def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    """Answers to a peer that takes none wait within bounds, and others are served meanwhile."""
    async with house(request_timeout_s=1) as postbus:
        reader, writer = await connect(postbus.sidecar.address)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 2_000)
        for _ in range(20):
            assert 200 == (await postbus.http.get("/livez")).status_code
        writer.transport.abort()
        assert reader is not None


async def test_forwarded_headers_are_not_believed() -> None:
    """A client on loopback cannot choose the address that is logged for it."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"][0])
        await PlainTextResponse("ok")(scope, receive, send)

    sidecar = Sidecar(app, SidecarSettings(address="127.0.0.1:0"))
    await sidecar.start()
    async with httpx.AsyncClient(base_url=f"http://{sidecar.address}", trust_env=False) as http:
        await http.get("/livez", headers={"x-forwarded-for": "203.0.113.9"})
    await sidecar.stop()
    assert ["127.0.0.1"] == seen


async def test_a_server_that_dies_is_started_again() -> None:
    """The socket stays bound while the server is replaced; a request in between waits instead of failing."""
    async with house() as postbus:
        await postbus.http.get("/livez")
        first = postbus.sidecar._server
        assert first is not None
        first.should_exit = True
        await until(lambda: postbus.sidecar._server is not first)
        async with httpx.AsyncClient(base_url=f"http://{postbus.sidecar.address}", timeout=10, trust_env=False) as fresh:
            assert 200 == (await fresh.get("/livez")).status_code


@pytest.mark.parametrize("error", [SystemExit(3), RuntimeError("why")], ids=["exits", "raises"])
async def test_a_server_that_cannot_start_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Uvicorn ends the process where it cannot start; here that is one more reason to try again."""
    errors = [error]

    class Failing(server._Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            if errors:
                raise errors.pop()
            await super().startup(sockets)

    monkeypatch.setattr(server, "_Server", Failing)
    async with house() as postbus:
        assert 200 == (await postbus.http.get("/livez")).status_code


async def test_stop_ends_the_pause_before_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar that waits for its next attempt stops at once."""
    monkeypatch.setattr(server, "RESTART_MIN_S", 3600.0)
    async with house() as postbus:
        await postbus.http.get("/livez")
        before = NUMBERS.reading("postbus_task_restarts_total").get(("sidecar",), 0)
        assert postbus.sidecar._server is not None
        postbus.sidecar._server.should_exit = True
        await until(lambda: NUMBERS.reading("postbus_task_restarts_total").get(("sidecar",), 0) > before)


async def test_stop_closes_the_socket_in_time() -> None:
    """Even with clients that hang, stop ends within its bound, twice if need be, and the port is free."""
    async with house() as postbus:
        address = postbus.sidecar.address
        _, writer = await connect(address)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            await postbus.sidecar.stop()
            await postbus.sidecar.stop()
        with pytest.raises(ConnectionRefusedError):
            await connect(address)
        writer.transport.abort()
