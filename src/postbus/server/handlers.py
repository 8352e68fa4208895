"""Stock handlers: show a message, drop it, parse it, keep it, pass it on. Derive from them, or write a class with the hooks you need.

``from_cli(parser, *words)`` makes a handler from the words of a command line; ``parser.error`` says what is wrong with them.
"""

from __future__ import annotations

import asyncio
import mailbox
import os
import re
import smtplib
import sys
from abc import ABCMeta, abstractmethod
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from email import message_from_bytes, message_from_string
from email.message import Message as EmailMessage
from functools import partial
from typing import Any, Self, TextIO

from postbus.server.envelope import Envelope
from postbus.server.session import Session
from postbus.server.smtp import machine_name
from postbus.smtp.parameters import is_binary
from postbus.smtp.replies import Reply

__all__ = ["AsyncMessage", "Debugging", "Mailbox", "Message", "MessageBase", "Proxy", "Sink"]

RELAY_TIMEOUT_S = 25.0  # for one message to the relay, below the 30 s after which a listener answers 451 for a hook

COMMASPACE = ", "
CRLF = b"\r\n"
EMPTYBYTES = b""

RELAY_BROKE_OFF = b"4.4.2 The relay broke off"
RELAY_BROKEN = Reply.parse("451 " + RELAY_BROKE_OFF.decode())
NO_BINARY = Reply(554, "Binary content cannot be passed on", "5.6.3")  # smtplib has no BDAT, and by DATA it is not sent (RFC 3030 s3)
RELAYED = Reply(250, "OK", "2.0.0")

_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"^\r?\n", re.MULTILINE)


class Sink:
    """Take every message and drop it."""

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """Return a handler; it takes no words."""
        if args:
            parser.error("Sink handler does not accept arguments")
        return cls()


class Debugging:
    """Print every message to a stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Print to *stream*; None: standard output."""
        self.stream = sys.stdout if stream is None else stream

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """Return a handler for ``stdout`` (also without a word) or ``stderr``."""
        streams = {(): sys.stdout, ("stdout",): sys.stdout, ("stderr",): sys.stderr}
        if args not in streams:
            parser.error("Debugging usage: [stdout|stderr]")
        return cls(streams[args])

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Print the message, with the peer behind its headers."""
        del server
        print("---------- MESSAGE FOLLOWS ----------", file=self.stream)
        for name, options in (("mail options:", envelope.mail_options), ("rcpt options:", envelope.rcpt_options)):
            if options:
                print(name, options, file=self.stream)
        if envelope.mail_options or envelope.rcpt_options:
            print(file=self.stream)
        in_headers = True
        content = envelope.content if isinstance(envelope.content, str) else (envelope.content or b"").decode("utf-8", "replace")
        for line in content.splitlines():
            if in_headers and not line:
                print(f"X-Peer: {session.peer!r}", file=self.stream)
                in_headers = False
            print(line, file=self.stream)
        print("------------ END MESSAGE ------------", file=self.stream)
        return "250 OK"


class Proxy:
    """Pass every message on to another server, and answer what that server said.

    Unlike aiosmtpd's, which answers 250 whatever became of the message and stops every session meanwhile: the work is done in a thread,
    each recipient has its own outcome (one reply each on LMTP, folded on SMTP: see ``replies.fold``), and a relay that cannot be reached
    is 451, so that the sender keeps the message. The relay's own words are passed on; they are a mail server's, meant for senders.
    """

    def __init__(self, remote_hostname: str, remote_port: int) -> None:
        """Pass on to *remote_port* of *remote_hostname*, in plain text."""
        self._hostname = remote_hostname
        self._port = remote_port

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """Return a handler for the words HOST and PORT."""
        if len(args) != 2 or not args[1].isdecimal():
            parser.error("Proxy usage: HOST PORT")
        return cls(args[0], int(args[1]))

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> list[Reply]:
        """Pass the message on, with the peer behind its headers; return an outcome for each recipient in order."""
        del server
        if is_binary(envelope.mail_params):
            return [NO_BINARY] * len(envelope.rcpt_tos)
        peer = session.peer[0] if isinstance(session.peer, tuple) else session.peer
        # A relay may see the end of the message, or a line's, where we saw a CR or LF that is content: behind DATA there must be none.
        data = _LINE_END.sub(CRLF, with_peer(envelope.original_content or b"", str(peer)))
        options = [word for word in envelope.mail_options if word.partition("=")[0] in {"SMTPUTF8", "BODY"}]
        deliver = partial(self._deliver, mail_options=options) if options else self._deliver
        refused = await asyncio.to_thread(deliver, envelope.mail_from or "", envelope.rcpt_tos, data)
        return outcomes(envelope.rcpt_tos, refused)

    def _deliver(
        self, mail_from: str, rcpt_tos: Sequence[str], data: str | bytes, mail_options: Sequence[str] = ()
    ) -> Mapping[str, tuple[int, bytes]]:
        """Talk to the relay; return (code, text) of each recipient that was refused. Blocks, up to RELAY_TIMEOUT_S a reply."""
        try:
            # Without a name smtplib asks the resolver for ours, for every message.
            with smtplib.SMTP(self._hostname, self._port, local_hostname=machine_name(), timeout=RELAY_TIMEOUT_S) as relay:
                return relay.sendmail("" if mail_from == "<>" else mail_from, rcpt_tos, data, _offered(relay, mail_options))
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients
        except smtplib.SMTPResponseException as error:
            why = error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else error.smtp_error.encode()
        except (smtplib.SMTPNotSupportedError, smtplib.SMTPServerDisconnected):
            why = 451, RELAY_BROKE_OFF
        except OSError:
            why = 451, b"4.4.1 The relay cannot be reached"
        return dict.fromkeys(rcpt_tos, why)


def _offered(relay: smtplib.SMTP, options: Sequence[str]) -> list[str]:
    """Return those of *options* that *relay* announces."""
    relay.ehlo_or_helo_if_needed()
    return [word for word in options if relay.has_extn("8bitmime" if word.startswith("BODY") else word)]


def with_peer(content: bytes, peer: str) -> bytes:
    """Return *content* with an ``X-Peer`` line as its last header, its end of line as the header's end has it."""
    end = _HEADER_END.search(content)
    line = b"X-Peer: " + peer.encode("ascii", "replace")
    return content[: end.start()] + line + end[0] + content[end.start() :] if end else content + line + CRLF


