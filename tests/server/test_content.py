"""Content in chunks, and who may send stray line ends: what handlers see, what is left, what takes how long."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from postbus.server import LMTP, SMTP, Envelope, ListenerSettings, Session
from postbus.server.content_settings import ContentSettings
from postbus.server.proxy_settings import ProxySettings
from postbus.server.settings import LimitSettings, TimeoutSettings
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_smtp import Box, SlowBox, sent
from tests.server.test_timers import ManualClock
from tests.server.wire import Wire, listening, roster_of, until

ENVELOPE = ("EHLO client.example", "MAIL FROM:<a@client.example>", "RCPT TO:<b@mx.example>")


def settings(**fields: Any) -> ListenerSettings:
    """Return a listener's settings with these *fields*."""
    return ListenerSettings(address="127.0.0.1:0", hostname="mx.example", **fields)


async def chunk(wire: Wire, octets: bytes, *, last: bool = False) -> str:
    """Send a chunk and return its reply."""
    wire.send(b"BDAT %d%s\r\n%b" % (len(octets), b" LAST" * last, octets))
    return await wire.reply()


@pytest.mark.parametrize("handler", [Box, SlowBox])
def test_handlers_see_one_message(handler: type[Box], run: Run) -> None:
    """``content`` and ``original_content`` as behind DATA, the defects of all chunks, BODY as sent; then the next message."""

    async def scenario() -> None:
        box = handler()
        async with listening(box, settings()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO client.example")
            await wire.talk("MAIL FROM:<a@client.example> BODY=BINARYMIME", "RCPT TO:<b@mx.example>")
            assert (await chunk(wire, b"a\nb\r")).startswith("250 2.0.0")
            assert (await chunk(wire, b"\nc\0\r\n", last=True)) == "250 2.0.0 OK"
            assert await wire.talk("MAIL FROM:<a@client.example>", "RCPT TO:<b@mx.example>", "DATA") == ["250", "250", "354"]
            assert (await sent(wire, "x\r\n")).startswith("250")
        first, second = box.envelopes
        assert first.content == first.original_content == b"a\nb\r\nc\0\r\n"
        assert first.defects == {"bare-lf": 1, "nul": 1}
        assert first.mail_params == {"BODY": "BINARYMIME"}
        assert (second.content, second.defects, second.mail_params) == (b"x\r\n", {}, {})

    before = NUMBERS.values["postbus_defects_total"].get(("test", "bare-lf"), 0)
    run(scenario())
    assert before + 1 == NUMBERS.values["postbus_defects_total"][("test", "bare-lf")]


@pytest.mark.parametrize("end", ["RSET", "EHLO client.example", "QUIT"])
def test_chunks_that_came_to_nothing_leave_no_file(end: str, tmp_path: Path, run: Run) -> None:
    """What was on disk already is gone, and the next message is itself alone."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, settings(), spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            for command in ENVELOPE:
                await wire.say(command)
            for _ in range(3):
                assert (await chunk(wire, b"old" * 100_000)).startswith("250")
            await until(lambda: list(tmp_path.iterdir()))
            await wire.say(end)
            await until(lambda: not list(tmp_path.iterdir()))
            if end == "QUIT":
                return
            (server,) = roster_of(listener).connections
            assert (server.credit_s, server.mail_at) == (None, None)
            assert await wire.talk(*ENVELOPE[1:]) == ["250", "250"]
            assert await chunk(wire, b"new", last=True) == "250 2.0.0 OK"
        assert [b"new"] == [envelope.content for envelope in box.envelopes]
        assert [["b@mx.example"]] == [envelope.rcpt_tos for envelope in box.envelopes]

    run(scenario())


def test_a_refused_greeting_keeps_the_chunks(run: Run) -> None:
    """A greeting that a hook refuses changes nothing (RFC 5321 s4.1.4)."""

    class Choosy(Box):
        """Knows one name."""

        def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str, lines: list[str]) -> list[str]:
            """Refuse the others."""
            session.host_name = hostname
            return lines if hostname == "client.example" else ["550 5.7.1 Who?"]

    async def scenario() -> None:
        box = Choosy()
        async with listening(box, settings()) as listener, Wire.to(listener) as wire:
            for command in ENVELOPE:
                await wire.say(command)
            await chunk(wire, b"a")
            assert await wire.talk("EHLO other.example") == ["550"]
            assert await chunk(wire, b"b", last=True) == "250 2.0.0 OK"
        assert [b"ab"] == [envelope.content for envelope in box.envelopes]

    run(scenario())


def test_large_chunks_go_to_a_file(tmp_path: Path, run: Run) -> None:
    """As content behind DATA does; it is unlinked once it is answered."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, settings(), spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            for command in ENVELOPE:
                await wire.say(command)
            for _ in range(9):
                await chunk(wire, b"x" * 100_000)
            assert await chunk(wire, b"", last=True) == "250 2.0.0 OK"
            await until(lambda: not list(tmp_path.iterdir()))
        (envelope,) = box.envelopes
        assert envelope.body is not None
        assert envelope.body.size_octets == 900_000

    run(scenario())


def test_lmtp_answers_each_recipient_behind_the_last_chunk(run: Run) -> None:
    """One 250 for a chunk, one reply for each recipient at the end (RFC 2033 s4.3)."""

    async def scenario() -> None:
        box = Box(["250 2.0.0 OK", "451 4.3.0 Later"])
        async with listening(box, settings(), smtp_class=LMTP) as listener, Wire.to(listener) as wire:
            await wire.talk("LHLO client.example", *ENVELOPE[1:], "RCPT TO:<c@mx.example>")
            assert (await chunk(wire, b"a")).startswith("250 2.0.0")
            assert await chunk(wire, b"b", last=True) == "250 2.0.0 OK"
            assert await wire.reply() == "451 4.3.0 Later"
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())


