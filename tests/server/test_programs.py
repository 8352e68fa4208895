"""Programs that people run on aiosmtpd, their behaviour in our own words, each run on aiosmtpd and on postbus.

Where the outcome differs, the case says which is whose, and why.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib
import smtplib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # aiosmtpd leaves loops and sockets to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Library:
    """One of the two, under its own name; all that differs is the import."""

    def __init__(self, name: str) -> None:
        self.ours = name != "aiosmtpd"
        self.smtp: Any = importlib.import_module(f"{name}.smtp")
        self.lmtp: Any = importlib.import_module(f"{name}.lmtp")
        self.controller: Any = importlib.import_module(f"{name}.controller")
        self.handlers: Any = importlib.import_module(f"{name}.handlers")


@pytest.fixture(params=["aiosmtpd", "postbus.server"])
def library(request: pytest.FixtureRequest) -> Library:
    """Each in turn."""
    return Library(request.param)


def free_port() -> int:
    """Return a port nobody listens on: aiosmtpd's controllers cannot say which they were given."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return int(holder.getsockname()[1])


@contextmanager
def serving(library: Library, handler: Any, factory: Callable[[Any], Any] | None = None, **parameters: Any) -> Iterator[Any]:
    """Run *handler* behind a controller, with a factory of the program's own if it has one."""

    class Own(library.controller.Controller):  # type: ignore[name-defined, misc]
        def factory(self) -> Any:
            return super().factory() if factory is None else factory(self)

    controller = Own(handler, hostname="127.0.0.1", port=free_port(), **parameters)
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()


def client(controller: Any) -> smtplib.SMTP:
    """Return a connected client."""
    return smtplib.SMTP(controller.hostname, controller.port, timeout=5)


LETTER = "From: a@x.example\r\nTo: b@x.example\r\nSubject: Door\r\n\r\nSomebody rings.\r\n"


def test_a_recorder_of_hooks_and_replies(library: Library) -> None:
    """Aiosmtplib's tests: a subclass that passes every hook and every reply by a list, and a greeting of several lines."""

    class Handler:
        def __init__(self) -> None:
            self.commands: list[str] = []
            self.replies: list[str] = []

        async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
            session.host_name = hostname
            return "250-X-EXTRA\r\n250 HELP" if not server._tls_protocol else "250 HELP"

    class Recording(library.smtp.SMTP):  # type: ignore[name-defined, misc]
        async def _call_handler_hook(self, command: str, *args: Any) -> Any:
            self.event_handler.commands.append(command)
            return await super()._call_handler_hook(command, *args)

        async def push(self, status: Any) -> None:
            await super().push(status)
            self.event_handler.replies.append(str(status))

        async def smtp_HELP(self, arg: Any) -> None:
            await self.push("214 Nothing to say")

    handler = Handler()
    with serving(library, handler, lambda own: Recording(own.handler, enable_SMTPUTF8=True)) as controller, client(controller) as peer:
        peer.ehlo("x")
        assert peer.has_extn("x-extra")
        assert (214, b"Nothing to say") == peer.docmd("HELP")
        assert {} == peer.sendmail("a@x.example", ["b@x.example"], LETTER)
    assert ["EHLO", "MAIL", "RCPT"] == [name for name in handler.commands if name in {"EHLO", "MAIL", "RCPT"}]
    assert [reply for reply in handler.replies if reply.startswith("354")]


def test_a_test_server_on_a_loop_of_its_own(library: Library) -> None:
    """Trac's tests: an unthreaded controller that binds by itself, a thread for the loop, CRAM-MD5, the envelope kept at parsing."""
    password, kept = b"secret", []

    class Handler(library.handlers.Message):  # type: ignore[name-defined, misc]
        def prepare_message(self, session: Any, envelope: Any) -> None:
            kept.append(envelope)

        def handle_message(self, message: Any) -> None:
            assert message is None

    class Server(library.smtp.SMTP):  # type: ignore[name-defined, misc]
        async def auth_CRAM__MD5(self, _: Any, args: list[str]) -> Any:
            challenge = b"<1@x.example>"
            user, digest = (await self.challenge_auth(challenge)).split(b" ", 1)
            right = hmac.new(password, challenge, hashlib.md5).hexdigest().encode()
            return library.smtp.AuthResult(success=(user, digest) == (b"ann", right), handled=False)

    class Own(library.controller.UnthreadedController):  # type: ignore[name-defined, misc]
        def factory(self) -> Any:
            return Server(self.handler, **self.SMTP_kwargs)

        def _create_server(self) -> Any:
            return self.loop.create_server(self._factory_invoker, host=self.hostname, port=self.port, reuse_address=True)

    loop = asyncio.new_event_loop()
    controller = Own(
        Handler(),
        loop=loop,
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=lambda *_: library.smtp.AuthResult(success=False, handled=False),
        auth_exclude_mechanism={"PLAIN", "LOGIN"},
        auth_require_tls=False,
    )
    controller.begin()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with client(controller) as peer:
            peer.login("ann", "secret")
            assert {} == peer.sendmail("a@x.example", ["b@x.example"], LETTER)
        with client(controller) as peer, pytest.raises(smtplib.SMTPAuthenticationError):
            peer.login("ann", "wrong")
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        controller.end()
        loop.close()
        asyncio.set_event_loop(None)
    assert [(b"b@x.example", LETTER.encode())] == [(",".join(mail.rcpt_tos).encode(), mail.content) for mail in kept]


