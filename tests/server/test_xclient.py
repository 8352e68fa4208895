"""XCLIENT and XFORWARD over a listener: who may, what becomes of the session, and that the policy of the banner is asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from postbus.server import SMTP, Envelope, ListenerSettings, Session
from postbus.server.auth import AuthResult
from postbus.server.auth_settings import AuthSettings
from postbus.server.proxy_settings import ProxySettings
from postbus.server.settings import TimeoutSettings, TlsSettings
from tests.server.conftest import Run
from tests.server.test_identification import certified, verifying
from tests.server.test_preface import V1
from tests.server.wire import Wire, listening

HERE = ("127.0.0.1",)


class Policy:
    """Turns away one client, remembers all, and keeps the facts of each message."""

    def __init__(self) -> None:
        self.peers: list[Any] = []
        self.sessions: list[Session] = []
        self.forwarded: list[dict[str, str | None]] = []

    def handle_CONNECT(self, server: Any, session: Session, envelope: Envelope) -> str | None:
        """Judge the peer."""
        self.peers.append(session.peer)
        self.sessions.append(session)
        return "554 5.7.1 Go away" if session.peer == ("192.0.2.66", 0) else None

    def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Keep."""
        self.forwarded.append(dict(envelope.xforward))
        return "250 2.0.0 OK"


class Patient(Policy):
    """Judges in a coroutine."""

    async def handle_CONNECT(self, server: Any, session: Session, envelope: Envelope) -> str | None:  # type: ignore[override]
        """Judge the peer."""
        return super().handle_CONNECT(server, session, envelope)


class Speaking(SMTP):
    """A subclass through whose ``push`` every answer goes: all verbs are methods."""

    async def push(self, status: Any) -> None:
        """Pass it on."""
        await super().push(status)


def trusting(**proxy: Any) -> ListenerSettings:
    """Return settings of a listener that lets loopback speak for others."""
    return ListenerSettings(
        address="127.0.0.1:0", hostname="mx.example", proxy=ProxySettings(**{"xclient": HERE, "xforward": HERE, **proxy})
    )


