"""Sockets, limits and the drain."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from postbus.server import LMTP, ListenerSettings, Reply
from postbus.server.listener import bind_path, connections_within
from postbus.server.parameter_settings import Announced, ParameterSettings
from postbus.server.settings import LimitSettings, TlsSettings
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_smtp import Box, SlowBox, sent
from tests.server.test_timers import Stuck
from tests.server.wire import Wire, listening, roster_of, server_context, until


def settings(address: str = "127.0.0.1:0", **fields: Any) -> ListenerSettings:
    """Return a listener's settings."""
    return ListenerSettings(address=address, hostname="mx.example", **fields)


def ended(outcome: str) -> float:
    """Return how many sessions ended with *outcome* so far."""
    return NUMBERS.reading("postbus_sessions_total").get(("test", outcome), 0)


def test_a_unix_socket_speaks_lmtp(tmp_path: Path, run: Run) -> None:
    """The socket has its permissions, replaces one left behind, and is gone afterwards."""
    path = tmp_path / "lmtp.sock"

    async def scenario() -> None:
        box = Box(["250 1", "550 2"])
        for _ in range(2):
            async with listening(box, settings(f"unix:{path}", protocol="lmtp")) as listener:
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
                assert listener.addresses == [str(path)]
                async with Wire.to(listener) as wire:
                    await wire.begin("b@x", "c@x", hello="LHLO")
                    wire.send(".\r\n")
                    assert [await wire.reply(), await wire.reply()] == ["250 1", "550 2"]
                    assert isinstance(next(iter(roster_of(listener).connections)), LMTP)
            assert not path.exists()

    run(scenario())


def test_sockets_left_by_a_killed_process_are_replaced(tmp_path: Path, run: Run) -> None:
    """But nothing else in that place is."""
    path = tmp_path / "mx.sock"

    async def scenario() -> None:
        os.mknod(path, 0o600 | stat.S_IFSOCK)
        async with listening(Box(), settings(f"unix:{path}")) as listener, Wire.to(listener) as wire:
            assert await wire.talk("NOOP") == ["250"]
        path.write_text("precious")
        with pytest.raises(OSError, match="in use"):
            async with listening(Box(), settings(f"unix:{path}")):
                pass
        assert path.read_text() == "precious"

    run(scenario())


def test_one_connection_too_many_is_told_so(run: Run) -> None:
    """421 4.3.2 instead of the banner; room comes back when somebody leaves."""

    async def scenario() -> None:
        async with listening(Box(), settings(limits=LimitSettings(connections_max=1))) as listener:
            async with Wire.to(listener) as first:
                async with Wire.to(listener, banner=False) as second:
                    assert (await second.reply()).startswith("421 4.3.2")
                    assert await second.rest() == ""
                assert await first.talk("QUIT") == ["221"]
                await until(lambda: listener.sessions == 0)
            async with Wire.to(listener) as third:
                assert await third.talk("NOOP") == ["250"]

    run(scenario())


def test_the_gate_sheds_load_before_the_banner(run: Run) -> None:
    """Asked at every connection."""

    async def scenario() -> None:
        answers: list[Reply | None] = [Reply(421, "Overloaded", "4.3.2"), None]
        async with listening(Box(), gate=lambda: answers.pop(0)) as listener:
            async with Wire.to(listener, banner=False) as wire:
                assert await wire.reply() == "421 4.3.2 Overloaded"
            async with Wire.to(listener) as wire:
                assert await wire.talk("NOOP") == ["250"]

    run(scenario())


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        pytest.param(2000, None, "SIZE 2000", id="the listener's"),
        pytest.param(2000, 1500, "SIZE 1500", id="the sinks'"),
        pytest.param(None, 1500, "SIZE 1500", id="only the sinks'"),
        pytest.param(None, None, None, id="none"),
    ],
)
def test_size_is_the_smallest_there_is(own: int | None, asked: int | None, expected: str | None, run: Run) -> None:
    """RFC 1870."""

    async def scenario() -> None:
        limits = LimitSettings(message_max_octets=own)
        async with listening(Box(), settings(limits=limits), size_octets=lambda: asked) as listener, Wire.to(listener) as wire:
            keywords = [line[4:] for line in (await wire.say("EHLO x")).splitlines()]
            assert [word for word in keywords if word.startswith("SIZE")] == ([expected] if expected else [])

    run(scenario())


