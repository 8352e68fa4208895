"""Mails become events: parsed once, rendered once per recipient and form."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postbus.bridge import renderer
from postbus.bridge.renderer import ParserUnavailableError, Renderer
from postbus.event.mail import Mail
from postbus.event.model import Event
from tests.bridge.fake_sinks import FakeParser
from tests.bridge.mails import mail, recipient

CONTENT = b"Subject: hello\r\n\r\nworld\r\n"


async def test_parsed_once_for_all() -> None:
    """Several recipients and sinks that ask at once share one parse; each asks for its event as often as it likes."""
    parser = FakeParser(gate=asyncio.Event())
    record = mail("m", CONTENT, recipient("a", mode="parsed"), recipient("b", index=1, mode="both"))
    rendering = Renderer(parser).open(record, CONTENT)
    waiting = asyncio.gather(*(rendering.event(index, as_octets=False) for index in (0, 1, 0)))
    await asyncio.sleep(0)
    assert parser.gate is not None
    parser.gate.set()
    events = await waiting
    assert ["a", "b", "a"] == [event.id for event in events]
    assert events[0] == await rendering.event(0, as_octets=False)
    assert [CONTENT] == parser.asked


async def test_raw_needs_no_parse() -> None:
    """A raw event is made from the octets, in the form the sink wants."""
    parser = FakeParser()
    rendering = Renderer(parser).open(mail("m", CONTENT, recipient("a")), CONTENT)
    assert CONTENT == (await rendering.event(0, as_octets=True)).data
    assert "application/json" == (await rendering.event(0, as_octets=False)).datacontenttype
    assert [] == parser.asked


async def test_a_retry_renders_the_same_bytes() -> None:
    """A moment's trouble of the parser makes no event, so whatever it was, the event is the one that would have been without it."""
    record = mail("m", CONTENT, recipient("a", mode="both"))
    troubled = Renderer(FakeParser(troubles=1)).open(record, CONTENT)
    with pytest.raises(ParserUnavailableError):
        await troubled.event(0, as_octets=False)
    assert await Renderer(FakeParser()).open(record, CONTENT).event(0, as_octets=False) == await troubled.event(0, as_octets=False)


async def test_no_event_outlives_its_send() -> None:
    """The events of many recipients of a large mail are not in memory together."""
    content = b"x" * 300_000
    people = [recipient(f"r{number}", index=number) for number in range(50)]
    rendering = Renderer(FakeParser()).open(mail("m", content, *people), content)
    tracemalloc.start()
    try:
        for index in range(len(people)):
            await rendering.event(index, as_octets=False)
        assert tracemalloc.get_traced_memory()[0] < 2 * len(content)
    finally:
        tracemalloc.stop()


async def test_large_mail_is_rendered_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it but its recipient; small mail is not worth the way."""
    large = b"x" * (renderer.RENDERED_HERE_MAX_OCTETS + 1)
    real = asyncio.to_thread
    sent_off: list[tuple[int, bool]] = []

    async def noting(job: Callable[..., Event], record: Mail, *rest: Any, **keys: Any) -> Event:
        def there() -> Event:
            sent_off.append((record.size_octets, threading.current_thread() is threading.main_thread()))
            return job(record, *rest, **keys)

        return await real(there)

    monkeypatch.setattr(asyncio, "to_thread", noting)
    for content in (CONTENT, large):
        await Renderer(FakeParser()).open(mail("m", content, recipient("a")), content).event(0, as_octets=False)
    assert [(len(large), False)] == sent_off


async def test_a_file_is_read_only_when_an_event_carries_it(tmp_path: Path) -> None:
    """The parser is given the file; its octets are read once, and only for an event that carries them."""
    path = tmp_path / "body"
    path.write_bytes(CONTENT)
    read: list[Path] = []

    async def load() -> bytes:
        read.append(path)
        return path.read_bytes()

    parser = FakeParser()
    record = mail("m", CONTENT, recipient("a", mode="raw"), recipient("b", index=1, mode="raw"))
    rendering = Renderer(parser).open(record, path, load)
    assert CONTENT == (await rendering.event(0, as_octets=True)).data == (await rendering.event(1, as_octets=True)).data
    assert [path] == read
    record = mail("m", CONTENT, recipient("a", mode="parsed"))
    await Renderer(parser).open(record, path, load).event(0, as_octets=True)
    assert [path] == parser.asked


async def test_an_empty_message() -> None:
    """A message without octets is rendered like any other."""
    rendering = Renderer(FakeParser()).open(mail("m", b"", recipient("a")), b"")
    assert b"" == (await rendering.event(0, as_octets=True)).data