def test_a_mailing_list_on_lmtp(library: Library) -> None:
    """Grouprise, Mailu's lists: one line for each recipient in the answer, which is how aiosmtpd can be made to speak LMTP."""

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "\r\n".join("250 Ok" if one.startswith("list") else "550 No such list" for one in envelope.rcpt_tos)

    def factory(own: Any) -> Any:
        server = library.lmtp.LMTP(own.handler, enable_SMTPUTF8=True, decode_data=False)
        server.__ident__ = "lists 1"
        return server

    recipients = ("list@x.example", "nobody@x.example", "list2@x.example")
    commands = ["LHLO x", "MAIL FROM:<a@x.example>", *[f"RCPT TO:<{one}>" for one in recipients], "DATA", LETTER + "."]
    with serving(library, Handler(), factory) as controller, socket.create_connection((controller.hostname, controller.port)) as peer:
        replies = peer.makefile("rb")
        for command in ["", *commands]:  # smtplib's LMTP reads one reply only
            peer.sendall(f"{command}\r\n".encode() if command else b"")
            while command != commands[-1] and replies.readline()[3:4] == b"-":
                pass
        assert [b"250 Ok\r\n", b"550 No such list\r\n", b"250 Ok\r\n"] == [replies.readline() for _ in recipients]
        peer.sendall(b"NOOP\r\n")
        assert replies.readline().startswith(b"250")


def test_a_posting_address_that_refuses_others(library: Library) -> None:
    """A list manager on LMTP that takes one address only, at RCPT."""

    class Handler:
        async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]) -> str:
            if address.lower() != "post@x.example":
                return "550 not relaying to that address"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "250 Message accepted for delivery"

    factory: Callable[[Any], Any] = lambda own: library.lmtp.LMTP(own.handler, **own.SMTP_kwargs)  # noqa: E731 - reads as in a program
    with serving(library, Handler(), factory) as controller, smtplib.LMTP(controller.hostname, controller.port) as peer:
        refused = peer.sendmail("a@x.example", ["Post@x.example", "other@x.example"], LETTER)
        assert {"other@x.example": (550, b"not relaying to that address")} == refused


def test_a_honeypot(library: Library) -> None:
    """A name and an ident of its own, a keyword pushed in the greeting, VRFY that only looks and forgets to answer."""

    class Handler:
        async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
            session.host_name = hostname
            await server.push("250-X-HONEY")
            return "250 HELP"

        async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> None:
            """Only look."""

    def factory(own: Any) -> Any:
        return library.smtp.SMTP(own.handler, data_size_limit=52428800, hostname="trap.example", ident="ESMTP Exim 4.84_2")

    with serving(library, Handler(), factory) as controller, socket.create_connection((controller.hostname, controller.port)) as raw:
        assert b"ESMTP Exim 4.84_2" in raw.recv(200)
        with client(controller) as peer:
            peer.ehlo("x")
            assert peer.has_extn("x-honey")
            assert "52428800" == peer.esmtp_features["size"]
            if library.ours:  # as aiosmtpd's documentation promises; its code fails, and what it answers leaks an assertion or nothing
                assert (451, b"4.3.0 Local error in processing") == peer.verify("root")


