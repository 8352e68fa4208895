"""The publishing handler: which recipients are taken, when a message is accepted, and what is written down about it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from postbus import telemetry
from postbus.bridge import intake
from postbus.bridge.budget import Budget
from postbus.bridge.intake import PublishingHandler, Terms
from postbus.bridge.outcomes import Unfit
from postbus.bridge.routing import Router
from postbus.bridge.settings import RouteSettings
from postbus.bridge.spool import Slot, SpoolFailed, SpoolFull, slots_of
from postbus.event import ids
from postbus.event.mail import Auth, Client, Mail, mail_to_bytes
from postbus.server.auth import LoginPassword
from postbus.server.body import Body
from postbus.server.envelope import Envelope
from postbus.server.session import Session
from postbus.sinks import Outcome, Rejected, Retry, Sent
from postbus.smtp import replies
from postbus.smtp.replies import Reply
from postbus.telemetry.lines import LOG

NOW_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Carrier:
    """What the router must know of a sink."""

    event_max_octets: int = 1_000_000
    octets: bool = False


@dataclass
class Keeper:
    """A spool that keeps what it is given in a list."""

    closed: str | None = None
    fault: Exception | None = None
    taken: list[tuple[Mail, Sequence[Slot]]] = field(default_factory=list)
    buried: list[tuple[Mail, Sequence[Slot], Sequence[str]]] = field(default_factory=list)

    def gate(self) -> str | None:
        """Say why nothing is taken."""
        return self.closed

    async def commit(self, mail: Mail, slots: Sequence[Slot], body: Body) -> object:
        """Keep a message, or fail as told."""
        if self.fault:
            raise self.fault
        self.taken.append((mail, slots))
        return None

    async def bury(self, mail: Mail, slots: Sequence[Slot], body: Body, why: Sequence[str]) -> object:
        """Keep dead letters, or fail as told."""
        if self.fault:
            raise self.fault
        self.buried.append((mail, slots, why))
        return None


@dataclass
class Courier:
    """Delivery with outcomes by recipient address."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    delivered: list[Mail] = field(default_factory=list)
    waiting: asyncio.Event | None = None

    def down(self, sinks: Sequence[str]) -> str | None:
        """Say which sink is away."""
        return next((name for name in sinks if name in self.away), None)

    async def deliver_now(self, mail: Mail, body: Body, deadline_s: float, memory: Budget) -> Sequence[Mapping[str, Outcome]]:
        """Return the outcomes as told, once nothing is waited for; each is every sink's but where a sink has its own."""
        await memory.take(body.size_octets)
        if self.waiting:
            await self.waiting.wait()
        memory.give(body.size_octets)
        self.delivered.append(mail)
        return [
            {sink: self.outcomes.get(sink) or self.outcomes.get(recipient.address, Sent()) for sink in recipient.sinks}
            for recipient in mail.recipients
        ]


ROUTES = [
    {"name": "orders", "match": "orders@x.org", "sinks": "kafka"},
    {"name": "teams", "match": r"/(?P<team>[a-z]+)@teams\.org/", "sinks": "kafka", "best_effort": "audit"},
    {"name": "raw", "match": "raw@x.org", "sinks": "small", "mode": "raw"},
    {"name": "pair", "match": ["pair@x.org", "pair2@x.org"], "sinks": ["kafka", "hook"], "acceptance": "hold"},
    {"name": "held", "match": ["held@x.org", "held2@x.org", "held3@x.org"], "sinks": "kafka", "acceptance": "hold"},
    {"name": "hook", "match": "hook@x.org", "sinks": "hook", "acceptance": "hold"},
]