@pytest.mark.parametrize(
    ("begun", "passes_s", "octets"),
    [
        pytest.param(b"BDAT 100\r\nabc", 181, 0, id="a silent chunk"),
        pytest.param(b"BDAT 3\r\nabc", 181, 0, id="silence between chunks"),
        pytest.param(b"BDAT 100000\r\n", 200, 9_000, id="a chunk below the minimum rate"),
    ],
)
def test_chunks_too_slow_are_told_and_closed(begun: bytes, passes_s: float, octets: int, run: Run) -> None:
    """The time of content is that of DATA."""

    async def scenario() -> None:
        clock = ManualClock()
        async with listening(Box(), settings(), clock=clock) as listener, Wire.to(listener) as wire:
            for command in ENVELOPE:
                await wire.say(command)
            (server,) = roster_of(listener).connections
            due = server.octets + len(begun)
            wire.send(begun)
            if begun.endswith(b"\r\nabc") and begun.startswith(b"BDAT 3\r"):
                await wire.reply()
            await until(lambda: server.octets == due)
            roster_of(listener).sweep.tick()
            assert listener.sessions == 1
            wire.send(b"x" * octets)
            await until(lambda: server.octets == due + octets)
            clock.now += passes_s
            roster_of(listener).sweep.tick()
            assert (await wire.reply()).startswith("421 4.4.2")

    run(scenario())


def test_small_chunks_get_no_more_time_than_one(run: Run) -> None:
    """A chunk a minute earns what its octets earn: the credit of content is given once in a message."""

    async def scenario() -> None:
        clock = ManualClock()
        timeouts = TimeoutSettings(data_timeout_s=180)
        async with listening(Box(), settings(timeouts=timeouts), clock=clock) as listener, Wire.to(listener) as wire:
            for command in ENVELOPE:
                await wire.say(command)
            for _ in range(3):
                assert (await chunk(wire, b"x")).startswith("250")
                clock.now += 59
                roster_of(listener).sweep.tick()
            assert (await chunk(wire, b"x")).startswith("250")
            clock.now += 59
            roster_of(listener).sweep.tick()
            assert (await wire.reply()).startswith("421 4.4.2")

    run(scenario())


class Reviewing(SMTP):
    """Looks at DATA by itself."""

    async def smtp_DATA(self, arg: str | None) -> None:
        """Refuse it."""
        await self.push("554 5.7.1 Not today")


class KeepsNobody(Box):
    """Says 250 to recipients and keeps none."""

    def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Say 250."""
        return "250 2.1.5 OK"


def test_bdat_goes_round_no_method_of_data(run: Run) -> None:
    """A class with its own DATA offers no CHUNKING, and BDAT is no way to its handler."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, settings(), smtp_class=Reviewing) as listener, Wire.to(listener) as wire:
            assert "CHUNKING" not in await wire.say(ENVELOPE[0])
            await wire.talk(*ENVELOPE[1:])
            assert (await chunk(wire, b"QUIT\r\n", last=True)).startswith("502 5.5.1")
            assert await wire.talk("DATA") == ["554"]
        assert box.envelopes == []

    run(scenario())


