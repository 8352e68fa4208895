"""STARTTLS and implicit TLS, and their ways to fail."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from postbus.server import ListenerSettings, TlsUnusable
from postbus.server.auth_settings import AuthSettings
from postbus.server.settings import TimeoutSettings, TlsSettings
from postbus.server.tls import server_context as context_of
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_smtp import Box, SlowBox, sent
from tests.server.wire import Wire, authority, client_context, listening, server_context, until


def pair(folder: Path, name: str = "pair", authority: trustme.CA | None = None) -> TlsSettings:
    """Write a certificate and its key into *folder*; return settings that name them."""
    issued = (authority or trustme.CA()).issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return TlsSettings(mode="starttls", certificate=certificate, key=key)


def settings(tls: TlsSettings, **fields: Any) -> ListenerSettings:
    """Return a listener's settings with *tls*."""
    return ListenerSettings(address="127.0.0.1:0", hostname="mx.example", tls=tls, **fields)


def failures() -> float:
    """Return how many handshakes have failed so far."""
    return NUMBERS.reading("postbus_tls_handshakes_total").get(("test", "failed"), 0)


@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_starttls_forgets_what_was_said_before(handler: type[Box], run: Run) -> None:
    """RFC 3207 s4.2: the client has to greet again; the session keeps its id and knows of TLS."""

    async def scenario() -> None:
        box = handler()
        async with listening(box, tls_context=server_context()) as listener, Wire.to(listener) as wire:
            assert "250-STARTTLS" in await wire.say("EHLO x")
            await wire.start_tls()
            assert await wire.talk("MAIL FROM:<a@x>") == ["503"]
            assert "STARTTLS" not in await wire.say("EHLO x")
            assert await wire.talk("STARTTLS", "MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA") == ["503", "250", "250", "354"]
            assert await sent(wire) == "250 2.0.0 OK"
            (session,) = box.sessions
            assert session.protocol == "esmtps"
            assert session.tls is not None
            assert session.tls.version == "TLSv1.3"
            assert session.tls.cipher.startswith("TLS_")
            assert session.ssl is not None
            assert session.ssl["cipher"][0] == session.tls.cipher

    run(scenario())


def test_smtplib_over_starttls_and_implicit_tls(tmp_path: Path, run: Run) -> None:
    """A real client, from certificates in files."""

    async def scenario(mode: str) -> None:
        box = Box()
        tls = pair(tmp_path, authority=authority()).model_copy(update={"mode": mode})

        def client(port: int) -> None:
            if mode == "implicit":
                peer: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, context=client_context())
            else:
                peer = smtplib.SMTP("localhost", port)
                peer.starttls(context=client_context())
            with peer:
                peer.sendmail("a@x", ["b@x"], "Subject: x\r\n\r\nx\r\n")

        async with listening(box, settings(tls)) as listener:
            await asyncio.to_thread(client, int(listener.addresses[0].rpartition(":")[2]))
            await until(lambda: listener.sessions == 0)
        assert [envelope.content for envelope in box.envelopes] == [b"Subject: x\r\n\r\nx\r\n"]
        assert box.sessions[0].protocol == "esmtps"

    for mode in ("starttls", "require", "implicit"):
        run(scenario(mode))


def test_required_tls_takes_no_mail_before(tmp_path: Path, run: Run) -> None:
    """RFC 3207 s4: 530."""

    async def scenario() -> None:
        async with listening(Box(), settings(pair(tmp_path).model_copy(update={"mode": "require"}))) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>", "NOOP") == ["250", "530", "250"]

    run(scenario())


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(b"EHLO x\r\nMAIL FROM:<a@x>\r\n", id="plain text instead of a handshake"),
        pytest.param(b"", id="hung up"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="half a ClientHello"),
    ],
)
@pytest.mark.parametrize("implicit", [pytest.param(False, id="starttls"), pytest.param(True, id="implicit")])
@pytest.mark.parametrize("reset", [pytest.param(False, id="closed"), pytest.param(True, id="reset")])
def test_a_failed_handshake_leaves_nothing_behind(attack: bytes, implicit: bool, reset: bool, run: Run) -> None:
    """The session ends, is counted once and forgotten."""

    async def scenario() -> None:
        before = failures()
        tls = TlsSettings.model_construct(mode="implicit" if implicit else "starttls")
        async with listening(
            Box(), settings(TlsSettings(mode="none")).model_copy(update={"tls": tls}), tls_context=server_context()
        ) as listener:
            host, _, port = listener.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            wire = Wire(reader, writer)
            if not implicit:
                await wire.reply()
                assert await wire.talk("EHLO x", "STARTTLS") == ["250", "220"]
            wire.send(attack)
            await writer.drain()
            if reset:
                wire.reset()
            else:
                writer.close()
            await until(lambda: listener.sessions == 0 and failures() == before + 1)
            async with Wire.to(listener, tls=implicit) as wire:
                assert await wire.talk("NOOP") == ["250"]
            await until(lambda: listener.sessions == 0)
            assert failures() == before + 1

    run(scenario())