class Bench:
    """A handler over fakes, and a transaction to put it through."""

    hostname = "mx.test"

    def __init__(
        self, *, lmtp: bool = False, keeper: Keeper | None = None, in_flight_max_octets: int = 10_000, received: bool = False
    ) -> None:
        self.all_spool = self.all_tls = False
        self.keeper = keeper if keeper is not None else Keeper()
        self.courier = Courier()
        sinks = {"kafka": Carrier(), "small": Carrier(event_max_octets=20_000), "hook": Carrier(), "audit": Carrier()}
        counter = itertools.count(1)
        router = Router([RouteSettings.model_validate(route) for route in ROUTES], sinks)
        self.handler = PublishingHandler(
            route=router.match,
            all_spool=lambda: self.all_spool,
            hops_max=lambda: 100,
            terms=Terms("//mx.test/postbus", hold_timeout_s=5, in_flight_max_octets=in_flight_max_octets, received=received),
            courier=self.courier,
            keeper=self.keeper,
            now_ms=lambda: NOW_MS,
            random=lambda count: next(counter).to_bytes(count, "big"),
            all_tls=lambda: self.all_tls,
        )
        self.session = Session.__new__(Session)
        Session.__init__(self.session, asyncio.new_event_loop())
        self.session.loop.close()
        self.session.peer, self.session.host_name, self.session.listener = ("192.0.2.7", 4711), "client.test", "mx"
        self.session.lmtp, self.session.extended_smtp = lmtp, True
        self.envelope = Envelope()

    def mail(self, address: str = "me@test", **params: str | None) -> Reply:
        """Say MAIL."""
        self.envelope.mail_params = dict(params)
        return self.handler.handle_MAIL(self, self.session, self.envelope, address, [])

    def rcpt(self, address: str) -> Reply:
        """Say RCPT, as the server does: it notes the parameters of whom the handler took."""
        reply = self.handler.handle_RCPT(self, self.session, self.envelope, address, [])
        if reply.code == 250:
            self.envelope.rcpt_params.append({})
        return reply

    async def data(self, octets: bytes = b"Subject: x\r\n\r\nhello\r\n") -> list[Reply]:
        """Send the content."""
        self.envelope.body = Body(octets)
        return await self.handler.handle_DATA(self, self.session, self.envelope)


@pytest.fixture
def bench() -> Bench:
    """An SMTP transaction that has said MAIL."""
    bench = Bench()
    assert bench.mail() == replies.SENDER_OK
    return bench


def test_an_unknown_recipient_gets_550(bench: Bench) -> None:
    """No route: 550 5.1.1, and the recipient is not counted."""
    assert intake.UNKNOWN_RECIPIENT == bench.rcpt("nobody@elsewhere.org")
    assert bench.envelope.rcpt_tos == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param("orders@x.org", "a@teams.org", replies.RECIPIENT_OK, id="spool with spool, other sinks"),
        pytest.param("held@x.org", "held2@x.org", replies.RECIPIENT_OK, id="hold with hold, same sinks"),
        pytest.param("held@x.org", "hook@x.org", intake.SEPARATELY, id="hold with hold, other sinks"),
        pytest.param("held@x.org", "orders@x.org", intake.SEPARATELY, id="hold, then spool"),
        pytest.param("orders@x.org", "held@x.org", intake.SEPARATELY, id="spool, then hold"),
        pytest.param("orders@x.org", "raw@x.org", intake.SEPARATELY, id="another largest message, no SIZE"),
    ],
)
def test_recipients_that_cannot_share_one_reply_are_sent_separately(bench: Bench, first: str, second: str, expected: Reply) -> None:
    """SMTP has one reply for all: whoever it could be untrue of gets 452 4.5.3."""
    assert replies.RECIPIENT_OK == bench.rcpt(first)
    assert expected == bench.rcpt(second)


def test_lmtp_takes_recipients_of_any_kind_together() -> None:
    """LMTP answers each recipient, so nothing need be split."""
    bench = Bench(lmtp=True)
    bench.mail()
    assert [replies.RECIPIENT_OK] * 4 == [bench.rcpt(name) for name in ("held@x.org", "hook@x.org", "orders@x.org", "raw@x.org")]


def test_a_declared_size_that_fits_both_lets_them_share() -> None:
    """With SIZE= both limits were held against it, so different limits do not matter."""
    bench = Bench()
    bench.mail(SIZE="1000")
    assert [replies.RECIPIENT_OK] * 2 == [bench.rcpt("orders@x.org"), bench.rcpt("raw@x.org")]


def test_a_declared_size_beyond_the_route_is_refused_at_rcpt() -> None:
    """What the route's sinks cannot carry gets 552 before it is sent."""
    bench = Bench()
    bench.mail(SIZE="50000")
    assert replies.TOO_BIG == bench.rcpt("raw@x.org")


