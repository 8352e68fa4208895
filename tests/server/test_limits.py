"""What a live listener does against clients that ask for too much. No test waits for a clock: it is wound by hand."""

from __future__ import annotations

import asyncio
import select
import socket
import tracemalloc
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from postbus.bridge.load import OVERLOADED
from postbus.server import AuthResult, Listener, ListenerSettings, Reply
from postbus.server.auth_settings import AuthSettings
from postbus.server.client_settings import ClientSettings
from postbus.server.clients import TOO_MANY, TOO_OFTEN, Refusal
from postbus.server.limits import EARLY, HOPS, OF_LAPSE, OF_REPLY, SLOWED
from postbus.server.settings import LimitSettings, TimeoutSettings, TlsSettings
from postbus.server.timers import Lapse
from postbus.smtp import replies
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import LOOPS, Run
from tests.server.test_smtp import Box, SlowBox, sent
from tests.server.test_timers import ManualClock
from tests.server.wire import Wire, client_context, is_gone, kernel_holds, listening, roster_of, server_context, until

EVERYBODY = ClientSettings(exempt=())


def settings(clients: ClientSettings = EVERYBODY, address: str = "127.0.0.1:0", **fields: Any) -> ListenerSettings:
    """Return a listener's settings under which nobody is spared."""
    said = ListenerSettings(address=address, hostname="mx.example", clients=clients)
    return said.model_copy(update=fields)  # not looked at again: the certificate is given as a context


def hit(limit: str) -> float:
    """Return how often *limit* was hit so far."""
    return NUMBERS.reading("postbus_limits_hit_total").get(("test", limit), 0)


def refused(reason: str) -> float:
    """Return how many connections were refused for *reason* so far."""
    return NUMBERS.reading("postbus_sessions_refused_total").get(("test", reason), 0)


def tick(listener: Listener, clock: ManualClock, seconds: float) -> None:
    """Let *seconds* pass, and the sweep look."""
    clock.now += seconds
    roster_of(listener).sweep.tick()


def counted(listener: Listener) -> int:
    """Return how many connections are counted for client networks."""
    return roster_of(listener).clients.connections


def test_every_word_of_a_limit_is_its_own() -> None:
    """One word, one limit; the deadlines that are the peer's have one."""
    words = [*OF_REPLY.values(), *OF_LAPSE.values()]
    assert len(words) == len(set(words))
    assert {Lapse.COMMAND, Lapse.DATA, Lapse.TRANSACTION, Lapse.SESSION} == set(OF_LAPSE)
    assert [] == [reply for reply in vars(replies).values() if isinstance(reply, Reply) and reply.code == 421 and reply not in OF_REPLY]


def test_the_page_lists_every_limit() -> None:
    """Whoever meets a word in a metric finds it there."""
    page = (Path(__file__).parents[2] / "docs" / "open-internet.md").read_text()
    words = {*OF_REPLY.values(), *OF_LAPSE.values(), EARLY, SLOWED, HOPS, TOO_MANY.reason, TOO_OFTEN.reason, OVERLOADED.reason}
    assert [] == sorted(word for word in words if f"`{word}`" not in page)


# --- connections


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "implicit TLS"])
def test_one_connection_too_many_from_a_network(tls: bool, run: Run) -> None:
    """421 4.7.0 before the banner, or no handshake; room comes back when somebody leaves."""

    async def scenario() -> None:
        said = settings(ClientSettings(exempt=(), connections_max=1), tls=TlsSettings.model_construct(mode="implicit" if tls else "none"))
        before = refused("client_connections")
        async with listening(Box(), said, tls_context=server_context()) as listener:
            async with Wire.to(listener, tls=tls) as first:
                if tls:
                    with pytest.raises(OSError):  # noqa: PT011 - reset or end of file, as the loop has it
                        async with Wire.to(listener, tls=True):
                            pass
                else:
                    async with Wire.to(listener, banner=False) as second:
                        assert (await second.reply()).startswith("421 4.7.0")
                        assert await second.rest() == ""
                assert refused("client_connections") == before + 1
                assert await first.talk("QUIT") == ["221"]
            await until(lambda: counted(listener) == 0)
            async with Wire.to(listener, tls=tls) as third:
                assert await third.talk("NOOP") == ["250"]

    run(scenario())