def test_a_chunk_for_nobody_is_refused(run: Run) -> None:
    """Recipients that a hook said 250 to and did not keep are none; nothing of the transaction is left."""

    async def scenario() -> None:
        async with listening(KeepsNobody(), settings()) as listener, Wire.to(listener) as wire:
            await wire.talk(*ENVELOPE)
            assert (await chunk(wire, b"QUIT\r\n")).startswith("503 5.5.1")
            assert (await chunk(wire, b"QUIT\r\n", last=True)).startswith("503 5.5.1")
            assert await wire.talk("RCPT TO:<b@mx.example>", "MAIL FROM:<a@client.example>") == ["503", "250"]

    run(scenario())


def test_messages_in_chunks_are_counted(run: Run) -> None:
    """The number of messages in a session is limited however they come, refused ones too."""

    async def scenario() -> None:
        limits = LimitSettings(messages_max=2, message_max_octets=1024)
        async with listening(Box(), settings(limits=limits)) as listener, Wire.to(listener) as wire:
            await wire.talk(*ENVELOPE)
            assert (await chunk(wire, b"x" * 1025)).startswith("552 5.3.4")
            await wire.talk("RSET", *ENVELOPE[1:])
            assert (await chunk(wire, b"x", last=True)).startswith("250")
            (server,) = roster_of(listener).connections
            assert isinstance(server, SMTP)
            assert (server.messages_accepted, server.messages_refused) == (1, 1)
            assert await wire.talk("MAIL FROM:<a@client.example>") == ["421"]

    run(scenario())


@pytest.mark.parametrize(
    ("content", "offered"),
    [
        pytest.param({}, {"CHUNKING", "BINARYMIME"}, id="by default"),
        pytest.param({"binarymime": False}, {"CHUNKING"}, id="no BINARYMIME"),
        pytest.param({"chunking": False}, set(), id="no CHUNKING, so no BINARYMIME"),
    ],
)
def test_what_is_offered(content: dict[str, Any], offered: set[str], run: Run) -> None:
    """As the settings say."""

    async def scenario() -> None:
        async with listening(Box(), settings(content=ContentSettings(**content))) as listener, Wire.to(listener) as wire:
            lines = {line[4:] for line in (await wire.say(ENVELOPE[0])).split("\n")}
            assert offered == lines & {"CHUNKING", "BINARYMIME"}

    run(scenario())


def test_text_is_not_binary(run: Run) -> None:
    """A server that decodes content offers no BINARYMIME."""

    async def scenario() -> None:
        async with (
            listening(
                Box(), settings(), factory=lambda: SMTP(Box(), decode_data=True, enable_SMTPUTF8=True, hostname="mx.example")
            ) as listener,
            Wire.to(listener) as wire,
        ):
            reply = await wire.say(ENVELOPE[0])
            assert "CHUNKING" in reply
            assert "BINARYMIME" not in reply

    run(scenario())


@pytest.mark.parametrize(
    ("networks", "code"),
    [
        pytest.param(("127.0.0.0/8", "192.0.2.0/24"), "250", id="spared"),
        pytest.param(("192.0.2.0/24", "::/0"), "550", id="not spared"),
        pytest.param((), "550", id="nobody is"),
    ],
)
def test_stray_line_ends_by_network(networks: tuple[str, ...], code: str, run: Run) -> None:
    """``stray: reject`` holds but for the networks it is lifted for; what is tolerated is told."""

    async def scenario() -> None:
        box = Box()
        content = ContentSettings(stray_allowed_from=networks)
        async with listening(box, settings(content=content)) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert (await sent(wire, "a\nb\rc\0\r\n"))[:3] == code
        assert [{"bare-cr": 1, "bare-lf": 1, "nul": 1}] * (code == "250") == [envelope.defects for envelope in box.envelopes]

    run(scenario())


def test_a_peer_that_turns_out_to_be_another_is_judged_anew(run: Run) -> None:
    """Behind XCLIENT the networks are asked about whom it names, not about who said it."""

    async def scenario() -> None:
        content, proxy = ContentSettings(stray_allowed_from=("192.0.2.0/24",)), ProxySettings(xclient=("127.0.0.1",))
        async with listening(Box(), settings(content=content, proxy=proxy)) as listener, Wire.to(listener) as wire:
            for address, code in (("192.0.2.1", "250"), ("198.51.100.1", "550")):
                assert await wire.talk("EHLO client.example", f"XCLIENT ADDR={address}") == ["250", "220"]
                await wire.begin()
                assert (await sent(wire, "a\nb\r\n"))[:3] == code

    run(scenario())


