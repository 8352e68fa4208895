"""The library: hooks, subclasses, and what happens when they misbehave."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import re
from typing import Any

import pytest

from postbus.server import LMTP, MISSING, SMTP, Envelope, Reply, Session, syntax
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.wire import Wire, listening, roster_of, server_context, until


class Now(SMTP):
    """The talk's first example: a verb that tells the time."""

    @syntax("NOW [UTC]")
    async def smtp_NOW(self, arg: str | None) -> None:
        """Tell the time, to the second."""
        if arg not in (None, "UTC"):
            await self.push("501 Syntax: NOW [UTC]")
            return
        await self.push(f"250 2026-11-23T00:00:0{1 if arg else 0}")


class HeloCounter:
    """The talk's second example."""

    def __init__(self) -> None:
        self.helos = 0

    async def handle_HELO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str) -> str:
        """Count."""
        self.helos += 1
        session.host_name = hostname
        return "250 OK"


class Box:
    """Takes mail with plain hooks."""

    def __init__(self, answer: Any = "250 2.0.0 OK") -> None:
        self.answer = answer
        self.envelopes: list[Envelope] = []
        self.sessions: list[Session] = []

    def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> Any:
        """Keep the envelope, give the answer."""
        self.envelopes.append(envelope)
        self.sessions.append(session)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class SlowBox(Box):
    """Takes mail with a coroutine."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> Any:
        """As the plain one, a loop turn later."""
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        return super().handle_DATA(server, session, envelope)


async def sent(wire: Wire, content: str = "Subject: x\r\n\r\nx\r\n") -> str:
    """Send content and the final dot; return the reply."""
    wire.send(content + ".\r\n")
    return await wire.reply()


def test_a_new_verb_works_at_once_and_as_often_as_asked(run: Run) -> None:
    """NOW, NOW UTC and a wrong argument, before any greeting."""

    async def scenario() -> None:
        async with listening(Box(), smtp_class=Now) as listener, Wire.to(listener) as wire:
            for _ in range(2):
                assert re.fullmatch(r"250 \S+T00:00:00", await wire.say("NOW"))
                assert (await wire.say("now UTC")).endswith("1")
                assert await wire.say("NOW here") == "501 Syntax: NOW [UTC]"
            assert "NOW" in await wire.say("HELP")
            assert await wire.say("HELP NOW") == "214 2.0.0 Syntax: NOW [UTC]"
            assert await wire.talk("EHLO x", "NOW", "QUIT") == ["250", "250", "221"]

    run(scenario())


def test_a_handler_counts_helos(run: Run) -> None:
    """A coroutine hook answers, and the server exposes its handler."""

    async def scenario() -> None:
        handler = HeloCounter()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            assert await wire.say("HELO client.example") == "250 OK"
            assert await wire.say("HELO client.example") == "250 OK"
            assert handler.helos == 2
            (server,) = roster_of(listener).connections
            assert isinstance(server, SMTP)
            assert server.event_handler is handler
            assert server.session is not None
            assert server.session.host_name == "client.example"

    run(scenario())


@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_a_message_reaches_the_handler(handler: type[Box], run: Run) -> None:
    """Envelope and session hold what the client said."""

    async def scenario() -> None:
        box = handler()
        async with listening(box) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO client.example")
            assert await wire.talk(
                "MAIL FROM:<a@client.example> BODY=8bitmime ENVID=Qq",
                "RCPT TO:<b@mx.example> NOTIFY=NEVER",
                "RCPT TO:<c@mx.example>",
                "DATA",
            ) == ["250", "250", "250", "354"]
            assert await sent(wire, "Subject: x\r\n\r\n..dot\r\n") == "250 2.0.0 OK"
            (envelope,), (session,) = box.envelopes, box.sessions
            assert envelope.mail_from == "a@client.example"
            assert envelope.mail_options == ["BODY=8BITMIME", "ENVID=QQ"]
            assert envelope.mail_params == {"BODY": "8bitmime", "ENVID": "Qq"}
            assert envelope.rcpt_tos == ["b@mx.example", "c@mx.example"]
            assert envelope.rcpt_params == [{"NOTIFY": "NEVER"}, {}]
            assert envelope.content == b"Subject: x\r\n\r\n.dot\r\n" == envelope.original_content
            assert envelope.body is not None
            assert envelope.body.sha256() == hashlib.sha256(b"Subject: x\r\n\r\n.dot\r\n").hexdigest()
            assert session.protocol == "esmtp"
            assert session.host_name == "client.example"
            assert session.listener == "test"
            assert session.local == wire.writer.get_extra_info("peername")
            assert session.peer == wire.writer.get_extra_info("sockname")

    run(scenario())


def test_the_null_sender_is_two_brackets(run: Run) -> None:
    """As in aiosmtpd."""

    async def scenario() -> None:
        box = Box()
        async with listening(box) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<>", "RCPT TO:<b@mx.example>", "DATA") == ["250", "250", "250", "354"]
            await sent(wire)
            assert box.envelopes[0].mail_from == "<>"

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="None"),
        pytest.param(object(), id="an object"),
        pytest.param("secret words", id="no reply"),
        pytest.param("354 go on", id="no end"),
        pytest.param("250 a\r\nb", id="a line of its own"),
        pytest.param(ValueError("secret /path"), id="an exception"),
        pytest.param(["250 OK", "250 OK"], id="too many"),
    ],
)
@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_a_hooks_mistake_is_a_fixed_451(handler: type[Box], answer: Any, run: Run) -> None:
    """Nothing of it reaches the peer, the mistake is counted, the session goes on."""

    async def scenario() -> None:
        before = NUMBERS.reading("postbus_handler_errors_total").get(("DATA",), 0)
        async with listening(handler(answer)) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "451 4.3.0 Local error in processing"
            assert await wire.talk("NOOP", "QUIT") == ["250", "221"]
        assert NUMBERS.reading("postbus_handler_errors_total")[("DATA",)] == before + 1

    run(scenario())


class Explaining(Box):
    """Has words for its own exceptions."""

    async def handle_exception(self, error: Exception) -> str:
        """Name the kind."""
        return f"554 5.3.0 {type(error).__name__}"


def test_handle_exception_finds_the_words(run: Run) -> None:
    """The handler's hook answers for the one that raised."""

    async def scenario() -> None:
        async with listening(Explaining(ValueError("x"))) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "554 5.3.0 ValueError"

    run(scenario())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(["250 1", "550 2"], "250 1", id="one success wins"),
        pytest.param(["250 1", "450 2"], "451 4.3.0 Local error in processing", id="a temporary failure wins"),
        pytest.param(["550 1", "551 2"], "550 1", id="all refused"),
    ],
)
def test_smtp_folds_a_reply_per_recipient(answers: list[str], expected: str, run: Run) -> None:
    """SMTP has one reply for all."""

    async def scenario() -> None:
        async with listening(Box(answers)) as listener, Wire.to(listener) as wire:
            await wire.begin("b@mx.example", "c@mx.example")
            assert await sent(wire) == expected

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(["250 1", "550 2", Reply(450, "3", "4.2.0")], ["250 1", "550 2", "450 4.2.0 3"], id="one each"),
        pytest.param("250 all", ["250 all"] * 3, id="one for all"),
        pytest.param(["250 1"], ["451 4.3.0 Local error in processing"] * 3, id="too few"),
    ],
)
@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_lmtp_answers_each_recipient(handler: type[Box], answer: Any, expected: list[str], run: Run) -> None:
    """In order, one reply per accepted recipient (RFC 2033 s4.2)."""

    async def scenario() -> None:
        box = handler(answer)
        async with listening(box, smtp_class=LMTP) as listener, Wire.to(listener) as wire:
            await wire.begin("b@mx.example", "c@mx.example", "d@mx.example", hello="LHLO")
            wire.send("x\r\n.\r\n")
            assert [await wire.reply() for _ in expected] == expected
            assert await wire.talk("NOOP") == ["250"]
            assert box.sessions[0].protocol == "lmtp"

    run(scenario())


