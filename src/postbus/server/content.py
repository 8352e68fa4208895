"""Content as it arrives: kept in memory or spilled to a file, given to ``handle_DATA`` when whole, forgotten once it is answered."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from typing import Any, ClassVar, cast, final

from mypy_extensions import mypyc_attr

from postbus import telemetry
from postbus.server.body import CRUMB_OCTETS, Body, Spill
from postbus.server.envelope import Envelope
from postbus.server.hooks import MISSING, Misanswered, message_replies
from postbus.server.link import DISK
from postbus.server.outcome import Answer, Outcome, Pending, Special
from postbus.server.streaming import NOT_ASCII, Stream, Streaming
from postbus.smtp import replies
from postbus.smtp.events import Bdat, Chunk, EndOfMessage
from postbus.smtp.replies import Reply

DISK_FULL = Reply(452, "Insufficient system storage", "4.3.1")


@mypyc_attr(allow_interpreted_subclasses=True)
class Content(Streaming):
    """What comes behind DATA and BDAT.

    Attributes:
        lmtp: a reply for each accepted recipient (RFC 2033 s4.2).
        messages_accepted, messages_refused, recipients: of this session, so far.
        decode_data, enable_SMTPUTF8: as given to ``SMTP``.
    """

    __slots__ = (
        "_disk_event",
        "_pieces",
        "_size_octets",
        "_spill",
        "messages_accepted",
        "messages_refused",
        "recipients",
    )

    lmtp: ClassVar[bool] = False

    messages_accepted: int
    messages_refused: int
    recipients: int
    _pieces: list[bytes]
    _size_octets: int
    _spill: Spill | None
    _disk_event: asyncio.Future[None] | None

    def _on_chunk(self, event: Chunk) -> Outcome:
        hook = self._plan.hooks.data_chunk
        if hook is not None:
            return self._stream_chunk(hook, event)
        octets = event.octets
        self._size_octets += len(octets)
        spill = self._spill
        if spill is not None:
            spill.feed(octets)
            if spill.behind:
                self.stalled = True
                self.pause(DISK)
            return None
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(octets) <= CRUMB_OCTETS:
            pieces[-1] += octets
        else:
            pieces.append(octets)
        terms = self.roster.terms
        if self._size_octets > terms.spill_threshold_octets and terms.spill_folder is not None:
            self._spill = spill = Spill(terms.spill_folder, self.roster.pool, self.loop, self._disk_moved, terms.spill_nameless)
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                spill.feed(piece)
        return None

    def _disk_moved(self) -> None:
        """A batch is on disk."""
        spill = self._spill
        if spill is None or self.finished:
            return
        if not spill.behind:
            self.stalled = False
            self.resume(DISK)
        if self._disk_event is not None and spill.whole and not self._disk_event.done():
            self._disk_event.set_result(None)

    def _on_end(self, event: EndOfMessage) -> Outcome:
        self.credit_s = None
        self.mail_at = None
        if self._content_event is not None:  # the smtp_DATA of a subclass waits for it
            self.busy = True
            self.owing_at = self.roster.sweep.now
            self._content_event.set_result(event)
            self._content_event = None
            return Special.HANDED
        pieces = self._pieces
        if event.refusal is None and len(pieces) == 1 and self._spill is None:  # most mail is one piece
            self._pieces = []
            self._size_octets = 0
            return self._deliver(event, Body(pieces[0]))
        outcome = self._end(event)
        if event.refusal is not None:
            self._give(None)  # a farewell may have waited for the end of this message
        return outcome

    @final
    def _end(self, event: EndOfMessage) -> Outcome:
        if event.refusal is not None:
            self._drop_content()
            self._set_post_data_state()
            self.messages_refused += 1
            self._tell_refused(event.refusal)
            return None
        if self._plan.hooks.data_chunk is not None:
            return self._stream_end(self._stream or Stream(None), event)
        spill = self._spill
        if spill is not None:
            spill.end()
            self._disk_event = self.loop.create_future()
            return Pending(self._disk_event, self._stored, event, "spill", self.envelope)
        pieces, self._pieces = self._pieces, []
        self._size_octets = 0
        return self._deliver(event, Body(pieces[0] if len(pieces) == 1 else b"".join(pieces)))

    def _stored(self, event: EndOfMessage, _result: None) -> Outcome:
        """The content is in its file, or the disk failed."""
        spill, self._spill, self._disk_event = self._spill, None, None
        assert spill is not None
        size_octets, self._size_octets = self._size_octets, 0
        if spill.fault is not None:
            full = spill.fault.errno in {errno.ENOSPC, errno.EDQUOT}
            telemetry.spill_failed(listener=self.roster.terms.name, session=self._session_id, error=str(spill.fault))
            return self._messaged(event, DISK_FULL if full else replies.LOCAL_ERROR)
        file = spill.take()
        path = spill.path if file is None else None
        body = Body(None, path=path, size_octets=size_octets, digest=spill.digest, unlink=self.roster.unlink, file=file)
        return self._deliver(event, body)

    @final
    def _deliver(self, event: EndOfMessage, body: Body) -> Outcome:
        """Give a whole message to ``handle_DATA``."""
        envelope = self.envelope
        assert envelope is not None
        envelope.body = body
        if event.defects:
            self._tolerate(envelope, event.defects)
        if self.engine.untimely:
            self._tolerate(envelope, dict.fromkeys(sorted(self.engine.take_untimely()), 1))
        if self.decode_data:
            envelope.decode = "utf-8" if self.enable_SMTPUTF8 else "ascii"
            if not self.enable_SMTPUTF8 and not body.read().isascii():
                return self._messaged(event, NOT_ASCII)
        hook = self._plan.hooks.data
        if hook is None:
            return self._messaged(event, replies.OK)
        return self._ask("DATA", hook, self._messaged, event)

    def _streamed(self, event: EndOfMessage) -> Outcome:
        """Ask for the verdict on content that the handler has, unless it was refused on its way."""
        stream, envelope = self._stream, self.envelope
        assert envelope is not None
        if event.defects:
            self._tolerate(envelope, event.defects)
        if self.engine.untimely:
            self._tolerate(envelope, dict.fromkeys(sorted(self.engine.take_untimely()), 1))
        if stream is not None and stream.refusal is not None:
            self._drop_stream()
            return self._messaged(event, stream.refusal)
        self._stream = None
        hook = self._plan.hooks.data
        return self._messaged(event, replies.OK) if hook is None else self._ask("DATA", hook, self._messaged, event)

    @final
    def _messaged(self, _event: EndOfMessage, result: Any) -> Outcome:
        """The message has its answer: forget it."""
        engine, envelope = self.engine, self.envelope
        recipients = engine.accepted_recipients
        answer: Answer
        try:
            answer = message_replies(replies.OK if result is MISSING else result, recipients, lmtp=self.lmtp)
        except Misanswered as error:
            telemetry.hook_misanswered(hook="DATA", session=self._session_id, error=str(error))
            answer = replies.LOCAL_ERROR
        if answer.code < 300 if type(answer) is Reply else any(reply.code < 300 for reply in cast("tuple[Reply, ...]", answer)):
            self.messages_accepted += 1
            self.recipients += recipients
        else:
            self.messages_refused += 1
        if envelope is not None and envelope.body is not None and envelope.body.octets is None:
            self.roster.part_with(envelope)
        self._set_post_data_state()
        return answer

    def _on_bdat(self, _event: Bdat) -> Outcome:
        """Take a chunk. Time runs from the first one to the end of the message, so that many small ones get no more of it than one."""
        envelope = self.envelope
        assert envelope is not None
        if not envelope.rcpt_tos:  # a hook said 250 and kept nobody
            self._forget_message(envelope)
            self._set_post_data_state()
            return replies.SEND_RCPT
        if self.credit_s is None:
            self._give_credit()
        return replies.CHUNK_OK

    @final
    def _give_credit(self) -> None:
        """Content begins: its time runs."""
        self.credit_s = self.roster.terms.timeouts.data_s
        self.credited_octets = self.octets

    def _forget_message(self, envelope: Envelope | None) -> None:
        """The transaction of *envelope* ended without an end of its message: nothing is left of that."""
        self.mail_at = None
        if self.credit_s is not None:  # between chunks
            self.credit_s = None
            now, self.envelope = self.envelope, envelope
            self._drop_content()
            self.envelope = now

    def _drop_content(self) -> None:
        """Forget content that is not whole, or that nobody wants."""
        if self._stream is not None:
            self._drop_stream()
        spill, self._spill = self._spill, None
        self._pieces = []
        self._size_octets = 0
        if spill is None:
            return
        spill.drop()
        self.stalled = False
        self.resume(DISK)
        waiting, self._disk_event = self._disk_event, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    @final
    def _tolerate(self, envelope: Envelope, defects: Mapping[str, int]) -> None:
        """Note *defects*, kind to count, on *envelope* and in the metrics."""
        for kind, count in defects.items():
            envelope.defects[kind] = envelope.defects.get(kind, 0) + count
            telemetry.defect_tolerated(listener=self.roster.terms.name, kind=kind, count=count)

    # --- answers that come too late

    def late_answer(self, pending: Pending) -> Reply:
        """The answer took too long: 451. The work keeps its envelope; the session gets a new one."""
        telemetry.answer_late(listener=self.roster.terms.name, session=self._session_id, hook=pending.hook)
        if isinstance(pending.event, EndOfMessage):
            self._spill = None if pending.hook != "spill" else self._spill
            self._drop_content()
            self.messages_refused += 1
            self._set_post_data_state()
        return replies.LOCAL_ERROR

    def too_late(self, pending: Pending, result: Any) -> None:
        """A hook ended after its peer had left or had been answered. If it accepted a message, the sender will send it again.

        *result* may be what it raised; ``CancelledError`` when we cut it.
        """
        if isinstance(result, Exception):
            self._log_fault(pending.hook, result)
        if not isinstance(pending.event, EndOfMessage):
            return
        if pending.hook == "DATA" and not isinstance(result, asyncio.CancelledError):
            said = result if isinstance(result, list | tuple) else [result]
            words = [str(each) if isinstance(each, str | Reply) else type(each).__name__ for each in said[:1]]
            telemetry.reply_lost(listener=self.roster.terms.name, session=self._session_id, reply="".join(words)[:40])
        if pending.envelope is not None and pending.envelope.body is not None:
            pending.envelope.body.discard()

    def outlives(self, pending: Pending) -> bool:
        """A peer that vanishes behind the dot cancels nothing."""
        return isinstance(pending.event, EndOfMessage) and pending.hook == "DATA"

    # --- what subclasses override

    def _create_envelope(self) -> Envelope:
        """Return a new envelope; override it to have one of your own."""
        return Envelope()

    def _set_post_data_state(self) -> Any:
        """A message is over: begin with a new envelope. What an override returns is nothing to us, here and in ``_set_rset_state``."""
        self.envelope = self._create_envelope()