def test_a_network_is_what_the_settings_say(run: Run) -> None:
    """Neighbours share one count where the prefix is shorter."""

    async def scenario() -> None:
        said = settings(ClientSettings(exempt=(), connections_max=1, ipv4_prefix_bits=8))
        async with listening(Box(), said) as listener, Wire.to(listener):
            _, _, port = listener.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port), local_addr=("127.0.0.2", 0))
            assert (await reader.read()).startswith(b"421 4.7.0")
            writer.close()

    run(scenario())


def test_connections_that_come_too_fast(run: Run) -> None:
    """421 4.7.1, until time has passed; the exempt are let in all the while."""

    async def scenario() -> None:
        clock = ManualClock()
        said = settings(ClientSettings(exempt=("127.0.0.2",), connection_rate_max=2))
        before = refused("client_rate")
        async with listening(Box(), said, clock=clock) as listener:
            for _ in range(2):
                async with Wire.to(listener) as wire:
                    assert await wire.talk("QUIT") == ["221"]
            async with Wire.to(listener, banner=False) as wire:
                assert (await wire.reply()).startswith("421 4.7.1")
            _, _, port = listener.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port), local_addr=("127.0.0.2", 0))
            assert (await reader.readline()).startswith(b"220")
            writer.close()
            clock.now += 31
            async with Wire.to(listener) as wire:
                assert await wire.talk("QUIT") == ["221"]
            assert refused("client_rate") == before + 1

    run(scenario())


@pytest.mark.parametrize("refusal", [Reply(421, "Busy", "4.3.2"), Refusal(Reply(421, "Busy", "4.3.2"), "memory")], ids=["reply", "refusal"])
def test_a_gate_may_say_why(refusal: Reply | Refusal, run: Run) -> None:
    """The metric has its word; without one, ``gate``."""

    async def scenario() -> None:
        reason = refusal.reason if isinstance(refusal, Refusal) else "gate"
        before = refused(reason)
        async with listening(Box(), gate=lambda: refusal) as listener, Wire.to(listener, banner=False) as wire:
            assert await wire.reply() == "421 4.3.2 Busy"
            assert refused(reason) == before + 1

    run(scenario())


def test_a_peer_that_turns_out_to_be_another_is_judged_anew(run: Run) -> None:
    """Whoever speaks for others (PROXY, XCLIENT) is counted as the one it speaks for."""

    async def scenario() -> None:
        said = settings(ClientSettings(exempt=("127.0.0.0/8",), connections_max=1))
        async with listening(Box(), said) as listener, Wire.to(listener), Wire.to(listener):
            one, other = roster_of(listener).connections
            assert counted(listener) == 0
            assert one.peer_changed(("192.0.2.1", 1)) is None
            refusal = other.peer_changed(("192.0.2.1", 2))
            assert refusal is not None
            assert (refusal.code, refusal.enhanced) == (421, "4.7.0")
            assert other.client is None
            assert one.peer_changed(("192.0.2.2", 1)) is None
            assert other.peer_changed(("192.0.2.1", 2)) is None
            assert counted(listener) == 2
            one.abort("lost")
            other.abort("lost")
            assert counted(listener) == 0

    run(scenario())


# --- messages and recipients


@pytest.mark.parametrize(
    ("clients", "word", "expected"),
    [
        pytest.param({"message_rate_max": 2}, "message_rate", ["250", "250", "250", "450", "250"], id="messages"),
        pytest.param({"recipient_rate_max": 2}, "recipient_rate", ["250", "450", "250"], id="recipients"),
    ],
)
def test_rates_of_mail(clients: dict[str, int], word: str, expected: list[str], run: Run) -> None:
    """450 4.7.1 for what is too much, and time heals it. What was accepted before is accepted."""

    async def scenario() -> None:
        clock, before = ManualClock(), hit(word)
        async with listening(Box(), settings(ClientSettings(exempt=(), **clients)), clock=clock) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "250 2.0.0 OK"
            if word == "message_rate":
                said = await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@mx.example>", "RSET", "MAIL FROM:<a@x>")
                tick(listener, clock, 31)
                said += await wire.talk("MAIL FROM:<a@x>")
            else:
                await wire.talk("MAIL FROM:<a@x>")
                said = await wire.talk("RCPT TO:<b@mx.example>", "RCPT TO:<c@mx.example>")
                tick(listener, clock, 31)
                said += await wire.talk("RCPT TO:<c@mx.example>")
            assert expected == said
            assert hit(word) == before + 1

    run(scenario())


