"""A session's awkward moments: budgets, pauses, hooks that will not end, peers that will not read, methods that speak out of turn."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from postbus.server import LMTP, SMTP, Envelope, Session
from postbus.server.body import BATCH_OCTETS, Spill
from postbus.server.listener import SEND_BUFFER_OCTETS
from postbus.server.roster import LAST_WORD_S
from postbus.server.settings import LimitSettings, TlsSettings
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_smtp import Box, SlowBox, sent
from tests.server.test_timers import ManualClock, Stuck, lost, settings
from tests.server.wire import Wire, is_gone, kernel_holds, listening, roster_of, server_context, until


class SlowMail(Box):
    """Only MAIL takes a coroutine."""

    async def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Accept a loop turn later."""
        await asyncio.sleep(0)
        envelope.mail_from = address
        return "250 OK"


def test_a_turn_that_ends_before_a_coroutine_reads_on(run: Run) -> None:
    """The budget of commands is spent just before a command whose hook waits: reading goes on afterwards."""

    async def scenario() -> None:
        async with listening(SlowMail()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            await wire.say("MAIL FROM:<a@x>")
            wire.send("RCPT TO:<b@x>\r\n" * 100 + "RSET\r\nMAIL FROM:<a@x>\r\n")
            assert ["250"] * 102 == [(await wire.reply())[:3] for _ in range(102)]
            assert await wire.talk("RCPT TO:<b@x>", "DATA") == ["250", "354"]
            assert await sent(wire) == "250 2.0.0 OK"

    run(scenario())


class Cancelling(Box):
    """Gives up in a way of its own."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.plain = plain

    def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str | None) -> Any:
        """Raise what only asyncio should, or return a coroutine that does."""
        if self.plain:
            raise asyncio.CancelledError
        return self._later()

    async def _later(self) -> str:
        raise asyncio.CancelledError


@pytest.mark.parametrize("plain", [pytest.param(True, id="plain"), pytest.param(False, id="coroutine")])
def test_a_hook_that_raises_cancelled_error_is_answered(plain: bool, run: Run) -> None:
    """Nobody cancelled it, so it is a mistake like any other."""

    async def scenario() -> None:
        async with listening(Cancelling(plain=plain)) as listener, Wire.to(listener) as wire:
            for _ in range(2):
                assert await wire.say("NOOP") == "451 4.3.0 Local error in processing"
            assert await wire.talk("EHLO x", "QUIT") == ["250", "221"]

    run(scenario())


@pytest.mark.parametrize(
    ("ends", "unread_octets"),
    [
        pytest.param(b"", 0, id="silent"),
        pytest.param(b"", 65_536, id="so far that we stop reading"),
        pytest.param(b"QUIT\r\n", 0, id="quit"),
        pytest.param(None, 0, id="half-closed"),
    ],
)
def test_a_peer_that_never_reads_is_cut_in_the_end(ends: bytes | None, unread_octets: int, run: Run) -> None:
    """Replies that nobody takes hold no connection: not behind a time-out, not behind QUIT, not behind the end of its half."""

    class Wordy(Box):
        def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str | None) -> str:
            return "250-" + "x" * 60_000 + "\r\n250 x"

    async def scenario() -> None:
        clock = ManualClock()
        roomy = settings().model_copy(update={"limits": LimitSettings(junk_max=100_000)})
        async with listening(Wordy(), roomy, clock=clock) as listener:
            host, _, port = listener.addresses[0].rpartition(":")
            with socket.socket() as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.connect((host, int(port)))
                peer.setblocking(False)
                roster = roster_of(listener)
                await until(lambda: listener.sessions == 1)
                (server,) = roster.connections
                assert server.transport is not None
                transport = server.transport
                while transport.get_write_buffer_size() <= unread_octets:
                    peer.send(b"NOOP\r\n")
                    before = server.octets
                    await until(lambda: server.octets > before or transport.get_write_buffer_size() > unread_octets)  # noqa: B023 - of this round
                if ends is None:
                    peer.shutdown(socket.SHUT_WR)
                    await until(lambda: is_gone(server, half=True))
                elif ends:
                    before = server.octets
                    peer.send(ends)
                    await until(lambda: server.octets > before or kernel_holds(server))
                clock.now += 301
                roster.sweep.tick()
                clock.now += 3
                roster.sweep.tick()
                await until(lambda: listener.sessions == 0)

    run(scenario())


@pytest.mark.parametrize("implicit", [pytest.param(False, id="plain"), pytest.param(True, id="implicit TLS")])
def test_the_kernel_holds_few_replies_for_a_peer_that_does_not_read(implicit: bool, run: Run) -> None:
    """Left to itself it takes 4 MB of them for each connection, memory of ours, and we would work for every octet of it."""

    async def scenario() -> None:
        tls = {"tls_context": server_context()} if implicit else {}
        mode = TlsSettings(mode="implicit", certificate=Path("unused")) if implicit else TlsSettings(mode="none")
        async with listening(Box(), settings().model_copy(update={"tls": mode}), **tls) as listener, Wire.to(listener, tls=implicit):
            (server,) = roster_of(listener).connections
            assert server.transport is not None
            taken = server.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert taken <= 2 * SEND_BUFFER_OCTETS  # Linux says twice what it was asked for (socket(7))

    run(scenario())


class Lingering(SMTP):
    """Goes on working behind its answers, and without them."""

    release: asyncio.Event
    done = 0

    async def smtp_NOOP(self, arg: str | None) -> None:
        """Answer first, then work."""
        await super().smtp_NOOP(arg)
        await self.release.wait()
        type(self).done += 1

    async def smtp_SLOW(self, arg: str | None) -> None:
        """Work first, then answer."""
        await self.release.wait()
        await self.push("250 too late")
        await super().smtp_RSET(arg)
        type(self).done += 1

    async def smtp_SORRY(self, arg: str | None) -> None:
        """Answer, then fail."""
        if arg:
            await self.push("250 said")
        else:
            await super().smtp_NOOP(arg)
        raise ValueError("secret")


def test_a_method_that_works_on_behind_its_answer_owes_nothing(run: Run) -> None:
    """When its time is over the session goes on, and no second answer is given."""

    async def scenario() -> None:
        clock = ManualClock()
        Lingering.release, Lingering.done = asyncio.Event(), 0
        async with listening(Box(), settings(), clock=clock, smtp_class=Lingering) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            assert await wire.say("NOOP") == "250 2.0.0 OK"
            clock.now += 31
            roster.sweep.tick()
            assert (await wire.say("EHLO x"))[:3] == "250"
            Lingering.release.set()
            await until(lambda: Lingering.done == 1 and not roster.work)
            assert await wire.talk("RSET", "QUIT") == ["250", "221"]
            assert await wire.rest() == ""

    run(scenario())


def test_a_method_that_comes_too_late_says_nothing(run: Run) -> None:
    """Its command has been answered for it: what it pushes and does afterwards must not be taken for another's answer."""

    async def scenario() -> None:
        clock = ManualClock()
        Lingering.release, Lingering.done = asyncio.Event(), 0
        async with listening(Box(), settings(), clock=clock, smtp_class=Lingering) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            (server,) = roster.connections
            wire.send("SLOW\r\n")
            await until(lambda: server.busy)
            clock.now += 31
            roster.sweep.tick()
            assert await wire.reply() == "451 4.3.0 Local error in processing"
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>") == ["250", "250"]
            Lingering.release.set()
            await until(lambda: not roster.work)
            assert await wire.talk("RCPT TO:<b@x>", "QUIT") == ["250", "221"]
            assert await wire.rest() == ""

    run(scenario())


@pytest.mark.parametrize("arg", ["", " x"])
def test_a_method_that_fails_behind_its_answer_gives_no_second_one(arg: str, run: Run) -> None:
    """The failure is logged; two replies to one command would shift all that follow."""

    async def scenario() -> None:
        before = NUMBERS.reading("postbus_handler_errors_total").get(("smtp_SORRY",), 0)
        async with listening(Box(), smtp_class=Lingering) as listener, Wire.to(listener) as wire:
            assert (await wire.say("SORRY" + arg))[:3] == "250"
            assert (await wire.say("EHLO x")).startswith("250-mx.example")
        assert NUMBERS.reading("postbus_handler_errors_total")[("smtp_SORRY",)] == before + 1

    run(scenario())


class Superseding(SMTP):
    """Overrides DATA only to call it."""

    async def smtp_DATA(self, arg: str | None) -> None:
        """As before."""
        await super().smtp_DATA(arg)


@pytest.mark.parametrize("smtp_class", [pytest.param(SMTP, id="stock"), pytest.param(Superseding, id="overridden")])
def test_the_answer_to_a_message_has_its_deadline_and_the_peer_none(smtp_class: type[SMTP], run: Run) -> None:
    """Content that took long does not make the wait for our answer the peer's fault, whoever wrote ``smtp_DATA``."""

    async def scenario() -> None:
        clock, handler = ManualClock(), Stuck()
        slow = settings(data_timeout_s=1000, answer_timeout_s=30)
        async with listening(handler, slow, clock=clock, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            (server,) = roster.connections
            await wire.begin()
            wire.send("x\r\n")
            before = server.octets
            await until(lambda: server.octets != before or server._pieces)  # type: ignore[attr-defined]
            clock.now += 400
            roster.sweep.tick()
            wire.send(".\r\n")
            await until(lambda: getattr(server._pending, "hook", "") == "DATA")
            clock.now += 29
            roster.sweep.tick()
            assert listener.sessions == 1
            clock.now += 2
            roster.sweep.tick()
            assert await wire.reply() == "451 4.3.0 Local error in processing"
            assert await wire.talk("NOOP") == ["250"]
            handler.release.set()
            await until(lambda: handler.done == 1 and not roster.work)

    run(scenario())


class SlowSpill(Spill):
    """A disk that hangs until told otherwise."""

    hangs: threading.Event

    def _write(self, batch: list[bytes], last: bool) -> OSError | None:
        self.hangs.wait(3)
        return super()._write(batch, last)


@pytest.fixture
def hanging_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make spills hang until the event that is returned is set."""
    SlowSpill.hangs = threading.Event()
    monkeypatch.setattr("postbus.server.content.Spill", SlowSpill)
    return SlowSpill.hangs


def test_a_disk_that_hangs_behind_the_dot_holds_nothing_for_ever(tmp_path: Path, hanging_disk: Any, run: Run) -> None:
    """The message gets 451, the session reads on, no task waits for a file that nobody wants, and the file goes."""

    async def scenario() -> None:
        hanging_disk.clear()
        clock = ManualClock()
        async with listening(Box(), settings(), clock=clock, spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            (server,) = roster.connections
            await wire.begin()
            wire.send(b"x" * 998 + b"\r\n" + (b"y" * 998 + b"\r\n") * 262)
            await until(lambda: server._spill is not None)  # type: ignore[attr-defined]
            wire.send((b"y" * 998 + b"\r\n") * 70 + b".\r\n")
            await until(lambda: getattr(server._pending, "hook", "") == "spill")
            clock.now += 31
            roster.sweep.tick()
            assert await wire.reply() == "451 4.3.0 Local error in processing"
            assert not server.stalled
            hanging_disk.set()
            await until(lambda: not roster.work)
            assert await wire.talk("NOOP") == ["250"]
            await until(lambda: not list(tmp_path.iterdir()))

    run(scenario())


def test_a_listener_that_closes_while_a_file_is_written_leaves_none(tmp_path: Path, hanging_disk: Any, run: Run) -> None:
    """The thread at work has the last word, whatever the loop is doing."""

    async def scenario() -> None:
        hanging_disk.clear()
        async with listening(Box(), spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            wire.send((b"y" * 998 + b"\r\n") * 300)
            await until(lambda: server._spill is not None and server._spill._writing)  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_later(0.02, hanging_disk.set)
        await until(lambda: not list(tmp_path.iterdir()))

    run(scenario())


def test_crumbs_cost_no_more_than_what_they_hold(tmp_path: Path, run: Run) -> None:
    """Content that comes two octets at a time is kept in pieces of a decent size."""

    async def scenario() -> None:
        async with listening(Box()) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            for _ in range(2000):
                server.data_received(b"xy")
            assert len(server._pieces) < 4  # type: ignore[attr-defined]
            server.data_received(b"\r\n.\r\n")
            assert await wire.reply() == "250 2.0.0 OK"
        spill = Spill(tmp_path, None, asyncio.get_running_loop(), lambda: None)
        for _ in range(BATCH_OCTETS // 4):
            spill.feed(b"xy")
        assert len(spill._pending) <= BATCH_OCTETS // 1024
        spill.end()
        await until(lambda: spill.whole)
        assert b"xy" * (BATCH_OCTETS // 4) == spill.path.read_bytes()

    run(scenario())


class BadGoodbye(Box):
    """Raises at the end."""

    def handle_DISCONNECT(self, server: SMTP, session: Session, envelope: Envelope | None, reason: str) -> None:
        """Raise what nobody catches by accident."""
        raise asyncio.CancelledError


def test_a_goodbye_that_fails_keeps_nobody_here(run: Run) -> None:
    """The session leaves whatever the handler does about it."""

    async def scenario() -> None:
        async with listening(BadGoodbye()) as listener:
            async with Wire.to(listener) as wire:
                assert await wire.talk("QUIT") == ["221"]
            await until(lambda: listener.sessions == 0)

    run(scenario())


def test_a_message_accepted_behind_a_last_word_is_a_lost_reply(run: Run) -> None:
    """The drain's deadline came first; the sender will send it again, and the log says so."""

    async def scenario() -> None:
        handler, before = Stuck(), lost()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            wire.send("x\r\n.\r\n")
            await until(lambda: server.busy)
            draining = asyncio.create_task(listener.drain(0.01))
            assert (await wire.reply()).startswith("421 4.3.2")
            handler.release.set()
            assert await wire.rest() == ""
            wire.writer.close()
            async with asyncio.timeout(LAST_WORD_S + 1):
                assert await draining is False
        assert lost() == before + 1

    run(scenario())


@pytest.mark.parametrize("answer", [["250 1", "550 2"], "552 5.3.4 no", None, ValueError("x")])
def test_an_overridden_data_answers_each_lmtp_recipient(answer: Any, run: Run) -> None:
    """Through ``super().smtp_DATA`` as without it."""

    class Own(LMTP):
        async def smtp_DATA(self, arg: str | None) -> None:
            await super().smtp_DATA(arg)

    async def scenario() -> None:
        expected = (
            answer if isinstance(answer, list) else [answer if isinstance(answer, str) else "451 4.3.0 Local error in processing"] * 2
        )
        async with listening(SlowBox(answer), smtp_class=Own) as listener, Wire.to(listener) as wire:
            await wire.begin("b@x", "c@x", hello="LHLO")
            wire.send("x\r\n.\r\n")
            assert [await wire.reply() for _ in range(2)] == expected
            await wire.begin("b@x", "c@x", "d@x", hello="LHLO")
            wire.send("x\n\r\n.\r\n")
            assert [(await wire.reply())[:9] for _ in range(3)] == ["550 5.5.2"] * 3
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())


class Late(SMTP):
    """Overrides what waits for content, and what comes before it."""

    async def smtp_RCPT(self, arg: str | None) -> None:
        """As before."""
        await super().smtp_RCPT(arg)

    async def smtp_DATA(self, arg: str | None) -> None:
        """As before."""
        await super().smtp_DATA(arg)


class StuckOnce(Stuck):
    """Is stuck at the first RCPT only."""

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Wait for release, once."""
        self.done += 1
        if self.done == 1:
            await self.release.wait()
        envelope.rcpt_tos.append(address)
        return "250 OK"


def test_a_method_that_comes_too_late_takes_no_content(run: Run) -> None:
    """An RCPT that was answered for its method ends while another transaction's content arrives."""

    async def scenario() -> None:
        clock, handler = ManualClock(), StuckOnce()
        async with listening(handler, settings(), clock=clock, smtp_class=Late) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            (server,) = roster.connections
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>") == ["250", "250"]
            wire.send("RCPT TO:<late@x>\r\n")
            await until(lambda: server.busy and handler.done == 1)
            clock.now += 31
            roster.sweep.tick()
            assert (await wire.reply())[:3] == "451"
            assert await wire.talk("RCPT TO:<b@x>", "DATA") == ["250", "354"]
            handler.release.set()
            await until(lambda: not roster.work)
            assert await sent(wire) == "250 OK"

    run(scenario())


def test_a_reset_that_nobody_has_noticed_yet_ends_the_session_quietly(run: Run) -> None:
    """Closing our half of a connection that is gone is no mistake of ours, and stops nothing else, such as the sweep that led to it."""

    async def scenario() -> None:
        async with listening(Box()) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            server.pause(1)  # so that the loop does not look
            wire.reset()
            await until(lambda: is_gone(server))
            server.hang_up("timeout")
            await until(lambda: listener.sessions == 0)

    run(scenario())


class SlowDoor(Box):
    """Thinks about the peer for ever."""

    async def handle_CONNECT(self, server: SMTP, session: Session, envelope: Envelope) -> None:
        """Think."""
        await asyncio.Event().wait()


def test_a_door_that_stays_shut_too_long_is_421(run: Run) -> None:
    """There is no command to answer: the peer is told to come again."""

    async def scenario() -> None:
        clock = ManualClock()
        async with listening(SlowDoor(), settings(), clock=clock) as listener, Wire.to(listener, banner=False) as wire:
            await until(lambda: listener.sessions == 1)
            clock.now += 31
            roster_of(listener).sweep.tick()
            assert (await wire.reply()).startswith("421 4.4.2")
            wire.writer.close()
            await until(lambda: listener.sessions == 0)

    run(scenario())


class Breaking(SMTP):
    """A subclass with a mistake that no hook's rule covers."""

    def _set_rset_state(self) -> None:
        if self.session is not None and self.session.host_name is not None:
            raise ZeroDivisionError
        super()._set_rset_state()


@pytest.mark.parametrize("slow", [pytest.param(False, id="in a callback"), pytest.param(True, id="in the task")])
def test_a_mistake_outside_hooks_ends_its_session_and_no_other(slow: bool, run: Run) -> None:
    """It is logged and counted, and the next peer is served."""

    class Handler(Box):
        def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str | None) -> Any:
            return asyncio.sleep(0, "250 OK") if slow else "250 OK"

    async def scenario() -> None:
        async with listening(Handler(), smtp_class=Breaking) as listener, Wire.to(listener) as other:
            async with Wire.to(listener) as wire:
                await wire.say("HELO x")
                wire.send("NOOP\r\n")
                assert (await wire.reply())[:3] == "250"
                wire.send("RSET\r\n")
                assert await wire.reply() == ""
                await until(lambda: listener.sessions == 1)
            assert await other.talk("NOOP") == ["250"]

    run(scenario())


