"""AUTH over live sockets: authenticators, hooks and mechanisms of one's own, verdicts, delays, and what is never told."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
import warnings
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiosmtpd.controller
import aiosmtpd.smtp
import pytest

from postbus.server import (
    MISSING,
    SMTP,
    AuthResult,
    BearerToken,
    ClientCertificate,
    Listener,
    ListenerSettings,
    LoginPassword,
    Session,
    auth_mechanism,
    identification,
    users,
)
from postbus.server.auth_settings import AuthSettings
from postbus.server.settings import TimeoutSettings, TlsSettings
from postbus.telemetry.numbers import NUMBERS
from tests.ports import free_ports
from tests.server.conftest import Run
from tests.server.test_smtp import Box, sent
from tests.server.wire import Wire, authority, client_context, listening, roster_of, server_context, until

GOOD = b64encode(b"\0tim\0secret").decode()
BAD = b64encode(b"\0tim\0wrong").decode()
FAILED = "535 5.7.8 Authentication credentials invalid"
DONE = "235 2.7.0 Authentication successful"
FAULT = "454 4.7.0 Temporary authentication failure"


def judge(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
    """Know tim."""
    return AuthResult(success=auth_data == LoginPassword(b"tim", b"secret"), handled=False, auth_data=auth_data)


async def judge_slowly(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
    """Know tim, a loop turn later."""
    await asyncio.sleep(0)
    return judge(server, session, envelope, mechanism, auth_data)


class Quick(SMTP):
    """Delays no failure."""

    auth_failure_delay_s = 0.0


@asynccontextmanager
async def serving(handler: Any = None, smtp_class: type[SMTP] = Quick, **parameters: Any) -> AsyncIterator[Listener]:
    """Run a listener that makes *smtp_class* with *parameters*; AUTH needs no TLS unless they say so."""
    handler = handler or Box()
    parameters = {"auth_require_tls": False, "hostname": "mx.example", **parameters}

    def make() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return smtp_class(handler, **parameters)

    async with listening(handler, factory=make) as listener:
        yield listener


async def greeted(wire: Wire) -> str:
    """Say EHLO; return the line about AUTH."""
    lines = (await wire.say("EHLO client.example")).splitlines()
    return next((line[4:] for line in lines if line[4:].startswith("AUTH")), "")


def session_of(listener: Listener) -> Session:
    """Return the one session there is."""
    (connection,) = roster_of(listener).connections
    assert isinstance(connection, SMTP)
    assert connection.session is not None
    return connection.session


def counted(outcome: str, mechanism: str = "PLAIN") -> float:
    """Return how many exchanges have ended so."""
    return NUMBERS.reading("postbus_authentications_total").get(("test", mechanism, outcome), 0)


# --- authenticators


@pytest.mark.parametrize("authenticator", [judge, judge_slowly])
def test_an_authenticator_decides(authenticator: Any, run: Run) -> None:
    """A plain function or a coroutine; success is in the session, for handlers to see, and in the protocol's name."""

    async def scenario() -> None:
        box = Box()
        before = counted("success"), counted("failure")
        async with serving(box, authenticator=authenticator, auth_required=True) as listener, Wire.to(listener) as wire:
            assert await greeted(wire) == "AUTH LOGIN PLAIN"
            assert await wire.say("MAIL FROM:<a@x>") == "530 5.7.0 Authentication required"
            assert await wire.say(f"AUTH PLAIN {BAD}") == FAILED
            assert session_of(listener).authenticated is False
            assert await wire.say(f"AUTH PLAIN {GOOD}") == DONE
            await wire.begin()
            await sent(wire)
            (session,) = box.sessions
            assert session.authenticated
            assert LoginPassword(b"tim", b"secret") == session.auth_data
            assert b"tim" == session.login_data
            assert ("PLAIN", "tim", "esmtpa") == (session.auth_mechanism, session.auth_identity, session.protocol)
        assert (before[0] + 1, before[1] + 1) == (counted("success"), counted("failure"))

    run(scenario())


