"""The self-test as a whole: our own server stands in every mode, and a broken one is caught whatever is broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from postbus.selftest.fitting import Names
from postbus.selftest.player import Patience
from postbus.selftest.run import Result, chosen, counts, passed, report, results
from postbus.selftest.target import Encryption, Target, UnusableError, learn
from postbus.selftest.vectors import Row
from postbus.selftest.wire import Address
from postbus.server import LMTP, ListenerSettings
from postbus.server.settings import TlsSettings
from tests.selftest.fakes import Fault, served
from tests.server.test_attacks import Keeper, know
from tests.server.wire import client_context, listening, roster_of, server_context

IMPATIENT = Patience(reply_s=0.5, close_s=0.1)


async def judged(target: Target, table: Sequence[Row] | None = None) -> list[Result]:
    """Play the table against *target*."""
    known = await learn(target)
    return [one async for one in results(target, known, chosen() if table is None else table)]


def of(port: int, **options: Any) -> Target:
    """Return a target on loopback."""
    return Target(Address("127.0.0.1", port), context=client_context(), name="localhost", **options)


Mode = Literal["none", "starttls", "require", "implicit"]

MODES: dict[str, tuple[Literal["smtp", "lmtp"], Mode, Encryption, int]] = {
    "smtp": ("smtp", "none", "none", 130),
    "starttls offered": ("smtp", "starttls", "none", 145),
    "behind starttls": ("smtp", "starttls", "starttls", 145),
    "tls required": ("smtp", "require", "starttls", 145),
    "implicit tls": ("smtp", "implicit", "implicit", 130),
    "lmtp": ("lmtp", "none", "none", 100),
    "unix socket": ("lmtp", "none", "none", 100),
}
"""The protocol, the listener's TLS, how the self-test comes in, and how many rows pass at least."""


@pytest.mark.parametrize("mode", MODES)
async def test_our_server_stands(mode: str, tmp_path: Path) -> None:
    """Every row that can be asked gets its listed answer; nothing fails; what was skipped says why."""
    protocol, serving, encryption, least = MODES[mode]
    tls = TlsSettings.model_construct(mode=serving)
    path = str(tmp_path / "socket")
    address = f"unix:{path}" if mode == "unix socket" else "127.0.0.1:0"
    settings = ListenerSettings.model_construct(address=address, hostname="mx.test", tls=tls, protocol=protocol)
    options = {} if serving == "none" else {"tls_context": server_context()}
    async with listening(Keeper(("nobody@mx.test",)), settings, **options) as listener:
        if protocol == "lmtp":
            listener._smtp_class = LMTP
        host, _, port = listener.addresses[0].rpartition(":")
        where = Address(path=path) if mode == "unix socket" else Address(host, int(port))
        found = await judged(Target(where, protocol, encryption, client_context(), "localhost", patience=Patience(5, 0.2)))
    assert {} == {one.row.id: one.verdict for one in found if one.verdict.word == "FAIL"}
    # whoever talks before the banner is found out only if his octets come before it goes
    assert {} == {one.row.id: one.verdict for one in found if one.verdict.word == "lenient" and not one.row.early}
    assert all(one.verdict.why for one in found if one.verdict.word != "pass")
    assert counts(found)["pass"] >= least
    assert passed(found)


async def test_our_server_stands_attacks_on_auth() -> None:
    """Where it knows the table's user, behind STARTTLS, every row about AUTH that can be asked is answered as listed."""
    settings = ListenerSettings.model_construct(address="127.0.0.1:0", hostname="mx.test", tls=TlsSettings.model_construct(mode="starttls"))
    async with listening(Keeper(("nobody@mx.test",)), settings, tls_context=server_context(), authenticator=know) as listener:
        roster = roster_of(listener)
        roster.terms = replace(roster.terms, auth_failure_delay_s=0.0)
        target = of(int(listener.addresses[0].rpartition(":")[2]), encryption="starttls", test_user=True)
        found = await judged(target, chosen("auth-*"))
    assert {} == {one.row.id: one.verdict for one in found if one.verdict.word not in {"pass", "skipped"}}
    assert counts(found)["pass"] >= 40


@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
async def test_a_sound_server_of_somebody_else_stands(lmtp: bool) -> None:
    """It answers otherwise, and nothing fails: the faults below are what fails, not the fake."""
    async with served("none", lmtp=lmtp) as port:
        found = await judged(of(port, protocol="lmtp" if lmtp else "smtp", patience=IMPATIENT))
    assert {} == {one.row.id: one.verdict for one in found if one.verdict.word == "FAIL"}
    assert passed(found)


