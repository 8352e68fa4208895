"""After every end of a transaction, however it ended, nothing of it is left: random sessions against the model of ``script``."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.server import LMTP, SMTP, Listener, ListenerSettings
from postbus.server.auth import AuthResult
from postbus.server.auth_settings import AuthSettings
from postbus.server.parameter_settings import ParameterSettings
from postbus.server.proxy_settings import ProxySettings
from postbus.server.settings import LimitSettings, TimeoutSettings
from tests.fuzz import bounded
from tests.server.conftest import LOOPS, Run
from tests.server.script import CODES, GREETING, SIZE_MAX, Fate, Model, Seen, Step, said, scripts, seen
from tests.server.test_timers import ManualClock
from tests.server.wire import Wire, listening, roster_of, server_context, until

MANY = 1_000_000
ANSWER_S = 5.0


class Trickster:
    """A handler that does what the script says, notes what it sees, and leaves marks wherever it can."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = deque(steps)
        self.calls: list[tuple[str, Seen]] = []
        self.held: list[asyncio.Event] = []

    def _do(self, hook: str, envelope: Any, result: Any, mark: Any = None) -> Any:
        self.calls.append((hook, seen(envelope)))
        vars(envelope).setdefault("marks", []).append(len(self.calls))
        step = self.steps.popleft()
        if step.fate is Fate.TOO_LATE:
            return self._late(envelope)
        if step.soon:
            return self._soon(step.fate, envelope, result, mark)
        return self._answer(step.fate, envelope, result, mark)

    def _answer(self, fate: Fate, envelope: Any, result: Any, mark: Any) -> Any:
        if mark is not None:
            mark(fate)
        if fate is Fate.RAISE:
            raise RuntimeError("as the script says")
        if fate in {Fate.NONE, Fate.NONSENSE}:
            return None if fate is Fate.NONE else 5
        return result if CODES[fate] == "250" else f"{CODES[fate]} As the script says"

    async def _soon(self, fate: Fate, envelope: Any, result: Any, mark: Any) -> Any:
        await asyncio.sleep(0)
        return self._answer(fate, envelope, result, mark)

    async def _late(self, envelope: Any) -> str:
        """Wait until the command has been answered, then do to the envelope all that a hook may do."""
        event = asyncio.Event()
        self.held.append(event)
        await event.wait()
        envelope.mail_from = "late@late"
        envelope.rcpt_tos.append("late@late")
        envelope.rcpt_options.append("LATE")
        envelope.rcpt_params.append({"LATE": None})
        envelope.mail_options.append("LATE")
        envelope.mail_params["LATE"] = None
        envelope.defects["late"] = 1
        envelope.marks.append(-1)
        return "250 Late"

    def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]) -> Any:
        """Greet as usual, or not."""
        return self._do("EHLO", envelope, responses)

    def handle_HELO(self, server: Any, session: Any, envelope: Any, hostname: str) -> Any:
        """Greet, or not."""
        return self._do("HELO", envelope, "250 mx")

    def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> Any:
        """Take the sender, or not; every other time the server is left to note it."""

        def mark(_fate: Fate) -> None:
            if len(self.calls) % 2:  # every other one leaves it to the server
                envelope.mail_from = address
                envelope.mail_options.extend(options)

        return self._do("MAIL", envelope, "250 OK", mark)

    def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> Any:
        """Take nobody, one or two; note them even where they are then refused."""

        def mark(fate: Fate) -> None:
            if fate is not Fate.NOBODY:  # also where it will refuse: that must be undone
                envelope.rcpt_tos.extend([address] * (2 if fate is Fate.TWICE else 1))
                envelope.rcpt_options.extend(options)

        return self._do("RCPT", envelope, "250 OK", mark)

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        """Take the message, or not."""
        return self._do("DATA", envelope, "250 OK")

    def handle_RSET(self, server: Any, session: Any, envelope: Any) -> Any:
        """Agree, or not."""
        return self._do("RSET", envelope, "250 OK")

    def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: str | None) -> Any:
        """Agree, or not."""
        return self._do("NOOP", envelope, "250 OK")

    def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> Any:
        """Agree, or not."""
        return self._do("VRFY", envelope, "250 OK")