@pytest.mark.parametrize("slow", [False, True])
def test_the_old_callback(slow: bool, run: Run) -> None:
    """``auth_callback(mechanism, login, password)``; a coroutine's truth is what it returns, not that it is there."""

    def callback(mechanism: str, login: bytes, password: bytes) -> bool:
        return (mechanism, login, password) == ("PLAIN", b"tim", b"secret")

    async def slow_callback(mechanism: str, login: bytes, password: bytes) -> bool:
        return callback(mechanism, login, password)

    async def scenario() -> None:
        async with serving(auth_callback=slow_callback if slow else callback) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say(f"AUTH PLAIN {BAD}") == FAILED
            assert await wire.say(f"AUTH PLAIN {GOOD}") == DONE

    run(scenario())


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param(AuthResult(success=True), DONE, id="success"),
        pytest.param(AuthResult(success=True, message="235 2.7.0 Welcome"), "235 2.7.0 Welcome", id="success in other words"),
        pytest.param(AuthResult(success=True, message="550 5.7.1 No"), "550 5.7.1 No", id="success that refuses"),
        pytest.param(AuthResult(success=True, message="nonsense"), FAULT, id="success that is nonsense"),
        pytest.param(AuthResult(success=False), FAILED, id="handled, and nothing said"),
        pytest.param(AuthResult(success=False, handled=False), FAILED, id="failure"),
        pytest.param(AuthResult(success=False, handled=False, message="454 4.7.0 Later"), "454 4.7.0 Later", id="failure in other words"),
        pytest.param(AuthResult(success=False, handled=False, message="235 2.7.0 Welcome"), FAILED, id="failure in words of success"),
        pytest.param(AuthResult(success=False, message="454 4.7.0 Later"), FAILED, id="words of what is handled"),
        pytest.param(None, FAILED, id="None"),
        pytest.param(False, FAILED, id="False"),
        pytest.param(MISSING, FAILED, id="MISSING"),
        pytest.param(b"tim", DONE, id="an identity"),
        pytest.param(ValueError("the password is secret"), FAULT, id="an exception"),
        pytest.param(asyncio.CancelledError(), FAULT, id="a cancellation nobody asked for"),
    ],
)
def test_what_results_mean(result: Any, expected: str, run: Run) -> None:
    """Each result gets an answer, only success opens the door, and a fault of ours is 454."""

    def say(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    async def scenario() -> None:
        async with serving(authenticator=say, auth_required=True) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say(f"AUTH PLAIN {GOOD}") == expected
            assert (await wire.talk("MAIL FROM:<a@x>"))[0] == ("250" if expected.startswith("235") else "530")
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())


def test_the_identity_an_old_mechanism_returns(run: Run) -> None:
    """``login_data`` as in aiosmtpd, and as text where it can be."""

    class Old(Box):
        """Has mechanisms of the old form."""

        async def auth_OLD(self, server: SMTP, args: list[str]) -> Any:
            """Return the identity."""
            return b"tim" if len(args) == 1 else object()

    async def scenario() -> None:
        for words, identity in (("AUTH OLD", "tim"), ("AUTH OLD =", None)):
            box = Old()
            async with serving(box) as listener, Wire.to(listener) as wire:
                assert await greeted(wire) == "AUTH OLD"
                assert await wire.say(words) == DONE
                await wire.begin()
                await sent(wire)
                (session,) = box.sessions
                assert session.authenticated
                assert session.auth_identity == identity
                assert (session.login_data == b"tim") == (identity == "tim")

    run(scenario())


def test_nobody_judges_so_nothing_is_offered(run: Run) -> None:
    """Without an authenticator AUTH is no command; with one it needs TLS by default."""

    async def scenario() -> None:
        async with serving() as listener, Wire.to(listener) as wire:
            assert await greeted(wire) == ""
            assert await wire.say(f"AUTH PLAIN {GOOD}") == "502 5.5.1 AUTH not available"
        async with serving(authenticator=judge, auth_require_tls=True) as listener, Wire.to(listener) as wire:
            assert await greeted(wire) == ""
            assert (await wire.say(f"AUTH PLAIN {GOOD}")).startswith("538 5.7.11")
        async with serving(authenticator=judge, auth_exclude_mechanism=["LOGIN"]) as listener, Wire.to(listener) as wire:
            assert await greeted(wire) == "AUTH PLAIN"
            assert (await wire.say("AUTH LOGIN")).startswith("504 5.5.4")

    run(scenario())


def test_requiring_auth_in_plain_text_is_warned_of() -> None:
    """As in aiosmtpd."""
    loop = asyncio.new_event_loop()
    with pytest.warns(UserWarning, match="Requiring AUTH while not requiring TLS"):
        SMTP(Box(), auth_required=True, auth_require_tls=False, loop=loop)
    loop.close()


