"""The content of DATA and BDAT: its end, its dots, its defects, however it arrives."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.smtp import Limits, Reply, replies
from postbus.smtp.content import CountBody, DotBody, SkippedChunk
from postbus.smtp.events import Chunk, Signal
from postbus.smtp.framing import Lines
from tests.smtp.driver import ARRIVALS, OFFER


def read(
    segments: list[bytes], *, stray: Literal["reject", "allow"] = "allow", size: int | None = None, limits: Limits | None = None
) -> tuple[bytes, bytes | None, DotBody]:
    """Return the content in *segments*, what follows it (``None``: not ended), and the body's findings."""
    body = DotBody(replace(OFFER, stray=stray, size_octets=size), limits or Limits())
    content, rest = b"", None
    for segment in segments:
        if rest is not None:
            rest += segment
            continue
        piece, rest = body.feed(segment)
        content += piece
    return content, rest, body


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize(
    ("sent", "content", "rest", "defects"),
    [
        pytest.param(b".\r\n", b"", b"", {}, id="empty message"),
        pytest.param(b"\r\n.\r\n", b"\r\n", b"", {}, id="empty line"),
        pytest.param(b"a\r\n.\r\nNOOP\r\n", b"a\r\n", b"NOOP\r\n", {}, id="what follows"),
        pytest.param(b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n", {}, id="what follows looks like an end"),
        pytest.param(b"..a\r\n.\r\n", b".a\r\n", b"", {}, id="transparency dot at the start"),
        pytest.param(b"a\r\n..\r\n...\r\n.b\r\n.\r\n", b"a\r\n.\r\n..\r\nb\r\n", b"", {}, id="transparency dots"),
        pytest.param(b"a.\r\n.b.c\r\n.\r\n", b"a.\r\nb.c\r\n", b"", {}, id="dots elsewhere"),
        pytest.param(b"a\n.\nb\r\n.\r\n", b"a\n.\nb\r\n", b"", {"bare-lf": 2}, id="LF dot LF"),
        pytest.param(b"a\n.\r\nb\r\n.\r\n", b"a\n.\r\nb\r\n", b"", {"bare-lf": 1}, id="LF dot CRLF"),
        pytest.param(b"a\r.\rb\r\n.\r\n", b"a\r.\rb\r\n", b"", {"bare-cr": 2}, id="CR dot CR"),
        pytest.param(b"a\r\n.\nb\r\n.\r\n", b"a\r\n\nb\r\n", b"", {"bare-lf": 1}, id="CRLF dot LF"),
        pytest.param(b"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n", b"", {"bare-cr": 1}, id="CRLF dot CR"),
        pytest.param(b"a\r\r\n.\r\n", b"a\r\r\n", b"", {"bare-cr": 1}, id="CR CRLF dot CRLF"),
        pytest.param(b"a\r\n.\r\r\n.\r\n", b"a\r\n\r\r\n", b"", {"bare-cr": 1}, id="CRLF dot CR CRLF"),
        pytest.param(b"\n\r\n\r\r\n.\r\n", b"\n\r\n\r\r\n", b"", {"bare-cr": 1, "bare-lf": 1}, id="LF CR as two"),
        pytest.param(b"a\r\n\0.\r\n.\0\r\n.\r\n", b"a\r\n\0.\r\n\0\r\n", b"", {"nul": 2}, id="NUL"),
        pytest.param(b"\n.\r\n", b"\n.\r\n", None, {"bare-lf": 1}, id="LF dot CRLF at the start"),
        pytest.param(b"x" * 998 + b"\r\n.\r\n", b"x" * 998 + b"\r\n", b"", {}, id="a line of 1000"),
        pytest.param(b"." + b"." * 998 + b"\r\n.\r\n", b"." * 998 + b"\r\n", b"", {}, id="a line of 1000 and its dot"),
        pytest.param(b"x" * 999 + b"\r\n.\r\n", b"x" * 999 + b"\r\n", b"", {"long-line": 1}, id="a line of 1001"),
        pytest.param(b"a\r\n" * 9 + b"x" * 1200 + b"\r\nb\r\n" + b"y" * 1100 + b"\r\n.\r\n",
                     b"a\r\n" * 9 + b"x" * 1200 + b"\r\nb\r\n" + b"y" * 1100 + b"\r\n", b"", {"long-line": 2}, id="two long lines"),
    ],
)  # fmt: skip
def test_content(sent: bytes, content: bytes, rest: bytes | None, defects: Mapping[str, int], arrival: str) -> None:
    """The same octets are the same content with the same defects, whole, byte by byte and at every split."""
    for segments in ARRIVALS[arrival](sent):
        got, behind, body = read(segments)
        if rest is None:
            assert content.startswith(got)
            assert behind is None
        else:
            assert (content, rest) == (got, behind)
            assert len(content) == body.size_octets
            assert defects == body.defects


@pytest.mark.parametrize("arrival", ["whole", "bytewise"])
@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        pytest.param(b"a\r\n.\r\n", None, id="fine"),
        pytest.param(b"a\nb\r\n.\r\n", replies.STRAY_LINE_ENDING, id="bare LF"),
        pytest.param(b"a\rb\r\n.\r\n", replies.STRAY_LINE_ENDING, id="bare CR"),
        pytest.param(b"a\0b\r\n.\r\n", replies.STRAY_LINE_ENDING, id="NUL"),
        pytest.param(b"x" * 48 + b"\r\n.\r\n", None, id="a line of the cap"),
        pytest.param(b"x" * 49 + b"\r\n.\r\n", replies.TEXT_LINE_TOO_LONG, id="a line over the cap"),
        pytest.param((b"x" * 18 + b"\r\n") * 5 + b".\r\n", None, id="of the limit"),
        pytest.param((b"x" * 18 + b"\r\n") * 5 + b"\r\n.\r\n", replies.TOO_BIG, id="over the limit"),
        pytest.param(b"x\n" * 100 + b"\r\n.\r\n", replies.TOO_BIG, id="size is judged first"),
    ],
)
def test_refusals(sent: bytes, refusal: Reply | None, arrival: str) -> None:
    """A message that cannot be taken is read to its end, and refused for a reason that does not hang on how it arrived."""
    for segments in ARRIVALS[arrival](sent):
        _, rest, body = read(segments, stray="reject", size=100, limits=Limits(text_line_flag_octets=30, text_line_octets=50))
        assert rest == b""
        assert refusal == body.refusal
        assert not body.overrun


