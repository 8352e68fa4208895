"""Deadlines: what has passed when, and what the peer is told. No test waits for a clock: it is wound by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from postbus.server import ListenerSettings
from postbus.server.settings import TimeoutSettings
from postbus.server.timers import Lapse, Timed, Timeouts
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_smtp import Box, sent
from tests.server.wire import Wire, kernel_holds, listening, roster_of, until

TIMEOUTS = Timeouts(command_s=10, data_s=20, data_rate_octets_s=100, transaction_s=50, session_s=80, answer_s=5, linger_s=2)


class ManualClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def timed(**marks: Any) -> Timed:
    """Return the marks of a connection that began at 0."""
    found = Timed(0.0)
    for name, value in marks.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("marks", "now", "octets", "expected"),
    [
        pytest.param({}, 10, 0, None, id="a command, just in time"),
        pytest.param({}, 10.1, 0, Lapse.COMMAND, id="a command, too late"),
        pytest.param({"waiting_at": 75}, 79, 0, None, id="a busy session"),
        pytest.param({"waiting_at": 75}, 80.1, 0, Lapse.SESSION, id="a session that never ends"),
        pytest.param({"waiting_at": 51, "mail_at": 0.5}, 51, 0, Lapse.TRANSACTION, id="a transaction that never ends"),
        pytest.param({"credit_s": 20}, 20, 0, None, id="silent content, just in time"),
        pytest.param({"credit_s": 20}, 20.1, 0, Lapse.DATA, id="silent content"),
        pytest.param({"credit_s": 20}, 30, 1000, None, id="slow content earns its time"),
        pytest.param({"credit_s": 5}, 10, 400, Lapse.DATA, id="content under the minimum rate"),
        pytest.param({"owing_at": 0.0}, 5, 0, None, id="our answer, just in time"),
        pytest.param({"owing_at": 0.0}, 5.1, 0, Lapse.ANSWER, id="our answer, too late"),
        pytest.param({"stalled": True, "credit_s": 1}, 1000, 0, None, id="our disk is slow"),
        pytest.param({"closing_at": 0.0}, 2.1, 0, Lapse.LINGER, id="a peer that does not hang up"),
        pytest.param({"closing_at": 0.0}, 1.9, 0, None, id="a peer that may still hang up"),
    ],
)
def test_which_deadline_has_passed(marks: dict[str, Any], now: float, octets: int, expected: Lapse | None) -> None:
    """Content: credit is capped, earned by octets and spent by the clock."""
    assert expected == timed(**marks).lapse(now, now, octets, TIMEOUTS)


def test_peer_timers_stand_still_while_it_is_our_turn() -> None:
    """However long we take, the peer has its whole time afterwards."""
    connection = timed(owing_at=0.0, mail_at=0.0)
    assert connection.lapse(4.0, 4.0, 0, TIMEOUTS) is None
    connection.owing_at = None
    assert (connection.waiting_at, connection.mail_at, connection.opened_at) == (4.0, 4.0, 4.0)
    assert connection.lapse(14.0, 10.0, 0, TIMEOUTS) is None
    assert connection.lapse(14.1, 0.1, 0, TIMEOUTS) is Lapse.COMMAND


def test_content_cannot_save_time_for_later() -> None:
    """A burst earns no more than ``data_s``."""
    connection = timed(credit_s=20.0)
    assert connection.lapse(1.0, 1.0, 10**9, TIMEOUTS) is None
    assert connection.lapse(21.1, 20.1, 10**9, TIMEOUTS) is Lapse.DATA


def settings(**timeouts: float) -> ListenerSettings:
    """Return a listener's settings with these *timeouts*."""
    return ListenerSettings(address="127.0.0.1:0", hostname="mx.example", timeouts=TimeoutSettings(**timeouts))