@pytest.mark.parametrize("implicit", [False, True])
def test_tls_means_starttls_and_implicit_tls(implicit: bool, run: Run) -> None:
    """AUTH is offered under either."""

    async def scenario() -> None:
        mode = TlsSettings.model_construct(mode="implicit" if implicit else "starttls")
        settings = ListenerSettings.model_construct(address="127.0.0.1:0", hostname="mx.example", tls=mode)
        async with (
            listening(Box(), settings, tls_context=server_context(), authenticator=judge) as listener,
            Wire.to(listener, tls=implicit) as wire,
        ):
            if not implicit:
                assert await greeted(wire) == ""
                await wire.start_tls()
            assert await greeted(wire) == "AUTH LOGIN PLAIN"
            assert await wire.say(f"AUTH PLAIN {GOOD}") == DONE

    run(scenario())


# --- hooks, methods, subclasses


class Hooked(Box):
    """Answers AUTH by its hook, but for LOGIN."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.seen: list[list[str]] = []
        self.status = answer

    async def handle_AUTH(self, server: SMTP, session: Any, envelope: Any, args: list[str]) -> Any:
        """Answer."""
        self.seen.append(args)
        return MISSING if args[0] == "LOGIN" else self.status


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("235 2.7.0 By hook", "235 2.7.0 By hook"),
        ("535 5.7.8 By hook", "535 5.7.8 By hook"),
        ("nonsense", FAULT),
        (None, FAILED),
    ],
)
def test_the_hook(status: Any, expected: str, run: Run) -> None:
    """``handle_AUTH`` answers for the mechanism, or leaves it to it by returning MISSING."""

    async def scenario() -> None:
        box = Hooked(status)
        async with serving(box, authenticator=judge) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say(f"AUTH PLAIN {GOOD}") == expected
            if not expected.startswith("235"):
                assert await wire.say("AUTH LOGIN dGlt") == "334 UGFzc3dvcmQA"
                assert await wire.say("c2VjcmV0") == DONE
                assert [["PLAIN", GOOD], ["LOGIN", "dGlt"]] == box.seen

    run(scenario())


class Own(Box):
    """Mechanisms of a handler's own."""

    async def auth_X__DIALOG(self, server: SMTP, args: list[str]) -> AuthResult:
        """Ask twice, the second time by text that is base64 already."""
        first = await server.challenge_auth("one")
        second = await server.challenge_auth(b"dHdv", encode_to_b64=False)
        return AuthResult(success=(first, second) == (b"1", b"2"), handled=False)

    @auth_mechanism("X-NAMED")
    def auth_named(self, server: SMTP, args: list[str]) -> Any:
        """Leave the judging to the authenticator, as people do."""
        return server._authenticate("X-NAMED", LoginPassword(b"tim", b64decode(args[1])))

    async def auth_X__PUSH(self, server: SMTP, args: list[str]) -> AuthResult:
        """Answer by oneself."""
        await server.push("504 5.7.4 Not this one")
        return AuthResult(success=False)

    async def auth_PLAIN(self, server: SMTP, args: list[str]) -> AuthResult:
        """Instead of the server's."""
        return AuthResult(success=True)


@pytest.mark.parametrize("authenticator", [judge, judge_slowly])
def test_mechanisms_of_a_handler(authenticator: Any, run: Run) -> None:
    """Found by name or decorator, with challenges, answers of their own, and before the server's."""

    async def scenario() -> None:
        async with serving(Own(), authenticator=authenticator) as listener:
            async with Wire.to(listener) as wire:
                assert await greeted(wire) == "AUTH LOGIN PLAIN X-DIALOG X-NAMED X-PUSH"
                assert await wire.say("AUTH x-dialog") == "334 b25l"
                assert await wire.say("MQ==") == "334 dHdv"
                assert await wire.say("Mg==") == DONE
            async with Wire.to(listener) as wire:
                await greeted(wire)
                assert await wire.say("AUTH X-PUSH") == "504 5.7.4 Not this one"
                assert await wire.say("AUTH X-NAMED c2VjcmV0") == DONE
            async with Wire.to(listener) as wire:
                await greeted(wire)
                assert await wire.say("AUTH PLAIN nonsense=") == "501 5.5.2 Cannot decode base64"
                assert await wire.say("AUTH PLAIN") == DONE

    run(scenario())