@pytest.mark.parametrize("announce", [(), ("DSN", "DELIVERBY", "MT-PRIORITY")], ids=["by default", "asked for"])
def test_notices_are_announced_only_where_asked_for(announce: tuple[Announced, ...], run: Run) -> None:
    """We send none; what asks for them is recorded in any case. REQUIRETLS would promise more than we know of every sink."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, settings(announce=announce)) as listener, Wire.to(listener) as wire:
            keywords = {line[4:] for line in (await wire.say("EHLO x")).splitlines()}
            assert set(announce) == keywords & {"DSN", "DELIVERBY", "MT-PRIORITY", "REQUIRETLS"}
            assert await wire.talk("MAIL FROM:<a@x> RET=HDRS ENVID=q BY=120;N", "RCPT TO:<b@x> NOTIFY=FAILURE", "DATA") == [
                "250",
                "250",
                "354",
            ]
            assert await sent(wire) == "250 2.0.0 OK"
            assert {"RET": "HDRS", "ENVID": "q", "BY": "120;N"} == box.envelopes[0].mail_params
            assert [{"NOTIFY": "FAILURE"}] == box.envelopes[0].rcpt_params
            assert (await wire.say("MAIL FROM:<a@x> REQUIRETLS"))[:3] == "555"

    run(scenario())


def words(greeting: str) -> set[str]:
    """Return the keywords, with their values, of an answer to EHLO."""
    return {line[4:] for line in greeting.splitlines()}


def test_requiretls_is_offered_while_it_can_be_kept_and_only_inside_tls(run: Run) -> None:
    """555 where it cannot be kept, 530 in plain text (RFC 8689 s2); a change counts from the next connection."""
    kept = [True]

    async def scenario() -> None:
        box = Box()
        async with listening(box, settings(), tls_context=server_context(), requiretls=lambda: kept[0]) as listener:
            async with Wire.to(listener) as wire:
                assert "REQUIRETLS" not in words(await wire.say("EHLO x"))
                assert (await wire.say("MAIL FROM:<a@x> REQUIRETLS")).startswith("530 5.7.0")
                await wire.start_tls()
                assert "REQUIRETLS" in words(await wire.say("EHLO x"))
                assert await wire.talk("MAIL FROM:<a@x> REQUIRETLS", "RCPT TO:<b@x>", "DATA") == ["250", "250", "354"]
                await sent(wire)
                assert {"REQUIRETLS": None} == box.envelopes[0].mail_params
            kept[0] = False
            async with Wire.to(listener) as wire:
                await wire.say("EHLO x")
                await wire.start_tls()
                assert "REQUIRETLS" not in words(await wire.say("EHLO x"))
                assert (await wire.say("MAIL FROM:<a@x> REQUIRETLS")).startswith("555 5.5.4")

    run(scenario())


class Choosy(Box):
    """Refuses to be greeted as bad."""

    def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]) -> list[str] | str:
        """Refuse, or greet as usual."""
        return "550 5.7.1 No" if hostname == "bad" else responses


@pytest.mark.parametrize("handler", [Box, Choosy])
def test_limits_are_told_as_they_are_and_kept_as_they_were_told(handler: type[Box], run: Run) -> None:
    """Under pressure EHLO tells less, and less is taken; a session keeps what it was told until it greets again (RFC 9422)."""
    load = [0.0]

    async def scenario() -> None:
        asked = settings(limits=LimitSettings(recipient_domains_max=40))
        async with listening(handler(), asked, load=lambda: load[0]) as listener, Wire.to(listener) as wire:
            assert "LIMITS RCPTMAX=1000 RCPTDOMAINMAX=40" in words(await wire.say("EHLO x"))
            load[0] = 0.99
            assert await wire.talk("MAIL FROM:<a@x>", *[f"RCPT TO:<{n}@x>" for n in range(101)], "RSET") == ["250"] * 103
            assert "LIMITS MAILMAX=1 RCPTMAX=100 RCPTDOMAINMAX=1" in words(await wire.say("EHLO x"))
            assert await wire.talk("MAIL FROM:<a@x>", *[f"RCPT TO:<{n}@x>" for n in range(101)]) == ["250"] * 101 + ["452"]
            if handler is Choosy:
                load[0] = 0.0
                assert (await wire.say("EHLO bad")).startswith("550")
                assert (await wire.say("RCPT TO:<late@x>")).startswith("452")
            assert await wire.talk("RSET", "RSET") == ["250", "250"]
            assert (await wire.say("MAIL FROM:<a@x>")).startswith("421 4.7.0")
        async with listening(handler(), asked, load=lambda: 1.0) as listener, Wire.to(listener) as wire:
            assert await wire.talk("HELO x", "MAIL FROM:<a@x>", *[f"RCPT TO:<{n}@x>" for n in range(101)]) == ["250"] * 103

    run(scenario())


def test_unregistered_parameters_are_recorded_where_that_is_asked_for(run: Run) -> None:
    """555 by default; recorded, each counts as a defect of its message, and one of a refused recipient is nobody's."""

    async def scenario() -> None:
        async with listening(Box(), settings()) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x> XFOO=1") == ["250", "555"]
        box = Box()
        asked = settings(parameters=ParameterSettings(unregistered="record"))
        async with listening(box, asked) as listener, Wire.to(listener) as wire:
            commands = ("EHLO x", "MAIL FROM:<a@x> XFOO=1 XBAR", "RCPT TO:<b@x> xown=Yes", "RCPT TO:<c@x>", "DATA")
            assert await wire.talk(*commands) == ["250", "250", "250", "250", "354"]
            await sent(wire)
            (envelope,) = box.envelopes
            assert ({"XFOO": "1", "XBAR": None}, [{"XOWN": "Yes"}, {}]) == (envelope.mail_params, envelope.rcpt_params)
            assert {"unregistered-parameter": 3} == envelope.defects

    run(scenario())