def test_a_silent_handshake_ends_in_time(tmp_path: Path, run: Run) -> None:
    """The peer says STARTTLS and then nothing."""

    async def scenario() -> None:
        quick = settings(pair(tmp_path), timeouts=TimeoutSettings(handshake_timeout_s=0.05))
        async with listening(Box(), quick) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "STARTTLS") == ["250", "220"]
            await until(lambda: listener.sessions == 0)

    run(scenario())


class Judging(Box):
    """Does not like the cipher."""

    def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> bool:
        """Judge."""
        return False


def test_handle_starttls_can_refuse(run: Run) -> None:
    """RFC 3207 s4.1: a session that is not secure enough ends."""

    async def scenario() -> None:
        async with listening(Judging(), tls_context=server_context()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            await wire.start_tls()
            assert await wire.reply() == "554 5.7.0 Command refused due to lack of security"

    run(scenario())


def test_a_reload_is_for_new_connections_and_never_for_the_worse(tmp_path: Path, run: Run) -> None:
    """A mismatched pair leaves the old certificate at work; a good one is used at once."""
    first, second = trustme.CA(), trustme.CA()

    def trusting(authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    async def trusted(listener: Any, authority: trustme.CA) -> bool:
        async with Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "STARTTLS") == ["250", "220"]
            try:
                await wire.writer.start_tls(trusting(authority), server_hostname="localhost")
            except ssl.SSLError:
                return False
            return True

    async def scenario() -> None:
        old, new = pair(tmp_path, "old", first), pair(tmp_path, "new", second)
        async with listening(Box(), settings(old)) as listener:
            assert await trusted(listener, first)
            with pytest.raises(TlsUnusable, match="old"):
                listener.reload(TlsSettings(mode="starttls", certificate=new.certificate, key=old.key))
            with pytest.raises(TlsUnusable, match="no such file"):
                listener.reload(TlsSettings(mode="starttls", certificate=tmp_path / "none.pem"))
            assert await trusted(listener, first)
            listener.reload(new)
            assert await trusted(listener, second)
            assert not await trusted(listener, first)
            await until(lambda: listener.sessions == 0)

    run(scenario())


@pytest.mark.parametrize(
    ("before", "after", "offered"),
    [
        pytest.param("none", "starttls", True, id="given"),
        pytest.param("starttls", "none", True, id="never taken away"),
        pytest.param("starttls", "implicit", True, id="plain stays plain"),
        pytest.param("none", "implicit", False, id="plain stays without"),
        pytest.param("implicit", "starttls", False, id="implicit stays so"),
        pytest.param("implicit", "none", False, id="implicit is not taken away"),
    ],
)
def test_a_mode_is_followed_wholly_or_not_at_all(before: str, after: str, offered: bool, tmp_path: Path, run: Run) -> None:
    """A plain listener never takes its connections for encrypted ones, nor the other way round, whatever a reload says."""

    async def scenario() -> None:
        modes = {mode: pair(tmp_path, mode).model_copy(update={"mode": mode}) for mode in ("starttls", "implicit")}
        modes["none"] = TlsSettings(mode="none")
        implicit = before == "implicit"
        async with listening(Box(), settings(modes[before], auth=AuthSettings(required=True))) as listener:
            listener.reconfigure(settings(modes[after], auth=AuthSettings(required=True), stray="allow"))
            assert listener.settings.stray == "allow"
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            host, _, port = listener.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context if implicit else None)
            assert (await reader.readline()).startswith(b"220")
            writer.write(b"EHLO x\r\n")
            greeting = await reader.readuntil(b"\r\n250 ")
            assert offered is (b"STARTTLS" in greeting)
            writer.close()

    run(scenario())


def test_a_client_certificate_is_known_by_its_subject(tmp_path: Path, run: Run) -> None:
    """With ``client_ca`` a client may show one."""

    async def scenario() -> None:
        box = Box()
        tls = pair(tmp_path, authority=authority())
        (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
        context = ssl.create_default_context()
        authority().configure_trust(context)
        authority().issue_cert("client@example.org", common_name="client").configure_cert(context)
        async with (
            listening(box, settings(tls.model_copy(update={"client_ca": tmp_path / "ca.pem"}))) as listener,
            Wire.to(listener) as wire,
        ):
            assert await wire.talk("EHLO x", "STARTTLS") == ["250", "220"]
            await wire.writer.start_tls(context, server_hostname="localhost")
            await wire.begin()
            await sent(wire)
            assert box.sessions[0].tls is not None
            assert "CN=client" in (box.sessions[0].tls.client_cert_subject or "")

    run(scenario())


def test_contexts_refuse_old_protocols(tmp_path: Path) -> None:
    """RFC 8996."""
    tls = pair(tmp_path)
    assert tls.certificate is not None
    assert context_of(tls.certificate, tls.key).minimum_version is ssl.TLSVersion.TLSv1_2