def outcomes(recipients: Sequence[str], refused: Mapping[str, tuple[int, bytes]]) -> list[Reply]:
    """Return a reply for each of *recipients*; *refused* holds (code, text) of those the relay refused."""
    return [reply_from(*refused[recipient]) if recipient in refused else RELAYED for recipient in recipients]


def reply_from(code: int, text: bytes | str) -> Reply:
    """Return what another server said as our own reply; what is no refusal (421 among them: it is not our end) becomes 451."""
    words = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if not 400 <= code <= 599 or code == 421:
        return RELAY_BROKEN
    printable = " ".join("".join(character if character.isprintable() else " " for character in words).split())
    return Reply.parse(f"{code} {printable}")


class MessageBase(metaclass=ABCMeta):
    """Parses messages; ``Message`` and ``AsyncMessage`` say what is done with them.

    Attributes:
        message_class: what parsed messages are made of; None: ``email.message.Message``.
    """

    def __init__(self, message_class: type[EmailMessage] | None = None) -> None:
        self.message_class = message_class

    def prepare_message(self, session: Session, envelope: Envelope) -> EmailMessage:
        """Return the message, with the envelope in ``X-Peer``, ``X-MailFrom`` and ``X-RcptTo``.

        Raises:
            TypeError: the content is neither octets nor text.
        """
        content: Any = envelope.content
        made_of: Any = self.message_class or EmailMessage
        message: EmailMessage
        if isinstance(content, bytes | bytearray):
            message = message_from_bytes(bytes(content), made_of)
        elif isinstance(content, str):
            message = message_from_string(content, made_of)
        else:
            raise TypeError(f"Expected str or bytes, got {type(content)}")
        message["X-Peer"] = str(session.peer)
        message["X-MailFrom"] = envelope.mail_from or ""
        message["X-RcptTo"] = COMMASPACE.join(envelope.rcpt_tos)
        return message

    @abstractmethod
    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Handle one message."""


class Message(MessageBase, metaclass=ABCMeta):
    """Parses each message and gives it to ``handle_message``, a plain method; what that raises is answered 451."""

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Parse, and hand on."""
        del server
        self.handle_message(self.prepare_message(session, envelope))
        return "250 OK"

    @abstractmethod
    def handle_message(self, message: EmailMessage) -> None:
        """Do something with *message*. It runs on the event loop: what takes long belongs into ``AsyncMessage``."""


class AsyncMessage(MessageBase, metaclass=ABCMeta):
    """Parses each message and gives it to ``handle_message``, a coroutine.

    Attributes:
        loop: as given, or None: the one that runs when it is asked for.
    """

    def __init__(self, message_class: type[EmailMessage] | None = None, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(message_class)
        self._loop = loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop given, else the running one."""
        return self._loop or asyncio.get_running_loop()

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Parse, and hand on."""
        del server
        await self.handle_message(self.prepare_message(session, envelope))
        return "250 OK"

    @abstractmethod
    async def handle_message(self, message: EmailMessage) -> None:
        """Do something with *message*."""


class Mailbox(Message):
    """Keep every message in a Maildir.

    Attributes:
        mailbox: the folder, as ``mailbox.Maildir``.
        mail_dir: its path.
    """

    def __init__(self, mail_dir: str | os.PathLike[str], message_class: type[EmailMessage] | None = None) -> None:
        """Keep them in *mail_dir*, which is made if it is not there."""
        self.mailbox = mailbox.Maildir(mail_dir)
        self.mail_dir = mail_dir
        super().__init__(message_class)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Parse, and keep: written, synced and renamed in a thread, so that the 250 is true and nobody else waits."""
        del server
        message = self.prepare_message(session, envelope)
        await asyncio.to_thread(self.handle_message, message)
        return "250 OK"

    def handle_message(self, message: EmailMessage) -> None:
        """Write *message*; blocks."""
        self.mailbox.add(message)

    def reset(self) -> None:
        """Remove every message."""
        self.mailbox.clear()

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """Return a handler for the word DIRECTORY."""
        if len(args) != 1:
            parser.error("Mailbox usage: DIRECTORY")
        return cls(args[0])