@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_limits_of_a_session(handler: type[Box], run: Run) -> None:
    """So many messages, so many octets."""

    async def scenario() -> None:
        async with listening(handler(), settings(limits=LimitSettings(messages_max=2))) as listener, Wire.to(listener) as wire:
            for _ in range(2):
                await wire.begin()
                assert await sent(wire) == "250 2.0.0 OK"
            assert (await wire.say("MAIL FROM:<a@x>")).startswith("421 4.7.0")
            assert await wire.rest() == ""
        async with listening(handler(), settings(limits=LimitSettings(session_max_octets=600_000))) as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send(("x" * 998 + "\r\n") * 2000)
            assert await sent(wire) == "250 2.0.0 OK"
            assert (await wire.reply()).startswith("421 4.7.0")
            assert await wire.rest() == ""

    run(scenario())


def test_drain_lets_a_message_finish_and_sends_the_idle_away(run: Run) -> None:
    """Idle sessions get 421; one within content gets its true reply, then 421; nobody new is served; no reset."""

    async def scenario() -> None:
        box, before = Box(), ended("drain")
        async with listening(box) as listener, Wire.to(listener) as idle, Wire.to(listener) as sending:
            await idle.say("EHLO x")
            await sending.begin()
            sending.send("half a message\r\n")
            draining = asyncio.create_task(listener.drain(5))
            assert (await idle.reply()).startswith("421 4.3.2")
            assert await idle.rest() == ""
            idle.writer.close()
            sending.send("the other half\r\n.\r\n")
            assert await sending.reply() == "250 2.0.0 OK"
            assert (await sending.reply()).startswith("421 4.3.2")
            assert await sending.rest() == ""
            sending.writer.close()
            assert await draining is True
            assert box.envelopes[0].content == b"half a message\r\nthe other half\r\n"
            assert ended("drain") == before + 2
            assert listener.addresses == []

    run(scenario())


def test_drain_waits_for_a_hook_and_cuts_at_its_deadline(run: Run) -> None:
    """In time, the hook's answer is given; past the deadline, 421."""

    async def scenario() -> None:
        for in_time in (True, False):
            handler = Stuck()
            async with listening(handler) as listener, Wire.to(listener) as wire:
                (server,) = roster_of(listener).connections
                await wire.begin()
                wire.send("x\r\n.\r\n")
                await until(lambda: server.busy)  # noqa: B023 - of this round
                draining = asyncio.create_task(listener.drain(5 if in_time else 0.01))
                if in_time:
                    await until(lambda: roster_of(listener).draining)
                    handler.release.set()
                    assert await wire.reply() == "250 OK"
                assert (await wire.reply()).startswith("421 4.3.2")
                wire.writer.close()
                assert await draining is in_time

    run(scenario())