def test_asking_in_vain_for_ever_ends_the_session(run: Run) -> None:
    """A client that goes on at once, refusal after refusal, is sent away, to come again."""

    async def scenario() -> None:
        said = settings(ClientSettings(exempt=(), message_rate_max=1), limits=LimitSettings(errors_max=3))
        before = hit("persistence")
        async with listening(Box(), said, clock=ManualClock()) as listener, Wire.to(listener) as wire:
            await wire.talk("EHLO x", "MAIL FROM:<a@x>", "RSET")
            assert await wire.talk(*["MAIL FROM:<a@x>"] * 4) == ["450", "450", "450", "421"]
            assert await wire.rest() == ""
            assert hit("persistence") == before + 1

    run(scenario())


# --- failures of AUTH

GUESS, LOGIN = (f"AUTH PLAIN {b64encode(words).decode()}" for words in (b"\0tim\0wrong", b"\0tim\0secret"))


class Judge:
    """Knows one password, and counts who asked; thinks as long as *gate* is shut."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        """Judge."""
        self.asked += 1
        await self.gate.wait()
        return AuthResult(success=auth_data == (b"tim", b"secret"), handled=False)


@asynccontextmanager
async def guarded(judge: Judge, clock: ManualClock, **clients: Any) -> AsyncIterator[Listener]:
    """Run a listener that asks *judge*, with three failures a minute for a client network."""
    said = settings(
        ClientSettings(**{"exempt": (), "auth_failure_rate_max": 3, **clients}), auth=AuthSettings(allow_plaintext=True, failure_delay_s=0)
    )
    async with listening(Box(), said, clock=clock, authenticator=judge) as listener:
        yield listener


async def tries(listener: Listener, *commands: str, host: str = "127.0.0.1") -> list[str]:
    """Say *commands* in a session of its own, from *host*; return code and enhanced code of each reply."""
    _, _, port = listener.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port), local_addr=(host, 0))
    wire = Wire(reader, writer)
    assert (await wire.reply()).startswith("220")
    assert await wire.talk("EHLO x") == ["250"]
    said = [(await wire.say(command))[:9] for command in commands]
    writer.transport.abort()
    return said


def test_sessions_of_a_network_share_a_budget_of_failures(run: Run) -> None:
    """Used up, nobody is asked, whether the password is right or not; another network has its own, and time brings it back."""

    async def scenario() -> None:
        judge, clock, before = Judge(), ManualClock(), hit("auth_failure_rate")
        async with guarded(judge, clock) as listener:
            for _ in range(5):
                assert await tries(listener, LOGIN) == ["235 2.7.0"]
            for _ in range(3):
                assert await tries(listener, GUESS) == ["535 5.7.8"]
            assert judge.asked == 8
            assert await tries(listener, GUESS, LOGIN, "AUTH LOGIN") == ["454 4.7.0"] * 3
            assert await tries(listener, LOGIN) == ["454 4.7.0"]
            assert (judge.asked, hit("auth_failure_rate")) == (8, before + 4)
            assert await tries(listener, GUESS, LOGIN, host="127.0.0.2") == ["535 5.7.8", "235 2.7.0"]
            tick(listener, clock, 20)
            assert await tries(listener, LOGIN) == ["235 2.7.0"]
            assert await tries(listener, GUESS, LOGIN) == ["535 5.7.8", "454 4.7.0"]
            assert listener.clients <= 2

    run(scenario())


def test_guesses_at_the_same_time_are_all_counted(run: Run) -> None:
    """Who opens many sessions before the first verdict waits the longer."""

    async def scenario() -> None:
        judge, clock = Judge(), ManualClock()
        judge.gate.clear()
        async with guarded(judge, clock) as listener:
            guesses = asyncio.gather(*(tries(listener, GUESS) for _ in range(6)))
            await until(lambda: judge.asked == 6)
            judge.gate.set()
            assert await guesses == [["535 5.7.8"]] * 6
            for _ in range(4):
                assert await tries(listener, LOGIN) == ["454 4.7.0"]
                tick(listener, clock, 20)
            assert await tries(listener, LOGIN) == ["235 2.7.0"]

    run(scenario())


def test_who_keeps_guessing_for_nothing_is_sent_away(run: Run) -> None:
    """454 is no error of the session's, but there is an end to it."""

    async def scenario() -> None:
        judge, clock = Judge(), ManualClock()
        async with guarded(judge, clock, auth_failure_rate_max=1) as listener:
            said = await tries(listener, *[GUESS] * 22)
            assert said == ["535 5.7.8", *["454 4.7.0"] * 20, "421 4.7.1"]
            assert judge.asked == 1

    run(scenario())