class AsOfOld(SMTP):
    """RSET and EHLO as subclasses of aiosmtpd's server spell them out, without a word to the superclass."""

    async def smtp_RSET(self, arg: str | None) -> None:
        """Begin with a new envelope."""
        self._set_rset_state()
        await self.push("250 OK")

    async def smtp_EHLO(self, arg: str | None) -> None:
        """Greet."""
        assert self.session is not None
        self._set_rset_state()
        self.session.extended_smtp = True
        self.session.host_name = arg
        await self.push("250 mx.example")


class Forgetful(SMTP):
    """Answers, and forgets to forget."""

    async def smtp_RSET(self, arg: str | None) -> None:
        """Say yes."""
        await self.push("250 OK")

    async def smtp_EHLO(self, arg: str | None) -> None:
        """Say yes."""
        await self.push("250 mx.example")


@pytest.mark.parametrize("end", ["RSET", "EHLO other.example"])
@pytest.mark.parametrize("smtp_class", [AsOfOld, Forgetful])
def test_a_method_that_ends_a_transaction_leaves_nothing_of_it(smtp_class: type[SMTP], end: str, tmp_path: Path, run: Run) -> None:
    """Neither chunks nor recipients, however little the method does."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, settings(), smtp_class=smtp_class, spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            await wire.talk("HELO client.example", *ENVELOPE[1:2], "RCPT TO:<old@mx.example>")
            for octets in (b"old", b"old" * 200_000):
                assert (await chunk(wire, octets)).startswith("250")
            assert (await wire.say(end)).startswith("250")
            (server,) = roster_of(listener).connections
            assert (server.credit_s, server.mail_at) == (None, None)
            assert await wire.talk(*ENVELOPE[1:]) == ["250", "250"]
            assert (await chunk(wire, b"new", last=True)).startswith("250")
            await until(lambda: not list(tmp_path.iterdir()))
        assert [(b"new", ["b@mx.example"])] == [(envelope.content, envelope.rcpt_tos) for envelope in box.envelopes]

    run(scenario())


def test_a_method_that_ends_a_transaction_too_late_leaves_nothing_of_it(run: Run) -> None:
    """RSET is answered 451 for it, and has reset."""
    gate = asyncio.Event()

    class Late(SMTP):
        """Takes its time."""

        async def smtp_RSET(self, arg: str | None) -> None:
            """Wait first."""
            await gate.wait()
            await super().smtp_RSET(arg)

    async def scenario() -> None:
        box = Box()
        said = settings(timeouts=TimeoutSettings(answer_timeout_s=0.05))
        async with listening(box, said, smtp_class=Late, sweep_interval_s=0.01) as listener, Wire.to(listener) as wire:
            await wire.talk("EHLO client.example", *ENVELOPE[1:2], "RCPT TO:<old@mx.example>")
            assert (await chunk(wire, b"old")).startswith("250")
            assert (await wire.say("RSET")).startswith("451")
            assert await wire.talk(*ENVELOPE[1:]) == ["250", "250"]
            gate.set()
            await until(lambda: not roster_of(listener).work)
            assert (await chunk(wire, b"new", last=True)).startswith("250")
        assert [(b"new", ["b@mx.example"])] == [(envelope.content, envelope.rcpt_tos) for envelope in box.envelopes]

    run(scenario())


@pytest.mark.parametrize(
    ("begun", "rest", "code"),
    [
        pytest.param(b"DATA\r\n", b"stray\nline\r\n.\r\n", "550", id="content"),
        pytest.param(b"BDAT 9999 LAST\r\n", b"x" * 9999, "552", id="last chunk"),
        pytest.param(b"BDAT 9999\r\n" + b"x" * 9999, b"BDAT 1 LAST\r\nx", "503", id="behind a failed chunk"),
    ],
)
@pytest.mark.parametrize("smtp_class", [SMTP, Forgetful], ids=["fast", "with methods"])
def test_a_refused_message_ends_a_drain_at_once(begun: bytes, rest: bytes, code: str, smtp_class: type[SMTP], run: Run) -> None:
    """It gets its true reply, then 421, long before the deadline."""

    async def scenario() -> None:
        said = settings(limits=LimitSettings(message_max_octets=2000))
        async with listening(Box(), said, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            await wire.talk("HELO client.example", *ENVELOPE[1:])
            wire.send(begun)
            if begun[:4] == b"DATA" or len(begun) > 100:
                await wire.reply()
            (server,) = roster_of(listener).connections
            await until(lambda: server.octets >= 60 + len(begun))
            draining = asyncio.create_task(listener.drain(60))
            await until(lambda: roster_of(listener).draining)
            wire.send(rest)
            assert (await wire.reply())[:3] == code
            assert (await wire.reply()).startswith("421 4.3.2")
            wire.writer.close()
            async with asyncio.timeout(5):
                assert await draining is True

    run(scenario())