@pytest.mark.parametrize(
    ("address", "closed", "away", "expected"),
    [
        pytest.param("orders@x.org", "full", "", intake.NO_ROOM, id="the spool is full"),
        pytest.param("orders@x.org", "unhealthy", "", intake.NOT_NOW, id="the spool is broken"),
        pytest.param("orders@x.org", None, "kafka", replies.RECIPIENT_OK, id="a spooled route's sink may be away"),
        pytest.param("held@x.org", None, "kafka", intake.NOT_NOW, id="a held route's sink may not"),
        pytest.param("held@x.org", "full", "", replies.RECIPIENT_OK, id="a held route needs no spool"),
    ],
)
def test_faults_of_ours_are_4xx_at_rcpt(bench: Bench, address: str, closed: str | None, away: str, expected: Reply) -> None:
    """Each fault is answered where it is first known, and never with 5xx."""
    bench.keeper.closed = closed
    bench.courier.away = {away}
    assert expected == bench.rcpt(address)


@pytest.mark.parametrize(
    ("all_spool", "closed", "expected"),
    [
        pytest.param(True, None, replies.SENDER_OK, id="open"),
        pytest.param(True, "full", intake.NO_ROOM, id="full"),
        pytest.param(True, "unhealthy", intake.NOT_NOW, id="broken"),
        pytest.param(False, "full", replies.SENDER_OK, id="full, but some route holds"),
    ],
)
def test_a_spool_that_takes_nothing_is_told_at_mail(all_spool: bool, closed: str | None, expected: Reply) -> None:
    """Where no recipient could be taken the sender learns so first; a route that holds needs no spool."""
    bench = Bench()
    bench.all_spool, bench.keeper.closed = all_spool, closed
    assert expected == bench.mail()


def test_recipients_times_size_over_the_budget_get_452() -> None:
    """The budget of messages being held counts every recipient."""
    bench = Bench(in_flight_max_octets=10_000)
    bench.mail(SIZE="6000")
    assert [replies.RECIPIENT_OK, intake.NO_ROOM] == [bench.rcpt("held@x.org"), bench.rcpt("held2@x.org")]


async def test_a_spooled_message_is_accepted_with_its_transaction_id(bench: Bench) -> None:
    """The 250 carries the id that the events carry, and the spool has every delivery."""
    bench.rcpt("orders@x.org")
    bench.rcpt("red@teams.org")
    said = await bench.data()
    ((mail, slots),) = bench.keeper.taken
    assert [Reply(250, f"Ok: {mail.id}", "2.0.0")] * 2 == said
    assert slots_of(mail) == slots
    assert ["kafka", "kafka", "audit"] == [slot.sink for slot in slots]


async def test_what_is_written_down_of_a_message(bench: Bench) -> None:
    """The record says everything the events will say beside the body."""
    bench.rcpt("Red@Teams.Org")
    await bench.data(b"hello\r\n")
    ((mail, _),) = bench.keeper.taken
    (recipient,) = mail.recipients
    assert ("me@test", 7, NOW_MS, "mx", "esmtp", "192.0.2.7", "client.test", "//mx.test/postbus") == (
        mail.mail_from,
        mail.size_octets,
        mail.received_ms,
        mail.listener,
        mail.protocol,
        mail.client.ip,
        mail.client.helo,
        mail.source,
    )
    assert ("Red@Teams.Org", "red@teams.org", "teams", {"team": "red"}) == (
        recipient.address,
        recipient.normalized,
        recipient.route,
        dict(recipient.captures),
    )
    assert ids.dedupe_key("me@test", "red@teams.org", mail.sha256) == recipient.dedupe_key
    assert recipient.event_id != mail.id


@pytest.mark.parametrize(
    ("authenticated", "expected"),
    [
        pytest.param(None, None, id="not asked"),
        pytest.param(False, None, id="failed"),
        pytest.param(True, Auth("PLAIN", "tim"), id="succeeded"),
    ],
)
async def test_who_has_authenticated_is_written_down(bench: Bench, authenticated: bool | None, expected: Auth | None) -> None:
    """By mechanism and name; what the authenticator keeps beside them, a password perhaps, is not."""
    session = bench.session
    session.authenticated, session.auth_mechanism, session.auth_identity = authenticated, "PLAIN", "tim"
    session.auth_data = LoginPassword(b"tim", b"secret")
    bench.rcpt("orders@x.org")
    await bench.data()
    ((mail, _),) = bench.keeper.taken
    assert expected == mail.auth
    assert ("esmtpa" if authenticated else "esmtp") == mail.protocol
    assert b"secret" not in mail_to_bytes(mail)


@pytest.mark.parametrize(("received", "expected"), [(False, ""), (True, "mx.test")])
async def test_who_we_are_is_written_down_where_events_carry_a_received_field(received: bool, expected: str) -> None:
    """The name of the listener's host, so that a retry after a change of it says the same; off by default."""
    bench = Bench(received=received)
    bench.mail()
    bench.rcpt("orders@x.org")
    await bench.data()
    ((mail, _),) = bench.keeper.taken
    assert expected == mail.received_by


