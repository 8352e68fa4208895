"""Test mails are composed well and handed over as the standards say: to a real listener, and to servers that misbehave."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from postbus.cli.letter import Destination, Fate, canonical, compose, deliver, trouble
from postbus.server import Envelope, ListenerSettings, Session
from postbus.server.settings import TlsSettings
from postbus.testing import Smtpd
from tests.server.wire import authority, listening, server_context

TRANSACTION = "0198c0de-1234-7abc-8def-0123456789ab"
OCTETS = b"Subject: t\r\n\r\nhello\r\n"


class Handler:
    """Keeps what it is given; refuses recipients by their first letter."""

    def __init__(self, *said: str) -> None:
        self.said = list(said) or [f"250 2.0.0 Ok: {TRANSACTION}"]
        self.envelopes: list[Envelope] = []

    def handle_RCPT(self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Refuse u... for good and l... for now."""
        if address[0] in "ul":
            return {"u": "550 5.1.1 unknown", "l": "452 4.5.3 later"}[address[0]]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str | Sequence[str]:
        """Say what was wished."""
        self.envelopes.append(envelope)
        return self.said[0] if len(self.said) == 1 else self.said

    @property
    def octets(self) -> bytes:
        """What came, exactly."""
        content = self.envelopes[-1].original_content
        assert isinstance(content, bytes)
        return content


async def sent(
    handler: Handler, to: Sequence[str], octets: bytes = OCTETS, settings: ListenerSettings | None = None, **how: Any
) -> list[Fate]:
    """Deliver to a listener of *settings* with *handler*."""
    tls = {"tls_context": server_context()} if settings and settings.tls.mode != "none" else {}
    async with listening(handler, settings, **tls) as listener:
        address = listener.addresses[0]
        where: dict[str, Any] = {"path": address, "port": 0} if address.startswith("/") else {"port": int(address.rpartition(":")[2])}
        destination = Destination(**{"host": "localhost", **where, "timeout_s": 10.0, **how})
        return await asyncio.to_thread(deliver, destination, "sender@example.org", to, octets)


def over(mode: str) -> ListenerSettings:
    """Return the settings of a listener with TLS in *mode*."""
    return ListenerSettings(address="127.0.0.1:0", tls=TlsSettings.model_validate({"mode": mode, "certificate": "given otherwise"}))


async def test_each_recipient_has_a_fate() -> None:
    """In the order given, each with the last word said about it; the id of the transaction is found."""
    fates = await sent(Handler(), ["a@x.example", "unknown@x.example", "later@x.example"])
    assert [(250, True), (550, False), (452, False)] == [(fate.code, fate.accepted) for fate in fates]
    assert [TRANSACTION, None, None] == [fate.transaction_id for fate in fates]


async def test_nobody_taken_sends_no_content() -> None:
    """Without an accepted recipient there is no DATA."""
    handler = Handler()
    assert [550] == [fate.code for fate in await sent(handler, ["unknown@x.example"])]
    assert [] == handler.envelopes


async def test_the_last_word_counts() -> None:
    """A message refused after its dot is refused for every recipient."""
    fates = await sent(Handler("451 4.3.0 later"), ["a@x.example", "b@x.example"])
    assert [451, 451] == [fate.code for fate in fates]


@pytest.mark.parametrize("unix", [False, True], ids=["port", "socket"])
async def test_lmtp_answers_each_recipient(tmp_path: Path, unix: bool) -> None:
    """One reply per accepted recipient, in order, the same recipient twice too (RFC 2033 s4.2)."""
    settings = ListenerSettings(address=f"unix:{tmp_path}/lmtp.sock" if unix else "127.0.0.1:0", protocol="lmtp")
    handler = Handler("250 2.0.0 first", "451 4.3.0 second", "554 5.3.0 third")
    fates = await sent(handler, ["a@x.example", "unknown@x.example", "b@x.example", "a@x.example"], settings=settings, lmtp=True)
    assert [250, 550, 451, 554] == [fate.code for fate in fates]


