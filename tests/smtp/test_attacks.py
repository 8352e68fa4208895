"""The attack table, row by row, however its octets arrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from postbus.selftest.vectors import Row, Step, rows
from postbus.server.networks import Networks
from postbus.server.proxy_protocol import HeaderReader, ProxyData
from postbus.smtp import Limits, Offer
from tests.smtp.driver import ARRIVALS, BANNER, OFFER, Driver, Policy, codes, pipelined, some_splits, whole

LOCAL = "127.0.0.1"
ROWS = 442
ROWS_BY_SECTION = {"6.1": 44, "6.2": 86, "6.3": 138, "6.4": 76, "6.5": 91, "6.6": 7}


class Behind(Driver):
    """A session that begins with a PROXY header, as its shell has it: the engine, and the banner, only behind it."""

    def __init__(self, offer: Offer, *, trusted: bool, limits: Limits, policy: Policy) -> None:
        super().__init__(offer, limits=limits, policy=policy, greeted=False)
        self.reader = HeaderReader()
        self.shut = not trusted

    @property
    def closed(self) -> bool:
        """Whether nothing more is said."""
        return self.shut or super().closed

    def behind(self, data: bytes) -> bytes:
        """Return what of *data* is no header."""
        if self.shut:
            return b""
        if self.reader.data is not None:
            return data
        return self._read(data, self.reader.feed(data), self.reader.data)

    def _read(self, data: bytes, taken: int, header: ProxyData | None) -> bytes:
        """Open the session if the *header* is whole and good, of which *taken* octets of *data* were part."""
        if header is None:
            return b""
        self.shut = not header
        if self.shut:
            return b""
        self.engine.open(BANNER)
        return data[taken:]

    def feed(self, data: bytes) -> bytes:
        """As ever, behind the header."""
        return super().feed(self.behind(data))

    def feed_withheld(self, segments: Iterable[bytes]) -> bytes:
        """As ever, behind the header."""
        return super().feed_withheld([self.behind(segment) for segment in segments])


def session(row: Row) -> Driver:
    """Return a session with the server *row* asks for, its banner sent unless the row talks early."""
    server = dict(row.server)
    limits = Limits(**server.pop("limits", {}))
    policy = Policy(refuses=frozenset(server.pop("refuses", ())))
    if LOCAL in Networks(tuple(server.pop("stray_allowed_from", ()))):  # the shell's decision: the engine knows no peers
        server["stray"] = "allow"
    proxy = server.pop("proxy", None)
    offer = replace(OFFER, **server)
    if proxy is not None:
        return Behind(offer, trusted=proxy == "trusted", limits=limits, policy=policy)
    return Driver(offer, lmtp=row.protocol == "lmtp", limits=limits, policy=policy, greeted=not row.early)


def perform(driver: Driver, steps: Iterable[Step], arrival: str) -> None:
    """Play *steps*, waiting for the replies of each; its octets arrive as *arrival* says."""
    for step in steps:
        if step.kind == "silence":
            assert isinstance(driver, Behind)
            driver.shut = driver.reader.data is None
        if step.kind != "send":
            continue  # the driver's handshakes succeed at once, and an engine knows no end of file
        segments = next(ARRIVALS[arrival](step.octets))
        assert list(step.expect) == codes(b"".join(driver.feed(segment) for segment in segments))


def finish(driver: Driver, row: Row) -> None:
    """Check what *row* says of its end."""
    assert row.closes == driver.closed
    assert list(row.accepted) == driver.accepted


def test_the_table_is_whole() -> None:
    """Rows are never lost by accident."""
    assert ROWS_BY_SECTION == Counter(row.section for row in rows())
    assert len({row.id for row in rows()}) == len(rows()) == ROWS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.id)
def test_attack_waiting_for_replies(row: Row) -> None:
    """Each row gets its listed answer from a client that waits, whole and byte by byte."""
    for arrival in ["whole"] if row.one_segment or row.bulky else ["whole", "bytewise"]:
        driver = session(row)
        perform(driver, row.prologue, "whole")
        if row.early:
            driver.engine.receive(row.steps[0].octets)
            driver.engine.open(BANNER)
            assert list(row.steps[0].expect) == codes(driver.drain())
        else:
            perform(driver, row.steps, arrival)
        finish(driver, row)


@pytest.mark.parametrize("row", [row for row in rows() if row.withholdable], ids=lambda row: row.id)
def test_attack_waiting_for_nothing(row: Row) -> None:
    """Each row gets the same answers when no answer is given before all its octets are in, whole, byte by byte and at every split."""
    data = b"".join(step.octets for step in row.steps)
    expected = [code for step in row.steps for code in step.expect]
    for arrival in [whole, some_splits] if row.bulky else ARRIVALS.values():
        for segments in arrival(data):
            driver = session(row)
            driver.engine.offer = pipelined(driver.engine.offer)
            perform(driver, row.prologue, "whole")
            assert expected == codes(driver.feed_withheld(segments)), segments
            finish(driver, row)