def test_overrun() -> None:
    """Far over the limit, and at least a mebibyte over it, reading on serves nobody."""
    body = DotBody(replace(OFFER, size_octets=1_000_000), Limits(overrun_factor=4))
    for _ in range(40):
        body.feed(b"x" * 99_998 + b"\r\n")
        assert not body.overrun
    body.feed(b"x" * 9)
    assert body.overrun
    small = DotBody(replace(OFFER, size_octets=10), Limits())
    small.feed(b"x" * 1_000_000)
    assert not small.overrun


def test_no_limit() -> None:
    """Without a size limit there is neither refusal nor overrun."""
    _, _, body = read([b"x" * 2_000_000], size=None)
    assert body.refusal is not replies.TOO_BIG
    assert not body.overrun


def held_octets(body: DotBody | CountBody, segment: bytes, times: int) -> int:
    """Return what stays in memory of *segment* fed to *body* so many *times*."""
    tracemalloc.start()
    try:
        for _ in range(times):
            body.feed(segment)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_an_endless_line_takes_constant_memory() -> None:
    """Sixteen mebibytes without a line end leave nothing behind but numbers."""
    body = DotBody(OFFER, Limits())
    assert held_octets(body, b"x" * 65_536, 256) < 65_536
    assert body.size_octets == 16 * 1_048_576


