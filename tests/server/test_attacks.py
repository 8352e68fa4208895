"""The attack table over live sockets, in plain text and over TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from postbus.selftest import player
from postbus.selftest.fitting import about_plain
from postbus.selftest.player import Patience
from postbus.selftest.target import Target
from postbus.selftest.vectors import Row, rows
from postbus.selftest.verdict import Verdict, differences, judge
from postbus.selftest.wire import Address
from postbus.server import AuthResult, Envelope, Listener, ListenerSettings, LoginPassword
from postbus.server.networks import Networks
from postbus.server.proxy_settings import ProxySettings
from postbus.server.settings import TlsSettings
from postbus.smtp import Limits
from tests.server.conftest import Run
from tests.server.wire import Wire, client_context, codes, listening, roster_of, server_context, until

PATIENCE = Patience(reply_s=5.0, close_s=0.5)


class Keeper:
    """Keeps what it accepts; refuses the recipients it is told to."""

    def __init__(self, refuses: tuple[str, ...]) -> None:
        self.refuses = refuses
        self.contents: list[bytes] = []

    def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        """Refuse, or append."""
        if address in self.refuses:
            return "550 5.1.1 No such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        """Keep."""
        assert envelope.original_content is not None
        self.contents.append(envelope.original_content)
        return "250 2.0.0 OK"


class Hesitant(Keeper):
    """Greets only when the client has already talked."""

    async def handle_CONNECT(self, server: Any, session: Any, envelope: Envelope) -> None:
        """Wait for octets."""
        await until(lambda: server.octets)


async def know(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
    """Know the table's one user."""
    return AuthResult(success=auth_data == LoginPassword(b"test", b"1234"), handled=False, auth_data=auth_data)


@asynccontextmanager
async def served(row: Row, *, implicit: bool) -> AsyncIterator[tuple[Listener, Keeper]]:
    """Run a listener as *row* asks."""
    offer = dict(row.server)
    limits = Limits(**offer.pop("limits", {}))
    handler = (Hesitant if row.early else Keeper)(tuple(offer.pop("refuses", ())))
    tls = TlsSettings.model_construct(mode="implicit" if implicit else "none")
    settings = ListenerSettings.model_construct(address="127.0.0.1:0", hostname="mx.example", tls=tls)
    options = {"authenticator": know} if offer.get("auth") else {}
    async with listening(handler, settings, tls_context=server_context(), **options) as listener:
        roster = roster_of(listener)
        spared = Networks(tuple(offer.pop("stray_allowed_from", ())))
        offer = {"starttls": False, **offer}
        roster.terms = replace(roster.terms, offer=offer, limits=limits, stray_allowed_from=spared, auth_failure_delay_s=0.0)
        if row.protocol == "lmtp":
            from postbus.server import LMTP

            listener._smtp_class = LMTP
        yield listener, handler


async def play(row: Row, *, implicit: bool) -> None:
    """Play *row* and check every answer, the end and what was accepted."""
    async with served(row, implicit=implicit) as (listener, handler):
        host, _, port = listener.addresses[0].rpartition(":")
        target = Target(
            Address(host, int(port)), row.protocol, "implicit" if implicit else "none", client_context(), "localhost", patience=PATIENCE
        )
        played = await player.play(row, target.plain, context=target.context, name=target.name, patience=target.patience)
        assert [] == differences(row, played)
        assert Verdict("pass") == judge(row, played)
        await until(lambda: listener.sessions == 0)
        assert list(row.accepted) == handler.contents


async def play_behind(row: Row) -> None:
    """Play *row* as a client of a proxy: the banner comes behind the header."""
    networks = ("127.0.0.0/8",) if row.server["proxy"] == "trusted" else ("10.0.0.0/8",)
    silent = any(step.kind == "silence" for step in row.steps)
    proxy = ProxySettings(header=True, trusted=networks, header_timeout_s=0.1 if silent else 5)
    settings = ListenerSettings.model_construct(address="127.0.0.1:0", hostname="mx.example", proxy=proxy)
    handler = Keeper(())
    async with listening(handler, settings, sweep_interval_s=0.02) as listener, Wire.to(listener, banner=False) as wire:
        for step in row.steps:
            if step.kind == "send":
                wire.send(step.octets)
                assert [[code] for code in step.expect] == [codes(await wire.reply()) for _ in step.expect]
        if row.closes:
            with suppress(ConnectionError):  # what was not read resets the connection, which is an end too
                assert await wire.rest() == ""
            await until(lambda: listener.sessions == 0)
        else:
            assert listener.sessions == 1
        assert list(row.accepted) == handler.contents


@pytest.mark.parametrize("row", [row for row in rows() if row.headed], ids=lambda row: row.id)
def test_attack_behind_a_proxy(row: Row, run: Run) -> None:
    """Every row about a PROXY header, on a listener that wants one."""
    run(play_behind(row))


@pytest.mark.parametrize("row", [row for row in rows() if not row.headed], ids=lambda row: row.id)
def test_attack_over_a_live_socket(row: Row, run: Run) -> None:
    """Every row gets its listed answer, and keeps or loses its connection as listed."""
    run(play(row, implicit=False))


@pytest.mark.parametrize(
    "row",
    [row for row in rows() if not row.headed and not about_plain(row)],
    ids=lambda row: row.id,
)
def test_attack_over_tls(row: Row, run: Run) -> None:
    """Rows that are not about TLS mean the same inside it."""
    run(play(row, implicit=True))