async def test_the_null_sender_is_an_empty_text(bench: Bench) -> None:
    """Handlers see ``<>``; the record has no brackets."""
    bench.mail("<>")
    bench.rcpt("orders@x.org")
    await bench.data()
    assert bench.keeper.taken[0][0].mail_from == ""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [pytest.param(SpoolFull("x"), intake.NO_ROOM, id="full"), pytest.param(SpoolFailed("x"), intake.TRY_LATER, id="failed")],
)
async def test_a_spool_that_fails_at_commit_is_4xx(bench: Bench, fault: Exception, expected: Reply) -> None:
    """Nothing durable, no 250; and the reason stays with us."""
    bench.rcpt("orders@x.org")
    bench.keeper.fault = fault
    assert [expected] == await bench.data()


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        pytest.param(Sent(), 250, id="sent"),
        pytest.param(Retry("the broker's secret name"), 451, id="retry"),
        pytest.param(Rejected("the receiver's words"), 554, id="rejected"),
        pytest.param(Rejected("413", too_large=True), 451, id="a limit we were not told of: an operator's mistake"),
        pytest.param(Unfit("no event holds it"), 552, id="neither parsed nor small enough to go as it is"),
    ],
)
async def test_a_held_message_is_answered_by_its_sinks(bench: Bench, outcome: Outcome, code: int) -> None:
    """Hold: the outcome is the reply, without a word of what the sink said."""
    bench.courier.outcomes = {"held@x.org": outcome}
    bench.rcpt("held@x.org")
    (reply,) = await bench.data()
    assert code == reply.code
    assert "secret" not in str(reply)
    assert "words" not in str(reply)
    assert bench.keeper.taken == []


async def test_lmtp_gives_each_recipient_its_own_fate() -> None:
    """One accepted RCPT, one reply, in the order of the RCPTs, whichever way each is accepted."""
    bench = Bench(lmtp=True)
    bench.mail()
    for name in ("hook@x.org", "orders@x.org", "held@x.org", "raw@x.org"):
        bench.rcpt(name)
    bench.courier.outcomes = {"hook@x.org": Retry("down"), "held@x.org": Sent()}
    assert [451, 250, 250, 552] == [reply.code for reply in await bench.data(b"x" * 30_000 + b"\r\n")]
    assert [["hook@x.org", "held@x.org"]] == [[recipient.address for recipient in mail.recipients] for mail in bench.courier.delivered]
    ((spooled, _),) = bench.keeper.taken
    assert [4, 4] == [bench.courier.delivered[0].accepted, spooled.accepted]


class Trace:
    """A span."""

    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    ended = 0

    def end(self) -> None:
        """Count."""
        self.ended += 1