class Overridden(Quick):
    """A subclass with methods of its own on the way."""

    pushed: list[str]

    async def smtp_AUTH(self, arg: str | None) -> None:
        """Say something before, and after."""
        self.calls = getattr(self, "calls", 0) + 1
        await super().smtp_AUTH(arg)

    async def auth_PLAIN(self, _: Any, args: list[str]) -> Any:
        """As inherited."""
        return await super().auth_PLAIN(_, args)


class Pushing(Quick):
    """Hears every answer."""

    async def push(self, status: Any) -> None:
        """Pass it on."""
        self.said = [*getattr(self, "said", []), str(status)]
        await super().push(status)


class Lenient(Quick):
    """Lets some in without."""

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Not for MAIL."""
        return caller_method != "MAIL" and await super().check_auth_needed(caller_method)


@pytest.mark.parametrize("smtp_class", [Overridden, Pushing, Lenient])
def test_subclasses_have_the_same_exchange(smtp_class: type[SMTP], run: Run) -> None:
    """Overriding a method, ``push`` or a check changes nothing else."""

    async def scenario() -> None:
        async with serving(smtp_class=smtp_class, authenticator=judge) as listener, Wire.to(listener) as wire:
            assert await greeted(wire) == "AUTH LOGIN PLAIN"
            assert await wire.say("AUTH PLAIN") == "334 "
            assert await wire.say("*") == "501 5.7.0 Authentication cancelled"
            assert await wire.say("AUTH LOGIN") == "334 VXNlciBOYW1lAA=="
            assert await wire.say("!") == "501 5.5.2 Cannot decode base64"
            assert await wire.say("AUTH LOGIN dGlt") == "334 UGFzc3dvcmQA"
            assert await wire.say("d3Jvbmc=") == FAILED
            assert await wire.say("AUTH PLAIN") == "334 "
            assert await wire.say(GOOD) == DONE
            assert (await wire.say("AUTH PLAIN")).startswith("503 5.5.1")
            await wire.begin()
            assert (await sent(wire)).startswith("250")
            (connection,) = roster_of(listener).connections
            if isinstance(connection, Pushing):
                assert "334 " in connection.said
                assert DONE in connection.said

    run(scenario())


def test_a_check_of_ones_own_decides_who_needs_auth(run: Run) -> None:
    """``check_auth_needed`` is asked for what moves or reveals something."""

    async def scenario() -> None:
        async with serving(smtp_class=Lenient, authenticator=judge, auth_required=True) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@x>", "VRFY b", "NOOP") == ["250", "530", "530", "250"]
            assert await wire.talk("RSET") == ["250"]
            assert await wire.say(f"AUTH PLAIN {GOOD}") == DONE
            assert await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@x>") == ["250", "250"]

    run(scenario())


def test_a_hook_may_know_the_peer(run: Run) -> None:
    """Who is authenticated in ``handle_EHLO`` needs no AUTH."""

    class Knowing(Box):
        """Knows everybody."""

        async def handle_EHLO(self, server: SMTP, session: Any, envelope: Any, hostname: str, responses: list[str]) -> list[str]:
            """Say so."""
            session.authenticated = True
            return responses

    async def scenario() -> None:
        async with serving(Knowing(), authenticator=judge, auth_required=True) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.talk("MAIL FROM:<a@x>") == ["250"]

    run(scenario())


def test_a_method_that_pushes_its_own_challenge(run: Run) -> None:
    """A 334 that nobody waits behind leads to 454, not to silence."""

    class Careless(Quick):
        """Does it by hand, and wrongly."""

        async def smtp_AUTH(self, arg: str | None) -> None:
            """Ask."""
            self.engine.interpret("AUTH", arg)
            await self.push("334 ")

    async def scenario() -> None:
        async with serving(smtp_class=Careless, authenticator=judge) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say("AUTH PLAIN") == "334 "
            assert await wire.say(GOOD) == FAULT
            assert await wire.say("AUTH PLAIN") == "334 "
            assert (await wire.say("*")).startswith("501 5.7.0")
            assert await wire.talk("NOOP") == ["250"]

    run(scenario())


def test_challenges_after_the_end_are_not_sent(run: Run) -> None:
    """A method that goes on asking after the client has cancelled gets MISSING each time, and what it pushes is not heard."""

    class Stubborn(Box):
        """Asks three times."""

        answers: list[Any]

        async def auth_X(self, server: SMTP, args: list[str]) -> AuthResult:
            """Ask."""
            self.answers = [await server.challenge_auth("x") for _ in range(3)]
            await server.push(FAILED)
            return AuthResult(success=True)

    async def scenario() -> None:
        box = Stubborn()
        before = counted("cancelled", "X")
        async with serving(box) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say("AUTH X") == "334 eA=="
            assert await wire.say("*") == "501 5.7.0 Authentication cancelled"
            assert await wire.talk("NOOP", "MAIL FROM:<a@x>") == ["250", "250"]
            assert [MISSING] * 3 == box.answers
            assert not session_of(listener).authenticated
        assert before + 1 == counted("cancelled", "X")

    run(scenario())


def test_the_old_form_of_a_challenge(run: Run) -> None:
    """``_auth_interact``: a whole line, its base64 made by the mechanism; as a warning says, ``challenge_auth`` came after it."""

    class Old(Box):
        """Asks a question."""

        async def auth_X(self, server: SMTP, args: list[str]) -> AuthResult:
            """Ask."""
            with pytest.warns(DeprecationWarning, match="challenge_auth"):
                return AuthResult(success=await server._auth_interact("334 eA==") == b"y", handled=False)

    async def scenario() -> None:
        async with serving(Old()) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say("AUTH X") == "334 eA=="
            assert await wire.say(b64encode(b"y").decode()) == DONE

    run(scenario())


def test_client_responses_are_never_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Asking for it only brings a warning."""

    class Curious(Box):
        """Wants to see."""

        async def auth_X(self, server: SMTP, args: list[str]) -> AuthResult:
            """Ask."""
            with pytest.warns(UserWarning, match="never logged"):
                await server.challenge_auth("x", log_client_response=True)
            return AuthResult(success=True)

    async def scenario() -> None:
        async with serving(Curious()) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say("AUTH X") == "334 eA=="
            assert await wire.say("c2VjcmV0") == DONE

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    assert "secret" not in caplog.text
    assert "c2VjcmV0" not in caplog.text


