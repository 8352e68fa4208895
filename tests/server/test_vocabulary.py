"""The rest of aiosmtpd's vocabulary: bounds of a class, old hooks, call limits, what programs look at."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from postbus.server import LMTP, SMTP, Envelope, ListenerSettings, Session
from postbus.server.settings import LimitSettings, TimeoutSettings
from postbus.server.smtp import call_limits, make_loop
from tests.server.conftest import Run
from tests.server.test_smtp import Box, sent
from tests.server.wire import Wire, listening, roster_of


@pytest.mark.parametrize(
    ("limit", "said", "expected"),
    [
        pytest.param(2, ["NOOP", "NOOP", "RSET", "NOOP"], "421 4.7.0 NOOP sent too many times", id="a number, for each verb"),
        pytest.param({"NOOP": 1}, ["EHLO x", "NOOP", "NOOP"], "421 4.7.0 NOOP sent too many times", id="by verb"),
        pytest.param({"NOOP": 9, "*": 1}, ["NOOP", "NOOP", "RSET", "RSET"], "421 4.7.0 RSET sent too many times", id="any other"),
        pytest.param({"NOOP": 1}, ["RSET"] * 21, "421 4.7.0 RSET sent too many times", id="twenty of any other"),
        pytest.param(1, ["EHLO x", "MAIL nonsense", "MAIL FROM:<a@x>"], "421 4.7.0 MAIL sent too many times", id="bad ones count"),
    ],
)
def test_a_call_limit_ends_the_session(limit: Any, said: list[str], expected: str, run: Run) -> None:
    """With the last of these commands."""

    async def scenario() -> None:
        async with listening(Box(), factory=lambda: SMTP(Box(), command_call_limit=limit)) as listener, Wire.to(listener) as wire:
            for command in said[:-1]:
                assert (await wire.say(command))[:3] != "421"
            assert await wire.say(said[-1]) == expected
            assert await wire.rest() == ""

    run(scenario())


def test_mail_within_a_call_limit_is_taken(run: Run) -> None:
    """Verbs that are counted do what they did; the next session counts anew."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, factory=lambda: SMTP(box, command_call_limit={"MAIL": 1})) as listener:
            for _ in range(2):
                async with Wire.to(listener) as wire:
                    await wire.begin("b@x", "c@x")
                    assert await sent(wire) == "250 2.0.0 OK"
                    assert (await wire.say("MAIL FROM:<a@x>"))[:3] == "421"
        assert [["b@x", "c@x"]] * 2 == [envelope.rcpt_tos for envelope in box.envelopes]

    run(scenario())


@pytest.mark.parametrize("wrong", ["many", 1.5, ["NOOP"], {"NOOP": "many"}])
def test_a_call_limit_of_another_kind(wrong: Any) -> None:
    """Is the program's mistake, said at once."""
    with pytest.raises(TypeError, match="command_call_limit must be int"):
        call_limits(wrong)


class Bounded(SMTP):
    """Has bounds of its own."""

    command_size_limit = 100
    line_length_limit = 1001
    local_part_limit = 8


def test_bounds_of_a_class(run: Run) -> None:
    """Commands, content lines, local parts; the listener's other limits stay."""

    async def scenario() -> None:
        limits = ListenerSettings(address="127.0.0.1:0", limits=LimitSettings(junk_max=3))
        async with listening(Box(), limits, smtp_class=Bounded) as listener, Wire.to(listener) as wire:
            assert (await wire.say("EHLO x"))[:3] == "250"
            assert (await wire.say("NOOP " + "x" * 100))[:9] == "500 5.5.2"
            assert (await wire.say("MAIL FROM:<" + "a" * 9 + "@x>")) == "553 5.1.3 Error: malformed address"
            assert (await wire.say("MAIL FROM:<>"))[:3] == "250"
            assert (await wire.say("RCPT TO:<\u00fc\u00fc\u00fc\u00fc\u00fc@x>"))[:3] == "553"
            assert await wire.talk("RCPT TO:<postmaster>", "RCPT TO:<b@x>", "DATA") == ["250", "250", "354"]  # always (RFC 5321 s4.5.1)
            assert (await sent(wire, "x" * 1100 + "\r\n"))[:9] == "550 5.6.0"
            assert (await wire.talk("NOOP", "NOOP", "NOOP"))[-1] == "421"

    run(scenario())


class Narrow(SMTP):
    """Takes shorter lines than anybody is to send."""

    line_length_limit = 80


