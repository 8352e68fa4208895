"""Delivery while the sender waits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from postbus.bridge import hold
from postbus.bridge.budget import Budget
from postbus.bridge.hold import Courier
from postbus.bridge.outcomes import Unfit
from postbus.bridge.renderer import Renderer
from postbus.event.model import Event
from postbus.sinks import Outcome, Rejected, Retry, Sent
from tests.bridge.fake_sinks import FakeParser, FakeSink
from tests.bridge.mails import in_memory, mail, recipient, spilled, until

CONTENT = b"Subject: hello\r\n\r\nworld\r\n"


def courier(*sinks: FakeSink) -> Courier:
    """Return a courier to *sinks*."""
    known = {sink.name: sink for sink in sinks}
    return Courier(lambda: known, Renderer(FakeParser()))


def plenty() -> Budget:
    """Return memory enough for anything."""
    return Budget(1 << 30)


async def test_one_sink() -> None:
    """The outcome is the sink's."""
    sink = FakeSink()
    assert [{"out": Sent("m-0")}] == await courier(sink).deliver_now(mail("m", CONTENT), in_memory(CONTENT), 5, plenty())
    assert [CONTENT] == [event.data for event in sink.events]


async def test_a_body_in_a_file(tmp_path: Path) -> None:
    """A spilled body is read off the loop."""
    sink = FakeSink()
    await courier(sink).deliver_now(mail("m", CONTENT), spilled(tmp_path, CONTENT), 5, plenty())
    assert [CONTENT] == [event.data for event in sink.events]


async def test_recipients_have_fates_of_their_own() -> None:
    """One outcome per recipient, in order, whatever the sinks' order."""
    first = FakeSink("first", answer=lambda event: Rejected("no") if event.id == "b" else Sent("1"))
    second = FakeSink("second", answer=lambda event: Retry("down") if event.id == "c" else Sent("2"))
    both = ("first", "second")
    people = [recipient(name, index=index, sinks=both) for index, name in enumerate("abc")]
    outcomes = await courier(first, second).deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 5, plenty())
    assert [
        {"first": Sent("1"), "second": Sent("2")},
        {"first": Rejected("no"), "second": Sent("2")},
        {"first": Sent("1"), "second": Retry("down")},
    ] == outcomes


async def test_deadline() -> None:
    """A sink that does not answer in time is a Retry; the others' answers count."""
    slow, quick = FakeSink("slow", gate=asyncio.Event()), FakeSink("quick")
    people = [recipient("a", sinks=("slow",)), recipient("b", index=1, sinks=("quick",))]
    outcomes = await courier(slow, quick).deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 0.05, plenty())
    assert [{"slow": Retry("no answer within the deadline")}, {"quick": Sent("b")}] == outcomes
    assert 0 == slow.in_flight


async def test_faults_of_ours_are_retries() -> None:
    """A sink that raises, or is not configured, never answers 2xx or 5xx."""

    def crash(_: Event) -> Outcome:
        raise ZeroDivisionError

    people = [recipient("a", sinks=("out",)), recipient("b", index=1, sinks=("gone",))]
    outcomes = await courier(FakeSink(answer=crash)).deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 5, plenty())
    assert [
        {"out": Retry("failed in postbus: ZeroDivisionError", sink_down=False)},
        {"gone": Retry("sink 'gone' is not in the configuration")},
    ] == outcomes


async def test_events_are_sent_within_the_memory_there_is() -> None:
    """Recipients whose events find no place there at once are served one after the other, and what was taken is given back."""
    content, memory = b"x" * 30_000, Budget(200_000)
    sink = FakeSink(concurrency=99, octets=False, gate=asyncio.Event())
    people = [recipient(f"r{number}", index=number) for number in range(20)]
    delivery = asyncio.create_task(courier(sink).deliver_now(mail("m", content, *people), in_memory(content), 5, memory))
    await until(lambda: sink.in_flight == 2)
    assert 180_000 == memory.used_octets
    assert sink.gate is not None
    sink.gate.set()
    assert [{"out": Sent(person.event_id)} for person in people] == await delivery
    assert (2, 0) == (sink.in_flight_max, memory.used_octets)


async def test_no_memory_until_the_deadline() -> None:
    """A fault of ours: the sender comes again."""
    memory = Budget(10)
    await memory.take(10)
    ((outcome,),) = [each.values() for each in await courier(FakeSink()).deliver_now(mail("m", CONTENT), in_memory(CONTENT), 0.01, memory)]
    assert isinstance(outcome, Retry)
    assert (False, 10) == (outcome.sink_down, memory.used_octets)


async def test_a_moments_trouble_of_the_parser() -> None:
    """Not the mail's fault: the sender comes again, and then the event is whole."""
    known = {"out": FakeSink()}
    one = Courier(lambda: known, Renderer(FakeParser(troubles=1)))
    record = mail("m", CONTENT, recipient("a", mode="parsed"))
    assert [{"out": Retry("fake trouble", sink_down=False)}] == await one.deliver_now(record, in_memory(CONTENT), 5, plenty())
    assert [{"out": Sent("a")}] == await one.deliver_now(record, in_memory(CONTENT), 5, plenty())


