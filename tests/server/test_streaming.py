"""Content given away as it arrives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from postbus.server import LMTP, SMTP, Envelope, ListenerSettings, Session
from postbus.server.settings import LimitSettings
from postbus.smtp.events import Chunk
from tests.server.conftest import Run
from tests.server.test_smtp import sent
from tests.server.test_timers import ManualClock, settings
from tests.server.wire import Wire, listening, roster_of, until


class Stream:
    """Keeps the pieces it is given, and what became of each message."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.pieces: list[Any] = []
        self.verdicts: list[tuple[Any, Any]] = []
        self.aborted: list[Any] = []

    def handle_DATA_CHUNK(self, server: SMTP, session: Session, envelope: Envelope, chunk: Any) -> Any:
        """Keep the piece."""
        self.pieces.append(chunk)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take what was streamed."""
        self.verdicts.append((envelope.content, envelope.body))
        return "250 2.0.0 Kept"

    def handle_DATA_ABORT(self, server: SMTP, session: Session, envelope: Envelope) -> None:
        """Note whose message it was."""
        self.aborted.append(envelope.mail_from)


class SlowStream(Stream):
    """Does it in coroutines; the first piece waits to be released."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__(answer)
        self.release = asyncio.Event()

    async def handle_DATA_CHUNK(self, server: SMTP, session: Session, envelope: Envelope, chunk: Any) -> Any:
        """Wait, then keep the piece."""
        await self.release.wait()
        return super().handle_DATA_CHUNK(server, session, envelope, chunk)

    async def handle_DATA_ABORT(self, server: SMTP, session: Session, envelope: Envelope) -> None:  # type: ignore[override]
        """A loop turn later."""
        await asyncio.sleep(0)
        super().handle_DATA_ABORT(server, session, envelope)


class Superseding(SMTP):
    """Overrides DATA only to call it."""

    async def smtp_DATA(self, arg: str | None) -> None:
        """As before."""
        await super().smtp_DATA(arg)


CLASSES = pytest.mark.parametrize("smtp_class", [pytest.param(SMTP, id="stock"), pytest.param(Superseding, id="overridden")])
HANDLERS = pytest.mark.parametrize("kind", [pytest.param(Stream, id="plain"), pytest.param(SlowStream, id="coroutine")])


@CLASSES
@HANDLERS
def test_pieces_make_the_message_and_nothing_keeps_it_besides(kind: type[Stream], smtp_class: type[SMTP], run: Run) -> None:
    """In order, dots taken out; then handle_DATA gives the verdict; the next message begins anew."""

    async def scenario() -> None:
        handler = kind()
        if isinstance(handler, SlowStream):
            handler.release.set()
        async with listening(handler, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            for number in range(1, 3):
                await wire.begin()
                wire.send("Subject: x\r\n\r\n..a\r\n")
                await until(lambda: b".a" in b"".join(handler.pieces[-2:]))
                assert await sent(wire, "b\r\n") == "250 2.0.0 Kept"
                assert b"Subject: x\r\n\r\n.a\r\nb\r\n" * number == b"".join(handler.pieces)
        assert [(None, None)] * 2 == handler.verdicts
        assert [] == handler.aborted

    run(scenario())


@HANDLERS
def test_an_empty_message_has_a_verdict_and_no_pieces(kind: type[Stream], run: Run) -> None:
    """The dot comes first."""

    async def scenario() -> None:
        handler = kind()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire, "") == "250 2.0.0 Kept"
        assert ([], 1) == (handler.pieces, len(handler.verdicts))

    run(scenario())


def test_without_handle_data_what_was_streamed_is_taken(run: Run) -> None:
    """As a message is, for a handler without the hook."""

    class Hasher:
        def handle_DATA_CHUNK(self, server: SMTP, session: Session, envelope: Envelope, chunk: bytes) -> None:
            """Forget it."""

    async def scenario() -> None:
        async with listening(Hasher()) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "250 2.0.0 OK"

    run(scenario())