@pytest.mark.parametrize(("line", "answer"), [(b"x" * 78, "250"), (b"x" * 79, "550 5.6.0")], ids=["80 octets", "81 octets"])
def test_a_line_limit_below_the_standards(line: bytes, answer: str, run: Run) -> None:
    """It holds all the same, its CRLF counted, wherever the line stands."""

    async def scenario() -> None:
        async with listening(Box(), smtp_class=Narrow) as listener, Wire.to(listener) as wire:
            await wire.talk("EHLO x", "MAIL FROM:<>", "RCPT TO:<b@x>", "DATA")
            assert (await sent(wire, "a\r\n" * 50 + line.decode() + "\r\n" + "b\r\n" * 50)).startswith(answer)

    run(scenario())


def test_sizes_do_not_creep(run: Run) -> None:
    """Aiosmtpd raises them by each EHLO, for every session of the class."""

    async def scenario() -> None:
        async with listening(Box()) as listener, Wire.to(listener) as wire:
            (server,) = roster_of(listener).connections
            assert isinstance(server, SMTP)
            before = dict(server.command_size_limits)
            await wire.talk(*["EHLO x"] * 5)
            assert before == server.command_size_limits
            assert 512 == before["NOOP"] == server.command_size_limit
            assert max(before.values()) == before["AUTH"] == server.max_command_size_limit > before["MAIL"] > 512

    run(scenario())


class OldHooks(SMTP):
    """Has the hooks that servers had before handlers had any."""

    reset = 0

    async def ehlo_hook(self) -> None:
        """Announce something more."""
        await self.push("250-X-OLD")

    async def rset_hook(self) -> None:
        """Count."""
        OldHooks.reset += 1


@pytest.mark.filterwarnings("ignore:Use handler:DeprecationWarning")
def test_old_hooks_of_a_server(run: Run) -> None:
    """``ehlo_hook`` may push lines, ``rset_hook`` is told."""

    async def scenario() -> None:
        OldHooks.reset = 0
        async with listening(Box(), smtp_class=OldHooks) as listener, Wire.to(listener) as wire:
            greeting = (await wire.say("EHLO x")).splitlines()
            assert greeting[:2] == ["250-mx.example", "250-X-OLD"]
            assert greeting[-1] == "250 HELP"
            assert await wire.talk("RSET", "HELO x") == ["250", "250"]
            assert OldHooks.reset == 1

    run(scenario())


def test_old_hooks_are_warned_of(run: Run) -> None:
    """Once for a listener, not for each command."""

    async def talk() -> None:
        async with listening(Box(), smtp_class=OldHooks) as listener, Wire.to(listener) as one, Wire.to(listener) as other:
            await one.talk("EHLO x", "RSET")
            await other.talk("EHLO x", "RSET")

    async def scenario() -> None:
        with pytest.warns(DeprecationWarning, match="Use handler") as caught:
            await talk()
        assert 2 == len([warning for warning in caught if "Use handler" in str(warning.message)])

    run(scenario())


class Pushing:
    """Announces by pushing, as handlers of the 4-argument form do."""

    async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str) -> str:
        """Push a line, return the last."""
        session.host_name = hostname
        await server.push("250-X-PUSHED")
        return "250 HELP"


class PushingToo:
    """The same in the 5-argument form."""

    async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]) -> list[str]:
        """Push a line, return the others."""
        session.host_name = hostname
        await server.push("250-X-PUSHED")
        return responses


@pytest.mark.filterwarnings("ignore:Use the 5-argument:DeprecationWarning")
@pytest.mark.parametrize("handler", [Pushing, PushingToo])
def test_a_greeting_hook_may_push_lines(handler: Any, run: Run) -> None:
    """They are part of the answer to EHLO, not of the next one."""

    async def scenario() -> None:
        async with listening(handler()) as listener, Wire.to(listener) as wire:
            greeting = (await wire.say("EHLO x")).splitlines()
            assert "250-X-PUSHED" in greeting[1:]
            assert greeting[0] == "250-mx.example"
            assert greeting[-1] == "250 HELP"
            assert await wire.say("NOOP") == "250 2.0.0 OK"

    run(scenario())


def test_what_programs_look_at(run: Run) -> None:
    """Hooks and methods by name, before and after the banner."""

    async def scenario() -> None:
        handler = Box()
        bare = SMTP(handler)
        assert ["DATA"] == list(bare._handle_hooks)
        assert bare._smtp_methods["NOOP"] == bare.smtp_NOOP
        async with listening(handler) as listener, Wire.to(listener):
            (server,) = roster_of(listener).connections
            assert isinstance(server, SMTP)
            assert handler.handle_DATA == server._handle_hooks["DATA"]
        assert "LHLO" in LMTP(handler)._smtp_methods
        assert not LMTP.show_smtp_greeting

    run(scenario())