def test_new_limits_are_for_new_connections(run: Run) -> None:
    """A session keeps what it was told; the address stays."""

    async def scenario() -> None:
        async with listening(Box()) as listener, Wire.to(listener) as old:
            before = listener.addresses
            listener.reconfigure(settings("127.0.0.1:1", limits=LimitSettings(message_max_octets=5000), stray="allow"))
            assert "SIZE 33554432" in await old.say("EHLO x")
            async with Wire.to(listener) as new:
                assert "SIZE 5000" in await new.say("EHLO x")
            assert listener.addresses == before
            assert listener.settings.address == "127.0.0.1:0"

    run(scenario())


def test_drain_of_nobody_is_immediate(run: Run) -> None:
    """And a listener that never started drains too."""

    async def scenario() -> None:
        async with listening(Box()) as listener:
            assert await listener.drain(0) is True

    run(scenario())


def test_a_transaction_without_content_is_drained_behind_its_message(run: Run) -> None:
    """A sender between MAIL and DATA may finish."""

    async def scenario() -> None:
        async with listening(SlowBox()) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>") == ["250", "250"]
            draining = asyncio.create_task(listener.drain(5))
            await until(lambda: roster_of(listener).draining)
            assert await wire.talk("RCPT TO:<b@x>", "DATA") == ["250", "354"]
            wire.send("x\r\n.\r\nMAIL FROM:<a@x>\r\n")
            assert (await wire.reply())[:3] == "250"
            assert (await wire.reply())[:3] == "421"
            wire.writer.close()
            assert await draining is True

    run(scenario())


def test_fast_senders_share_the_loop(tmp_path: Path, run: Run) -> None:
    """One that pours data does not keep another from its answers."""

    async def scenario() -> None:
        async with listening(Box(), spill_folder=tmp_path) as listener, Wire.to(listener) as fast, Wire.to(listener) as other:
            await fast.begin()
            fast.send(("x" * 998 + "\r\n") * 20_000)
            for _ in range(20):
                assert await other.talk("NOOP") == ["250"]
            fast.send(".\r\n")
            assert await fast.reply() == "250 2.0.0 OK"

    run(scenario())


@pytest.mark.parametrize(
    ("wanted", "files", "expected"),
    [
        pytest.param(2000, 1024, 896, id="few files"),
        pytest.param(2000, 1_048_576, 2000, id="many files"),
        pytest.param(2000, 100, 50, id="hardly any"),
        pytest.param(2000, -1, 2000, id="no limit"),
    ],
)
def test_connections_stay_below_the_limit_on_files(wanted: int, files: int, expected: int) -> None:
    """Files are left for everything else."""
    assert connections_within(wanted, files) == expected


async def test_a_socket_in_use_is_not_taken_from_its_owner(tmp_path: Path) -> None:
    """TCP refuses at bind; for a path we have to ask. One that a killed process left is taken over."""
    path = tmp_path / "lmtp.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as owner:
        owner.bind(str(path))
        owner.listen()
        with pytest.raises(OSError, match="in use"):
            bind_path(path, 0o660)
        assert path.is_socket()
    bind_path(path, 0o660).close()
    assert 0o660 == path.stat().st_mode & 0o777


def test_a_flood_of_connections_does_not_keep_the_loop(run: Run) -> None:
    """Where we accept by ourselves, each connection costs a turn of the loop, so that everybody else gets theirs."""

    async def scenario() -> None:
        loop, turns = asyncio.get_running_loop(), [0]
        seen: list[int] = []

        def turn() -> None:
            turns[0] += 1
            if len(seen) < 20:
                loop.call_soon(turn)

        def gate() -> Reply:
            seen.append(turns[0])
            return Reply(421, "Not now", "4.3.2")

        tls = TlsSettings.model_construct(mode="implicit")
        async with listening(Box(), settings().model_copy(update={"tls": tls}), tls_context=server_context(), gate=gate) as listener:
            host, _, port = listener.addresses[0].rpartition(":")
            with ExitStack() as peers:
                for _ in range(20):
                    peers.enter_context(socket.create_connection((host, int(port))))
                turn()
                await until(lambda: len(seen) == 20)
        assert len(set(seen)) == 20

    run(scenario())