@pytest.mark.parametrize("clients", [{"exempt": ("127.0.0.1",)}, {"auth_failure_rate_max": 0}], ids=["exempt", "no limit"])
def test_who_may_guess_as_often_as_sessions_allow(clients: dict[str, Any], run: Run) -> None:
    """Exempt networks, or everybody where no limit is set."""

    async def scenario() -> None:
        async with guarded(Judge(), ManualClock(), **clients) as listener:
            for _ in range(6):
                assert await tries(listener, GUESS, LOGIN) == ["535 5.7.8", "235 2.7.0"]

    run(scenario())


# --- out of turn


class StreamBox(Box):
    """Takes content as it comes."""

    async def handle_DATA_CHUNK(self, server: Any, session: Any, envelope: Any, chunk: Any) -> None:
        """Want nothing of it."""


@pytest.mark.parametrize("handler", [pytest.param(Box, id="at once"), pytest.param(SlowBox, id="with a coroutine")])
def test_the_greet_delay_catches_who_talks_early(handler: type[Box], run: Run) -> None:
    """Whoever waits is greeted late, whoever talks before gets 554; no task waits with them."""

    async def scenario() -> None:
        clock, before = ManualClock(), hit("early")
        said = settings(timeouts=TimeoutSettings(greet_delay_s=3))
        async with (
            listening(handler(), said, clock=clock) as listener,
            Wire.to(listener, banner=False) as patient,
            Wire.to(listener, banner=False) as hasty,
        ):
            await until(lambda: listener.sessions == 2)
            hasty.send("EHLO x\r\n")
            await until(lambda: any(server.octets for server in roster_of(listener).connections))
            tick(listener, clock, 2.9)
            assert len(asyncio.all_tasks()) == 1
            tick(listener, clock, 0.1)
            assert (await patient.reply()).startswith("220")
            assert (await hasty.reply()).startswith("554 5.5.0")
            assert await hasty.rest() == ""
            assert hit("early") == before + 1
            assert await patient.talk("EHLO x", "QUIT") == ["250", "221"]

    run(scenario())


def test_the_greet_delay_spares_the_exempt_and_ends_with_a_drain(run: Run) -> None:
    """Who waits for a banner when we leave gets 421 at once."""

    async def scenario() -> None:
        timeouts = TimeoutSettings(greet_delay_s=30)
        async with listening(Box(), settings(ClientSettings(), timeouts=timeouts)) as listener, Wire.to(listener) as wire:
            assert await wire.talk("QUIT") == ["221"]
        async with listening(Box(), settings(timeouts=timeouts)) as listener, Wire.to(listener, banner=False) as wire:
            await until(lambda: listener.sessions == 1)
            draining = asyncio.create_task(listener.drain(3))
            assert (await wire.reply()).startswith("421 4.3.2")
            wire.writer.close()
            assert await draining is True

    run(scenario())


class Doorman(Box):
    """Thinks before it greets."""

    async def handle_CONNECT(self, server: Any, session: Any, envelope: Any) -> str:
        """Greet in its own words."""
        await asyncio.sleep(0)
        return "220 welcome"


def test_behind_the_greet_delay_comes_the_doorman(run: Run) -> None:
    """``handle_CONNECT`` is asked once the peer has waited."""

    async def scenario() -> None:
        clock = ManualClock()
        said = settings(timeouts=TimeoutSettings(greet_delay_s=3))
        async with listening(Doorman(), said, clock=clock) as listener, Wire.to(listener, banner=False) as wire:
            await until(lambda: listener.sessions == 1)
            tick(listener, clock, 4)
            assert await wire.reply() == "220 welcome"
            assert await wire.talk("EHLO x", "QUIT") == ["250", "221"]

    run(scenario())


@pytest.mark.parametrize(("exempt", "expected"), [((), ["250", "554"]), (("127.0.0.1",), ["250", "250", "250"])], ids=["strict", "exempt"])
def test_who_may_talk_out_of_turn(exempt: tuple[str, ...], expected: list[str], run: Run) -> None:
    """Old software in trusted networks pipelines as it likes; everybody else is cut, and counted."""

    async def scenario() -> None:
        before = hit("pipelining")
        said = settings(ClientSettings(pipelining_exempt=exempt))
        async with listening(Box(), said) as listener, Wire.to(listener) as wire:
            wire.send("NOOP\r\n")
            found = [(await wire.reply())[:3]]
            wire.send("EHLO x\r\nMAIL FROM:<a@x>\r\n")
            found += [(await wire.reply())[:3] for _ in expected[1:]]
            assert expected == found
            assert hit("pipelining") == before + (not exempt)

    run(scenario())


