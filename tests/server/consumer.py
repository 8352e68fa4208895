"""A typed program on the library, as its users write them; mypy --strict reads it, nobody runs it."""

from __future__ import annotations

import asyncio
from email.message import Message as EmailMessage
from pathlib import Path

from postbus.server import LMTP, MISSING, SMTP, Controller, Envelope, Listener, ListenerSettings, Reply, Session, syntax
from postbus.server.controller import UnixSocketController, UnthreadedController
from postbus.server.handlers import AsyncMessage, Mailbox, Message, Proxy
from postbus.server.smtp import AuthResult, LoginPassword, auth_mechanism
from postbus.testing import Received, Smtpd


class Handler:
    """Hooks of every kind."""

    def handle_CONNECT(self, server: SMTP, session: Session, envelope: Envelope) -> str | None:
        """Greet as usual."""
        return None if session.peer else "421 4.7.0 Who are you?"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]) -> str:
        """Take everybody."""
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA_CHUNK(self, server: SMTP, session: Session, envelope: Envelope, chunk: bytes) -> str | None:
        """Go on."""
        await asyncio.sleep(0)
        return None

    def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> list[Reply]:
        """A reply for each."""
        return [Reply(250, "OK", "2.0.0") for _ in envelope.rcpt_tos]

    def handle_DISCONNECT(self, server: SMTP, session: Session, envelope: Envelope | None, reason: str) -> None:
        """Note why."""


class Server(SMTP):
    """A verb and a mechanism of its own."""

    line_length_limit = 2000

    @syntax("NOW")
    async def smtp_NOW(self, arg: str | None) -> None:
        """Tell the time."""
        if not await self.check_helo_needed():
            await self.push("250 now")

    @auth_mechanism("X-TOKEN")
    async def auth_token(self, server: SMTP, args: list[str]) -> AuthResult:
        """Ask for a token."""
        token = await self.challenge_auth("token")
        if token is MISSING:
            return AuthResult(success=False)
        return AuthResult(success=token == b"secret", handled=False, auth_data=LoginPassword(b"app", b""))


class Keeper(Message):
    """Keeps subjects."""

    def handle_message(self, message: EmailMessage) -> None:
        """Keep it."""
        print(message["Subject"])


class Later(AsyncMessage):
    """The same, later."""

    async def handle_message(self, message: EmailMessage) -> None:
        """Keep it."""
        await asyncio.sleep(0)


class Own(Controller):
    """Serves a class of its own."""

    def factory(self) -> SMTP:
        """Return one."""
        return Server(self.handler, **self.SMTP_kwargs)


async def serve(handler: Handler) -> bool:
    """Serve on a running loop."""
    listener = Listener(handler, ListenerSettings(address="127.0.0.1:0"), smtp_class=LMTP)
    await listener.start()
    return await listener.drain(1.0)


def run(folder: Path) -> int:
    """Serve in a thread, and on a loop."""
    controller = Own(Handler(), "127.0.0.1", 0, ready_timeout=2.0, data_size_limit=1000)
    controller.start()
    controller.stop()
    others = UnixSocketController(Mailbox(folder), folder / "mx.sock"), UnthreadedController(Proxy("127.0.0.1", 25))
    return controller.port + len(others)


def subjects(smtpd: Smtpd) -> list[str]:
    """Return what came."""
    first: Received = smtpd.wait(1, timeout_s=2.0)[0]
    return [str(first.message["Subject"]), first.text]