class Witness:
    """Every hook a coroutine; remembers where it ran."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self.variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
        self.seen: list[str | None] = []

    async def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Set a context variable."""
        self.tasks.add(asyncio.current_task())
        self.variable.set(address)
        await asyncio.sleep(0)
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Read it."""
        self.tasks.add(asyncio.current_task())
        self.seen.append(self.variable.get(None))
        envelope.rcpt_tos.append(address)
        if address.startswith("bad"):
            return "550 no"
        return "250 OK"


def test_coroutine_hooks_share_one_task_and_its_context(run: Run) -> None:
    """And pipelined replies keep their order."""

    async def scenario() -> None:
        handler = Witness()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            for _ in range(2):
                wire.send("MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<bad@x>\r\nRSET\r\nMAIL FROM:<c@x>\r\nRCPT TO:<d@x>\r\nRSET\r\n")
                got = [(await wire.reply())[:3] for _ in range(7)]
                assert got == ["250", "250", "550", "250", "250", "250", "250"]
            assert len(handler.tasks) == 1
            assert handler.seen == ["a@x", "a@x", "c@x"] * 2

    run(scenario())


def test_a_refused_recipient_is_not_kept(run: Run) -> None:
    """A hook that appended and then refused has refused."""

    async def scenario() -> None:
        handler = Witness()
        async with listening(handler) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>", "RCPT TO:<bad@x>", "RCPT TO:<b@x>") == ["250", "250", "550", "250"]
            (server,) = roster_of(listener).connections
            assert isinstance(server, SMTP)
            assert server.envelope is not None
            assert server.envelope.rcpt_tos == ["b@x"]
            assert server.envelope.rcpt_params == [{}]

    run(scenario())


class Ehlo:
    """The 5-argument form."""

    async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]) -> list[str]:
        """Put a line of its own before the last."""
        session.host_name = hostname
        return [*responses[:-1], "250-XOWN 1", responses[-1]]


class OldEhlo:
    """The 4-argument form."""

    async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str) -> str:
        """Add a last line."""
        session.host_name = hostname
        return "250 XOWN 1"


def test_handle_ehlo_edits_the_lines(run: Run) -> None:
    """It gets the lines as aiosmtpd has them, and returns what is sent."""

    async def scenario() -> None:
        async with listening(Ehlo()) as listener, Wire.to(listener) as wire:
            lines = (await wire.say("EHLO x")).splitlines()
            assert lines[0] == "250-mx.example"
            assert lines[-2:] == ["250-XOWN 1", "250 HELP"]
            assert "250-PIPELINING" in lines

    run(scenario())


def test_the_old_form_of_handle_ehlo_adds_a_line(run: Run) -> None:
    """It warns, and works."""

    async def scenario() -> None:
        async with listening(OldEhlo()) as listener:
            async with Wire.to(listener) as wire:
                lines = (await wire.say("EHLO x")).splitlines()
            assert lines[0] == "250-mx.example"
            assert lines[-1] == "250 XOWN 1"

    with pytest.warns(DeprecationWarning, match="5-argument"):
        run(scenario())


class Overriding(SMTP):
    """Overrides verbs and calls its superclass."""

    __slots__ = ("log",)

    def __init__(self, *args: Any, **parameters: Any) -> None:
        super().__init__(*args, **parameters)
        self.log: list[str] = []

    async def smtp_MAIL(self, arg: str | None) -> None:
        """Refuse one sender."""
        self.log.append(f"MAIL {arg}")
        if arg is not None and "spam" in arg:
            await self.push("550 5.7.1 no")
            return
        await super().smtp_MAIL(arg)

    async def smtp_DATA(self, arg: str | None) -> None:
        """Log before and after."""
        self.log.append("DATA")
        await super().smtp_DATA(arg)
        self.log.append("dot")

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """Log before and after."""
        self.log.append("STARTTLS")
        await super().smtp_STARTTLS(arg)
        self.log.append("secure")

    async def smtp_QUIT(self, arg: str | None) -> None:
        """Say something first."""
        await self.push("250-so")
        await self.push("250 long")
        await super().smtp_QUIT(arg)

    async def smtp_BOOM(self, arg: str | None) -> None:
        """Raise."""
        raise ValueError("secret")

    async def smtp_MUTE(self, arg: str | None) -> None:
        """Answer nothing."""


@pytest.mark.parametrize("handler", [pytest.param(Box, id="plain"), pytest.param(SlowBox, id="coroutine")])
def test_overridden_verbs_and_their_superclass(handler: type[Box], run: Run) -> None:
    """What a subclass leaves to its superclass works as if nothing were overridden."""

    async def scenario() -> None:
        box = handler()
        async with listening(box, smtp_class=Overriding, tls_context=server_context()) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            assert isinstance(server, Overriding)
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>", "RSET") == ["250", "250", "250"]
            await wire.start_tls()
            assert await wire.talk("MAIL FROM:<a@x>", "EHLO x", "MAIL FROM:<spam@x>", "RCPT TO:<b@x>") == ["503", "250", "550", "503"]
            for _ in range(2):
                assert await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA") == ["250", "250", "354"]
                assert await sent(wire) == "250 2.0.0 OK"
            wire.send("MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n")
            assert [(await wire.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
            wire.send("one\r\n.\r\nMAIL FROM:<c@x>\r\nRSET\r\n")
            assert [(await wire.reply())[:3] for _ in range(3)] == ["250", "250", "250"]
            assert await wire.say("BOOM") == "451 4.3.0 Local error in processing"
            assert await wire.say("MUTE") == "451 4.3.0 Local error in processing"
            assert await wire.say("QUIT") == "250-so\n250 long"
            assert (await wire.reply())[:3] == "221"
            assert [envelope.content for envelope in box.envelopes] == [b"Subject: x\r\n\r\nx\r\n"] * 2 + [b"one\r\n"]
            assert server.log[:4] == ["MAIL FROM:<a@x>", "STARTTLS", "secure", "MAIL FROM:<a@x>"]
            assert server.log[-3:] == ["DATA", "dot", "MAIL FROM:<c@x>"]
            assert box.sessions[0].protocol == "esmtps"

    run(scenario())


class Calling(SMTP):
    """Uses the methods that subclasses written for aiosmtpd use."""

    async def smtp_HELO(self, arg: str | None) -> None:
        """As the talk shows it."""
        assert self.session is not None
        if not arg:
            await self.push("501 Syntax: HELO hostname")
            return
        self._set_rset_state()
        status = await self._call_handler_hook("HELO", arg)
        if status is MISSING:
            self.session.host_name = arg
            status = f"250 {self.hostname}"
        await self.push(status)


@pytest.mark.parametrize(
    ("handler", "expected"), [pytest.param(Box(), "250 mx.example", id="no hook"), pytest.param(HeloCounter(), "250 OK", id="a hook")]
)
def test_a_verb_written_the_way_of_the_talk(handler: Any, expected: str, run: Run) -> None:
    """``_set_rset_state``, ``_call_handler_hook``, MISSING and push; mail can follow."""

    async def scenario() -> None:
        async with listening(handler, smtp_class=Calling) as listener, Wire.to(listener) as wire:
            assert await wire.say("HELO") == "501 Syntax: HELO hostname"
            assert await wire.say("HELO x") == expected
            assert await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@x>") == ["250", "250"]

    run(scenario())


class Door:
    """Judges at the door, and says goodbye."""

    def __init__(self, word: Any) -> None:
        self.word = word
        self.left: list[tuple[Envelope | None, str]] = []

    async def handle_CONNECT(self, server: SMTP, session: Session, envelope: Envelope) -> Any:
        """Say the word."""
        return self.word

    async def handle_DISCONNECT(self, server: SMTP, session: Session, envelope: Envelope | None, reason: str) -> None:
        """Remember."""
        self.left.append((envelope, reason))


@pytest.mark.parametrize(
    ("word", "banner"),
    [
        pytest.param(None, "220 mx.example ESMTP postbus", id="nothing"),
        pytest.param("220 here ESMTP", "220 here ESMTP", id="a banner"),
        pytest.param("554 5.7.1 not you", "554 5.7.1 not you", id="no"),
        pytest.param(17, "451 4.3.0 Local error in processing", id="garbage"),
    ],
)
def test_handle_connect_and_disconnect(word: Any, banner: str, run: Run) -> None:
    """The door opens or not, and the handler hears of every end."""

    async def scenario() -> None:
        door = Door(word)
        async with listening(door) as listener, Wire.to(listener, banner=False) as wire:
            assert await wire.reply() == banner
            if banner.startswith("220"):
                await wire.talk("EHLO x", "MAIL FROM:<a@x>")
                wire.writer.transport.abort()
            else:
                assert await wire.rest() == ""
                wire.writer.close()
            await until(lambda: door.left)
            ((envelope, reason),) = door.left
            assert (envelope is not None) == banner.startswith("220")
            assert reason in ({"lost", "eof"} if banner.startswith("220") else {"refused"})

    run(scenario())


def test_an_object_of_the_handlers_own_on_session_and_server(run: Run) -> None:
    """Handlers hang attributes on what they are given."""

    class Hanging(Box):
        def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: str | None) -> str:
            session.noops = getattr(session, "noops", 0) + 1
            server.last = envelope.last = arg
            return f"250 {session.noops} {server.last} {envelope.last}"

    async def scenario() -> None:
        async with listening(Hanging()) as listener, Wire.to(listener) as wire:
            assert await wire.say("NOOP a") == "250 1 a a"
            assert await wire.say("NOOP") == "250 2 None None"

    run(scenario())


def test_many_pipelined_commands_in_one_segment(run: Run) -> None:
    """More than one turn's commands are all answered, in order."""

    async def scenario() -> None:
        async with listening(Witness()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            wire.send("MAIL FROM:<a@x>\r\n" + "".join(f"RCPT TO:<{'bad' if n % 3 == 0 else 'b'}{n}@x>\r\n" for n in range(30)) + "RSET\r\n")
            got = [(await wire.reply())[:3] for _ in range(32)]
            assert got == ["250", *["550" if n % 3 == 0 else "250" for n in range(30)], "250"]
        async with listening(Box()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            wire.send("MAIL FROM:<a@x>\r\n" + "RCPT TO:<b@x>\r\n" * 900 + "DATA\r\n")
            assert [(await wire.reply())[:3] for _ in range(902)] == ["250"] * 901 + ["354"]

    run(scenario())


@pytest.mark.parametrize(("smtputf8", "expected"), [pytest.param(True, "h\u00e9\r\n", id="UTF-8"), pytest.param(False, None, id="ASCII")])
def test_decode_data_gives_text(smtputf8: bool, expected: str | None, run: Run) -> None:
    """``decode_data`` makes content text; without SMTPUTF8 it must be ASCII."""

    async def scenario() -> None:
        box = Box()
        factory = lambda: SMTP(box, decode_data=True, enable_SMTPUTF8=smtputf8, hostname="mx.example")  # noqa: E731
        async with listening(box, factory=factory) as listener, Wire.to(listener) as wire:
            await wire.begin()
            reply = await sent(wire, "h\u00e9\r\n")
            if expected is None:
                assert reply.startswith("554 5.6.1")
            else:
                assert box.envelopes[0].content == expected

    run(scenario())


def test_half_closed_client_gets_all_replies(run: Run) -> None:
    """What was sent before the client closed its half is answered, then the connection ends."""

    async def scenario() -> None:
        box = SlowBox()
        async with listening(box) as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send("x\r\n.\r\n")
            wire.writer.write_eof()
            assert (await wire.rest()).startswith("250")
            await until(lambda: listener.sessions == 0)

    run(scenario())