def tolerated(kind: str) -> float:
    """Return how often *kind* was tolerated so far."""
    return NUMBERS.reading("postbus_defects_total").get(("test", kind), 0)


@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(StreamBox, id="streamed")])
@pytest.mark.parametrize("by_network", [False, True], ids=["for everybody", "for a network"])
def test_what_is_tolerated_out_of_turn_is_told(by_network: bool, handler: type[Box], run: Run) -> None:
    """In the envelope of the next message that is taken, and in the metric, once each; later mail in turn has nothing."""

    async def scenario() -> None:
        box, clock, before = handler(), ManualClock(), (tolerated("early"), tolerated("pipelining"))
        exempt = ("127.0.0.1",) if by_network else ()
        said = settings(
            ClientSettings(exempt=(), pipelining_exempt=exempt), strict_pipelining=by_network, timeouts=TimeoutSettings(greet_delay_s=3)
        )
        message = "MAIL FROM:<a@x>\r\nRCPT TO:<b@mx.example>\r\nDATA\r\nSubject: x\r\n\r\nx\r\n.\r\n"
        async with listening(box, said, clock=clock) as listener, Wire.to(listener, banner=False) as wire:
            wire.send("EHLO x\r\n")
            await until(lambda: any(server.octets for server in roster_of(listener).connections))
            tick(listener, clock, 3)
            assert [(await wire.reply())[:3] for _ in range(2)] == ["220", "250"]
            wire.send("MAIL FROM:<a@x>\r\nRCPT TO:<b@mx.example>\r\nDATA\r\nSubject: \0\r\n.\r\n")
            assert [(await wire.reply())[:3] for _ in range(4)] == ["250", "250", "354", "550"]
            wire.send(message)
            assert [(await wire.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
            await wire.begin()
            assert await sent(wire) == "250 2.0.0 OK"
            assert [envelope.defects for envelope in box.envelopes] == [{"early": 1, "pipelining": 1}, {}]
            wire.send("NOOP\r\nQUIT\r\n")
            assert [(await wire.reply())[:3] for _ in range(2)] == ["250", "221"]
            await until(lambda: listener.sessions == 0)
        assert (tolerated("early"), tolerated("pipelining")) == (before[0] + 1, before[1] + 2)

    run(scenario())


@pytest.mark.parametrize(
    ("octets", "word", "code"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", "http", "502", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", "tls", "501", id="a ClientHello"),
        pytest.param(b"\x16\x03\x01\r\n", "tls", "501", id="a ClientHello with a line end"),
        pytest.param(b"x" * 70_000, "endless_line", "421", id="an endless line"),
        pytest.param(b"STARTTLS\r\nNOOP\r\n", "pipelining", "554", id="behind STARTTLS"),
    ],
)
def test_what_is_no_mail_is_counted(octets: bytes, word: str, code: str, run: Run) -> None:
    """Each by its word, once; the session ends."""

    async def scenario() -> None:
        before = hit(word)
        said = settings(tls=TlsSettings(mode="none"))
        async with listening(Box(), said, tls_context=server_context()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            (server,) = roster_of(listener).connections
            wire.send(octets)
            assert (await wire.reply())[:3] == code
            assert await wire.rest() == ""
            wire.writer.close()
            await until(lambda: listener.sessions == 0)
            assert server.limit == word
            assert hit(word) == before + 1

    run(scenario())


# --- slower answers


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        pytest.param("MAIL FROM:<\r\n", {"errors_slow": 2, "errors_max": 5}, id="errors"),
        pytest.param("XYZZY\r\n", {"errors_slow": 2, "unknown_max": 5}, id="unknown verbs"),
        pytest.param("RSET\r\n", {"junk_slow": 3, "junk_max": 6}, id="junk"),
    ],
)
def test_answers_get_slower_and_then_end(line: str, limits: dict[str, int], run: Run) -> None:
    """All sent at once: two are answered at once, three wait for their turn, then 421 4.7.0."""

    async def scenario() -> None:
        clock, before = ManualClock(), hit("slowed")
        said = settings(limits=LimitSettings(**limits), timeouts=TimeoutSettings(error_delay_s=5))
        async with listening(Box(), said, clock=clock) as listener, Wire.to(listener) as wire, Wire.to(listener) as other:
            await wire.say("EHLO x")
            wire.send(line * 6)
            answers = [(await wire.reply())[:3] for _ in range(3)]
            assert len(set(answers)) == 1
            for _ in range(2):
                (slow,) = [server for server in roster_of(listener).connections if server.pause_until is not None]
                tick(listener, clock, 4.9)
                assert slow.pause_until is not None
                assert await other.talk("NOOP") == ["250"]
                tick(listener, clock, 0.1)
                assert (await wire.reply())[:3] == answers[0]
            tick(listener, clock, 5)
            assert (await wire.reply()).startswith("421 4.7.0")
            assert await wire.rest() == ""
            assert hit("slowed") == before + 3
            assert len(asyncio.all_tasks()) == 1

    run(scenario())


