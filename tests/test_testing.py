"""The mail server for tests, without pytest's part in it."""

from __future__ import annotations

import smtplib
import socket
import ssl
import sys
import threading
from email.message import EmailMessage
from typing import Any

import pytest

from postbus.testing import Smtpd
from tests.server.wire import client_context, server_context


def letter(subject: str = "x", text: str = "text") -> EmailMessage:
    """Return a mail."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@x.example", "b@x.example", subject
    message.set_content(text)
    return message


def send(smtpd: Smtpd, *recipients: str, sender: str = "a@x.example", message: EmailMessage | None = None) -> Any:
    """Send a mail as programs do."""
    with smtplib.SMTP(*smtpd.address, timeout=5) as client:
        return client.send_message(message or letter(), sender, list(recipients) or ["b@x.example"])


def test_what_came_is_there_raw_and_parsed() -> None:
    """Envelope, octets, message, who sent it."""
    with Smtpd() as smtpd:
        send(smtpd, "b@x.example", "c@x.example", message=letter("Gr\u00fc\u00dfe", "K\u00fche\n"))
        (mail,) = smtpd.wait()
    assert ("a@x.example", ("b@x.example", "c@x.example")) == (mail.mail_from, mail.rcpt_tos)
    assert b"Subject: =?utf-8?" in mail.content
    assert ("Gr\u00fc\u00dfe", "K\u00fche") == (mail.message["Subject"], mail.text.strip())
    assert mail.message is mail.message
    assert ("127.0.0.1", None, None) == (mail.peer[0], mail.tls, mail.login)
    assert mail.helo
    assert mail.mail_params["SIZE"] == str(len(mail.content))
    assert ({}, {}) == mail.rcpt_params


def test_a_message_without_text_and_a_null_sender() -> None:
    """Empty strings, no surprises."""
    with Smtpd() as smtpd:
        with smtplib.SMTP(*smtpd.address, timeout=5) as client:
            client.sendmail("", ["b@x.example"], "Content-Type: image/png\r\n\r\n")
        assert ("", "") == (smtpd.messages[0].mail_from, smtpd.messages[0].text)


def test_wait_waits_for_what_is_sent_later() -> None:
    """As a program under test does, in its own time."""
    with Smtpd() as smtpd:
        threads = [threading.Thread(target=send, args=(smtpd, f"{name}@x.example")) for name in "bcd"]
        for thread in threads:
            thread.start()
        assert 3 == len(smtpd.wait(3))
        for thread in threads:
            thread.join()
        smtpd.clear()
        assert [] == smtpd.messages


def test_wait_says_what_came_instead() -> None:
    """Which is what one wants to know when a test fails."""
    with Smtpd() as smtpd:
        with pytest.raises(TimeoutError, match=r"0 of 1 messages came within 0\.01 s: none"):
            smtpd.wait(timeout_s=0.01)
        send(smtpd)
        with pytest.raises(TimeoutError, match=r"1 of 2 messages came within 0\.01 s: a@x\.example to b@x\.example"):
            smtpd.wait(2, timeout_s=0.01)


def test_a_recipient_can_be_refused() -> None:
    """One, or all; the others get their mail."""
    with Smtpd() as smtpd:
        smtpd.refuse("550 5.1.1 No such user", recipient="nobody@x.example")
        assert {"nobody@x.example": (550, b"5.1.1 No such user")} == send(smtpd, "nobody@x.example", "b@x.example")
        assert ("b@x.example",) == smtpd.messages[0].rcpt_tos
        smtpd.refuse()
        with pytest.raises(smtplib.SMTPRecipientsRefused, match=r"5\.7\.1 Refused"):
            send(smtpd)
        smtpd.accept_all()
        assert {} == send(smtpd, "nobody@x.example")


def test_a_failure_that_passes() -> None:
    """To see a program try again: *times* refusals, then it works."""
    with Smtpd() as smtpd:
        smtpd.refuse("451 4.3.0 Try later", at="DATA", times=2)
        for _ in range(2):
            with pytest.raises(smtplib.SMTPDataError, match="Try later"):
                send(smtpd)
        assert {} == send(smtpd)
        assert 1 == len(smtpd.messages)


@pytest.mark.parametrize(
    ("at", "error"),
    [
        pytest.param("CONNECT", smtplib.SMTPConnectError, id="banner"),
        pytest.param("HELO", smtplib.SMTPHeloError, id="HELO"),
        pytest.param("MAIL", smtplib.SMTPSenderRefused, id="MAIL"),
        pytest.param("RCPT", smtplib.SMTPRecipientsRefused, id="RCPT"),
        pytest.param("DATA", smtplib.SMTPDataError, id="DATA"),
    ],
)
def test_every_stage_can_refuse(at: Any, error: type[Exception]) -> None:
    """With the reply that was given."""
    with Smtpd() as smtpd:
        smtpd.refuse("554 5.7.1 Not here", at=at)
        with pytest.raises(error, match=r"Not here"):
            send(smtpd)
        assert [] == smtpd.messages


@pytest.mark.parametrize("at", ["CONNECT", "HELO", "MAIL", "RCPT", "DATA"])
def test_every_stage_can_hang_up(at: Any) -> None:
    """Without a word; the next attempt gets through."""
    with Smtpd() as smtpd:
        smtpd.hang_up(at, times=1)
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            send(smtpd)
        assert [] == smtpd.messages
        assert {} == send(smtpd)


def test_a_sender_can_be_refused() -> None:
    """One, the null one too."""
    with Smtpd() as smtpd:
        smtpd.refuse("550 5.7.1 Not you", at="MAIL", sender="spammer@x.example")
        smtpd.refuse("550 5.7.1 No bounces", at="MAIL", sender="")
        with pytest.raises(smtplib.SMTPSenderRefused, match="Not you"):
            send(smtpd, sender="spammer@x.example")
        with pytest.raises(smtplib.SMTPSenderRefused, match="No bounces"), smtplib.SMTP(*smtpd.address, timeout=5) as client:
            client.sendmail("", ["b@x.example"], "x")
        assert {} == send(smtpd)


@pytest.mark.parametrize("reply", ["250 OK", "no reply"])
def test_a_refusal_refuses(reply: str) -> None:
    """Anything else is a mistake in the test."""
    with pytest.raises(ValueError, match=reply):
        Smtpd().refuse(reply)


@pytest.mark.parametrize("mode", ["starttls", "require"])
def test_starttls_with_a_certificate_made_here(mode: Any) -> None:
    """``client_context`` trusts it; required, nothing goes without."""
    with Smtpd(tls=mode) as smtpd, smtplib.SMTP(*smtpd.address, timeout=5) as client:
        if mode == "require":
            client.ehlo("x")
            assert 530 == client.mail("a@x.example")[0]
        client.starttls(context=smtpd.client_context())
        client.send_message(letter())
        tls = smtpd.messages[0].tls
        assert tls is not None
        assert tls.version.startswith("TLS")


def test_tls_from_the_first_octet_with_a_context_of_ones_own() -> None:
    """Whom the client trusts is then the test's to say."""
    with Smtpd(tls="implicit", tls_context=server_context()) as smtpd:
        with smtplib.SMTP_SSL("localhost", smtpd.port, timeout=5, context=client_context()) as client:
            client.send_message(letter())
        assert smtpd.messages[0].tls
        with pytest.raises(ValueError, match="no certificate was made here"):
            smtpd.client_context()