def naive(sent: bytes) -> tuple[bytes, bytes | None]:
    """Read content octet by octet, as RFC 5321 s4.5.2 says: slow, and plainly right."""
    content, at, at_line_start = b"", 0, True
    while at < len(sent):
        if at_line_start:
            if sent.startswith(b".\r\n", at):
                return content, sent[at + 3 :]
            if sent.startswith(b".", at):
                at += 1
        end = sent.find(b"\r\n", at)
        if end < 0:
            return content + sent[at:], None
        content += sent[at : end + 2]
        at, at_line_start = end + 2, True
    return content, None


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.", b"\r\n.\r\n", b"a", b"bc", b"\0", b"x" * 600])), st.integers(1, 5))
def test_content_agrees_with_a_naive_reader(parts: list[bytes], step: int) -> None:
    """Any octets in segments of any size give the content that a naive reader finds."""
    sent = b"".join(parts)
    content, rest = naive(sent)
    got, behind, body = read([sent[at : at + step] for at in range(0, len(sent), step)])
    if rest is None:
        assert content.startswith(got)
        assert behind is None
    else:
        assert (content, rest) == (got, behind)
        crlf = content.count(b"\r\n")
        strays = {"bare-cr": content.count(b"\r") - crlf, "bare-lf": content.count(b"\n") - crlf, "nul": content.count(b"\0")}
        strays["long-line"] = sum(len(line) > 998 for line in content.split(b"\r\n"))
        assert {kind: count for kind, count in strays.items() if count} == body.defects


def read_chunks(
    chunks: list[bytes], *, size: int | None = None, step: int = 1 << 20, limits: Limits | None = None
) -> tuple[bytes, CountBody]:
    """Return the content in *chunks*, fed by segments of *step* octets until one is refused, and the body's findings."""
    body = CountBody(replace(OFFER, size_octets=size), limits or Limits())
    content = b""
    for number, chunk in enumerate(chunks):
        body.begin(len(chunk), replies.CHUNK_OK, last=number == len(chunks) - 1)
        for at in range(0, max(len(chunk), 1), step):
            piece = body.feed(chunk[at : at + step])
            content += piece if body.refusal is None else b""
        assert body.left_octets == 0
        if body.refusal is not None:
            break
    return content, body