@pytest.mark.parametrize("coroutine", [False, True], ids=["plain", "coroutine"])
def test_guessing_recipients_gets_slower(coroutine: bool, run: Run) -> None:
    """What a hook refuses counts too; good commands are answered at once again afterwards."""

    class Plain:
        def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
            """Nobody is here."""
            return "550 5.1.1 No"

    class Coroutine:
        async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
            """Nobody is here, after some thought."""
            await asyncio.sleep(0)
            return "550 5.1.1 No"

    async def scenario() -> None:
        clock = ManualClock()
        said = settings(limits=LimitSettings(errors_slow=1))
        async with listening((Coroutine if coroutine else Plain)(), said, clock=clock) as listener, Wire.to(listener) as wire:
            await wire.talk("EHLO x", "MAIL FROM:<a@x>")
            (server,) = roster_of(listener).connections
            assert await wire.talk("RCPT TO:<a@mx>", "RCPT TO:<b@mx>") == ["550", "550"]
            wire.send("RSET\r\nMAIL FROM:<a@x>\r\n")
            await until(lambda: server.octets >= 80 and server.pause_until is not None)
            tick(listener, clock, 1)
            assert [(await wire.reply())[:3] for _ in range(2)] == ["250", "250"]
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())


def test_what_a_slowed_peer_sends_is_bounded(run: Run) -> None:
    """A flood behind an error waits in the kernel, not in our memory."""

    async def scenario() -> None:
        said = settings(limits=LimitSettings(errors_slow=0), timeouts=TimeoutSettings(error_delay_s=60))
        async with listening(Box(), said) as listener, Wire.to(listener) as wire:
            await wire.say("MAIL")
            (server,) = roster_of(listener).connections
            wire.send(b"NOOP\r\n" * 1_000_000)
            transport = server.transport
            assert transport is not None
            await until(lambda: server.octets > 1000 and kernel_holds(server) > 0 and not transport.is_reading())
            assert server.octets <= 512 * 1024
            wire.reset()

    run(scenario())


@pytest.mark.parametrize("how", ["end of file", "drain", "reset"])
def test_a_slowed_peer_may_leave(how: str, run: Run) -> None:
    """Whatever ends the session while its answer waits: nothing is left behind."""

    async def scenario() -> None:
        clock = ManualClock()
        said = settings(limits=LimitSettings(errors_slow=0))
        async with listening(Box(), said, clock=clock) as listener, Wire.to(listener) as wire:
            assert (await wire.say("MAIL"))[:3] == "503"
            (server,) = roster_of(listener).connections
            if how == "drain":
                draining = asyncio.create_task(listener.drain(3))
                assert (await wire.reply()).startswith("421 4.3.2")
                wire.writer.close()
                assert await draining is True
                return
            if how == "reset":
                wire.reset()
                await until(lambda: listener.sessions == 0 or is_gone(server))
                tick(listener, clock, 2)
            else:
                wire.send("NOOP\r\n")
                wire.writer.write_eof()
                await until(lambda: server.octets > len("MAIL\r\n"))
                tick(listener, clock, 2)
                assert (await wire.rest())[:3] == "250"
                wire.writer.close()
            await until(lambda: listener.sessions == 0)
            assert counted(listener) == 0

    run(scenario())