@pytest.mark.parametrize("mode", ["starttls", "require", "implicit"])
async def test_tls(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a certificate that is trusted, by the name given."""
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    handler = Handler()
    encryption = "implicit" if mode == "implicit" else "starttls"
    assert [250] == [fate.code for fate in await sent(handler, ["a@x.example"], settings=over(mode), encryption=encryption)]
    assert OCTETS == handler.octets


async def test_a_certificate_that_is_not_trusted() -> None:
    """It ends the conversation, unless any will do."""
    with pytest.raises(ssl.SSLCertVerificationError) as broken:
        await sent(Handler(), ["a@x.example"], settings=over("starttls"), encryption="starttls")
    what, remedy = trouble(broken.value, Destination("mx.example", 25))
    assert what.startswith("the certificate of mx.example:25 is not trusted: ")
    assert "--insecure" in remedy
    fates = await sent(Handler(), ["a@x.example"], settings=over("starttls"), encryption="starttls", verify=False)
    assert [250] == [fate.code for fate in fates]


async def test_required_tls_that_is_not_used() -> None:
    """The server's refusal of MAIL is every recipient's fate."""
    assert [530, 530] == [fate.code for fate in await sent(Handler(), ["a@x.example", "b@x.example"], settings=over("require"))]


async def test_addresses_beyond_ascii() -> None:
    """SMTPUTF8 is asked for, and headers are UTF-8 (RFC 6531 s3.4, RFC 6532)."""
    handler = Handler()
    octets = compose("sender@example.org", ["grüße@x.example"], subject="Grüße", text="ü", html=None, attachments=())
    assert [250] == [fate.code for fate in await sent(handler, ["grüße@x.example"], canonical(octets.as_bytes()))]
    assert handler.envelopes[0].smtp_utf8
    assert ["grüße@x.example"] == handler.envelopes[0].rcpt_tos
    assert "To: grüße@x.example\r\n".encode() in handler.octets


async def test_a_server_without_smtputf8() -> None:
    """What it cannot do is said before anything is sent."""
    with pytest.raises(smtplib.SMTPNotSupportedError) as broken:
        await sent(Handler(), ["grüße@x.example"], settings=ListenerSettings(address="127.0.0.1:0", smtputf8=False))
    assert trouble(broken.value, Destination("mx", 25))[0].startswith("mx:25 cannot do that: SMTPUTF8 not supported")


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b".\r\n..\r\n.a\r\n", id="dots"),
        pytest.param(b"\r\n", id="an empty line"),
        pytest.param(b"a: b\r\n\r\n" + bytes(range(128, 256)) + b"\r\n", id="8 bits"),
        pytest.param(b"x" * 900 + b"\r\n" + b"." * 70 + b"\r\n" * 40_000, id="several chunks"),
    ],
)
async def test_octets_arrive_as_they_are(octets: bytes) -> None:
    """Transparency is undone by the server, and nothing else is changed."""
    handler = Handler()
    assert [250] == [fate.code for fate in await sent(handler, ["a@x.example"], octets)]
    assert octets == handler.octets


async def test_progress_is_told() -> None:
    """Chunk by chunk, up to the whole."""
    told: list[int] = []
    async with listening(Handler()) as listener:
        destination = Destination("127.0.0.1", int(listener.addresses[0].rpartition(":")[2]))
        await asyncio.to_thread(
            deliver, destination, "", ["a@x.example"], b"x" * 70 + (b"\r\n" + b"y" * 70) * 10_000 + b"\r\n", told.append
        )
    assert [262_144, 524_288, 720_072] == told


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"a\nb", b"a\r\nb\r\n", id="LF, and none at the end"),
        pytest.param(b"a\rb\r\n", b"a\r\nb\r\n", id="CR"),
        pytest.param(b"a\r\n\r\n", b"a\r\n\r\n", id="already so"),
        pytest.param(b"", b"", id="nothing"),
    ],
)
def test_canonical(octets: bytes, expected: bytes) -> None:
    """Every line ends in CRLF."""
    assert expected == canonical(octets)


def test_a_composed_mail_can_be_read(tmp_path: Path) -> None:
    """Text, HTML beside it, and files, a mail among them, which stays a file."""
    (tmp_path / "a.txt").write_text("text of a")
    (tmp_path / "b.eml").write_text("Subject: inner\n\n")
    mail = compose("", ["a@x.example"], subject="s", text="t", html="<b>h</b>", attachments=[tmp_path / "a.txt", tmp_path / "b.eml"])
    read = message_from_bytes(mail.as_bytes(), policy=policy.default)
    assert ("postmaster@localhost", "a@x.example", "s") == (read["From"], read["To"], read["Subject"])
    plain, html = read.get_body(("plain",)), read.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert ("t\n", "<b>h</b>\n") == (plain.get_content().replace("\r", ""), html.get_content().replace("\r", ""))
    files = {part.get_filename(): part.get_content_type() for part in read.iter_attachments()}
    assert {"a.txt": "text/plain", "b.eml": "application/octet-stream"} == files


def test_a_line_break_in_a_header_is_refused() -> None:
    """Nobody smuggles a header in by the subject."""
    with pytest.raises(ValueError, match="linefeed"):
        compose("a@x.example", ["b@x.example"], subject="a\nBcc: c@x.example", text="", html=None, attachments=())


@contextmanager
def scripted(*answers: bytes) -> Iterator[Destination]:
    """Serve one connection: an answer for the connection, then one for each read; then hang up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                for answer in answers:
                    peer.sendall(answer)
                    if not peer.recv(65_536):
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Destination("127.0.0.1", server.getsockname()[1], timeout_s=5)
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param([b"421 4.3.2 too busy\r\n"], "answered 421 4.3.2 too busy", id="turned away"),
        pytest.param([b"220 hi\r\n"], "hung up", id="hangs up at EHLO"),
        pytest.param([b"220 hi\r\n", b"250 hi\r\n"], "hung up", id="hangs up at MAIL"),
        pytest.param([b"220 hi\r\n", b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n"], "hung up", id="hangs up at DATA"),
        pytest.param([b"220 hi\r\n", b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"], "hung up", id="hangs up in the message"),
        pytest.param([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "", id="no mail server"),
    ],
)
def test_a_conversation_that_breaks(answers: list[bytes], expected: str) -> None:
    """Each break has words that name the place."""
    with scripted(*answers) as destination:
        with pytest.raises((OSError, smtplib.SMTPException)) as broken:
            deliver(destination, "a@x.example", ["b@x.example"], OCTETS)
        what, remedy = trouble(broken.value, destination)
    assert expected in what
    assert str(destination) in what
    assert remedy


def test_a_goodbye_that_is_lost_changes_nothing() -> None:
    """After the last word, what becomes of QUIT does not matter."""
    answers = [b"220 hi\r\n", b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 done\r\n"]
    with scripted(*answers) as destination:
        fates = deliver(destination, "a@x.example", ["b@x.example"], b"")
    assert [Fate("b@x.example", 250, "done")] == fates


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(ConnectionRefusedError(111, "refused"), "nobody listens at h:1", id="refused"),
        pytest.param(FileNotFoundError(2, "no"), "there is no socket h:1", id="no socket"),
        pytest.param(socket.gaierror(-2, "no"), "the name h cannot be resolved", id="name"),
        pytest.param(TimeoutError("timed out"), "h:1 did not answer within 60 s", id="silence"),
        pytest.param(ConnectionResetError(104, "Connection reset by peer"), "h:1 hung up: connection reset by peer", id="reset"),
        pytest.param(OSError(113, "No route to host"), "the conversation with h:1 broke: no route to host", id="no route"),
        pytest.param(smtplib.SMTPException("what"), "the conversation with h:1 broke: what", id="anything"),
    ],
)
def test_words_for_what_breaks(error: Exception, expected: str) -> None:
    """The nearest class speaks."""
    assert expected == trouble(error, Destination("h", 1))[0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param("SMTPUTF8 not supported by server", "use addresses of ASCII alone", id="SMTPUTF8"),
        pytest.param(
            "SMTP AUTH extension not supported by server.",
            "leave --user away, or say --starttls or --tls: servers ask for passwords inside TLS",
            id="AUTH",
        ),
        pytest.param("STARTTLS extension not supported", "leave --starttls away, or give the server a certificate", id="STARTTLS"),
    ],
)
def test_what_a_server_cannot_do_is_left_away(error: str, expected: str) -> None:
    """That, and not something else."""
    assert expected == trouble(smtplib.SMTPNotSupportedError(error), Destination("h", 1))[1]


@pytest.mark.parametrize(("password", "code"), [pytest.param("secret", 250, id="right"), pytest.param("other", 535, id="wrong")])
def test_a_login(password: str, code: int) -> None:
    """Before MAIL; what is wrong is said, and the password nowhere."""
    with Smtpd(users={"tim": "secret"}) as smtpd:
        destination = Destination(smtpd.host, smtpd.port, timeout_s=10.0, user="tim", password=password)
        assert password not in repr(destination)
        if code == 250:
            assert [250] == [fate.code for fate in deliver(destination, "a@x.example", ["b@x.example"], OCTETS)]
            assert ["tim"] == [mail.login for mail in smtpd.messages]
            return
        with pytest.raises(smtplib.SMTPAuthenticationError) as broken:
            deliver(destination, "a@x.example", ["b@x.example"], OCTETS)
        assert trouble(broken.value, destination)[1] == "check --user and the password"


def test_a_destination_reads_as_an_address() -> None:
    """As it would be typed."""
    assert ("h:25", "[::1]:25", "/run/x") == tuple(map(str, (Destination("h", 25), Destination("::1", 25), Destination("h", 1, "/run/x"))))