def test_a_protocol_made_where_no_loop_runs() -> None:
    """Takes the thread's loop, or makes one, on every Python."""
    found: list[asyncio.AbstractEventLoop] = []

    def make() -> None:
        found.extend([SMTP(Box()).loop, make_loop()])

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found[0] is found[1]
    found[0].close()


class Verbose:
    """Pushes lines ahead of its answers."""

    async def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str) -> str:
        """Two lines more."""
        await server.push("250-first")
        await server.push("250-second")
        return "250 done"

    async def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, mail_options: list[str]) -> str:
        """Lines of a reply that it then does not give."""
        await server.push("250-first")
        return "550 5.7.1 no"

    async def handle_VRFY(self, server: SMTP, session: Session, envelope: Envelope, address: str) -> str:
        """A reply of its own, whole."""
        await server.push("252-so")
        await server.push("252 long")
        return "252 2.5.2 and then"

    async def handle_EXPN(self, server: SMTP, session: Session, envelope: Envelope, name: str) -> str:
        """A line, and then a mistake."""
        await server.push("250-first")
        raise ValueError(name)


def test_lines_pushed_ahead_of_an_answer_are_part_of_it(run: Run) -> None:
    """Where the codes agree; else they are dropped, and in no case are they found in a later reply."""

    async def scenario() -> None:
        async with listening(Verbose()) as listener, Wire.to(listener) as wire:
            await wire.say("EHLO x")
            assert await wire.say("NOOP") == "250-first\n250-second\n250 done"
            assert await wire.say("MAIL FROM:<a@x>") == "550 5.7.1 no"
            assert await wire.say("EXPN x") == "451 4.3.0 Local error in processing"
            assert await wire.say("VRFY b@x") == "252-so\n252 long"
            assert await wire.reply() == "252 2.5.2 and then"
            assert await wire.say("RSET") == "250 2.0.0 OK"

    run(scenario())


class Lingering:
    """Begins a reply and never ends it in time."""

    def __init__(self) -> None:
        self.goes_on, self.gone = asyncio.Event(), asyncio.Event()

    async def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str) -> str:
        """Wait for somebody to say go on."""
        await server.push("250-first")
        await self.goes_on.wait()
        await server.push("250-second")
        self.gone.set()
        return "250 done"

    async def handle_VRFY(self, server: SMTP, session: Session, envelope: Envelope, address: str) -> str:
        """Answer at once."""
        return "252 2.5.2 no"


def test_a_reply_that_is_begun_and_not_ended_in_time_spoils_no_other(run: Run) -> None:
    """Neither what was pushed before the deadline is heard later, nor what is pushed after it."""

    async def scenario() -> None:
        handler = Lingering()
        settings = ListenerSettings(address="127.0.0.1:0", timeouts=TimeoutSettings(answer_timeout_s=0.05))
        async with listening(handler, settings=settings) as listener, Wire.to(listener) as wire:
            assert await wire.say("NOOP") == "451 4.3.0 Local error in processing"
            handler.goes_on.set()
            await handler.gone.wait()
            assert await wire.say("VRFY x") == "252 2.5.2 no"

    run(scenario())


@pytest.mark.parametrize(
    "loosely",
    [
        pytest.param({"enable_SMTPUTF8": None, "decode_data": 0}, id="no"),
        pytest.param({"enable_SMTPUTF8": 1, "decode_data": 1}, id="yes"),
        pytest.param({"data_size_limit": 1e6}, id="a round number"),
        pytest.param({"auth_required": 0, "auth_require_tls": 1}, id="AUTH"),
    ],
)
def test_parameters_of_nearly_the_right_type(loosely: dict[str, Any], run: Run) -> None:
    """Are what Python takes them for, wherever we run."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, factory=lambda: SMTP(box, **loosely)) as listener, Wire.to(listener) as wire:
            await wire.begin("b@x")
            assert await sent(wire) == "250 2.0.0 OK"

    run(scenario())


class Independent(SMTP):
    """Returns what nobody asked for, and has methods that are called as some of ours."""

    def _set_rset_state(self) -> Any:
        super()._set_rset_state()
        return "forgotten"

    def _set_post_data_state(self) -> Any:
        super()._set_post_data_state()
        return "over"

    def _on_mail(self, event: Any) -> Any:
        raise AssertionError(f"{event} was not meant for this")


def test_a_subclass_with_ways_of_its_own(run: Run) -> None:
    """Takes mail as any other."""

    async def scenario() -> None:
        box = Box()
        async with listening(box, factory=lambda: Independent(box)) as listener, Wire.to(listener) as wire:
            await wire.begin("b@x")
            assert await sent(wire) == "250 2.0.0 OK"
            assert await wire.say("RSET") == "250 2.0.0 OK"

    run(scenario())
