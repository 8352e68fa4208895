"""What every sink promises whoever uses it, asked of each against its real far side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from postbus.event.model import Event
from postbus.sinks import Rejected, Retry, Sent, Sink, registry
from postbus.sinks.settings import FileSettings, KafkaSettings, WebhookSettings
from tests.brokers import Kafka
from tests.sinks import receivers
from tests.sinks.samples import raw_sample, sample

KINDS = [pytest.param("kafka", marks=pytest.mark.kafka), "webhook", "file"]


@dataclass
class Far:
    """A far side that can be taken away and brought back, how sinks towards it are made, and one, started."""

    make: Callable[[], Sink]
    leave: Callable[[], Awaitable[None]]
    come_back: Callable[[], Awaitable[None]]
    sink: Sink = field(init=False)

    def __post_init__(self) -> None:
        """Make the sink."""
        self.sink = self.make()


@asynccontextmanager
async def far_kafka(kafka: Kafka) -> AsyncIterator[Far]:
    """A topic; the broker is stopped and started."""
    kafka.require_ours()
    settings = KafkaSettings(
        kind="kafka", bootstrap=(kafka.bootstrap,), topic=await kafka.create_topic(), request_timeout_s=1.5, send_timeout_s=4
    )

    async def leave() -> None:
        await asyncio.to_thread(kafka.stop)

    async def come_back() -> None:
        await asyncio.to_thread(kafka.start)

    yield Far(lambda: registry.make("far", settings), leave, come_back)


@asynccontextmanager
async def far_webhook() -> AsyncIterator[Far]:
    """A receiver; another one takes its port when it comes back."""
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        receiver = await first.enter_async_context(receivers.receiving(receivers.status(200)))
        settings = WebhookSettings(kind="webhook", url=receiver.url, timeout_s=4, event_max_octets=1_000_000)

        async def come_back() -> None:
            await stack.enter_async_context(receivers.receiving(receivers.status(200), port=receiver.port))

        stack.push_async_callback(first.aclose)
        yield Far(lambda: registry.make("far", settings), first.aclose, come_back)


@asynccontextmanager
async def far_file(folder: Path) -> AsyncIterator[Far]:
    """A file; its folder is moved away and brought back."""
    home, elsewhere = folder / "home", folder / "elsewhere"
    home.mkdir()
    settings = FileSettings(kind="file", path=str(home / "events.jsonl"), event_max_octets=1_000_000)

    async def leave() -> None:
        home.rename(elsewhere)

    async def come_back() -> None:
        elsewhere.rename(home)

    yield Far(lambda: registry.make("far", settings), leave, come_back)


@pytest.fixture(params=KINDS)
async def far(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Far]:
    """Each kind of sink, started."""
    makers: dict[str, Callable[[], AbstractAsyncContextManager[Far]]] = {
        "kafka": lambda: far_kafka(request.getfixturevalue("kafka")),
        "webhook": far_webhook,
        "file": lambda: far_file(tmp_path),
    }
    async with makers[request.param]() as found:
        await found.sink.start()
        yield found
        await found.sink.stop(3)


async def test_an_event_is_sent(far: Far) -> None:
    """With the far side there, one attempt is enough, and health says so."""
    assert isinstance(await far.sink.send(sample()), Sent)
    assert far.sink.health().ok
    assert far.sink.name == "far"


async def test_a_raw_event_is_sent(far: Far) -> None:
    """Octets of any value are carried, whether wanted as octets or not."""
    assert isinstance(await far.sink.send(raw_sample(bytes(range(256)))), Sent)


async def test_as_many_as_it_asks_for_are_sent_at_once(far: Far) -> None:
    """``concurrency`` sends in flight all end well."""
    outcomes = await asyncio.gather(*(far.sink.send(sample()) for _ in range(far.sink.concurrency)))
    assert {type(outcome) for outcome in outcomes} == {Sent}


async def test_the_far_side_goes_and_comes_back(far: Far) -> None:
    """While it is away: a retry of the whole sink, in bounded time, and health says no. Back again: sent, by the same sink."""
    assert isinstance(await far.sink.send(sample()), Sent)
    await far.leave()
    event = sample()
    async with asyncio.timeout(6):
        outcome = await far.sink.send(event)
    assert isinstance(outcome, Retry)
    assert outcome.sink_down
    assert not far.sink.health().ok
    await far.come_back()
    await _until_sent(far.sink, event)
    assert far.sink.health().ok


async def test_a_sink_starts_while_the_far_side_is_away(far: Far) -> None:
    """Starting does not fail; events are retries until it is there."""
    await far.leave()
    sink = far.make()
    await sink.start()
    event = sample()
    assert isinstance(await sink.send(event), Retry)
    await far.come_back()
    await _until_sent(sink, event)
    await sink.stop(3)


async def test_what_is_too_large_is_rejected(far: Far) -> None:
    """An event beyond ``event_max_octets`` by far is no retry, and the next one passes."""
    assert isinstance(await far.sink.send(sample(octets=2_000_000)), Rejected)
    assert isinstance(await far.sink.send(sample()), Sent)


async def test_a_stopped_sink_sends_no_more(far: Far) -> None:
    """Stop returns in time, twice over, and what comes later is a retry."""
    assert isinstance(await far.sink.send(sample()), Sent)
    async with asyncio.timeout(4):
        await far.sink.stop(3)
        await far.sink.stop(3)
    assert isinstance(await far.sink.send(sample()), Retry)


async def test_a_cancelled_send_leaves_the_sink_well(far: Far) -> None:
    """Whoever waits may go; the next event passes."""
    sending = asyncio.create_task(far.sink.send(sample()))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert isinstance(await far.sink.send(sample()), Sent)


async def test_stop_while_the_far_side_is_away_is_bounded(far: Far) -> None:
    """Nothing is waited for that cannot come."""
    await far.leave()
    sending = asyncio.create_task(far.sink.send(sample()))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await far.sink.stop(1)
        assert isinstance(await sending, Retry)
    await far.come_back()


async def _until_sent(sink: Sink, event: Event) -> None:
    """Send *event* as a dispatcher does, until it is sent."""
    async with asyncio.timeout(20):
        while not isinstance(await sink.send(event), Sent):
            await asyncio.sleep(0)
