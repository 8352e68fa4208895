"""Content given away as it arrives, for handlers that keep none of it: uploads, hashes, filters.

A handler with ``handle_DATA_CHUNK(server, session, envelope, chunk)`` gets the content piece by piece, dots taken out, and nothing keeps it
besides: ``envelope.content`` and ``envelope.body`` stay None. Then ``handle_DATA`` is asked for the verdict, as ever. Pieces break
anywhere, within a line or a character too; with ``decode_data`` they are text, and break between characters.

Back-pressure is awaiting: while the hook works, nothing more is read from that peer, and its timers stand still; a hook that takes longer
than the listener's ``answer_timeout_s`` for one piece has refused the message (451). So the most that waits in memory is one read.

The hook returns None (or 2xx) to go on, or a refusal: then the rest is read and dropped, and the refusal answers the message once it has
ended (RFC 5321 s4.2.5 gives a peer no earlier moment to hear it). Limits on size, lines and stray line ends hold as ever, so content that
was streamed may be refused at its end without the handler's doing. However it came: content that was streamed and about which
``handle_DATA`` will not be asked is told to ``handle_DATA_ABORT(server, session, envelope)``, once; nobody waits for that hook.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import Any

from mypy_extensions import mypyc_attr

from postbus import telemetry
from postbus.server.asking import Asking
from postbus.server.hooks import Hook
from postbus.server.outcome import Outcome, Pending, Special
from postbus.smtp import replies
from postbus.smtp.events import Chunk, EndOfMessage
from postbus.smtp.replies import Reply

NOT_ASCII = Reply(554, "Content is not ASCII", "5.6.1")


class Stream:
    """One message on its way to ``handle_DATA_CHUNK``.

    Attributes:
        refusal: what was said against it; the rest is dropped.
    """

    __slots__ = ("_decoder", "refusal")

    def __init__(self, decode: str | None) -> None:
        """*decode* is the encoding of text pieces, ``utf-8`` or ``ascii``; None: they stay octets."""
        errors = "surrogateescape" if decode == "utf-8" else "strict"
        self._decoder = None if decode is None else codecs.getincrementaldecoder(decode)(errors)
        self.refusal: Reply | None = None

    def piece(self, octets: bytes, *, last: bool = False) -> bytes | str:
        """Return *octets* as the hook gets them; nothing where they only began a character, or cannot be text."""
        if self._decoder is None:
            return octets
        try:
            return self._decoder.decode(octets, last)
        except UnicodeDecodeError:
            self.refusal = NOT_ASCII
            return ""


@mypyc_attr(allow_interpreted_subclasses=True)
class Streaming(Asking):
    """A connection whose handler may want the content as it arrives."""

    __slots__ = ("_content_event", "decode_data", "enable_SMTPUTF8")

    decode_data: bool
    enable_SMTPUTF8: bool  # noqa: N815 - aiosmtpd's name
    _stream: Stream | None = None
    _content_event: asyncio.Future[EndOfMessage | Pending] | None

    @property
    def _encoding(self) -> str | None:
        """What content is decoded with; None: it stays octets."""
        return None if not self.decode_data else "utf-8" if self.enable_SMTPUTF8 else "ascii"

    def _stream_chunk(self, hook: Hook, event: Chunk) -> Outcome:
        """Give a piece away."""
        stream = self._stream
        if stream is None:
            stream = self._stream = Stream(self._encoding)
        piece = stream.piece(event.octets) if stream.refusal is None else b""
        if not piece:
            return None
        outcome = self._ask("DATA_CHUNK", hook, self._chunked, event, piece)
        waiting = self._content_event
        if waiting is None or not isinstance(outcome, Pending):
            return outcome
        self._content_event = None  # the smtp_DATA of a subclass has the connection's task, and does the waiting
        self.busy = True
        self.owing_at = self.roster.sweep.now
        waiting.set_result(outcome)
        return Special.HANDED

    def _chunked(self, _event: Chunk | EndOfMessage, result: Any) -> Outcome:
        """The hook is done with a piece."""
        if result is None or self._stream is None:
            return None
        reply = self._verdict("DATA_CHUNK", result)
        if reply.code >= 400:
            self._stream.refusal = reply
        return None

    def _stream_end(self, stream: Stream, event: EndOfMessage) -> Outcome:
        """Everything has been given away but for the rest of a character cut short."""
        hook = self._plan.hooks.data_chunk
        piece = stream.piece(b"", last=True) if stream.refusal is None else b""
        if not piece or hook is None:
            return self._streamed(event)

        def settle(event: EndOfMessage, result: Any) -> Outcome:
            self._chunked(event, result)
            return self._streamed(event)

        return self._ask("DATA_CHUNK", hook, settle, event, piece)

    def _streamed(self, event: EndOfMessage) -> Outcome:
        """All pieces are with the handler: ask for its verdict."""
        raise TypeError(f"{type(self).__name__} has no verdict on {event!r}")

    def _drop_stream(self) -> None:
        """Tell the handler that nobody will ask about what it was given."""
        stream, self._stream = self._stream, None
        hook = self._plan.hooks.data_abort if stream is not None else None
        if hook is not None:
            self._tell("DATA_ABORT", hook, self.session, self.envelope)

    def unanswered_late(self, pending: Pending) -> None:
        """A piece took too long: the message is refused, and what the hook still does is its own."""
        if isinstance(pending.event, Chunk) and self._stream is not None:
            telemetry.answer_late(listener=self.roster.terms.name, session=self._session_id, hook=pending.hook)
            self._stream.refusal = replies.LOCAL_ERROR
