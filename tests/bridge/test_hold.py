"""Delivery while the sender waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from postbus.bridge import hold
from postbus.bridge.hold import Courier, fold
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


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([Sent("a")], Sent("a"), id="one"),
        pytest.param([Sent("a"), Sent("b")], Sent("a; b"), id="all"),
        pytest.param([Sent(), Rejected("no"), Retry("later")], Retry("later"), id="retry wins"),
        pytest.param([Sent(), Rejected("no"), Rejected("never")], Rejected("no"), id="rejected before sent"),
        pytest.param([], Sent(), id="nothing required"),
    ],
)
def test_fold(outcomes: list[Outcome], expected: Outcome) -> None:
    """The least good outcome speaks for all."""
    assert expected == fold(outcomes)


async def test_one_sink() -> None:
    """The outcome is the sink's."""
    sink = FakeSink()
    assert [Sent("m-0")] == await courier(sink).deliver_now(mail("m", CONTENT), in_memory(CONTENT), 5)
    assert [CONTENT] == [event.data for event in sink.events]


async def test_a_body_in_a_file(tmp_path: Path) -> None:
    """A spilled body is read off the loop."""
    sink = FakeSink()
    await courier(sink).deliver_now(mail("m", CONTENT), spilled(tmp_path, CONTENT), 5)
    assert [CONTENT] == [event.data for event in sink.events]


async def test_recipients_have_fates_of_their_own() -> None:
    """One outcome per recipient, in order, whatever the sinks' order."""
    first = FakeSink("first", answer=lambda event: Rejected("no") if event.id == "b" else Sent("1"))
    second = FakeSink("second", answer=lambda event: Retry("down") if event.id == "c" else Sent("2"))
    both = ("first", "second")
    people = [recipient(name, index=index, sinks=both) for index, name in enumerate("abc")]
    outcomes = await courier(first, second).deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 5)
    assert [Sent("1; 2"), Rejected("no"), Retry("down")] == outcomes


async def test_deadline() -> None:
    """A sink that does not answer in time is a Retry; the others' answers count."""
    slow, quick = FakeSink("slow", gate=asyncio.Event()), FakeSink("quick")
    people = [recipient("a", sinks=("slow",)), recipient("b", index=1, sinks=("quick",))]
    outcomes = await courier(slow, quick).deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 0.05)
    assert [Retry("no answer within the deadline"), Sent("b")] == outcomes
    assert 0 == slow.in_flight


async def test_faults_of_ours_are_retries() -> None:
    """A sink that raises, or is not configured, never answers 2xx or 5xx."""

    def crash(_: Event) -> Outcome:
        raise ZeroDivisionError

    people = [recipient("a", sinks=("out",)), recipient("b", index=1, sinks=("gone",))]
    outcomes = await courier(FakeSink(answer=crash)).deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 5)
    assert [Retry("failed in postbus: ZeroDivisionError", sink_down=False), Retry("sink 'gone' is not in the configuration")] == outcomes


async def test_best_effort_gets_one_attempt_and_nobody_waits() -> None:
    """A best-effort sink is tried once the required ones have the event, and holds nobody up."""
    extra = FakeSink("extra", gate=asyncio.Event(), answer=lambda _: Retry("down"))
    required = FakeSink(answer=lambda event: Sent() if event.id == "a" else Retry("down"))
    people = [recipient(name, index=index, best_effort=("extra",)) for index, name in enumerate("ab")]
    one = courier(required, extra)
    assert [Sent(), Retry("down")] == await one.deliver_now(mail("m", CONTENT, *people), in_memory(CONTENT), 5)
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
    await one.deliver_now(record, in_memory(CONTENT), 5)
    await until(lambda: extra.in_flight)
    await one.drain(0.01)
    assert (["a"], 0) == (extra.ids, extra.in_flight)
    await one.drain(0)


def test_down() -> None:
    """A sink that is known to be away, or not configured, is named."""
    one = courier(FakeSink("up"), FakeSink("away", ok=False))
    assert (None, "away", "gone") == (one.down(["up"]), one.down(["up", "away"]), one.down(["up", "gone"]))


async def test_a_sink_in_trouble_is_tried_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while one mail is let through, since nothing else would find out that the sink works again; others wait for its outcome."""
    away = FakeSink("away", ok=False, gate=asyncio.Event())
    one = courier(away)
    assert "away" == one.down(["away"])
    monkeypatch.setattr(hold, "PROBE_INTERVAL_S", 0.0)
    assert one.down(["away"]) is None
    probe = asyncio.get_running_loop().create_task(
        one.deliver_now(mail("m", CONTENT, recipient("a", sinks=("away",))), in_memory(CONTENT), 5)
    )
    await until(lambda: away.in_flight)
    assert "away" == one.down(["away"])
    assert away.gate is not None
    away.gate.set()
    assert [Sent("a")] == await probe
    assert one.down(["away"]) is None