def test_a_relay_to_a_messenger(library: Library) -> None:
    """smtp-to-telegram: a parsed message whose subject, sender and envelope become a text; a messenger that fails is an error."""
    told: list[str] = []

    class Handler(library.handlers.Message):  # type: ignore[name-defined, misc]
        def handle_message(self, message: Any) -> None:
            if message["Subject"] == "Fail":
                raise ConnectionError("https://token@messenger.example/")
            told.append(f"{message['X-MailFrom']} -> {message['X-RcptTo']}: {message['Subject']}: {message.get_payload().strip()}")

    with serving(library, Handler()) as controller, client(controller) as peer:
        assert {} == peer.sendmail("a@x.example", ["b@x.example", "c@x.example"], LETTER)
        with pytest.raises(smtplib.SMTPDataError) as caught:
            peer.sendmail("a@x.example", ["b@x.example"], LETTER.replace("Door", "Fail"))
    assert ["a@x.example -> b@x.example, c@x.example: Door: Somebody rings."] == told
    # aiosmtpd sends the exception's text to whoever sends mail, and bounces the mail: 500 is for ever
    assert ((451, False) if library.ours else (500, True)) == (caught.value.smtp_code, b"token" in caught.value.smtp_error)


def test_a_camera_that_rings_by_mail(library: Library) -> None:
    """emqtt: the sender's address names a topic, attachments are saved, an old-fashioned client says HELO."""
    published: list[tuple[str, list[str]]] = []

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            from email import message_from_bytes

            message = message_from_bytes(envelope.original_content)
            names = [str(part.get_filename()) for part in message.walk() if part.get_filename()]
            published.append((f"emqtt/{envelope.mail_from.replace('@', '')}", names))
            return "250 Message accepted for delivery"

    content = (
        'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: image/jpeg\r\n'
        'Content-Disposition: attachment; filename="door.jpg"\r\n\r\nx\r\n--b--\r\n'
    )
    with serving(library, Handler()) as controller, client(controller) as peer:
        peer.helo("camera")
        assert (250, b"Message accepted for delivery") == [peer.mail("cam@x.example"), peer.rcpt("b@x.example"), peer.data(content)][-1]
    assert [("emqtt/camx.example", ["door.jpg"])] == published


def test_a_doorbell_that_has_to_log_in(library: Library) -> None:
    """A bridge to Signal: AsyncMessage behind AUTH without TLS, which the device does not speak."""
    rung: list[str] = []

    class Handler(library.handlers.AsyncMessage):  # type: ignore[name-defined, misc]
        async def handle_message(self, message: Any) -> None:
            await asyncio.sleep(0)
            rung.append(message["subject"])

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
        if mechanism not in {"LOGIN", "PLAIN"} or not isinstance(auth_data, library.smtp.LoginPassword):
            return library.smtp.AuthResult(success=False, handled=False)
        return library.smtp.AuthResult(success=auth_data == (b"bell", b"secret"), handled=False)

    needs: dict[str, Any] = {"authenticator": authenticate, "auth_required": True, "auth_require_tls": False}
    loop = asyncio.new_event_loop()
    with serving(library, Handler(loop=loop), **needs) as controller, client(controller) as peer:
        with pytest.raises(smtplib.SMTPSenderRefused, match=r"5\.7\.0"):
            peer.sendmail("a@x.example", ["b@x.example"], LETTER)
        peer.login("bell", "secret")
        assert {} == peer.sendmail("a@x.example", ["b@x.example"], LETTER)
    loop.close()
    assert ["Door"] == rung


def test_a_pytest_fixture_with_a_login(library: Library) -> None:
    """smtpdfix: a list of messages, a size limit, the login kept in the session."""
    kept: list[Any] = []

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            kept.append((session.auth_data.login if session.authenticated else None, envelope.mail_from))
            return "250 OK"

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
        return library.smtp.AuthResult(success=auth_data.password == b"secret", handled=False, auth_data=auth_data)

    options: dict[str, Any] = {"authenticator": authenticate, "auth_require_tls": False, "data_size_limit": 1000}
    with serving(library, Handler(), **options) as controller, client(controller) as peer:
        peer.sendmail("a@x.example", ["b@x.example"], LETTER)
        with pytest.raises(smtplib.SMTPAuthenticationError, match=r"5\.7\.8"):
            peer.login("ann", "wrong")
        peer.login("ann", "secret")
        peer.sendmail("c@x.example", ["b@x.example"], LETTER)
        with pytest.raises(smtplib.SMTPSenderRefused):
            peer.sendmail("a@x.example", ["b@x.example"], "x" * 2000)
    assert [(None, "a@x.example"), (b"ann", "c@x.example")] == kept


