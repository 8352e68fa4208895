"""Senders that go on while something breaks, and what must be true of it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

from tests.e2e.harness import Postbus
from tests.e2e.published import Published
from tests.e2e.senders import Desk, Letter, Traffic, send_until, together

SENDERS = 10
STEP = 40
"""How much must happen in each phase before the next: so many letters acknowledged, or refusals."""


class Load:
    """Senders that go on until told to stop; each writes to one address of its own, one letter after the other."""

    def __init__(self, postbus: Postbus, stem: str = "s", senders: int = SENDERS, big_every: int = 25) -> None:
        self.traffic = Traffic()
        self.stop = asyncio.Event()
        self.sequences: dict[str, list[str]] = {}
        desk = Desk(stem, big_every=big_every)
        self._work = asyncio.ensure_future(
            together(self._sender(postbus, desk, f"{stem}-{number}@example.org") for number in range(senders))
        )
        self._work.add_done_callback(lambda _: self.traffic.note())

    async def _sender(self, postbus: Postbus, desk: Desk, recipient: str) -> None:
        await send_until(self.traffic, postbus.address(), self._letters(desk, recipient), stop=self.stop, retry=True)

    def _letters(self, desk: Desk, recipient: str) -> Iterator[Letter]:
        for _ in repeat(None):
            letter = desk.letter([recipient])
            self.sequences.setdefault(recipient, []).append(letter.sha256)
            yield letter

    async def more(self, letters: int = STEP, timeout_s: float = 30.0) -> None:
        """Return when *letters* more are acknowledged."""
        goal = len(self.traffic.acknowledged) + letters
        await self.traffic.until(lambda: self._work.done() or len(self.traffic.acknowledged) >= goal, f"{letters} more", timeout_s)

    async def refusals(self, count: int = STEP, code: int = 451, timeout_s: float = 30.0) -> None:
        """Return when there were *count* more replies of *code*."""
        goal = self.traffic.refused[code] + count
        await self.traffic.until(lambda: self._work.done() or self.traffic.refused[code] >= goal, f"{count} more of {code}", timeout_s)

    async def end(self) -> None:
        """Stop, once every letter that was begun has its 250."""
        self.stop.set()
        async with asyncio.timeout(60):
            await self._work

    @contextmanager
    def cancelled(self) -> Iterator[None]:
        """End the senders whatever happens."""
        try:
            yield
        finally:
            self._work.cancel()


def unchanged(postbus: Postbus, pid: int) -> None:
    """It is the same process, and it is well."""
    assert postbus.alive
    assert pid == postbus.pid
    assert 200 == postbus.get("/livez").code
    assert [] == postbus.log.find("task.restarted")


def judge(published: Published, load: Load) -> None:
    """Everything acknowledged came, nothing else did, and what came twice can be known by its dedupekey."""
    traffic = load.traffic
    assert set() == published.lost(traffic)
    assert set() == published.strangers(traffic)
    assert [] == [key for key, keys in published.dedupe_keys.items() if len(keys) != 1]
    assert [] == traffic.cut


def in_order(published: Published, load: Load) -> None:
    """For each recipient, letters came first in the order in which they were accepted."""
    for recipient, digests in published.order.items():
        assert [digest for digest in load.sequences[recipient] if digest in set(digests)] == digests
