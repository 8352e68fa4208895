"""Lines cut at CRLF alone, in bounded memory."""

from __future__ import annotations

import pytest

from postbus.smtp.framing import DISCARD_AFTER_OCTETS, Lines
from tests.smtp.driver import ARRIVALS

ENDLESS = 65_536


def taken(lines: Lines, segments: list[bytes]) -> list[tuple[bytes, int]]:
    """Return each line found and its length, feeding *segments*."""
    found = []
    for segment in segments:
        lines.add(segment)
        while (line := lines.take()) is not None:
            found.append((line, lines.finish(line)))
        lines.shrink()
    return found


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"NOOP", [], id="no end"),
        pytest.param(b"NOOP\r\n", [(b"NOOP", 6)], id="one"),
        pytest.param(b"A\r\nB\r\nC", [(b"A", 3), (b"B", 3)], id="several and a rest"),
        pytest.param(b"\r\n\r\n", [(b"", 2), (b"", 2)], id="empty"),
        pytest.param(b"A\nB\rC\r\r\nD\n\r\r\n", [(b"A\nB\rC\r", 8), (b"D\n\r", 5)], id="bare CR and LF end nothing"),
    ],
)
def test_lines(data: bytes, expected: list[tuple[bytes, int]], arrival: str) -> None:
    """Lines end at CRLF and nowhere else, however they arrive."""
    for segments in ARRIVALS[arrival](data):
        assert expected == taken(Lines(ENDLESS), segments)


@pytest.mark.parametrize("tail", [b"\r\n", b"\r\r\n"])
def test_a_long_line_is_counted_not_kept(tail: bytes) -> None:
    """An unfinished line takes constant memory, its length stays known, and the next line is whole."""
    lines = Lines(ENDLESS)
    segments = [b"x" * 5000, b"y" * 5000 + b"\r", b"z" * 5000 + tail[:-1]]
    for segment in segments:
        assert [] == taken(lines, [segment])
        assert len(lines) <= DISCARD_AFTER_OCTETS
    lines.add(tail[-1:])
    line = lines.take()
    assert line is not None
    assert 15001 + len(tail) == lines.finish(line)
    assert [(b"NOOP", 6)] == taken(lines, [b"NOOP\r\n"])


def test_endless() -> None:
    """A line is endless from one octet past the bound on."""
    lines = Lines(10_000)
    assert [] == taken(lines, [b"x" * 5000, b"x" * 5000])
    assert not lines.endless
    assert [] == taken(lines, [b"x"])
    assert lines.endless


def test_starts_with_looks_at_lines_beginnings() -> None:
    """The middle of a long line is not taken for the beginning of one."""
    lines = Lines(ENDLESS)
    taken(lines, [b"NOOP\r\n\x16\x03"])
    assert lines.starts_with(b"\x16\x03")
    taken(lines, [b"x" * 15_000])
    taken(lines, [b"\x16\x03"])
    assert not lines.starts_with(b"\x16\x03")


def test_rest_and_clear() -> None:
    """What stands behind a line can be taken as it is, or forgotten."""
    lines = Lines(ENDLESS)
    lines.add(b"DATA\r\ntext")
    assert lines.take() == b"DATA"
    assert len(lines) == 4
    assert lines.rest() == b"text"
    assert lines.rest() == b""
    lines.add(b"more")
    assert lines.rest() == b"more"
    taken(lines, [b"x" * 5000])
    lines.clear()
    assert [(b"A", 3)] == taken(lines, [b"A\r\n"])


def test_a_burst_is_not_copied_per_line() -> None:
    """Taking a line moves a position; the buffer is the segment itself until it is used up."""
    data = b"NOOP\r\n" * 1000
    lines = Lines(ENDLESS)
    lines.add(data)
    lines.take()
    assert lines._buffer is data


def test_some_takes_so_many_octets_and_leaves_the_rest() -> None:
    """Content of a known length is cut off the front; what is behind it is read as before."""
    lines = Lines(1000)
    lines.add(b"abcdefRSET\r\n")
    assert [b"abc", b"def", b""] == [lines.some(3), lines.some(3), lines.some(0)]
    assert b"RSET" == lines.take()
    lines.add(b"xy")
    assert (b"xy", 0, b"") == (lines.some(10), len(lines), lines.some(10))


def test_the_head_of_a_line_outlives_its_octets() -> None:
    """Of a line that was dropped the first octets are still known, and those of a short one anyway."""
    lines = Lines(ENDLESS)
    assert taken(lines, [b"NOOP x\r\n"]) == [(b"NOOP x", 8)]
    assert lines.head(b"NOOP x", 8) == b"NOOP "
    ((line, length),) = taken(lines, [b"BDAT 6 " + b"x" * DISCARD_AFTER_OCTETS, b"y\r\n"])
    assert lines.head(line, length) == b"BDAT "


def test_the_head_is_that_of_the_line_and_not_of_what_was_dropped_last() -> None:
    """A line dropped in several goes began as its first octets say."""
    lines = Lines(10 * DISCARD_AFTER_OCTETS)
    segments = [b"BDAT 6 " + b"x" * DISCARD_AFTER_OCTETS, b"NOOP " + b"y" * DISCARD_AFTER_OCTETS, b"z\r\n"]
    ((line, length),) = taken(lines, segments)
    assert sum(map(len, segments)) == length
    assert lines.head(line, length) == b"BDAT "