@pytest.mark.parametrize("kind", [Policy, Patient], ids=["plain function", "coroutine"])
@pytest.mark.parametrize("smtp_class", [SMTP, Speaking], ids=["fast", "by methods"])
def test_the_session_begins_anew_with_the_client(kind: type[Policy], smtp_class: type[SMTP], run: Run) -> None:
    """Banner, policy, greeting: all again; the id, and who really connected, stay."""

    async def scenario() -> None:
        handler = kind()
        async with listening(handler, trusting(), smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            ehlo = await wire.say("EHLO proxy.example")
            assert "250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT" in ehlo
            assert "250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" in ehlo
            said = "XCLIENT NAME=mail.example ADDR=192.0.2.1 PORT=40000 LOGIN=ann DESTADDR=198.51.100.2 DESTPORT=25"
            assert (await wire.say(said)).startswith("220 mx.example ESMTP")
            first, second = handler.sessions
            assert (("192.0.2.1", 40_000), "mail.example", ("198.51.100.2", 25)) == (second.peer, second.peer_host, second.local)
            assert (True, "ann", None) == (second.authenticated, second.auth_data, second.host_name)
            assert (first.id, first.peer) == (second.id, second.proxy_peer)
            assert await wire.talk("MAIL FROM:<a@client.example>", "EHLO client.example", "MAIL FROM:<a@client.example>") == [
                "503",
                "250",
                "250",
            ]
            assert await wire.talk("XCLIENT ADDR=192.0.2.2", "RSET") == ["503", "250"]

    run(scenario())


@pytest.mark.parametrize("kind", [Policy, Patient], ids=["plain function", "coroutine"])
def test_the_policy_judges_the_new_client(kind: type[Policy], run: Run) -> None:
    """One that would not have been greeted is not."""

    async def scenario() -> None:
        handler = kind()
        async with listening(handler, trusting()) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO proxy.example", "XCLIENT ADDR=192.0.2.1", "XCLIENT ADDR=192.0.2.66") == ["250", "220", "554"]
            assert await wire.rest() == ""
            assert [peer[0] for peer in handler.peers] == ["127.0.0.1", "192.0.2.1", "192.0.2.66"]

    run(scenario())


def test_what_is_not_said_again_stays(run: Run) -> None:
    """Several XCLIENTs add up; what is not available is nobody."""

    async def scenario() -> None:
        handler = Policy()
        async with listening(handler, trusting()) as listener, Wire.to(listener) as wire:
            await wire.talk(
                "XCLIENT ADDR=IPV6:2001:db8::1", "XCLIENT PORT=4711 HELO=client", "XCLIENT NAME=[TEMPUNAVAIL] ADDR=[UNAVAILABLE]"
            )
            assert [("2001:db8::1", 0), ("2001:db8::1", 4711), ("", 4711)] == handler.peers[1:]
            assert handler.sessions[-1].proxy_peer == handler.peers[0]
            assert {"ADDR": None, "PORT": "4711", "HELO": "client", "NAME": None} == handler.sessions[-1].xclient

    run(scenario())


def test_nobody_may_unless_named(run: Run) -> None:
    """Neither announced nor taken: by default, for others than those named, and each for itself."""

    async def scenario() -> None:
        for settings, codes in (
            (trusting(xclient=(), xforward=()), ["550", "550"]),
            (trusting(xclient=("10.0.0.0/8",), xforward=("::1",)), ["550", "550"]),
            (trusting(xforward=()), ["220", "550"]),
            (trusting(xclient=()), ["550", "250"]),
        ):
            async with listening(Policy(), settings) as listener, Wire.to(listener) as wire:
                ehlo = await wire.say("EHLO client.example")
                assert ("XCLIENT" in ehlo, "XFORWARD" in ehlo) == (codes[0] == "220", codes[1] == "250")
                assert codes == await wire.talk("XCLIENT ADDR=192.0.2.1", "XFORWARD ADDR=192.0.2.1")

    run(scenario())


def test_the_client_of_a_proxy_is_asked_not_the_proxy(run: Run) -> None:
    """Behind a PROXY header it is the client whom the list names; XCLIENT cannot change who may say XCLIENT."""

    async def scenario() -> None:
        proxy = {"header": True, "trusted": HERE}
        for xclient, code in ((HERE, "550"), (("192.0.2.1",), "220")):
            async with listening(Policy(), trusting(**proxy, xclient=xclient)) as listener, Wire.to(listener, banner=False) as wire:
                wire.send(V1)
                await wire.reply()
                assert await wire.talk("XCLIENT ADDR=203.0.113.1", "XCLIENT ADDR=203.0.113.2") == [code, code]

    run(scenario())


def test_where_a_mail_was_before_ends_with_its_transaction(run: Run) -> None:
    """XFORWARD is said before MAIL, adds up, and is forgotten at the end of the message and by RSET."""

    async def scenario() -> None:
        handler = Policy()
        async with listening(handler, trusting()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO filter.example")
            for before in (["XFORWARD NAME=a.example ADDR=192.0.2.1", "XFORWARD SOURCE=REMOTE"], [], ["XFORWARD NAME=b.example", "RSET"]):
                assert await wire.talk(*before) == ["250"] * len(before)
                assert await wire.talk("MAIL FROM:<a@b.example>", "RCPT TO:<c@mx.example>", "DATA", "text\r\n.") == [
                    "250",
                    "250",
                    "354",
                    "250",
                ]
            assert [{"NAME": "a.example", "ADDR": "192.0.2.1", "SOURCE": "REMOTE"}, {}, {}] == handler.forwarded

    run(scenario())


def test_a_client_nobody_has_judged_in_time_is_not_served(run: Run) -> None:
    """The policy takes too long over the new client: 451 and close, since the session is about it already."""

    class Slow(Policy):
        """Thinks for ever about the second client."""

        async def handle_CONNECT(self, server: Any, session: Session, envelope: Envelope) -> str | None:  # type: ignore[override]
            """Judge the peer."""
            if session.xclient is not None:
                await asyncio.Event().wait()
            return None

    async def scenario() -> None:
        said = trusting().model_copy(update={"timeouts": TimeoutSettings(answer_timeout_s=0.05)})
        async with listening(Slow(), said, sweep_interval_s=0.01) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO proxy.example")
            assert (await wire.say("XCLIENT ADDR=192.0.2.66")).startswith("451 4.3.0")
            assert await wire.rest() == ""

    run(scenario())


def test_the_proxys_certificate_is_not_its_clients(run: Run) -> None:
    """Who speaks for another may no longer authenticate by its own certificate: EXTERNAL would make its client somebody it is not."""

    def anybody(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        return AuthResult(success=True, auth_data=auth_data)

    async def scenario() -> None:
        said = ListenerSettings.model_construct(
            address="127.0.0.1:0",
            hostname="mx.example",
            proxy=ProxySettings(xclient=HERE),
            tls=TlsSettings.model_construct(mode="implicit", client_ca=Path("some")),
            auth=AuthSettings(mechanisms=("EXTERNAL",)),
        )
        async with listening(Policy(), said, tls_context=verifying(required=False), authenticator=anybody) as listener:
            host, _, port = listener.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=certified("proxy.example"), server_hostname="localhost")
            wire = Wire(reader, writer)
            await wire.reply()
            assert "250-AUTH EXTERNAL" in await wire.say("EHLO proxy.example")
            assert (await wire.say("XCLIENT ADDR=192.0.2.1")).startswith("220")
            assert "AUTH" not in await wire.say("EHLO client.example")
            assert (await wire.say("AUTH EXTERNAL ="))[:3] == "502"
            writer.transport.abort()

    run(scenario())