@pytest.mark.parametrize(
    ("fault", "row", "why"),
    [
        ("ends mail at LF.LF", "eod-lf-dot-lf", "smuggled"),
        ("ends commands at LF", "bare-lf-command", "smuggled"),
        ("runs what stood behind STARTTLS", "starttls-injection", "smuggled"),
        ("replies once in LMTP", "lmtp-replies", "LMTP gives one for each accepted recipient"),
        ("never answers content", "eod-split-2", "hung: no answer to the content"),
        ("keeps the envelope of an accepted mail", "end-accepted", "kept state: RCPT"),
        ("keeps the envelope of a refused mail", "end-refused", "kept state: RCPT"),
        ("keeps the envelope over RSET", "end-rset", "kept state: RCPT"),
        ("takes mail for nobody", "all-refused", "took a mail for no recipient"),
        ("takes control octets into paths", "path-cr-header", "took octet 0x0d into the path of MAIL"),
        ("runs mail out of HTTP", "http-get", "ran MAIL out of an HTTP request"),
    ],
)
async def test_a_fault_is_caught(fault: Fault, row: str, why: str) -> None:
    """The row that is about it fails, and says what was seen."""
    lmtp = fault == "replies once in LMTP"
    async with served(fault, lmtp=lmtp) as port:
        found = await judged(of(port, protocol="lmtp" if lmtp else "smtp", patience=IMPATIENT), chosen(row))
    assert ["FAIL"] == [one.verdict.word for one in found]
    assert why in found[0].verdict.why
    assert not passed(found)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("hangs up at once", "hangs up before its banner"),
        ("never answers", "answers nothing to EHLO"),
        ("hangs up at EHLO", "answers nothing to EHLO"),
    ],
)
async def test_a_server_that_cannot_be_talked_to(fault: Fault, why: str) -> None:
    """It is not tested, which is said, and is no pass."""
    async with served(fault) as port:
        with pytest.raises(UnusableError, match=why):
            await judged(of(port, patience=IMPATIENT))


@pytest.mark.parametrize("fault", ["hangs up at once", "never answers", "hangs up at EHLO"])
async def test_a_server_that_breaks_later(fault: Fault) -> None:
    """A server that was sound when it was asked, and then is not: each row fails."""
    async with served("none") as sound, served(fault) as broken:
        known = await learn(of(sound, patience=IMPATIENT))
        target = of(broken, patience=IMPATIENT)
        found = [one async for one in results(target, known, chosen("rcpt-first"))]
    assert ["FAIL"] == [one.verdict.word for one in found]


async def test_a_server_that_dies() -> None:
    """No connection is a failure, not an error of ours."""
    async with served("none") as port:
        known = await learn(of(port))
    found = [one async for one in results(of(port), known, chosen("unknown"))]
    assert ["FAIL"] == [one.verdict.word for one in found]
    assert found[0].verdict.why.startswith("no connection")


async def test_the_certificate_must_be_trusted() -> None:
    """Rows about STARTTLS are skipped when its certificate is not; with --starttls nothing can be tested."""
    import ssl

    async with served("none") as port:
        stranger = replace(of(port, patience=IMPATIENT), context=ssl.create_default_context())
        (one,) = await judged(stranger, chosen("starttls-twice"))
        assert ("skipped", True) == (one.verdict.word, "not trusted" in one.verdict.why)
        with pytest.raises(UnusableError, match="not trusted"):
            await learn(replace(stranger, encryption="starttls"))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        pytest.param(Names(recipient="nobody@mx.test"), "550 5.1.1 to RCPT.*--recipient", id="recipient"),
        pytest.param(Names(refused="b@mx.test"), "250 2.1.5 to RCPT.*--refused", id="refused"),
        pytest.param(Names(sender="a b@x"), "", id="sender"),
    ],
)
async def test_addresses_must_be_what_they_are_said_to_be(names: Names, why: str) -> None:
    """Otherwise rows would be judged by a policy about addresses."""
    async with served("none") as port:
        if not why:
            await learn(of(port, names=names))
            return
        with pytest.raises(UnusableError, match=why):
            await learn(of(port, names=names))


async def test_the_report_is_json() -> None:
    """It holds what was sent, expected and got, and reads back."""
    async with served("none") as port:
        target = of(port, patience=IMPATIENT)
        known = await learn(target)
        found = [one async for one in results(target, known, chosen("eod-split-2"))]
    read = json.loads(json.dumps(report(target, known, found)))
    assert read["passed"]
    assert {"pass": 1, "safe": 0, "lenient": 0, "FAIL": 0, "skipped": 0} == read["counts"]
    (row,) = read["rows"]
    assert ("eod-split-2", "pass", "open") == (row["id"], row["verdict"], row["end"])
    assert {"part": "row", "sent": ".\r\n", "expected": ["250 2.0.0"], "got": ["250 2.0.0"]} in row["exchanges"]


def test_rows_are_chosen_by_id_or_section() -> None:
    """As a shell does."""
    assert {"http-get"} == {row.id for row in chosen("http-get")}
    assert {"6.6"} == {row.section for row in chosen("6.6")}
    assert () == chosen("no such")