async def test_what_no_event_can_hold_is_never_sent() -> None:
    """It cannot be parsed, and is too large for its sinks as it is."""
    sink, content = FakeSink(), b"x" * 200_000
    record = mail("m", content, replace(recipient("a", mode="parsed"), event_max_octets=100_000))
    ((outcome,),) = [each.values() for each in await courier(sink).deliver_now(record, in_memory(content), 5, plenty())]
    assert (True, []) == (isinstance(outcome, Unfit), sink.ids)


async def test_a_sink_that_answers_nonsense() -> None:
    """A mistake of a sink's is a 451 too."""
    sink = FakeSink(answer=lambda _: None)  # type: ignore[arg-type, return-value]
    expected = Retry("failed in postbus: TypeError", sink_down=False)
    assert [{"out": expected}] == await courier(sink).deliver_now(mail("m", CONTENT), in_memory(CONTENT), 5, plenty())


async def test_best_effort_is_bounded_by_memory() -> None:
    """What a slow best-effort sink holds leaves half of the memory to those whose senders wait; the rest is dropped."""
    extra, memory = FakeSink("extra", gate=asyncio.Event()), Budget(20 * len(CONTENT))
    one = courier(FakeSink(), extra)
    for name in "abc":
        record = mail(name, CONTENT, recipient(name, best_effort=("extra", "extra")))
        assert [{"out": Sent(name)}] == await one.deliver_now(record, in_memory(CONTENT), 5, memory)
    await until(lambda: extra.in_flight == 3)
    assert 3 * 3 * len(CONTENT) == memory.used_octets
    assert extra.gate is not None
    extra.gate.set()
    await one.drain(5)
    assert (["a", "a", "b"], 0) == (extra.ids, memory.used_octets)


async def test_best_effort_gets_one_attempt_and_nobody_waits() -> None:
    """A best-effort sink is tried once the required ones have the event, and holds nobody up."""
    extra = FakeSink("extra", gate=asyncio.Event(), answer=lambda _: Retry("down"))
    required = FakeSink(answer=lambda event: Sent() if event.id == "a" else Retry("down"))
    people = [recipient(name, index=index, best_effort=("extra",)) for index, name in enumerate("ab")]
    one = courier(required, extra)
    assert [{"out": Sent()}, {"out": Retry("down")}] == await one.deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 5, plenty())
    await until(lambda: extra.in_flight)
    assert extra.gate is not None
    extra.gate.set()
    await one.drain(5)
    assert ["a"] == extra.ids


async def test_best_effort_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many best-effort sends under way are dropped; a drain ends those that hang."""
    monkeypatch.setattr(hold, "BACKGROUND_MAX", 1)
    extra = FakeSink("extra", gate=asyncio.Event())
    one = courier(FakeSink(), extra)
    record = mail("m", CONTENT, recipient("a", best_effort=("extra", "extra")))
    await one.deliver_now(record, in_memory(CONTENT), 5, plenty())
    await until(lambda: extra.in_flight)
    await one.drain(0.01)
    assert (["a"], 0) == (extra.ids, extra.in_flight)
    await one.drain(0)


def test_down() -> None:
    """A sink that is known to be away, or not configured, is named."""
    one = courier(FakeSink("up"), FakeSink("away", ok=False))
    assert (None, "away", "gone") == (one.down(["up"]), one.down(["up", "away"]), one.down(["up", "gone"]))


async def test_a_sink_that_has_only_begun_is_not_known_to_be_away() -> None:
    """Mail that comes with the start is not refused: ``send`` waits for the end of the first attempt."""
    begun = FakeSink("begun", ok=False, beginning=True, gate=asyncio.Event())
    one = courier(begun)
    assert one.down(["begun"]) is None
    delivery = asyncio.create_task(one.deliver_now(mail("m", CONTENT, recipient("a", sinks=("begun",))), in_memory(CONTENT), 5, plenty()))
    await until(lambda: begun.in_flight)
    assert one.down(["begun"]) is None
    assert begun.gate is not None
    begun.gate.set()
    assert [{"begun": Sent("a")}] == await delivery
    begun.beginning = False
    assert "begun" == one.down(["begun"])


async def test_a_sink_in_trouble_is_tried_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while one mail is let through, since nothing else would find out that the sink works again; others wait for its outcome."""
    away = FakeSink("away", ok=False, gate=asyncio.Event())
    one = courier(away)
    assert "away" == one.down(["away"])
    monkeypatch.setattr(hold, "PROBE_INTERVAL_S", 0.0)
    assert one.down(["away"]) is None
    probe = asyncio.get_running_loop().create_task(
        one.deliver_now(mail("m", CONTENT, recipient("a", sinks=("away",))), in_memory(CONTENT), 5, plenty())
    )
    await until(lambda: away.in_flight)
    assert "away" == one.down(["away"])
    assert away.gate is not None
    away.gate.set()
    assert [{"away": Sent("a")}] == await probe
    assert one.down(["away"]) is None
