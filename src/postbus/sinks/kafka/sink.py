r"""The Kafka sink and the supervisor of its client.

A record that aiokafka has taken is *held* until its future is done, and aiokafka has no way to take it back: a deadline of ours
ends the waiting, not the record. Sending the same event again while an earlier copy is held would put it on the topic twice for
every deadline that passes. Hence the rule: **an event whose record is held is never handed over again**. Its next attempt waits
for that record; and a client that holds one for longer than any answer can take is discarded, which fails its records, and made
anew. With idempotence off, batches expire after ``request_timeout_s`` plus one request, below ``send_timeout_s``, so that held
records normally are settled by the attempt that sent them.

    connecting --> up --> (fatal error | a record stuck) --> discarded --> connecting
         \--> (no broker, no topic, no password) --> pause --> connecting
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Coroutine

from aiokafka import AIOKafkaProducer, errors

from postbus import telemetry
from postbus.event.cloudevents import kafka_binary, kafka_structured
from postbus.event.model import EVENT_RESERVE_OCTETS, Event
from postbus.sinks import Health, Outcome, Rejected, Retry, Sent
from postbus.sinks.budget import Budget, weight_of
from postbus.sinks.deadlines import Deadlines
from postbus.sinks.kafka.connection import Topic, describe, discard, knock, open_producer, options
from postbus.sinks.kafka.eager import Rest, begin
from postbus.sinks.kafka.outcomes import TopicTooSmallError, meaning_of, outcome_of
from postbus.sinks.settings import KafkaSettings, SecretMissingError
from postbus.sinks.turns import Turns

ATTRIBUTES_MAX_OCTETS = 16 * 1024
"""Left of a record for key, attributes, envelope (8 KiB) and framing (82): an event may be this much smaller than a record."""
RECORD_MIN_OCTETS = ATTRIBUTES_MAX_OCTETS + EVENT_RESERVE_OCTETS
"""A topic that takes less would lose mail for an operator's slip: it is trouble of the sink, not of the events."""
RECORD_SMALL_OCTETS = 64 * 1024
"""A topic that takes less is warned of: most mail will be cut or refused."""
LEARNT_SHARE = 7 / 8
"""Of a refused size this share is thought to pass, where the cluster does not tell its limit."""
DOUBT_S = 600.0
"""How long what refusals taught is believed; then the cluster is asked again and records share batches again."""
BATCH_ALONE_OCTETS = 1
"""A batch takes its first record whatever its size: with this limit every record is a batch of its own."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.2, 5.0
"""Between attempts to connect; each twice as long as the last, with jitter, so that a fleet does not return as one."""
BEGINNING_MAX_S = 2.0
"""What comes with the start waits for a broker that is quick to answer; of one that is not, senders are told at RCPT."""
WATCH_S = 1.0
"""How often held records are looked at."""
DISCARD_TIMEOUT_S = 2.0
RESOLVE_SLACK_S = 2.0
"""Beyond two request timeouts no live client holds a record: a batch expires after one and its last request takes another."""


class Held:
    """A record of about *octets* that aiokafka has and whose fate is open until *future* is done; *alone*: it has its batch to itself.

    *waiters* are told when it is done: who waits may be cancelled, the record's own future may not, or nobody knows its fate. Made for
    every event, so its constructor is compiled, as a dataclass' own is not.
    """

    __slots__ = ("alone", "future", "octets", "since_s", "topic", "waiters")

    def __init__(self, future: asyncio.Future[object], topic: str, octets: int, *, alone: bool) -> None:
        self.future = future
        self.since_s = time.monotonic()
        self.topic = topic
        self.octets = octets
        self.alone = alone
        self.waiters: list[asyncio.Future[None]] = []


class KafkaSink:
    """Publishes events to Kafka; see ``postbus.sinks.Sink``."""

    kind = "kafka"
    durable = True

    def __init__(self, name: str, settings: KafkaSettings) -> None:
        self.name = name
        self.secure = settings.tls is not None
        self.octets = settings.mode == "binary"
        self.event_max_octets = settings.max_request_octets - ATTRIBUTES_MAX_OCTETS
        self.concurrency = settings.concurrency
        self._settings = settings
        self._encode = kafka_binary if settings.mode == "binary" else kafka_structured
        self._budget = Budget(settings.in_flight_max_octets)
        self._held: dict[str, Held] = {}
        self._turns = Turns()
        self._deadlines = Deadlines()
        self._producer: AIOKafkaProducer | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._discarding: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()
        self._begun_s = 0.0
        self._condemned = asyncio.Event()
        self._trouble: str | None = "connecting"
        self._warnings: tuple[str, ...] = ()
        self._learnt_octets = settings.max_request_octets
        self._doubt_until_s: float | None = None
        self._stopping = False

    # --- the contract

    async def start(self) -> None:
        """Begin to connect, in the background."""
        telemetry.library_quieted(logger="aiokafka")
        self._begun_s = time.monotonic()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"sink {self.name}")

    async def send(self, event: Event) -> Outcome:
        """Publish *event* and wait for its acknowledgement, at most ``send_timeout_s``."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._settings.send_timeout_s
        held = self._held.get(event.id)
        if held is None:
            found = await self._hand_over(event, deadline_s)
            if not isinstance(found, Held):
                return found
            held = found
        if not held.future.done():
            waiter = loop.create_future()
            held.waiters.append(waiter)
            try:
                with self._deadlines.until(deadline_s):
                    await waiter
            except TimeoutError:
                if not held.future.done():  # else both came in one turn of the loop: sent again, it would be on the topic twice
                    self._trouble = "the broker does not acknowledge"
                    return Retry(f"no acknowledgement within {self._settings.send_timeout_s:g} s; the record may still arrive")
        return self._settled(held)

    async def stop(self, timeout_s: float) -> None:
        """Wait for what is held, at most *timeout_s*, then close; what is not acknowledged by then is failed."""
        self._stopping = True
        waiting = [held.future for held in self._held.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=max(0.0, timeout_s - DISCARD_TIMEOUT_S))
        self._condemned.set()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait((self._supervisor,), timeout=DISCARD_TIMEOUT_S)
        if self._discarding is not None:
            await asyncio.wait((self._discarding,), timeout=DISCARD_TIMEOUT_S)

    def health(self) -> Health:
        """Return whether records are acknowledged, and what is wrong with where they rest."""
        parts = (self._trouble or "connected", *self._warnings)
        return Health(ok=self._trouble is None, detail="; ".join(parts), beginning=self._beginning)

    @property
    def _beginning(self) -> bool:
        return not self._attempted.is_set() and time.monotonic() < self._begun_s + BEGINNING_MAX_S

    # --- one event

    async def _hand_over(self, event: Event, deadline_s: float) -> Held | Outcome:
        """Give *event* to the client; the record is held from then on, unless the client refuses it at once.

        One at a time for each key, since aiokafka lets a small record overtake one that waits for room. Mostly nobody has to wait.
        """
        octets, key = weight_of(event), event.partitionkey
        if not self._attempted.is_set():  # mail that comes with the start is not refused for a race
            await _within(deadline_s, self._attempted.wait())
        if not self._turns.awaited(key) and self._budget.try_take(octets):
            return await self._taken(event, octets, deadline_s)
        place = self._turns.enter(key)
        try:
            if place.waits and not await _within(deadline_s, place.reached()):
                return Retry("what came before it could not be handed over in time")
            if not await self._budget.take(octets, deadline_s - asyncio.get_running_loop().time()):
                return Retry(f"{self._budget.used_octets} octets are in flight already")
            return await self._taken(event, octets, deadline_s)
        finally:
            place.leave()

    async def _taken(self, event: Event, octets: int, deadline_s: float) -> Held | Outcome:
        """Give *event* to the client there is, its *octets* being taken from the budget. Cancelled meanwhile, nothing is sent."""
        found: Held | Outcome | None = None
        try:
            found = await self._sent(event, octets, deadline_s)
        finally:
            if not isinstance(found, Held):  # else it gives them back once it is settled
                self._budget.give(octets)
        return found

    async def _sent(self, event: Event, octets: int, deadline_s: float) -> Held | Outcome:
        producer = self._producer
        if producer is None or self._stopping:
            return Retry("stopping" if self._stopping else self._trouble or "connecting")
        key, value, headers = self._encode(event)
        topic, alone = self._topic(event), self._doubt_until_s is not None
        try:
            future = begin(producer.send(topic, value, key=key, headers=headers))
            if isinstance(future, Rest):
                future = await self._rest_of(future, event.partitionkey, deadline_s)
        except (errors.KafkaError, TimeoutError, OSError) as error:
            return self._failure(error, topic, alone=True)
        held = self._held[event.id] = Held(future, topic, octets, alone=alone)
        future.add_done_callback(lambda _: self._released(event.id, held))
        return held

    async def _rest_of(self, sending: Rest[asyncio.Future[object]], key: str, deadline_s: float) -> asyncio.Future[object]:
        """Wait until the client has room, or knows the topic; nobody of this key overtakes."""
        place = self._turns.enter(key)
        try:
            with self._deadlines.until(deadline_s):
                return await sending
        finally:
            place.leave()

    def _topic(self, event: Event) -> str:
        return self._settings.topics.get(event.route, self._settings.topic)

    def _settled(self, held: Held) -> Outcome:
        """Return the fate of a record that is known, and do what it calls for."""
        error = held.future.exception()
        if error is not None:
            outcome = self._failure(error, held.topic, alone=held.alone)
            if isinstance(outcome, Retry) and outcome.sink_down and not self._settings.topics:
                self._condemned.set()  # what the client holds behind this record must not overtake it
            if isinstance(outcome, Rejected) and outcome.too_large:
                self._learn(held.octets)
            return outcome
        self._trouble = None
        placed: object = held.future.result()
        return Sent(f"{held.topic}/{getattr(placed, 'partition', '?')}/{getattr(placed, 'offset', '?')}")

    def _learn(self, refused_octets: int) -> None:
        """The broker refused a record that its topic's limit, as far as it was told, allows: ask again, and say less meanwhile."""
        limit = max(RECORD_MIN_OCTETS, int(refused_octets * LEARNT_SHARE))
        if limit < self._learnt_octets:
            self._learnt_octets = limit
            self.event_max_octets = min(self.event_max_octets, limit - ATTRIBUTES_MAX_OCTETS)
            self._doubt_until_s = time.monotonic() + DOUBT_S
            self._condemned.set()
            telemetry.sink_limit_learnt(sink=self.name, octets=self.event_max_octets)

    def _released(self, event_id: str, held: Held) -> None:
        """Forget a record whose fate is known, and tell. Looks at its exception, so that none is reported as never retrieved."""
        self._held.pop(event_id, None)
        self._budget.give(held.octets)
        if not held.future.cancelled():
            held.future.exception()
        for waiter in held.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _failure(self, error: BaseException, topic: str, *, alone: bool) -> Retry | Rejected:
        """Return the outcome of *error*, and do for the client what it calls for. *alone*: no other record had a part in it."""
        meaning = meaning_of(error)
        outcome = outcome_of(error, alone=alone, topic_is_shared=not self._settings.topics)
        if meaning.too_large and not alone:
            # The broker refused a batch; whose fault it was shows when each record has a batch of its own.
            self._doubt_until_s = time.monotonic() + DOUBT_S
            self._condemned.set()
        if meaning.fatal:
            self._condemned.set()
        if isinstance(outcome, Retry) and outcome.sink_down:
            if self._trouble is None and not self._stopping:
                telemetry.sink_troubled(sink=self.name, why=meaning.why, error=repr(error))
            self._trouble = f"{meaning.why}: {topic}" if "topic" in meaning.why else meaning.why
        return outcome

    # --- the client's life

    async def _supervise(self) -> None:
        """Keep a client: connect, watch it, discard it when it is no good, and again; until stopped.

        Being cancelled is not enough to end: closing an aiokafka client swallows the cancellation of who closes it.
        """
        pause_s = PAUSE_MIN_S
        while not self._stopping:
            ended: BaseException | None = None
            try:
                self._producer = await self._connect()
                pause_s = PAUSE_MIN_S
                await self._watch()
            except (errors.KafkaError, SecretMissingError, OSError, RuntimeError) as error:
                self._not_connected(error)
            except Exception as error:  # noqa: BLE001 - the top of a task: whatever it is, the sink must come back
                self._not_connected(error, traceback.format_exc())
            except BaseException as error:  # noqa: BLE001 - raised below: compiled, a handler must not wait (pyproject.toml)
                ended = error
            await self._drop()
            self._attempted.set()
            if ended is not None:
                raise ended
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _connect(self) -> AIOKafkaProducer:
        """Return a working client of a cluster that has been asked what it promises."""
        async with asyncio.timeout(2 * self._settings.request_timeout_s):
            opts = await asyncio.to_thread(options, self._settings)
            await knock(self._settings, opts)
            topics = await describe(self._settings, opts, sorted({self._settings.topic, *self._settings.topics.values()}))
            record_max = self._weigh(topics)
            batch_max = BATCH_ALONE_OCTETS if self._doubt_until_s is not None else record_max
            producer = await open_producer(self._settings, opts, record_max, batch_max)
        missing = [topic.name for topic in topics if not topic.exists]
        self._trouble = f"the topic does not exist: {', '.join(missing)}" if missing else None
        telemetry.sink_connected(sink=self.name, missing_topics=",".join(missing) or None)
        self._condemned.clear()
        self._attempted.set()
        return producer

    def _weigh(self, topics: list[Topic]) -> int:
        """Take note of how safe records are on *topics*; return the largest record all of them take.

        Raises:
            TopicTooSmallError: no event is certain to fit into that.
        """
        warnings = []
        for topic in topics:
            if topic.copies_at_least == 1:
                telemetry.sink_single_copy(
                    sink=self.name, topic=topic.name, replication_factor=topic.replication, min_insync_replicas=topic.min_insync
                )
                warnings.append(f"{topic.name}: an acknowledged event may rest in one broker's memory (min.insync.replicas below 2)")
        limits = {topic.name: topic.message_max_octets for topic in topics if topic.message_max_octets is not None}
        warnings += [f"{name}: takes no record above {limit} octets" for name, limit in limits.items() if limit < RECORD_SMALL_OCTETS]
        self._warnings = tuple(warnings)
        record_max = min([self._learnt_octets, *limits.values()])
        if record_max < RECORD_MIN_OCTETS:
            raise TopicTooSmallError(f"{record_max} octets; at least {RECORD_MIN_OCTETS}")
        self.event_max_octets = record_max - ATTRIBUTES_MAX_OCTETS
        if record_max < RECORD_SMALL_OCTETS:
            telemetry.sink_limit_learnt(sink=self.name, octets=self.event_max_octets)
        return record_max

    async def _watch(self) -> None:
        """Return when the client must be made anew: it failed for good, or it holds a record that is past hope."""
        why = "fatal error"
        hopeless_s = max(2 * self._settings.request_timeout_s + RESOLVE_SLACK_S, self._settings.send_timeout_s)
        while not self._condemned.is_set():
            oldest_s = min((held.since_s for held in self._held.values()), default=None)
            if oldest_s is not None and time.monotonic() - oldest_s > hopeless_s:
                self._trouble = "a record was stuck in the client, which is made anew"
                break
            if self._doubt_until_s is not None and time.monotonic() > self._doubt_until_s:
                self._doubt_until_s, self._learnt_octets = None, self._settings.max_request_octets
                why = "the cluster's limits are asked for anew"
                break
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._condemned.wait()
            except TimeoutError:
                continue
        if not self._stopping:
            telemetry.sink_restarted(sink=self.name, why=self._trouble or why)

    async def _drop(self) -> None:
        """Discard the client, if there is one: its records are failed, and may then be sent by the next."""
        producer, self._producer = self._producer, None
        if producer is not None:
            # A task of its own, so that cancelling the supervisor does not leave a client half closed.
            self._discarding = asyncio.create_task(discard(producer, DISCARD_TIMEOUT_S), name=f"sink {self.name}: discard")
            await asyncio.shield(self._discarding)

    def _not_connected(self, error: BaseException, trace: str | None = None) -> None:
        """Remember, and say once, why there is no client."""
        why = meaning_of(error).why
        if why != self._trouble:
            telemetry.sink_troubled(sink=self.name, why=why, error=repr(error), traceback=trace)
        self._trouble = why


async def _within(deadline_s: float, wait: Coroutine[object, object, object]) -> bool:
    """Await *wait* until the deadline by the loop's clock; return whether it ended in time."""
    try:
        async with asyncio.timeout_at(deadline_s):
            await wait
    except TimeoutError:
        return False
    return True