class Overriding(SMTP):
    """Every verb goes through its method, as in a subclass of a program's own."""

    async def push(self, status: Any) -> None:
        """Say it."""
        await super().push(status)


class OverridingLmtp(LMTP):
    """The same, for LMTP."""

    async def push(self, status: Any) -> None:
        """Say it."""
        await super().push(status)


class Client:
    """Plays a script: says what may be said without waiting, in pieces of any length, and compares replies."""

    def __init__(self, wire: Wire, listener: Listener, handler: Trickster, clock: ManualClock, seed: int) -> None:
        self.wire, self.listener, self.handler, self.clock = wire, listener, handler, clock
        self.random = random.Random(seed)
        self.unsent = b""
        self.expected: list[str] = []

    def say(self, octets: bytes, expected: list[str]) -> None:
        """Say *octets* soon."""
        self.unsent += octets
        self.expected += expected

    async def sync(self) -> None:
        """Send what is unsent and await the replies."""
        for piece in self.pieces():
            self.wire.send(piece)
            await asyncio.sleep(0)
        got = [(await self.wire.reply())[:3] for _ in self.expected]
        expected, self.unsent, self.expected = self.expected, b"", []
        assert expected == got

    def pieces(self) -> Iterator[bytes]:
        """Yield what is unsent, whole or in some pieces."""
        octets = self.unsent
        cuts = sorted(self.random.sample(range(len(octets)), min(len(octets), self.random.choice([0, 1, 2, 9]))))
        for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
            if end > start:
                yield octets[start:end]

    async def sync_late(self) -> None:
        """The same, where the last command's hook holds its answer back: wind the clock until it has been answered for."""
        held = len(self.handler.held)
        for piece in self.pieces():
            self.wire.send(piece)
        self.unsent = b""
        await until(lambda: len(self.handler.held) > held)
        self.clock.now += ANSWER_S + 1
        roster_of(self.listener).sweep.tick()
        await self.sync()
        if self.random.random() < 0.5:
            self.handler.held[-1].set()
            await asyncio.sleep(0)

    async def step(self, step: Step, codes: list[str], *, asked: bool, lmtp: bool) -> None:
        """Play one step, whose replies have these *codes*; *asked*: a hook is."""
        line = (b"LHLO" + step.line[4:] if lmtp and step.verb == "EHLO" else step.line) + b"\r\n"
        late = asked and step.fate is Fate.TOO_LATE
        if late or step.verb == "STARTTLS":
            await self.sync()
        if step.verb == "DATA":
            self.say(b"DATA\r\n", codes[:1])
            if len(codes) > 1:
                await self.sync()
                self.say(step.line + b".\r\n", codes[1:])
        elif step.verb == "BDAT":
            size = str(len(step.line)).encode()
            self.say(b"BDAT " + size + b"\r\n" + step.line + b"BDAT " + size + b" last\r\n" + step.line, codes)
        elif step.verb == "CHUNK":
            self.say(b"BDAT %d\r\n%b" % (len(step.line), step.line), codes)
        else:
            self.say(line, codes)
        if late:
            await self.sync_late()
        elif step.waits or step.verb == "STARTTLS":
            await self.sync()
        if codes == ["220"]:
            await self.wire.shake_hands()