def test_a_handshake_ends_the_wait(run: Run) -> None:
    """STARTTLS that is answered slowly: the session behind it owes no more waiting, and has its own work."""

    async def scenario() -> None:
        clock = ManualClock()
        said = settings(limits=LimitSettings(junk_slow=1), timeouts=TimeoutSettings(error_delay_s=5))
        async with listening(Box(), said, clock=clock, tls_context=server_context()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            await wire.start_tls()
            (server,) = roster_of(listener).connections
            await until(lambda: server.engine.tls)
            assert (server.pause_until, server.busy) == (None, False)

    run(scenario())


# --- slow and long


@pytest.mark.parametrize(
    ("prologue", "crumb", "every_s", "word", "after_s"),
    [
        pytest.param([], b"", 10, "command_time", 300, id="silence"),
        pytest.param([], b"N", 29, "command_time", 300, id="an octet of a command now and then"),
        pytest.param(
            ["EHLO x", "MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"], b"x", 29, "data_rate", 180, id="an octet of content now and then"
        ),
        pytest.param(["EHLO x"], b"NOOP\r\n", 299, "session_time", 7200, id="a command just in time"),
        pytest.param(["EHLO x", "MAIL FROM:<a@x>"], b"RCPT TO:<b@x>\r\n", 250, "transaction_time", 3600, id="recipients for ever"),
        pytest.param(
            ["EHLO x", "MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"], b"x" * 6000, 10, "transaction_time", 3600, id="content just fast enough"
        ),
    ],
)
def test_slow_peers_lose_their_patience_contest(
    prologue: list[str], crumb: bytes, every_s: float, word: str, after_s: float, run: Run
) -> None:
    """Slowloris in all its forms: 421 4.4.2 in time, by the word."""

    async def scenario() -> None:
        clock, before = ManualClock(), hit(word)
        said = settings(limits=LimitSettings(junk_slow=1000))
        async with listening(Box(), said, clock=clock) as listener, Wire.to(listener) as wire:
            for command in prologue:
                assert (await wire.say(command))[0] in "23"
            (server,) = roster_of(listener).connections
            began = clock.now
            while hit(word) == before:
                assert clock.now - began <= after_s + every_s
                if crumb:
                    seen = server.octets
                    wire.send(crumb)
                    await until(lambda: server.octets == seen + len(crumb))  # noqa: B023 - awaited within this turn
                    if crumb.endswith(b"\r\n"):
                        assert (await wire.reply())[:3] == "250"
                for _ in range(int(every_s)):
                    tick(listener, clock, 1)
            assert clock.now - began >= after_s * 0.9
            assert (await wire.reply()).startswith("421 4.4.2")
            assert await wire.rest() == ""
            assert server.limit == word

    run(scenario())


@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_the_quota_of_a_session_lets_the_message_in_transfer_have_its_answer(handler: type[Box], run: Run) -> None:
    """421 4.7.0 between messages, never within one; an idle session is told at once."""

    async def scenario() -> None:
        box, before = handler(), hit("session_octets")
        said = settings(limits=LimitSettings(session_max_octets=100_000))
        async with listening(box, said) as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send(("x" * 998 + "\r\n") * 1000)
            assert await sent(wire) == "250 2.0.0 OK"
            assert (await wire.reply()).startswith("421 4.7.0")
            assert await wire.rest() == ""
            assert len(box.envelopes) == 1
            assert hit("session_octets") == before + 1

    run(scenario())


# --- counts


class Reluctant(Box):
    """Takes its time, then raises, answers or hangs up."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """As the address says."""
        await asyncio.sleep(0)
        if address.startswith("raise"):
            raise ValueError
        if address.startswith("hang"):
            return "421 4.7.0 Bye"
        envelope.rcpt_tos.append(address)
        return "250 OK"


async def quits(wire: Wire) -> None:
    """Leave politely."""
    await wire.say("QUIT")


async def resets(wire: Wire) -> None:
    """Vanish in the middle of a message."""
    wire.send("EHLO x\r\n")
    await wire.reply()
    wire.send("MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n")
    wire.reset()


async def half_closes(wire: Wire) -> None:
    """Say no more, and listen."""
    wire.send("NOOP\r\n")
    wire.writer.write_eof()
    await wire.rest()


async def fails_tls(wire: Wire) -> None:
    """Begin TLS with no TLS."""
    await wire.say("EHLO x")
    await wire.say("STARTTLS")
    wire.send(b"this is no handshake, and it is long enough to be seen as none\r\n" * 3)
    await wire.rest()


async def leaves_tls(wire: Wire) -> None:
    """Begin TLS and vanish."""
    await wire.say("EHLO x")
    await wire.say("STARTTLS")
    wire.reset()


async def upgrades(wire: Wire) -> None:
    """Shake hands, then vanish."""
    await wire.say("EHLO x")
    await wire.start_tls()
    await wire.say("EHLO x")


async def errs(wire: Wire) -> None:
    """Err until sent away."""
    wire.send("XX\r\n" * 20)
    await wire.rest()


def asks(local_part: str) -> Callable[[Wire], Any]:
    """Return a peer that names one recipient, and leaves."""

    async def ask(wire: Wire) -> None:
        await wire.talk("EHLO x", "MAIL FROM:<a@x>", f"RCPT TO:<{local_part}@x>")

    return ask


ENDS = (quits, resets, half_closes, fails_tls, leaves_tls, upgrades, errs, asks("raise"), asks("hang"), asks("wait"))


@given(st.lists(st.sampled_from(ENDS), min_size=1, max_size=8), st.sampled_from(sorted(LOOPS)))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_counts_return_to_zero_however_sessions_end(ends: list[Callable[[Wire], Any]], loop: str) -> None:
    """All at once, in any mixture; no count is ever below zero."""

    async def scenario() -> None:
        said = settings(
            ClientSettings(exempt=(), connections_max=5),
            tls=TlsSettings(mode="none"),
            timeouts=TimeoutSettings(error_delay_s=0, handshake_timeout_s=1),
        )

        async def play(end: Callable[[Wire], Any]) -> None:
            async with Wire.to(listener, banner=False) as wire:
                if (await wire.reply()).startswith("220"):
                    await end(wire)

        async with listening(Reluctant(), said, tls_context=server_context()) as listener:
            playing = asyncio.gather(*(play(end) for end in ends), return_exceptions=True)
            while not playing.done():
                assert 0 <= counted(listener) <= 5
                await asyncio.sleep(0)
            assert [] == [fault for fault in playing.result() if fault is not None and not isinstance(fault, OSError)]
            await until(lambda: listener.sessions == 0)
            assert counted(listener) == 0

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, _context: None)
        runner.run(scenario())


@pytest.mark.parametrize("how", ["no handshake", "garbage", "vanishes", "closes", "closes before it began"])
def test_a_handshake_that_fails_gives_its_place_back(how: str, run: Run) -> None:
    """On an implicit TLS listener the place is taken before the handshake."""

    async def scenario() -> None:
        said = settings(tls=TlsSettings.model_construct(mode="implicit"), timeouts=TimeoutSettings(handshake_timeout_s=0.2))
        async with listening(Box(), said, tls_context=server_context()) as listener:
            host, _, port = listener.addresses[0].rpartition(":")
            with socket.create_connection((host, int(port))) as peer:
                if how == "closes before it began":
                    while not counted(listener):
                        await asyncio.sleep(0)  # the next turn, at whose beginning the handshake has not had its first step
                await until(lambda: counted(listener) == 1)
                if how == "garbage":
                    peer.sendall(b"EHLO x\r\n" * 10)
                elif how == "vanishes":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    peer.close()
                elif how.startswith("closes"):
                    await listener.close()
                    await until(lambda: hung_up(peer))
                await until(lambda: counted(listener) == 0)
            if not how.startswith("closes"):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context(), server_hostname="localhost")
                assert (await reader.readline()).startswith(b"220")
                writer.transport.abort()

    run(scenario())


def test_a_listener_that_closes_at_once_keeps_no_socket(run: Run) -> None:
    """Nor does what it would have accepted from it have had its first step."""

    async def scenario() -> None:
        said = settings(tls=TlsSettings.model_construct(mode="implicit"))
        listener = Listener(Box(), said, tls_context=server_context())
        await listener.start()
        (bound,) = listener.sockets
        await listener.close()
        assert bound.fileno() == -1

    run(scenario())


def hung_up(peer: socket.socket) -> bool:
    """Return whether the other side of *peer* has closed."""
    poll = select.poll()
    poll.register(peer, select.POLLRDHUP)
    return bool(poll.poll(0))


def test_a_thousand_refusals_leave_nothing(run: Run) -> None:
    """Turning away costs no memory that stays."""

    async def scenario() -> None:
        said = settings(ClientSettings(exempt=(), connections_max=1))
        async with listening(Box(), said) as listener, Wire.to(listener):
            tracemalloc.start()
            try:
                held = []
                for _ in range(6):
                    for _ in range(100):
                        async with Wire.to(listener, banner=False) as wire:
                            assert (await wire.reply()).startswith("421")
                    held.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
            assert held[-1] - held[0] < 256 * 1024
            assert (listener.sessions, counted(listener), listener.clients) == (1, 1, 1)

    run(scenario())