@CLASSES
def test_nothing_is_read_while_the_hook_works(smtp_class: type[SMTP], run: Run) -> None:
    """However much the peer has to send, no more than one read waits in memory; released, all of it comes."""

    async def scenario() -> None:
        handler, octets = SlowStream(), 64 * 1024 * 1024
        settings = ListenerSettings(address="127.0.0.1:0", limits=LimitSettings(message_max_octets=2 * octets))
        async with listening(handler, settings, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            for _ in range(octets // 65536):
                wire.send((b"x" * 1022 + b"\r\n") * 64)
            wire.send(".\r\n")
            await until(lambda: server._paused)
            for _ in range(50):
                await asyncio.sleep(0)
            waiting = server.octets
            assert waiting < 2 * 1024 * 1024
            handler.release.set()
            async with asyncio.timeout(30):
                assert (await wire.reader.readline()).startswith(b"250 2.0.0 Kept")
            assert octets == sum(map(len, handler.pieces))

    run(scenario())


@CLASSES
@HANDLERS
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("552 5.3.4 Not so much", "552 5.3.4 Not so much", id="refusal"),
        pytest.param("452 4.3.1 Full", "452 4.3.1 Full", id="temporary"),
        pytest.param(KeyError("inner"), "451 4.3.0 Local error in processing", id="exception"),
        pytest.param(42, "451 4.3.0 Local error in processing", id="no reply"),
    ],
)
def test_a_refusal_on_the_way_is_said_at_the_end(kind: type[Stream], answer: Any, expected: str, smtp_class: type[SMTP], run: Run) -> None:
    """The rest is not given to the hook, handle_DATA is not asked, the handler is told once, and the session goes on."""

    async def scenario() -> None:
        handler = kind(answer)
        if isinstance(handler, SlowStream):
            handler.release.set()
        async with listening(handler, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send("a\r\n")
            await until(lambda: handler.pieces)
            wire.send("b\r\n")
            assert await sent(wire, "c\r\n") == expected
            assert b"a" == b"".join(handler.pieces).rstrip()
            assert [] == handler.verdicts
            await until(lambda: handler.aborted == ["a@client.example"])
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())


def test_a_2xx_for_a_piece_goes_on(run: Run) -> None:
    """It means no more than None."""

    async def scenario() -> None:
        async with listening(Stream("250 OK")) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "250 2.0.0 Kept"

    run(scenario())