@pytest.mark.parametrize(
    ("say", "passes_s"),
    [
        pytest.param([], 301, id="silence behind the banner"),
        pytest.param([b"EHLO x\r\n", b"NO"], 301, id="half a command"),
        pytest.param(
            [b"EHLO x\r\n", b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@x>\r\n", b"DATA\r\n", b"Subject: x\r\n"], 181, id="silent content"
        ),
    ],
)
def test_a_peer_too_slow_is_told_and_closed(say: list[bytes], passes_s: float, run: Run) -> None:
    """421 4.4.2, then the end."""

    async def scenario() -> None:
        clock = ManualClock()
        async with listening(Box(), settings(), clock=clock) as listener, Wire.to(listener) as wire:
            for octets in say:
                wire.send(octets)
                if octets.endswith(b"\r\n") and not octets.startswith(b"Subject"):
                    await wire.reply()
            (server,) = roster_of(listener).connections
            await until(lambda: server.octets == sum(map(len, say)))
            clock.now += passes_s - 2
            roster_of(listener).sweep.tick()
            assert listener.sessions == 1
            clock.now += 2.1
            roster_of(listener).sweep.tick()
            assert (await wire.reply()).startswith("421 4.4.2")
            assert await wire.rest() == ""
            wire.writer.close()
            await until(lambda: listener.sessions == 0)

    run(scenario())


def test_commands_keep_a_session_alive_only_so_long(run: Run) -> None:
    """NOOP every minute does not help for ever."""

    async def scenario() -> None:
        clock = ManualClock()
        async with listening(Box(), settings(session_timeout_s=600), clock=clock) as listener, Wire.to(listener) as wire:
            for _ in range(10):
                clock.now += 59
                roster_of(listener).sweep.tick()
                assert await wire.talk("NOOP") == ["250"]
            clock.now += 59
            roster_of(listener).sweep.tick()
            assert (await wire.reply()).startswith("421 4.4.2")

    run(scenario())


class Stuck(Box):
    """Answers when released."""

    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()
        self.done = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Wait."""
        await self.release.wait()
        self.done += 1
        return "250 OK"


def lost() -> float:
    """Return how many replies were lost so far."""
    return NUMBERS.reading("postbus_replies_lost_total").get(("test",), 0)


def test_our_own_answer_has_a_deadline_and_the_work_goes_on(tmp_path: Path, run: Run) -> None:
    """The peer gets 451 and can go on; the hook is not cancelled; nobody hears its answer."""

    async def scenario() -> None:
        clock, handler, before = ManualClock(), Stuck(), lost()
        async with listening(handler, settings(), clock=clock, spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            (server,) = roster.connections
            for content in ("x\r\n", "x" * 78 + "\r\n" + ("y" * 998 + "\r\n") * 300):
                await wire.begin()
                wire.send(content + ".\r\n")
                await until(lambda: server.busy and server.owing_at is not None and getattr(server._pending, "hook", "") == "DATA")
                clock.now += 29
                roster.sweep.tick()
                clock.now += 2
                roster.sweep.tick()
                assert await wire.reply() == "451 4.3.0 Local error in processing"
            handler.release.set()
            await until(lambda: handler.done == 2 and not roster.work)
            await until(lambda: not list(tmp_path.iterdir()))
            await wire.begin()
            assert await sent(wire) == "250 OK"
        assert lost() == before + 2

    run(scenario())


def test_a_peer_that_vanishes_behind_the_dot_cancels_nothing(run: Run) -> None:
    """Its message has an answer that nobody hears."""

    async def scenario() -> None:
        handler, before = Stuck(), lost()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            wire.send("x\r\n.\r\n")
            await until(lambda: server.busy)
            wire.reset()
            await until(lambda: listener.sessions == 0)
            handler.release.set()
            await until(lambda: handler.done == 1 and not roster_of(listener).work)
        assert lost() == before + 1

    run(scenario())


class StuckBefore(Stuck):
    """Is stuck at RCPT, and notices being cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = 0

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """Wait."""
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        envelope.rcpt_tos.append(address)
        return "250 OK"


def test_a_peer_that_vanishes_before_the_dot_cancels_the_hook(run: Run) -> None:
    """Nobody needs its answer."""

    async def scenario() -> None:
        handler = StuckBefore()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.talk("EHLO x", "MAIL FROM:<a@x>")
            wire.send("RCPT TO:<b@x>\r\n")
            await until(lambda: server.busy)
            wire.reset()
            await until(lambda: handler.cancelled == 1 and not roster_of(listener).work)
            assert listener.sessions == 0

    run(scenario())


def test_a_peer_that_reads_nothing_is_cut(run: Run) -> None:
    """Its commands are not taken while its replies wait, and the command timer runs."""

    async def scenario() -> None:
        clock = ManualClock()
        async with listening(Box(), settings(), clock=clock) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            server.pause_writing()  # as the transport does when its buffer is full
            wire.send("NOOP\r\n")
            await until(lambda: kernel_holds(server) == len("NOOP\r\n"))
            assert server.octets == 0
            server.resume_writing()
            assert (await wire.reply())[:3] == "250"
            server.pause_writing()
            clock.now += 301
            roster_of(listener).sweep.tick()
            assert (await wire.reply())[:3] == "421"
            wire.writer.close()
            await until(lambda: listener.sessions == 0)

    run(scenario())