def judge(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
    """Take one password."""
    return AuthResult(success=auth_data.password == b"good", handled=False)


async def play(script: Sequence[Step], seed: int, smtp_class: type[SMTP]) -> None:
    """Play *script* with a listener of *smtp_class* and compare everything with the model."""
    model = Model(lmtp=smtp_class.lmtp, chunking=smtp_class in {SMTP, LMTP})  # who overrides smtp_DATA expects every message there
    played: list[tuple[Step, list[str], bool]] = []
    for step in script:
        before = len(model.calls)
        codes = model.play(step)
        played.append((step, codes, len(model.calls) > before))
    handler, clock = Trickster([step for step, _, asked in played if asked]), ManualClock()
    options = {"smtp_class": smtp_class, "tls_context": server_context(), "clock": clock, "authenticator": judge}
    async with listening(handler, SETTINGS, **options) as listener, Wire.to(listener) as wire:
        client = Client(wire, listener, handler, clock, seed)
        for step, codes, asked in played:
            await client.step(step, codes, asked=asked, lmtp=model.lmtp)
        await client.sync()
        for event in handler.held:
            event.set()
        roster = roster_of(listener)
        await until(lambda: not roster.work)
        (server,) = roster.connections
        assert isinstance(server, SMTP)
        await until(lambda: server.engine.tls == model.tls)  # the client's end of the handshake comes first
        assert model.calls == handler.calls
        assert model.envelope == seen(server.envelope)
        engine = server.engine
        assert (model.sender, model.accepted, False) == (engine.in_transaction, engine.accepted_recipients, engine.in_content)
        assert (model.sender and not model.failed, model.chunked) == (server.mail_at is not None, server.credit_s is not None)
        assert (model.content, len(model.content), None) == (b"".join(server._pieces), server._size_octets, server._spill)
        assert model.authenticated == engine.authenticated == bool(server.session and server.session.authenticated)


SETTINGS = ListenerSettings(
    address="127.0.0.1:0",
    hostname="mx.example",
    strict_pipelining=False,
    parameters=ParameterSettings(unregistered="record"),
    limits=LimitSettings(message_max_octets=SIZE_MAX, errors_max=MANY, junk_max=MANY, unknown_max=MANY, errors_slow=MANY, junk_slow=MANY),
    timeouts=TimeoutSettings(answer_timeout_s=ANSWER_S),
    auth=AuthSettings(allow_plaintext=True, failures_max=MANY, failure_delay_s=0),
    proxy=ProxySettings(xforward=("127.0.0.1",)),
)


MAILED = [GREETING, said("MAIL", 2), said("RCPT", 1)]
ANOTHER = [said("MAIL"), said("RCPT"), said("DATA")]
ROWS = {
    "MAIL too late": [GREETING, said("MAIL", 2, Fate.TOO_LATE), *ANOTHER],
    "MAIL refused": [GREETING, said("MAIL", 3, Fate.NEVER), *ANOTHER],
    "RCPT too late": [*MAILED, said("RCPT", 2, Fate.TOO_LATE), said("RCPT", 2), said("DATA"), *ANOTHER],
    "RCPT refused": [*MAILED, said("RCPT", 2, Fate.NEVER), said("RCPT", 3, Fate.RAISE), said("DATA")],
    "two recipients of one": [*MAILED, said("RCPT", 2, Fate.TWICE), said("RCPT"), said("DATA"), *ANOTHER],
    "nobody kept": [GREETING, said("MAIL"), said("RCPT", 1, Fate.NOBODY), said("DATA"), said("RCPT"), said("DATA"), *ANOTHER],
    "EHLO in between": [*MAILED, GREETING, *ANOTHER],
    "EHLO refused in between": [*MAILED, said("EHLO", 0, Fate.NEVER), said("EHLO", 1), said("DATA"), *ANOTHER],
    "EHLO too late": [*MAILED, said("EHLO", 0, Fate.TOO_LATE), said("DATA"), *ANOTHER],
    "RSET": [*MAILED, said("RSET"), *ANOTHER],
    "RSET too late": [*MAILED, said("RSET", 0, Fate.TOO_LATE), *ANOTHER],
    "NOOP too late": [*MAILED, said("NOOP", 0, Fate.TOO_LATE), said("DATA"), *ANOTHER],
    "DATA too late": [*MAILED, said("DATA", 0, Fate.TOO_LATE), *ANOTHER],
    "DATA refused": [*MAILED, said("DATA", 0, Fate.NEVER), *ANOTHER],
    "DATA failed": [*MAILED, said("DATA", 0, Fate.RAISE), *ANOTHER],
    "stray line end": [*MAILED, said("DATA", 3), *ANOTHER],
    "chunks": [*MAILED, said("BDAT"), *ANOTHER],
    "chunks for nobody": [GREETING, said("MAIL"), said("RCPT", 5), said("BDAT"), said("RSET"), *ANOTHER],
    "chunks refused": [*MAILED, said("BDAT", 0, Fate.NEVER), *ANOTHER],
    "chunks too late": [*MAILED, said("BDAT", 0, Fate.TOO_LATE), *ANOTHER],
    "chunks oversized": [*MAILED, said("BDAT", 3), said("BDAT"), *ANOTHER],
    "chunk, then RSET": [*MAILED, said("CHUNK"), said("RSET"), *ANOTHER],
    "chunk, then EHLO": [*MAILED, said("CHUNK", 2), GREETING, said("MAIL"), said("RCPT"), said("BDAT"), *ANOTHER],
    "chunk, then EHLO refused": [*MAILED, said("CHUNK"), said("EHLO", 0, Fate.NEVER), said("BDAT"), *ANOTHER],
    "chunk, then EHLO too late": [*MAILED, said("CHUNK"), said("EHLO", 0, Fate.TOO_LATE), said("BDAT"), *ANOTHER],
    "chunk, then NOOP too late": [*MAILED, said("CHUNK"), said("NOOP", 0, Fate.TOO_LATE), said("BDAT"), *ANOTHER],
    "chunk, then out of turn": [
        *MAILED,
        said("CHUNK"),
        *[said(verb) for verb in ("MAIL", "RCPT", "DATA", "AUTH", "STARTTLS")],
        said("BDAT"),
    ],
    "chunk, then too much": [*MAILED, said("CHUNK", 3), said("CHUNK", 3), said("CHUNK", 3), said("NOOP"), said("BDAT"), *ANOTHER],
    "chunk for nobody": [GREETING, said("MAIL"), said("RCPT", 1, Fate.NOBODY), said("CHUNK"), said("NOOP"), said("BDAT"), *ANOTHER],
    "XFORWARD": [GREETING, said("XFORWARD"), said("XFORWARD", 1), *ANOTHER, *ANOTHER],
    "XFORWARD, MAIL refused": [GREETING, said("XFORWARD"), said("MAIL", 0, Fate.NEVER), *ANOTHER],
    "AUTH": [
        GREETING,
        said("AUTH", 1),
        said("AUTH"),
        said("AUTH"),
        *ANOTHER,
        said("RSET"),
        GREETING,
        said("AUTH"),
        said("STARTTLS"),
        GREETING,
    ],
    "oversized": [*MAILED, said("DATA", 4), *ANOTHER],
    "STARTTLS": [GREETING, said("MAIL", 2), said("STARTTLS"), said("RSET"), said("STARTTLS"), said("MAIL"), GREETING, *ANOTHER],
}


@pytest.mark.parametrize("smtp_class", [SMTP, LMTP, Overriding])
@pytest.mark.parametrize("script", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("seed", [1, 2])
def test_ends_of_transactions(script: list[Step], smtp_class: type[SMTP], seed: int, run: Run) -> None:
    """The next transaction begins with nothing, or the same one goes on as if the failed command had not been."""
    run(play(script, seed, smtp_class))


@pytest.mark.parametrize(
    ("loop", "smtp_class"),
    [
        pytest.param("asyncio", SMTP, id="smtp"),
        pytest.param("uvloop", LMTP, id="lmtp on uvloop"),
        pytest.param("asyncio", OverridingLmtp, id="lmtp, every verb overridden"),
        pytest.param("uvloop", Overriding, id="smtp on uvloop, every verb overridden"),
    ],
)
@bounded(120)
@given(script=scripts, seed=st.integers(0, 2**32))
def test_nothing_of_a_transaction_outlives_it(loop: str, smtp_class: type[SMTP], script: list[Step], seed: int) -> None:
    """Each hook sees what belongs to its own transaction, whatever became of those before: refused, failed, too late, reset, oversized."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(play(script, seed, smtp_class))