def test_a_drain_waits_for_no_handshake_longer_than_its_deadline(run: Run) -> None:
    """Nothing can be said in the middle of one: it is cut, and counted as failed."""

    async def scenario() -> None:
        async with listening(Box(), tls_context=server_context()) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "STARTTLS") == ["250", "220"]
            assert await listener.drain(0.01) is False
            assert listener.sessions == 0

    run(scenario())


def test_a_session_that_spends_its_turn_while_draining_is_sent_away(run: Run) -> None:
    """Also when no whole command is left for the turn after."""

    async def scenario() -> None:
        async with listening(Box()) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            server.data_received(b"HELP\r\n" * 100 + b"HE")
            assert server.busy
            draining = asyncio.create_task(listener.drain(5))
            replies = [(await wire.reply())[:3] for _ in range(101)]
            assert replies == ["214"] * 100 + ["421"]
            wire.writer.close()
            assert await draining is True

    run(scenario())


def test_a_hook_that_is_cut_at_the_drains_end_leaves_no_file(tmp_path: Path, run: Run) -> None:
    """Nobody accepted the message, and nobody else knows of its file."""

    async def scenario() -> None:
        handler = Stuck()
        async with listening(handler, spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            before = lost()
            await wire.begin()
            wire.send((b"y" * 998 + b"\r\n") * 300 + b".\r\n")
            await until(lambda: getattr(server._pending, "hook", "") == "DATA")
            assert list(tmp_path.iterdir())
            wire.reset()
            await until(lambda: listener.sessions == 0)
            assert await listener.drain(0.01) is False
            assert lost() == before
        assert list(tmp_path.iterdir()) == []

    run(scenario())