def test_a_gateway_that_asks_upstream_at_each_step(library: Library) -> None:
    """Koukan: something of its own hangs on the session, and each verb has an answer from upstream."""
    said: list[str] = []

    class Handler:
        async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]) -> list[str]:
            session.host_name, session.upstream = hostname, said
            return [*responses[:-1], "250-X-GATE", "250 HELP"]

        async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]) -> str:
            session.upstream.append(f"MAIL {address}")
            if address.startswith("spam"):
                return "550 5.7.1 upstream says no"
            envelope.mail_from = address
            envelope.mail_options.extend(mail_options)
            return "250 MAIL ok"

        async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]) -> str:
            session.upstream.append(f"RCPT {address}")
            envelope.rcpt_tos.append(address)
            return "250 RCPT ok"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            session.upstream.append(f"DATA {len(envelope.content)}")
            return "451 upstream is busy"

        async def handle_RSET(self, server: Any, session: Any, envelope: Any) -> str:
            said.append("RSET")
            return "250 OK"

        async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:
            said.append("QUIT")
            return "221 bye"

    with serving(library, Handler()) as controller:
        peer = client(controller)
        peer.ehlo("x")
        assert peer.has_extn("x-gate")
        assert (550, b"5.7.1 upstream says no") == peer.mail("spam@x.example")
        assert (250, b"MAIL ok") == peer.mail("a@x.example", ["SIZE=10"])
        assert (250, b"RCPT ok") == peer.rcpt("b@x.example")
        assert (451, b"upstream is busy") == peer.data("x\r\n")
        assert 250 == peer.rset()[0]
        assert (221, b"bye") == peer.quit()
    assert ["MAIL spam@x.example", "MAIL a@x.example", "RCPT b@x.example", "DATA 3", "RSET", "QUIT"] == said


def test_a_forwarder_made_of_proxy(library: Library) -> None:
    """One that filters, then calls ``_deliver`` with what is left and answers by itself."""
    arrived: list[Any] = []

    class Target:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            arrived.append((envelope.mail_from, envelope.rcpt_tos))
            return "250 OK"

    class Forwarder(library.handlers.Proxy):  # type: ignore[name-defined, misc]
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            inside = [one for one in envelope.rcpt_tos if one.endswith("@x.example")]
            refused = await asyncio.to_thread(self._deliver, envelope.mail_from, inside, envelope.content)
            return "250 OK" if not refused else "550 Refused"

    with serving(library, Target()) as target, serving(library, Forwarder("127.0.0.1", target.port)) as front, client(front) as peer:
        peer.sendmail("a@x.example", ["b@x.example", "c@other.example"], LETTER)
    assert [("a@x.example", ["b@x.example"])] == arrived


def test_a_proxy_whose_target_is_gone(library: Library) -> None:
    """The stock handler: aiosmtpd says 250 and the mail is lost; here the sender keeps it."""
    with serving(library, library.handlers.Proxy("127.0.0.1", free_port())) as controller, client(controller) as peer:
        if library.ours:
            with pytest.raises(smtplib.SMTPDataError, match=r"451"):
                peer.sendmail("a@x.example", ["b@x.example"], LETTER)
        else:
            assert {} == peer.sendmail("a@x.example", ["b@x.example"], LETTER)


def test_a_folder_for_developers(library: Library, tmp_path: Path) -> None:
    """The stock Mailbox, as development setups run it."""
    handler = library.handlers.Mailbox(tmp_path / "mail")
    with serving(library, handler) as controller, client(controller) as peer:
        peer.sendmail("a@x.example", ["b@x.example"], LETTER)
    (kept,) = handler.mailbox
    assert ("Door", "a@x.example") == (kept["subject"], kept["x-mailfrom"])


def test_a_class_of_smtpds_days(library: Library) -> None:
    """``process_message``, from before the standard library's smtpd went away."""
    seen: list[Any] = []

    class Handler:
        def process_message(self, peer: Any, mailfrom: str, rcpttos: list[str], data: Any) -> str | None:
            seen.append((peer[0], mailfrom, rcpttos, type(data)))
            return "554 Never" if "never@x.example" in rcpttos else None

    with serving(library, Handler(), decode_data=True) as controller, client(controller) as peer:
        assert {} == peer.sendmail("a@x.example", ["b@x.example"], LETTER)
        with pytest.raises(smtplib.SMTPDataError, match="Never"):
            peer.sendmail("a@x.example", ["never@x.example"], LETTER)
    assert ("127.0.0.1", "a@x.example", ["b@x.example"], str) == seen[0]
