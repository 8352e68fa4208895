"""The publishing handler: where a mail transaction becomes events that somebody has promised to deliver.

It is an ordinary handler on the library's API. ``handle_RCPT`` finds the route and refuses what cannot be promised; ``handle_DATA``
accepts the message, and nothing else in postbus answers 2xx after the last dot:

    spool   every recipient's event is in the spool, fsynced        -> 250, delivery follows
    hold    every required sink has acknowledged the event          -> 250, nothing is left to do

A recipient that cannot share the one SMTP reply with those before it gets 452 4.5.3, so that the sender comes again for him
(RFC 5321 s4.5.3.1.10). LMTP has a reply for each and needs no such thing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from postbus import telemetry
from postbus.bridge.budget import Budget
from postbus.bridge.outcomes import Unfit, fold
from postbus.bridge.routing import Match
from postbus.bridge.spool import Slot, SpoolFailed, SpoolFault, SpoolFull, slots_of
from postbus.event import ids
from postbus.event.mail import Auth, Client, Mail, Recipient, Tls
from postbus.server import limits
from postbus.server.body import Body
from postbus.server.envelope import Envelope
from postbus.server.session import Session
from postbus.sinks import Outcome, Rejected, Retry, Sent
from postbus.smtp import replies
from postbus.smtp.replies import Reply

UNKNOWN_RECIPIENT = Reply(550, "No such recipient here", "5.1.1")
NOT_NOW = Reply(451, "Cannot take mail for this recipient now, try again later", "4.3.0")
NO_ROOM = Reply(452, "Insufficient system storage, try again later", "4.3.1")  # RFC 5321 s4.2.3
SEPARATELY = Reply(452, "Send this recipient in a transaction of its own", "4.5.3")
TRY_LATER = Reply(451, "Message not accepted, try again later", "4.3.0")
REFUSED = Reply(554, "Message refused by its destination", "5.3.0")

NOT_BY_TLS = Reply(451, "Cannot pass mail on by TLS alone now, try again later", "4.7.0")
"""A reload took the offer of REQUIRETLS back while a session had it (RFC 8689); the next greeting will not offer it."""

LOOPING = Reply(554, "Too many hops, this message loops", "5.4.6")

HOP_MIN_OCTETS = len(b"Received:\r\n")
"""A message smaller than so many for each hop cannot have gone so far; most need not be looked at."""
HEAD_STEP_OCTETS = 16 * 1024
"""Of a spilled message so much is read at once, until the header block ends."""
HEAD_MAX_OCTETS = 256 * 1024
HEAD_ENDS = (b"\n\r\n", b"\n\n", b"\r\r")  # behind BDAT a bare LF is content like any other, and some senders end all their lines so
"""Of a header block so much is looked at; a larger one is published raw anyway."""

NULL_SENDER = "<>"
"""How handlers see the null reverse-path (aiosmtpd's spelling); an event says ``""``."""


class Keeper(Protocol):
    """The spool, as intake needs it."""

    def gate(self) -> str | None:
        """Return why nothing is taken now, or ``None``."""

    async def commit(self, mail: Mail, slots: Sequence[Slot], body: Body) -> object:
        """Return once *mail* is durable. Raises SpoolFull or SpoolFailed."""

    async def bury(self, mail: Mail, slots: Sequence[Slot], body: Body, why: Sequence[str]) -> object:
        """Keep *mail*'s *slots* as dead letters, each with its reason; return once that is durable. Raises as ``commit``."""


class Courier(Protocol):
    """Delivery while the sender waits."""

    def down(self, sinks: Sequence[str]) -> str | None:
        """Return the name of a sink of *sinks* that is known to be away, or ``None``."""

    async def deliver_now(self, mail: Mail, body: Body, deadline_s: float, memory: Budget) -> Sequence[Mapping[str, Outcome]]:
        """Return for each recipient, in order, what became of its event at each required sink, within *deadline_s* and *memory*."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What intake is told once.

    Attributes:
        source: CloudEvents source of every event.
        hold_timeout_s: how long the sinks may take while a sender waits; below the listener's answer timeout.
        in_flight_max_octets: memory for the events of all messages held at once, each with its message and its request.
        received: events carry a Received field of ours.
    """

    source: str
    hold_timeout_s: float = 25.0
    in_flight_max_octets: int = 256 * 1024 * 1024
    received: bool = False


class PublishingHandler:
    """Routes recipients and accepts messages. One for all listeners.

    Args:
        route: asks the routing table of the moment, so that a reload needs no new handler.
        terms: see ``Terms``.
        hops_max: so many ``Received`` fields a message may have now (RFC 5321 s6.3).
        all_spool: whether every route promises the spool now; then MAIL is refused already while it takes nothing.
        courier: for routes that hold; keeper: for routes that spool, ``None`` when there is no such route.
        now_ms: the wall clock; random: gives so many random octets.
        all_tls: whether every sink is reached by TLS alone now; REQUIRETLS is taken only then.
    """

    def __init__(
        self,
        *,
        route: Callable[[str], Match | None],
        all_spool: Callable[[], bool],
        hops_max: Callable[[], int],
        terms: Terms,
        courier: Courier,
        keeper: Keeper | None,
        now_ms: Callable[[], int],
        random: Callable[[int], bytes],
        all_tls: Callable[[], bool] = lambda: False,
    ) -> None:
        self._route = route
        self._all_spool = all_spool
        self._hops_max = hops_max
        self._terms = terms
        self._courier = courier
        self._keeper = keeper
        self._now_ms = now_ms
        self._random = random
        self._all_tls = all_tls
        self._memory = Budget(terms.in_flight_max_octets)

    @property
    def in_flight_octets(self) -> int:
        """Memory taken by events being sent, of messages whose senders wait and best effort."""
        return self._memory.used_octets

    @property
    def load(self) -> float:
        """How much of the memory for events being sent is taken: 0 none, 1 all."""
        return self._memory.used_octets / self._memory.limit_octets

    def handle_MAIL(self, server: object, session: Session, envelope: Envelope, address: str, options: list[str]) -> Reply:
        """Take the sender, unless no recipient could be taken. What it may send is decided per recipient."""
        if self._all_spool() and (refusal := self._spool_fault()) is not None:
            return refusal
        if "REQUIRETLS" in envelope.mail_params and not self._all_tls():
            return NOT_BY_TLS
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return replies.SENDER_OK

    def handle_RCPT(self, server: object, session: Session, envelope: Envelope, address: str, options: list[str]) -> Reply:
        """Route the recipient, or say why not."""
        match = self._route(address)
        if match is None:
            telemetry.recipient_refused(session=session.id, recipient=address, route="", code=UNKNOWN_RECIPIENT.code)
            return UNKNOWN_RECIPIENT
        matches = _matches(envelope)
        declared_octets = _declared_octets(envelope)
        refusal = self._fault(match, (declared_octets or 0) * (len(matches) + 1))
        if refusal is None and match.message_max_octets is not None and (declared_octets or 0) > match.message_max_octets:
            refusal = replies.TOO_BIG
        if refusal is None and not session.lmtp and matches and not _share_a_reply(matches[0], match, declared_octets):
            refusal = SEPARATELY
        if refusal is not None:
            telemetry.recipient_refused(session=session.id, recipient=address, route=match.route, code=refusal.code)
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        matches.append(match)
        return replies.RECIPIENT_OK

    async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> list[Reply]:
        """Accept the message, or not: one reply per recipient."""
        body, matches = envelope.body, _matches(envelope)
        assert body is not None, "the listener calls handle_DATA with a body"
        outcome: list[Reply | None] = [
            replies.TOO_BIG if match.message_max_octets is not None and body.size_octets > match.message_max_octets else None
            for match in matches
        ]
        if not session.lmtp and any(outcome):
            outcome = [replies.TOO_BIG] * len(matches)  # one reply for all: a dead letter instead would be a promise broken after 250
        hops_max = self._hops_max()
        if body.size_octets > hops_max * HOP_MIN_OCTETS and loops(await _head(body), hops_max):
            outcome = [LOOPING] * len(matches)
            telemetry.limit_hit(listener=session.listener, limit=limits.HOPS)
        trace = telemetry.trace_start("accept mail", kind="server", parent=session.traceparent, listener=session.listener)
        try:
            mail = self._mail(session, envelope, body, matches, trace.traceparent if trace else None)
            if self._terms.received:
                mail = replace(mail, received_by=str(getattr(server, "hostname", "")))
            said = await self._answers(mail, body, matches, outcome, alone=not session.lmtp)
        finally:
            if trace is not None:
                trace.end()
        telemetry.message_answered(
            listener=mail.listener,
            session=session.id,
            transaction=mail.id,
            mail_from=mail.mail_from,
            recipients=[(recipient.address, recipient.route, reply.code) for recipient, reply in zip(mail.recipients, said, strict=True)],
            mode=_promise(matches),
            size_octets=mail.size_octets,
            seconds=(self._now_ms() - mail.received_ms) / 1000,
        )
        return said

    async def _answers(self, mail: Mail, body: Body, matches: Sequence[Match], outcome: list[Reply | None], *, alone: bool) -> list[Reply]:
        """Keep each route's promise and return one reply per recipient, *outcome* where that is given. *alone*: as for ``_hold``."""
        spooled = [index for index, match in enumerate(matches) if outcome[index] is None and match.acceptance == "spool"]
        held = [index for index, match in enumerate(matches) if outcome[index] is None and match.acceptance == "hold"]
        if held:
            said = await self._hold(_part(mail, held), body, alone=alone)
            for index, reply in zip(held, said, strict=True):
                outcome[index] = reply
        if spooled:  # last: the spool may take the body's file for itself
            reply = await self._spool(_part(mail, spooled), body)
            for index in spooled:
                outcome[index] = reply
        return [reply for reply in outcome if reply is not None]

    def _spool_fault(self) -> Reply | None:
        """Return why the spool takes nothing now: no room, or a fault that passes."""
        gate = "closed" if self._keeper is None else self._keeper.gate()
        return None if gate is None else NO_ROOM if gate == "full" else NOT_NOW

    def _fault(self, match: Match, octets: int) -> Reply | None:
        """Return why *match* cannot be promised now: a fault of ours, so never 5xx, which would make the sender give up."""
        if match.acceptance == "spool":
            return self._spool_fault()
        if self._courier.down(match.sinks) is not None:
            return NOT_NOW
        return NO_ROOM if octets > self._memory.room_octets else None

    async def _spool(self, mail: Mail, body: Body) -> Reply:
        """Make *mail* durable; the dispatcher delivers it."""
        assert self._keeper is not None, "a spool route was refused at RCPT without a spool"
        try:
            await self._keeper.commit(mail, slots_of(mail), body)
        except SpoolFull:
            return NO_ROOM
        except SpoolFailed:
            return TRY_LATER
        return _accepted(mail)

    async def _hold(self, mail: Mail, body: Body, *, alone: bool) -> list[Reply]:
        """Deliver *mail* now and return one reply per recipient. *alone*: they share one reply (SMTP)."""
        memory = self._memory
        if memory.used_octets and body.size_octets > memory.room_octets:
            return [NO_ROOM] * len(mail.recipients)  # a message larger than the whole budget goes alone rather than never
        found = await self._courier.deliver_now(mail, body, self._terms.hold_timeout_s, memory)
        said = [_reply(fold(tuple(outcomes.values())), mail) for outcomes in found]
        if alone and any(reply.code >= 500 for reply in said) and replies.fold(said).code < 300:
            return await self._half_refused(mail, body, found, said)
        return said

    async def _half_refused(self, mail: Mail, body: Body, found: Sequence[Mapping[str, Outcome]], said: list[Reply]) -> list[Reply]:
        """Keep what was refused as dead letters, since the one reply will be 250; without a spool to keep it in, ask for the mail again."""
        refused = [index for index, reply in enumerate(said) if reply.code >= 500]
        lost = _part(mail, refused)
        why = {
            slot: outcome.why
            for slot in slots_of(lost)
            if slot.required and isinstance(outcome := found[refused[slot.recipient]][slot.sink], Rejected)
        }
        if self._keeper is not None:
            try:
                await self._keeper.bury(lost, tuple(why), body, tuple(why.values()))
            except SpoolFault:
                pass
            else:
                return said
        return [TRY_LATER if index in refused else reply for index, reply in enumerate(said)]

    def _mail(self, session: Session, envelope: Envelope, body: Body, matches: Sequence[Match], traceparent: str | None) -> Mail:
        """Write down everything the events will say beside the body."""
        now_ms = self._now_ms()
        mail_from = "" if envelope.mail_from in {None, NULL_SENDER} else str(envelope.mail_from)
        sha256 = body.sha256()
        count = len(matches)
        random, share = self._random(ids.RANDOM_OCTETS * (count + 1)), ids.RANDOM_OCTETS  # asked of the system at once
        event_ids = [ids.uuid7(now_ms, random[index * share : (index + 1) * share]) for index in range(count + 1)]
        recipients = tuple(
            [
                _recipient(event_ids[index], mail_from, sha256, index, address, match, params)
                for index, address, match, params in zip(range(count), envelope.rcpt_tos, matches, envelope.rcpt_params, strict=True)
            ]
        )
        tls = session.tls
        return Mail(
            id=event_ids[-1],
            source=self._terms.source,
            received_ms=now_ms,
            listener=session.listener,
            protocol=session.protocol,
            client=_client(session, envelope),
            mail_from=mail_from,
            params=envelope.mail_params,
            smtputf8=envelope.smtp_utf8,
            size_octets=body.size_octets,
            sha256=sha256,
            recipients=recipients,
            tls=None if tls is None else Tls(tls.version, tls.cipher, tls.client_cert_subject),
            auth=Auth(session.auth_mechanism or "", session.auth_identity or "") if session.authenticated else None,
            defects=tuple((f"smtp.{kind}", str(count)) for kind, count in envelope.defects.items()),
            traceparent=traceparent,
            accepted=count,
        )


def _recipient(
    event_id: str, mail_from: str, sha256: str, index: int, address: str, match: Match, params: dict[str, str | None]
) -> Recipient:
    normalized = ids.normalize(address)
    return Recipient(
        event_id=event_id,
        address=address,
        normalized=normalized,
        index=index,
        params=params,
        route=match.route,
        pattern=match.pattern,
        tag=match.tag,
        captures=match.captures,
        mode=match.mode,
        sinks=match.sinks,
        best_effort=match.best_effort,
        event_max_octets=match.event_max_octets,
        partition_key=ids.partition_key(normalized),
        dedupe_key=ids.dedupe_key(mail_from, normalized, sha256),
    )


def _promise(matches: Sequence[Match]) -> str:
    """Return what the message's recipients were promised, in one word."""
    promises = {match.acceptance for match in matches}
    return promises.pop() if len(promises) == 1 else "mixed"


def _share_a_reply(first: Match, match: Match, declared_octets: int | None) -> bool:
    """Say whether one reply can be true of both: the same promise, and the same verdict about the size."""
    if "hold" in (first.acceptance, match.acceptance) and (first.acceptance != match.acceptance or set(first.sinks) != set(match.sinks)):
        return False
    if first.message_max_octets == match.message_max_octets:
        return True
    return declared_octets is not None  # both limits were held against it at RCPT


def loops(octets: bytes, hops_max: int) -> bool:
    """Return whether the header block of *octets* has more than *hops_max* Received fields; nearly always its colons are fewer already."""
    end = octets.find(HEAD_ENDS[0])
    return octets.count(b":", 0, end if end >= 0 else HEAD_MAX_OCTETS) > hops_max and hops(octets) > hops_max


def hops(octets: bytes) -> int:
    """Return how many Received fields the header block of *octets* has (RFC 5321 s4.4: one for each host it came by)."""
    head = octets[:HEAD_MAX_OCTETS].lower()
    head = head[: min((end for mark in HEAD_ENDS if (end := head.find(mark)) >= 0), default=HEAD_MAX_OCTETS)]
    return head.startswith(b"received:") + head.count(b"\nreceived:") + head.count(b"\rreceived:")


async def _head(body: Body) -> bytes:
    """Return *body*, or of one that was spilled enough to hold its header block."""
    if body.octets is not None:
        return body.octets
    assert body.path is not None, "a body is in memory or in a file"
    return await asyncio.to_thread(_beginning, body.path)


def _beginning(path: Path) -> bytes:
    head = b""
    with path.open("rb") as file:
        while len(head) < HEAD_MAX_OCTETS and b"\r\n\r\n" not in head:
            piece = file.read(HEAD_STEP_OCTETS)
            if not piece:
                break
            head += piece
    return head


def _matches(envelope: Envelope) -> list[Match]:
    """Return the routes of *envelope*'s accepted recipients, in order. They are kept on it, so they end with the transaction."""
    matches: list[Match] = vars(envelope).setdefault("matches", [])
    return matches


def _declared_octets(envelope: Envelope) -> int | None:
    """Return MAIL's SIZE= (RFC 1870), which the engine has checked to be a number."""
    size = envelope.mail_params.get("SIZE")
    return int(size) if size else None


def _client(session: Session, envelope: Envelope) -> Client:
    """Return whom the mail came from: behind a proxy the client it speaks for."""
    peer = session.peer
    ip, port = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) and len(peer) > 1 else ("", 0)
    return Client(
        ip=ip,
        port=port,
        helo=session.host_name,
        ptr=session.peer_host,
        via_proxy=session.proxy_peer is not None,
        forwarded=envelope.xforward or None,
    )


def _part(mail: Mail, indexes: Sequence[int]) -> Mail:
    """Return *mail* with only these of its recipients; their ``index`` stays what it was in the transaction."""
    if len(indexes) == len(mail.recipients):
        return mail
    return replace(mail, recipients=tuple(mail.recipients[index] for index in indexes))


def _accepted(mail: Mail) -> Reply:
    return Reply(250, f"Ok: {mail.id}", "2.0.0")


def _reply(outcome: Outcome, mail: Mail) -> Reply:
    """Return what the sender is told of *outcome*; the reason stays with us."""
    match outcome:
        case Sent():
            return _accepted(mail)
        case Unfit():
            return replies.TOO_BIG
        case Rejected(too_large=False):
            return REFUSED
        case Rejected() | Retry():  # a sink that carries less than it said is an operator's mistake, or ours: never 5xx
            return TRY_LATER
