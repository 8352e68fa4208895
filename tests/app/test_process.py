"""What the whole process decides by itself: whom it turns away before the banner, what it promises to carry on by TLS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from postbus.app import rooms
from postbus.app.process import SPOOL_UNHEALTHY, Process
from postbus.app.view import View
from postbus.bridge.load import OVERLOADED, Load
from postbus.bridge.spool import Spool
from postbus.config import load
from postbus.server.clients import Refusal
from postbus.telemetry.numbers import NUMBERS
from tests.server.wire import Wire, authority

BOTH = {
    "POSTBUS__SINKS__OUT": '{"kind": "file", "path": "events.jsonl"}',
    "POSTBUS__ROUTES__0": '{"name": "held", "match": "held@*", "sinks": "out", "acceptance": "hold"}',
    "POSTBUS__ROUTES__1": '{"name": "kept", "match": "*", "sinks": "out", "acceptance": "spool"}',
}


@dataclass
class FakeSpool:
    """A spool that says how it is."""

    state: str | None
    load: float = 0.0
    spill_folder: None = None

    def gate(self) -> str | None:
        """Say it."""
        return self.state


@pytest.mark.parametrize(
    ("environ", "state", "expected"),
    [
        pytest.param({}, None, None, id="all is well"),
        pytest.param({}, "unhealthy", SPOOL_UNHEALTHY, id="no mail could be taken"),
        pytest.param({}, "full", None, id="a full spool is 452 to each recipient"),
        pytest.param(BOTH, "unhealthy", None, id="held mail can still be taken"),
    ],
)
def test_connections_are_turned_away_only_while_no_mail_could_be_taken(
    environ: dict[str, str], state: str | None, expected: Refusal | None
) -> None:
    """421 before the banner, so that a sender tries another pod; whoever may succeed is let in."""
    loaded = load(None, environ)
    process = Process(loaded, None)
    process.rooms = rooms.build(loaded.settings, {})
    process.spool = cast("Spool", cast("Any", FakeSpool(state)))
    assert expected == process._gate()


@pytest.mark.parametrize(
    ("in_flight", "spooled", "expected"), [(0, 0.0, 0.0), (0, 0.9, 0.9), (128 * 2**20, 0.2, 0.5), (128 * 2**20, None, 0.5)]
)
def test_listeners_are_told_of_the_fullest_part(in_flight: int, spooled: float | None, expected: float) -> None:
    """The spool, where there is one, or the memory of what is held: EHLO's LIMITS follow (RFC 9422)."""
    process = Process(load(None, {}), None)
    process.rooms = rooms.build(process.settings, {})
    process.spool = None if spooled is None else cast("Spool", cast("Any", FakeSpool(None, load=spooled)))
    (listener,) = process._make_listeners().values()
    listener.handler._memory.used_octets = in_flight
    assert listener._load is not None
    assert expected == listener._load()
    assert listener._requiretls is not None
    assert not listener._requiretls()
    if process._temporary is not None:
        process._temporary.cleanup()


def test_load_is_shed_before_anything_else_is_asked() -> None:
    """What was found at the last look decides; ``/readyz?verbose`` shows it, as degraded, and ``/statusz`` the figures."""
    process = Process(load(None, {}), None)
    process.load = Load(used=lambda: 99 << 20, limit=lambda: 100 << 20, release=lambda: None)
    assert process._gate() is None
    process._look_at_load()
    assert process._gate() is OVERLOADED
    (check,) = [check for check in View(process).ready() if check.name == "load"]
    assert (check.ok, check.counts) == (False, False)
    assert "99 MiB in memory" in check.detail
    assert {"shedding": "memory", "memory_octets": 99 << 20, "memory_max_octets": 90 << 20} == View(process).numbers()["load"]


def configured(folder: Path, sink: str) -> Path:
    """Write a configuration that holds mail for *sink*, and return its file; free ports, STARTTLS, no sidecar."""
    leaf = authority().issue_cert("localhost", "127.0.0.1")
    certificate, file = folder / "mx.pem", folder / "postbus.yaml"
    if not certificate.exists():
        certificate.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    tree = {
        "hostname": "mx.example",
        "acceptance": "hold",
        "hops_max": 10,
        "watch_interval_s": 0,
        "sidecar": {"enabled": False},
        "listeners": {"smtp": {"address": "127.0.0.1:0", "tls": {"mode": "starttls", "certificate": str(certificate)}}},
        "sinks": {
            "file": {"kind": "file", "path": str(folder / "events.jsonl")},
            "plain": {"kind": "webhook", "url": "http://127.0.0.1:9/"},
        },
        "routes": [{"name": "all", "match": "*", "sinks": sink}],
    }
    file.write_text(json.dumps(tree))
    return file


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[Process]:
    """Run postbus in this loop, as *file* says."""
    process = Process(load(file, {}), file)
    try:
        await process.start()
        yield process
    finally:
        await process.abandon()


async def offered(process: Process) -> bool:
    """Greet inside TLS, and return whether REQUIRETLS is offered; MAIL with it is taken only then."""
    async with Wire.to(process.listeners["smtp"]) as wire:
        assert "REQUIRETLS" not in await wire.say("EHLO client.example")
        await wire.start_tls()
        words = [line[4:] for line in (await wire.say("EHLO client.example")).splitlines()]
        said = await wire.say("MAIL FROM:<a@client.example> REQUIRETLS")
        assert said[:3] == ("250" if "REQUIRETLS" in words else "555")
        return "REQUIRETLS" in words


async def test_requiretls_is_offered_while_every_sink_keeps_it(tmp_path: Path) -> None:
    """A file is the end of the way, a webhook by plain HTTP is not: a reload takes the offer back, and gives it again (RFC 8689)."""
    async with running(configured(tmp_path, "file")) as process:
        assert await offered(process)
        for sink, expected in (("plain", False), ("file", True)):
            configured(tmp_path, sink)
            assert not (await process.reload()).problems
            assert expected == await offered(process)


async def test_a_session_that_saw_the_offer_is_told_when_it_is_taken_back(tmp_path: Path) -> None:
    """451 to MAIL with REQUIRETLS in a session that began before the reload; mail without it goes on."""
    async with running(configured(tmp_path, "file")) as process, Wire.to(process.listeners["smtp"]) as wire:
        await wire.say("EHLO client.example")
        await wire.start_tls()
        assert "REQUIRETLS" in await wire.say("EHLO client.example")
        configured(tmp_path, "plain")
        assert not (await process.reload()).problems
        assert (await wire.say("MAIL FROM:<a@client.example> REQUIRETLS"))[:3] == "451"
        assert (await wire.say("MAIL FROM:<a@client.example>"))[:3] == "250"


async def test_a_looping_message_is_counted_by_its_word(tmp_path: Path) -> None:
    """``hops`` once, for the message with one hop too many; the one before it is taken."""

    def hits() -> dict[str, float]:
        return {word: count for (name, word), count in NUMBERS.reading("postbus_limits_hit_total").items() if name == "smtp"}

    before = hits()
    async with running(configured(tmp_path, "file")) as process, Wire.to(process.listeners["smtp"]) as wire:
        for count, code in ((10, "250"), (11, "554 5.4.6")):
            await wire.begin()
            assert (await wire.say("Received: from a by b; x\r\n" * count + "\r\nround and round\r\n."))[: len(code)] == code
    assert {**before, "hops": before.get("hops", 0) + 1} == hits()