CHUNKS = st.lists(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.\r\n", b"a", b"\0", b"x" * 600])).map(b"".join), min_size=1)


@given(CHUNKS, st.integers(1, 5))
def test_chunks_are_content_however_they_part(chunks: list[bytes], step: int) -> None:
    """Any octets in chunks and segments of any size are the content, to the octet, with the defects that DATA would find."""
    sent = b"".join(chunks)
    content, body = read_chunks(chunks, step=step)
    assert (sent, len(sent), None) == (content, body.size_octets, body.refusal)
    stuffed = (b"\r\n" + sent).replace(b"\r\n.", b"\r\n..")[2:]
    ending = b".\r\n" if sent.endswith(b"\r\n") or not sent else b"\r\n.\r\n"
    same, rest, dotted = read([stuffed + ending])
    assert rest == b""
    assert sent == same[: len(sent)]
    if ending == b".\r\n":  # DATA adds a line end where there is none, and what stands before it may be another defect then
        assert dotted.defects == body.defects


@pytest.mark.parametrize(
    ("chunks", "refusal", "content"),
    [
        pytest.param([b"x" * 100], None, b"x" * 100, id="of the limit"),
        pytest.param([b"x" * 101], replies.TOO_BIG, b"", id="over the limit"),
        pytest.param([b"x" * 60, b"x" * 39 + b"\r", b"\n"], replies.TOO_BIG, b"x" * 99, id="over the limit with a CR held back"),
        pytest.param([b"x" * 60, b"x" * 40, b""], None, b"x" * 100, id="an empty last one"),
        pytest.param([b"a\nb\rc\0"], None, b"a\nb\rc\0", id="strays are refused by nobody"),
        pytest.param([b"x" * 99], None, b"x" * 99, id="nor are long lines"),
    ],
)
def test_chunks_over_the_limit(chunks: list[bytes], refusal: Reply | None, content: bytes) -> None:
    """What a chunk announces is held against the limit before its octets are kept; all of them are counted."""
    got, body = read_chunks(chunks, size=100, limits=Limits(text_line_flag_octets=30, text_line_octets=50))
    assert (content, refusal) == (got, body.refusal)
    assert not body.overrun


def test_small_chunks_are_counted() -> None:
    """All below the bound but the last, since a message's rest has any size."""
    assert read_chunks([b"x", b"", b"y" * 10, b""], limits=Limits(chunk_small_octets=10))[1].small == 2


def test_a_skipped_chunk_leaves_nothing() -> None:
    """Its octets are counted, and beyond four times the limit, or a mebibyte over it, nobody reads on."""
    chunk = SkippedChunk(replace(OFFER, size_octets=10), Limits(), 2_000_000, replies.SEND_MAIL, last=True)
    assert (chunk.last, chunk.overrun) == (True, False)
    assert chunk.read(received(b"x" * 1_048_586)) is Signal.NEED_DATA
    assert (chunk.left_octets, chunk.overrun) == (951_414, False)
    assert chunk.read(received(b"x")) is None
    assert chunk.overrun
    endless = SkippedChunk(replace(OFFER, size_octets=None), Limits(), 10**18, replies.SEND_MAIL, last=False)
    assert endless.read(received(b"x" * 1_000_000)) is Signal.NEED_DATA
    assert not endless.overrun
    short = SkippedChunk(OFFER, Limits(), 4, replies.SEND_MAIL, last=False)
    lines = received(b"textQUIT\r\n")
    assert short.read(lines) is None
    assert lines.take() == b"QUIT"


def received(octets: bytes) -> Lines:
    """Return *octets* as the peer's, not yet understood."""
    lines = Lines(Limits().endless_octets)
    lines.add(octets)
    return lines


def test_a_body_is_read_piece_by_piece_to_its_end() -> None:
    """A reader is told the pieces, when to wait and when it is over; what stands behind the end stays where it is."""
    lines = received(b"one\r\n.\r\nQUIT\r\n")
    body = DotBody(OFFER, Limits())
    assert [Chunk(b"one\r\n"), None] == [body.read(lines), body.read(lines)]
    assert lines.take() == b"QUIT"
    chunk = CountBody(OFFER, Limits())
    chunk.begin(6, replies.CHUNK_OK, last=False)
    assert [Chunk(b"one"), Signal.NEED_DATA] == [chunk.read(received(b"one")), chunk.read(received(b""))]
    assert [Chunk(b"two"), None] == [chunk.read(received(b"twoQUIT")), chunk.read(received(b"QUIT"))]


def test_nothing_is_given_of_what_will_be_refused() -> None:
    """The rest of a bad message is read and dropped, and beyond all bounds not even read."""
    body = DotBody(OFFER, Limits())
    assert body.read(received(b"bare\nline")) is Signal.NEED_DATA
    assert body.read(received(b"more\r\n.\r\n")) is None
    small = replace(OFFER, size_octets=10)
    endless = DotBody(small, Limits())
    assert endless.read(received(b"x" * 1_048_590)) is None
    assert endless.overrun
    chunk = CountBody(small, Limits())
    chunk.begin(2_000_000, replies.CHUNK_OK, last=False)
    assert [Signal.NEED_DATA, None] == [chunk.read(received(b"x")), chunk.read(received(b"x" * 1_048_590))]
    assert chunk.overrun


def test_a_long_chunk_takes_constant_memory() -> None:
    """Sixteen mebibytes leave nothing behind but numbers."""
    body = CountBody(OFFER, Limits())
    body.begin(1 << 24, replies.CHUNK_OK, last=True)
    assert held_octets(body, b"x\n" * 32_768, 256) < 65_536
    assert {"bare-lf": 1 << 23} == {kind: count for kind, count in body.defects.items() if kind == "bare-lf"}