def test_no_log_line_has_credentials(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Not of a success, a failure, a fault whose text quotes them, a wrong command, or the session's summary."""

    def fail(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        if auth_data.password == b"wrong":
            raise ValueError(f"{tuple(auth_data)} is not good")
        return judge(server, session, envelope, mechanism, auth_data)

    async def scenario() -> None:
        async with serving(authenticator=fail) as listener:
            for words in (f"AUTH PLAIN {BAD}", f"AUTH PLAIN {GOOD} more", f"AUTH CRAM-MD5 {GOOD}", GOOD, f"AUTH PLAIN {GOOD}"):
                async with Wire.to(listener) as wire:
                    await greeted(wire)
                    await wire.talk(words, "QUIT")
            await until(lambda: listener.sessions == 0)

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    assert "session.closed" in caplog.text
    assert "ValueError" in caplog.text
    for secret in ("secret", "wrong", GOOD, BAD, GOOD.upper()[:16]):
        assert secret not in caplog.text


# --- our mechanisms


def test_oauthbearer_and_xoauth2(run: Run) -> None:
    """By an authenticator that knows tokens; a failure is told in a challenge, and only then in the reply."""

    async def tokens(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        assert isinstance(auth_data, BearerToken)
        return AuthResult(success=auth_data.token == b"good", handled=False, auth_data=auth_data)

    def bearer(token: str) -> str:
        return b64encode(f"n,a=tim,\1host=x\1auth=Bearer {token}\1\1".encode()).decode()

    def xoauth2(token: str) -> str:
        return b64encode(f"user=tim\1auth=Bearer {token}\1\1".encode()).decode()

    async def scenario() -> None:
        box = Box()
        async with serving(box, authenticator=tokens, auth_mechanisms=["OAUTHBEARER", "XOAUTH2"]) as listener:
            for mechanism, word, status in (("OAUTHBEARER", bearer, b"invalid_token"), ("XOAUTH2", xoauth2, b"401")):
                async with Wire.to(listener) as wire:
                    assert await greeted(wire) == "AUTH OAUTHBEARER XOAUTH2"
                    told = await wire.say(f"AUTH {mechanism} {word('bad')}")
                    assert told.startswith("334 ")
                    assert status in b64decode(told[4:])
                    assert await wire.say("AQ==") == FAILED
                    told = await wire.say(f"AUTH {mechanism} {word('bad')}")
                    assert await wire.say("*") == "501 5.7.0 Authentication cancelled"
                    assert await wire.say(f"AUTH {mechanism}") == "334 "
                    assert await wire.say("*") == "501 5.7.0 Authentication cancelled"
                    assert await wire.say(f"AUTH {mechanism}") == "334 "
                    assert await wire.say(word("good")) == DONE
                async with Wire.to(listener) as wire:
                    await greeted(wire)
                    assert await wire.say(f"AUTH {mechanism} AAAA") == "501 5.5.2 Malformed authentication response"
                    assert await wire.say(f"AUTH {mechanism} {word('good')}") == DONE
                    await wire.begin()
                    await sent(wire)
                    session = box.sessions.pop()
                    assert (mechanism, "tim") == (session.auth_mechanism, session.auth_identity)

    run(scenario())


def certified(name: str | None) -> ssl.SSLContext:
    """Return a client's context, with a certificate for *name* unless None."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    if name is not None:
        authority().issue_cert(name, common_name=name, organization_name="Example").configure_cert(context)
    return context


def verifying(*, required: bool) -> ssl.SSLContext:
    """Return a server's context that asks for certificates of clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


@pytest.mark.parametrize("implicit", [False, True])
def test_external(implicit: bool, run: Run) -> None:
    """Offered to who has shown a certificate, for the names that are in it."""

    def certificates(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        assert isinstance(auth_data, ClientCertificate)
        return AuthResult(success=True, auth_data=auth_data)

    async def open_wire(listener: Listener, name: str | None) -> Wire:
        host, _, port = listener.addresses[0].rpartition(":")
        context = certified(name)
        options: dict[str, Any] = {"ssl": context, "server_hostname": "localhost"} if implicit else {}
        reader, writer = await asyncio.open_connection(host, int(port), **options)
        wire = Wire(reader, writer)
        await wire.reply()
        if not implicit:
            assert await greeted(wire) == ""
            assert (await wire.say("STARTTLS")).startswith("220")
            await writer.start_tls(context, server_hostname="localhost")
        return wire

    async def scenario() -> None:
        mode = TlsSettings.model_construct(mode="implicit" if implicit else "starttls", client_ca=Path("some"))
        auth = AuthSettings(mechanisms=("EXTERNAL",), failure_delay_s=0)
        settings = ListenerSettings.model_construct(address="127.0.0.1:0", hostname="mx.example", tls=mode, auth=auth)
        box = Box()
        async with listening(box, settings, tls_context=verifying(required=False), authenticator=certificates) as listener:
            for words, expected, identity in (
                ("AUTH EXTERNAL =", DONE, "CN=relay.example,OU=Testing cert"),
                (f"AUTH EXTERNAL {b64encode(b'relay.example').decode()}", DONE, "relay.example"),
                (f"AUTH EXTERNAL {b64encode(b'root').decode()}", FAILED, None),
            ):
                wire = await open_wire(listener, "relay.example")
                assert await greeted(wire) == "AUTH EXTERNAL"
                assert await wire.say(words) == expected
                await wire.begin()
                await sent(wire)
                session = box.sessions.pop()
                assert (session.auth_identity or "").partition(" #")[0] == (identity or "")
                wire.writer.transport.abort()
            wire = await open_wire(listener, "relay.example")
            await greeted(wire)
            assert await wire.say("AUTH EXTERNAL") == "334 "
            assert await wire.say("*") == "501 5.7.0 Authentication cancelled"
            assert await wire.say("AUTH EXTERNAL") == "334 "
            assert await wire.say("") == DONE
            wire.writer.transport.abort()
            wire = await open_wire(listener, None)
            assert await greeted(wire) == ""
            assert (await wire.say("AUTH EXTERNAL =")).startswith("502")
            wire.writer.transport.abort()
            await until(lambda: listener.sessions == 0)

    run(scenario())


@pytest.mark.parametrize("words", ["AUTH LOGIN AA==", "AUTH LOGIN /w=="])
def test_login_takes_names_as_plain_does(words: str, run: Run) -> None:
    """UTF-8 without NUL."""

    async def scenario() -> None:
        async with serving(authenticator=judge) as listener, Wire.to(listener) as wire:
            await greeted(wire)
            assert await wire.say(words) == "334 UGFzc3dvcmQA"
            assert await wire.say("c2VjcmV0") == "501 5.5.2 Malformed authentication response"

    run(scenario())


# --- delays, deadlines, ends


class Handles:
    """Stands in a loop's place for timers: notes what is asked for, and lets it happen at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.delays: list[float] = []
        original = loop.call_later

        def call_later(delay: float, callback: Callable[..., Any], *args: Any, **options: Any) -> Any:
            if callback is identification._let_go:
                self.delays.append(delay)
                delay = 0
            return original(delay, callback, *args, **options)

        monkeypatch.setattr(loop, "call_later", call_later)


def test_failures_are_delayed_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s, 4 s, at most 10 s and half of what we have for an answer; the last one allowed gets 421."""

    async def scenario() -> None:
        handles = Handles(asyncio.get_running_loop(), monkeypatch)
        async with serving(smtp_class=SMTP, authenticator=judge) as listener:
            roster = roster_of(listener)
            roster.terms = replace(roster.terms, limits=replace(roster.terms.limits, auth_failures=7))
            async with Wire.to(listener) as wire:
                await greeted(wire)
                for _ in range(6):
                    assert await wire.say(f"AUTH PLAIN {BAD}") == FAILED
                assert (await wire.say(f"AUTH PLAIN {BAD}")).startswith("421 4.7.0")
                assert await wire.rest() == ""
            assert [2, 4, 6, 8, 10, 10, 10] == handles.delays
            handles.delays.clear()
            roster.terms = replace(roster.terms, timeouts=replace(roster.terms.timeouts, answer_s=3))
            async with Wire.to(listener) as wire:
                await greeted(wire)
                assert await wire.say(f"AUTH PLAIN {BAD}") == FAILED
                assert await wire.say("AUTH PLAIN") == "334 "
                assert (await wire.say("*")).startswith("501")
            assert [1.5] == handles.delays

    asyncio.run(scenario())


def test_a_delay_holds_nobody_else_and_ends_with_its_session(run: Run) -> None:
    """Others talk on; a peer that leaves while its failure is held back leaves nothing."""

    class Slow(SMTP):
        """Holds a failure for long."""

        auth_failure_delay_s = 9.0

    async def scenario() -> None:
        async with serving(smtp_class=Slow, authenticator=judge) as listener:
            async with Wire.to(listener) as held, Wire.to(listener) as other:
                await greeted(held)
                await greeted(other)
                held.send(f"AUTH PLAIN {BAD}\r\n")
                before = counted("failure")
                await until(lambda: counted("failure") > before or any(c.busy for c in roster_of(listener).connections))
                assert await other.say(f"AUTH PLAIN {GOOD}") == DONE
                held.reset()
                await until(lambda: listener.sessions == 1)
            await until(lambda: listener.sessions == 0)
            await until(lambda: not roster_of(listener).work)

    run(scenario())


def test_an_authenticator_that_takes_too_long(run: Run) -> None:
    """454 in its place; what it says later counts for nothing."""
    gate = asyncio.Event()

    async def wait(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        await gate.wait()
        assert await server.challenge_auth("late") is MISSING
        await server.push("235 2.7.0 late")
        return AuthResult(success=True)

    async def scenario() -> None:
        handler = Box()
        settings = ListenerSettings(
            address="127.0.0.1:0", hostname="mx.example", timeouts=TimeoutSettings(answer_timeout_s=0.05), auth=AuthSettings(required=True)
        )
        async with listening(handler, settings, authenticator=wait, sweep_interval_s=0.01) as listener:
            roster = roster_of(listener)
            roster.terms = replace(roster.terms, offer={**roster.terms.offer, "auth_tls": False})
            async with Wire.to(listener) as wire:
                await greeted(wire)
                assert await wire.say(f"AUTH PLAIN {GOOD}") == FAULT
                gate.set()
                await until(lambda: not roster.work)
                assert await wire.talk("NOOP", "MAIL FROM:<a@x>") == ["250", "530"]

    run(scenario())


@pytest.mark.parametrize("way", ["timeout", "leave", "drain", "endless"])
def test_a_peer_that_never_answers_a_challenge(way: str, run: Run) -> None:
    """Its session ends as any other: by deadline, by leaving, by our drain, by too much said; no task is left."""

    async def scenario() -> None:
        settings = ListenerSettings(
            address="127.0.0.1:0",
            hostname="mx.example",
            timeouts=TimeoutSettings(command_timeout_s=0.05 if way == "timeout" else 60),
        )
        handler = Box()
        async with listening(handler, settings, authenticator=judge, sweep_interval_s=0.01) as listener:
            roster = roster_of(listener)
            roster.terms = replace(roster.terms, offer={**roster.terms.offer, "auth_tls": False})
            async with Wire.to(listener) as wire:
                await greeted(wire)
                assert await wire.say("AUTH LOGIN") == "334 VXNlciBOYW1lAA=="
                if way == "leave":
                    wire.reset()
                elif way == "drain":
                    drained = asyncio.ensure_future(listener.drain(5))
                    assert (await wire.reply()).startswith("421 4.3.2")
                    wire.writer.close()
                    assert await drained
                else:
                    if way == "endless":
                        wire.send(b"A" * 70_000)
                    assert (await wire.reply()).startswith("421 4.")
                    wire.writer.close()
                await until(lambda: listener.sessions == 0 and not roster.work)

    run(scenario())


# --- real clients, and aiosmtpd side by side


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("implicit", [False, True])
def test_smtplib(mechanism: str, implicit: bool, tmp_path: Path, run: Run) -> None:
    """Over STARTTLS and implicit TLS, from a user file."""
    users.put(tmp_path / "users", "tim", users.hashed("secret"))

    def client(port: int) -> list[int]:
        if implicit:
            peer: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, context=client_context())
        else:
            peer = smtplib.SMTP("localhost", port)
            peer.starttls(context=client_context())
        with peer:
            peer.ehlo()
            peer.user, peer.password = "tim", "wrong"
            method = getattr(peer, f"auth_{mechanism.lower()}")
            with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
                peer.auth(mechanism, method)
            peer.password = "secret"
            good = peer.auth(mechanism, method)
            peer.sendmail("a@x", ["b@x"], "Subject: x\r\n\r\nx\r\n")
            return [caught.value.smtp_code, good[0]]

    async def scenario() -> None:
        mode = TlsSettings.model_construct(mode="implicit" if implicit else "starttls")
        auth = AuthSettings(users=tmp_path / "users", required=True, failure_delay_s=0)
        settings = ListenerSettings.model_construct(address="127.0.0.1:0", hostname="mx.example", tls=mode, auth=auth)
        box = Box()
        async with listening(box, settings, tls_context=server_context()) as listener:
            port = int(listener.addresses[0].rpartition(":")[2])
            assert [535, 235] == await asyncio.to_thread(client, port)
            (session,) = box.sessions
            assert (mechanism, "tim", "esmtpsa") == (session.auth_mechanism, session.auth_identity, session.protocol)
            assert users.Identity(b"tim") == session.auth_data

    run(scenario())


DIALOG = [
    "AUTH PLAIN",
    "EHLO client.example",
    "AUTH",
    "AUTH PLAIN a b",
    "AUTH NONE",
    "AUTH PLAIN",
    "*",
    "AUTH PLAIN",
    "!",
    "AUTH PLAIN !",
    f"AUTH PLAIN {b64encode(b'no nul').decode()}",
    f"AUTH PLAIN {BAD}",
    "AUTH LOGIN",
    "dGlt",
    "d3Jvbmc=",
    "AUTH LOGIN dGlt",
    "c2VjcmV0",
    f"AUTH PLAIN {GOOD}",
    "MAIL FROM:<a@x>",
]


def test_aiosmtpd_says_the_same() -> None:
    """The same dialogue with both, code by code, and challenge by challenge."""

    def theirs(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
        return aiosmtpd.smtp.AuthResult(success=tuple(auth_data) == (b"tim", b"secret"), handled=False)

    def talk(port: int) -> list[str]:
        said = []
        with smtplib.SMTP("127.0.0.1", port) as client:
            for words in DIALOG:
                code, text = client.docmd(words)
                said.append(f"{code} {text.decode() if code == 334 else ''}".strip())
        return said

    async def ours() -> list[str]:
        async with serving(authenticator=judge, auth_required=True) as listener:
            roster = roster_of(listener)
            roster.terms = replace(roster.terms, limits=replace(roster.terms.limits, auth_failures=99))
            return await asyncio.to_thread(talk, int(listener.addresses[0].rpartition(":")[2]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        controller = aiosmtpd.controller.Controller(
            Box(), hostname="127.0.0.1", port=0, authenticator=theirs, auth_required=True, auth_require_tls=False
        )
        (controller.port,) = free_ports(1)
        controller.start()
        try:
            expected = talk(controller.port)
        finally:
            controller.stop()
    assert expected == asyncio.run(ours())
