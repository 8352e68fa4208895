"""Stock handlers: take everything, or show it. Derive from them, or write a class of your own with the hooks you need.

``from_cli(parser, *words)`` makes a handler from the words of a command line; ``parser.error`` says what is wrong with them.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any, Self, TextIO

from postbus.server.envelope import Envelope
from postbus.server.session import Session


class Sink:
    """Take every message and drop it."""

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *words: str) -> Self:
        """Return a handler; it takes no words."""
        if words:
            parser.error("Sink handler does not accept arguments")
        return cls()


class Debugging:
    """Print every message to a stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Print to *stream*; None: standard output."""
        self.stream = sys.stdout if stream is None else stream

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *words: str) -> Self:
        """Return a handler for ``stdout`` (also without a word) or ``stderr``."""
        streams = {(): sys.stdout, ("stdout",): sys.stdout, ("stderr",): sys.stderr}
        if words not in streams:
            parser.error("Debugging usage: [stdout|stderr]")
        return cls(streams[words])

    def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
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