@dataclass
class Told:
    """What telemetry was told: the lines of messages, and the one span."""

    summaries: list[dict[str, Any]] = field(default_factory=list)
    trace: Trace = field(default_factory=Trace)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Listen to what telemetry is told."""
    told = Told()
    monkeypatch.setattr(LOG, "log", lambda _level, _event, /, **keys: told.summaries.append(keys))
    monkeypatch.setattr(telemetry, "trace_start", lambda *_, **__: told.trace)
    return told


@pytest.mark.parametrize(
    ("lmtp", "names", "octets", "expected"),
    [
        pytest.param(False, ["orders"], 10, ("spool", [250]), id="spool"),
        pytest.param(False, ["held"], 10, ("hold", [250]), id="hold"),
        pytest.param(True, ["held", "orders"], 10, ("mixed", [250, 250]), id="both"),
        pytest.param(False, ["raw"], 30_000, ("spool", [552]), id="refused for its size"),
    ],
)
async def test_every_message_has_a_summary(told: Told, lmtp: bool, names: list[str], octets: int, expected: tuple[str, list[int]]) -> None:
    """One line and one span for each, with what its recipients were promised and told."""
    bench = Bench(lmtp=lmtp)
    bench.mail()
    for name in names:
        bench.rcpt(f"{name}@x.org")
    await bench.data(b"x" * octets)
    (summary,) = told.summaries
    assert expected == (summary["mode"], [int(line.split()[-1]) for line in summary["recipients"]])
    assert 1 == told.trace.ended


async def test_a_mistake_ends_the_span_too(bench: Bench, told: Told) -> None:
    """Whatever the hook raises."""
    bench.rcpt("orders@x.org")
    bench.keeper.fault = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await bench.data()
    assert 1 == told.trace.ended


async def test_a_message_too_big_for_one_is_refused_for_all_on_smtp() -> None:
    """A sender that lied in SIZE= gets 552 before acceptance, never a dead letter after."""
    bench = Bench()
    bench.mail(SIZE="10")
    bench.rcpt("orders@x.org")
    bench.rcpt("raw@x.org")
    assert [552, 552] == [reply.code for reply in await bench.data(b"x" * 30_000 + b"\r\n")]
    assert bench.keeper.taken == []


async def test_half_refused_on_smtp_keeps_the_refused_as_dead_letters(bench: Bench) -> None:
    """The one reply will be 250, so what a sink refused is kept with its reason."""
    bench.courier.outcomes = {"held2@x.org": Rejected("too odd")}
    bench.rcpt("held@x.org")
    bench.rcpt("held2@x.org")
    assert [250, 554] == [reply.code for reply in await bench.data()]
    ((mail, slots, why),) = bench.keeper.buried
    assert (["held2@x.org"], [Slot(0, "kafka", True)], ["too odd"]) == ([r.address for r in mail.recipients], list(slots), list(why))


async def test_half_refused_and_wanted_again_buries_nothing(bench: Bench) -> None:
    """The one reply will be 451: the sender comes again for all, so nothing is lost and nothing kept."""
    bench.courier.outcomes = {"held2@x.org": Rejected("too odd"), "held3@x.org": Retry("later")}
    for name in ("held", "held2", "held3"):
        bench.rcpt(f"{name}@x.org")
    said = await bench.data()
    assert ([250, 554, 451], 451) == ([reply.code for reply in said], replies.fold(said).code)
    assert [] == bench.keeper.buried


async def test_only_what_was_refused_is_buried(bench: Bench) -> None:
    """A sink that has the event already is owed nothing."""
    for name in ("pair", "pair2"):
        bench.rcpt(f"{name}@x.org")
    bench.courier.outcomes = {"kafka": Sent(), "pair2@x.org": Rejected("no")}
    assert [250, 554] == [reply.code for reply in await bench.data()]
    ((mail, slots, why),) = bench.keeper.buried
    assert (["pair2@x.org"], ["hook"], ["no"]) == ([r.address for r in mail.recipients], [slot.sink for slot in slots], list(why))


async def test_half_refused_without_a_place_for_dead_letters_is_asked_for_again(bench: Bench) -> None:
    """Nothing is lost: the whole message is wanted again, and its events are recognisable."""
    bench.courier.outcomes = {"held2@x.org": Rejected("too odd")}
    bench.rcpt("held@x.org")
    bench.rcpt("held2@x.org")
    bench.keeper.fault = SpoolFailed("x")
    assert [250, 451] == [reply.code for reply in await bench.data()]


async def test_the_budget_is_given_back(bench: Bench) -> None:
    """While one message is held the next waits its turn, and afterwards there is room again."""
    bench.courier.waiting = asyncio.Event()
    bench.rcpt("held@x.org")
    first = asyncio.create_task(bench.data(b"x" * 9_000))
    while not bench.handler.in_flight_octets:
        await asyncio.sleep(0)
    other = Bench()
    other.handler = bench.handler
    other.mail()
    other.rcpt("held@x.org")
    assert [452] == [reply.code for reply in await other.data(b"x" * 2_000)]
    bench.courier.waiting.set()
    await first
    assert bench.handler.in_flight_octets == 0


def test_a_unix_peer_has_no_address() -> None:
    """On a Unix socket there is no IP to write down."""
    bench = Bench()
    bench.session.peer = ""
    client: Any = intake._client(bench.session, bench.envelope)
    assert ("", 0) == (client.ip, client.port)


def test_a_client_behind_a_proxy_is_the_one_it_speaks_for() -> None:
    """What PROXY header, XCLIENT and XFORWARD said is in the record; without them it says none of it."""
    bench = Bench()
    assert intake._client(bench.session, bench.envelope) == Client("192.0.2.7", 4711, "client.test")
    bench.session.proxy_peer, bench.session.peer_host = ("10.0.0.1", 1), "mail.test"
    bench.envelope.xforward = {"ADDR": "203.0.113.1", "NAME": None}
    known = intake._client(bench.session, bench.envelope)
    assert known == Client("192.0.2.7", 4711, "client.test", "mail.test", via_proxy=True, forwarded={"ADDR": "203.0.113.1", "NAME": None})


RECEIVED = b"Received: from a by b;\r\n\tThu, 1 Jan 2026 00:00:00 +0000\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param(b"Subject: x\r\n\r\n", 0, id="none"),
        pytest.param(RECEIVED + b"\r\n", 1, id="first field"),
        pytest.param(b"RECEIVED: a\r\nreceived: b\r\n\r\n", 2, id="whatever the case"),
        pytest.param(b"Subject: x\r\n\r\n" + RECEIVED * 5, 0, id="in the body"),
        pytest.param(b"X-Received: a\r\nSubject: Received: b\r\n\r\n", 0, id="only alike"),
        pytest.param(RECEIVED * 3, 3, id="no body"),
        pytest.param(RECEIVED.replace(b"\r\n", b"\n") * 3 + b"\n" + RECEIVED, 3, id="bare LF"),
        pytest.param(RECEIVED.replace(b"\r\n", b"\r") * 3 + b"\r" + RECEIVED, 3, id="bare CR"),
        pytest.param(RECEIVED + RECEIVED.replace(b"\r\n", b"\n") + b"\r\n" + RECEIVED, 2, id="some bare LF"),
    ],
)
def test_hops_are_received_fields(head: bytes, expected: int) -> None:
    """Only fields of the header block count, also for the quick look that most mail gets instead."""
    octets = head + b"text\r\n"
    assert expected == intake.hops(octets)
    assert [True, False] == [intake.loops(octets, hops_max) for hops_max in (expected - 1, expected)]


@pytest.mark.parametrize("field_octets", [10, 1000, 5000], ids=["in one read", "in some reads", "beyond what is looked at"])
def test_of_a_spilled_message_only_the_header_block_is_read(field_octets: int, tmp_path: Path) -> None:
    """And no more than a bound of it."""
    path = tmp_path / "spilled"
    field = b"Received: " + b"x" * field_octets + b"\r\n"
    path.write_bytes(field * 100 + b"\r\n" + b"Received: text\r\n" * 100_000)
    head = intake._beginning(path)
    assert len(head) <= min(len(field) * 100 + 2 + intake.HEAD_STEP_OCTETS, intake.HEAD_MAX_OCTETS)
    assert intake.hops(head) == min(100, intake.HEAD_MAX_OCTETS // len(field) + 1)


@pytest.mark.parametrize(("count", "code"), [(100, 250), (101, 554)])
@pytest.mark.parametrize("spilled", [False, True], ids=["in memory", "spilled"])
async def test_a_looping_message_is_refused(bench: Bench, count: int, code: int, spilled: bool, tmp_path: Path) -> None:
    """More than 100 hops: 554 5.4.6, so that the sender learns of the loop instead of feeding it."""
    bench.rcpt("orders@x.org")
    octets = RECEIVED * count + b"Subject: x\r\n\r\nround and round\r\n"
    if spilled:
        path = tmp_path / "spilled"
        path.write_bytes(octets)
        bench.envelope.body = Body(None, path=path, size_octets=len(octets), digest="0" * 64)
        said = await bench.handler.handle_DATA(bench, bench.session, bench.envelope)
    else:
        said = await bench.data(octets)
    assert [code] == [reply.code for reply in said]
    assert (code == 250) == bool(bench.keeper.taken)


@pytest.mark.parametrize(("all_tls", "expected"), [(True, replies.SENDER_OK), (False, intake.NOT_BY_TLS)])
def test_requiretls_is_taken_only_while_it_can_be_kept(all_tls: bool, expected: Reply) -> None:
    """A reload may have brought a sink in plain text since the greeting: 451, so that the sender greets again (RFC 8689)."""
    bench = Bench()
    bench.all_tls = all_tls
    assert expected == bench.mail(REQUIRETLS=None)
    assert Bench().mail(SIZE="1") == replies.SENDER_OK


async def test_the_load_is_the_share_of_memory_in_use() -> None:
    """While the sinks take their time."""
    bench = Bench(in_flight_max_octets=1000)
    bench.mail()
    bench.rcpt("held@x.org")
    bench.courier.waiting = asyncio.Event()
    assert bench.handler.load == 0
    sending = asyncio.create_task(bench.data(b"x" * 500))
    while not bench.handler.load:
        await asyncio.sleep(0)
    assert bench.handler.load == 0.5
    bench.courier.waiting.set()
    assert [250] == [reply.code for reply in await sending]
    assert bench.handler.load == 0
