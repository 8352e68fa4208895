"""A server in a thread."""

from __future__ import annotations

import asyncio
import smtplib
import socket
from pathlib import Path
from typing import Any

import pytest

from postbus.server import SMTP, Controller, UnixSocketController
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