def test_tls_without_what_makes_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, or to give, is said."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ModuleNotFoundError, match="install trustme, which makes one, or give a tls_context"):
        Smtpd(tls="starttls")


def test_a_client_that_does_not_trust_the_server() -> None:
    """Sees that."""
    with Smtpd(tls="starttls") as smtpd, smtplib.SMTP(*smtpd.address, timeout=5) as client, pytest.raises(ssl.SSLCertVerificationError):
        client.starttls(context=ssl.create_default_context())


def test_lmtp() -> None:
    """One reply for each recipient."""
    with Smtpd(protocol="lmtp") as smtpd:
        smtpd.refuse("550 5.1.1 No such user", recipient="nobody@x.example")
        with smtplib.LMTP(*smtpd.address) as client:
            assert ["nobody@x.example"] == list(client.sendmail("a@x.example", ["nobody@x.example", "b@x.example"], "x\r\n"))
        assert ("b@x.example",) == smtpd.messages[0].rcpt_tos


def test_login_is_needed_where_there_are_users() -> None:
    """And is kept with the mail."""
    with Smtpd(users={"ann": "secret"}) as smtpd, smtplib.SMTP(*smtpd.address, timeout=5) as client:
        client.ehlo("x")
        assert 530 == client.mail("a@x.example")[0]
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "wrong")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("bob", "secret")
        client.login("ann", "secret")
        client.send_message(letter())
        assert "ann" == smtpd.messages[0].login


def test_parameters_of_smtp_pass_through() -> None:
    """A size limit of a few octets."""
    with Smtpd(data_size_limit=10) as smtpd, pytest.raises(smtplib.SMTPSenderRefused, match=r"5\.3\.4"):
        send(smtpd)


def test_stop_is_the_end() -> None:
    """And harmless a second time."""
    smtpd = Smtpd()
    assert 0 == smtpd.port
    smtpd.start()
    smtpd.stop()
    smtpd.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(smtpd.address, timeout=1)