@CLASSES
def test_what_the_server_refuses_is_told_to_the_handler(smtp_class: type[SMTP], run: Run) -> None:
    """A message over the limit, or with a stray line end, whose pieces it has."""

    async def scenario() -> None:
        handler = Stream()
        small = ListenerSettings(address="127.0.0.1:0", limits=LimitSettings(message_max_octets=1024))
        async with listening(handler, small, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            for content, expected in ((("x" * 100 + "\r\n") * 20, "552 5.3.4"), ("a\nb\r\n", "550 5.5.2")):
                handler.pieces.clear()
                await wire.begin()
                wire.send("x\r\n")
                await until(lambda: handler.pieces)
                assert (await sent(wire, content)).startswith(expected)
        assert ["a@client.example"] * 2 == handler.aborted
        assert [] == handler.verdicts

    run(scenario())


@CLASSES
@HANDLERS
def test_a_peer_that_vanishes_aborts(kind: type[Stream], smtp_class: type[SMTP], run: Run) -> None:
    """In the middle of its content; a hook at work is cancelled."""

    async def scenario() -> None:
        handler = kind()
        async with listening(handler, smtp_class=smtp_class) as listener:
            async with Wire.to(listener) as wire:
                (server,) = roster_of(listener).connections
                await wire.begin()
                wire.send("a\r\n")
                await until(lambda: handler.pieces or server.busy)
                wire.reset()
                await until(lambda: handler.aborted)
            await until(lambda: listener.sessions == 0 and not roster_of(listener).work)
        assert (["a@client.example"], []) == (handler.aborted, handler.verdicts)

    run(scenario())


@CLASSES
def test_a_hook_that_takes_too_long_has_refused(smtp_class: type[SMTP], run: Run) -> None:
    """451 at the end; what it does late is its own; the peer's timers stood still."""

    async def scenario() -> None:
        clock, handler = ManualClock(), SlowStream()
        patient = settings(answer_timeout_s=30)
        async with listening(handler, patient, clock=clock, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            roster = roster_of(listener)
            (server,) = roster.connections
            await wire.begin()
            wire.send("a\r\n")
            await until(lambda: getattr(server._pending, "hook", "") == "DATA_CHUNK")
            clock.now += 31
            roster.sweep.tick()
            assert await sent(wire, "b\r\n") == "451 4.3.0 Local error in processing"
            handler.release.set()
            await until(lambda: not roster.work)
            assert await wire.talk("NOOP") == ["250"]
            await wire.begin()
            assert await sent(wire, "c\r\n") == "250 2.0.0 Kept"
        assert (["a@client.example"], 1) == (handler.aborted, len(handler.verdicts))

    run(scenario())


@pytest.mark.parametrize(
    ("content", "smtputf8", "expected"),
    [
        pytest.param(b"gr\xc3\xbc\xc3\x9fe\r\n", True, ("250 2.0.0 Kept", "gr\u00fc\u00dfe\r\n"), id="UTF-8"),
        pytest.param(b"gr\xfc\r\n", True, ("250 2.0.0 Kept", "gr\udcfc\r\n"), id="not UTF-8"),
        pytest.param(b"a\r\n", False, ("250 2.0.0 Kept", "a\r\n"), id="ASCII"),
        pytest.param(b"gr\xc3\xbc\r\n", False, ("554 5.6.1 Content is not ASCII", None), id="not ASCII"),
    ],
)
@HANDLERS
def test_text_breaks_between_characters(kind: type[Stream], content: bytes, smtputf8: bool, expected: tuple[str, Any], run: Run) -> None:
    """With ``decode_data``, octet by octet; what is not UTF-8 comes as surrogates, as in ``envelope.content``."""

    async def scenario() -> None:
        handler = kind()
        if isinstance(handler, SlowStream):
            handler.release.set()

        def factory() -> SMTP:
            return SMTP(handler, decode_data=True, enable_SMTPUTF8=smtputf8, hostname="mx.example")

        async with listening(handler, factory=factory) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            before = server.octets
            for count, octet in enumerate(content, 1):
                wire.send(bytes([octet]))
                await until(lambda: server.octets == before + count)  # noqa: B023 - of this round
            assert await sent(wire, "") == expected[0]
        if expected[1] is not None:
            assert expected[1] == "".join(handler.pieces)
            assert all(handler.pieces)

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "expected"), [pytest.param(None, "250 2.0.0 Kept", id="taken"), pytest.param("550 5.6.0 No", "550 5.6.0 No", id="refused")]
)
@HANDLERS
def test_a_character_cut_short_by_the_end_is_the_last_piece(kind: type[Stream], answer: str | None, expected: str, run: Run) -> None:
    """Content that does not end with a line end, as BDAT can send it: what the decoder held back is given away before the verdict."""

    async def scenario() -> None:
        handler = kind(answer)
        if isinstance(handler, SlowStream):
            handler.release.set()

        def factory() -> SMTP:
            return SMTP(handler, decode_data=True, enable_SMTPUTF8=True, hostname="mx.example")

        async with listening(handler, factory=factory) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            await wire.begin()
            assert server.acts[Chunk](server, Chunk(b"\xc3")) is None
            assert await sent(wire, "") == expected
        assert ["\udcc3"] == handler.pieces

    run(scenario())


def test_one_reply_each_on_lmtp(run: Run) -> None:
    """A refusal on the way counts for each accepted recipient."""

    async def scenario() -> None:
        async with listening(Stream("452 4.3.1 Full"), smtp_class=LMTP) as listener, Wire.to(listener) as wire:
            await wire.begin("b@x", "c@x", hello="LHLO")
            assert await sent(wire) == "452 4.3.1 Full"
            assert await wire.reply() == "452 4.3.1 Full"

    run(scenario())


def test_a_failing_abort_hook_is_logged(run: Run) -> None:
    """And nothing else comes of it."""

    class Failing(Stream):
        def handle_DATA_ABORT(self, server: SMTP, session: Session, envelope: Envelope) -> None:
            raise KeyError("inner")

    async def scenario() -> None:
        async with listening(Failing("550 5.6.0 No")) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "550 5.6.0 No"
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())
