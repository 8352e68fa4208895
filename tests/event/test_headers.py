"""Header fields from octets."""

from __future__ import annotations

import base64
import email.header
import email.utils
import quopri
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from email.parser import BytesHeaderParser
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event import headers
from postbus.event.headers import base64_of, block_end, date_utc, decode_words, message_ids, parameters_of, read, text_of
from postbus.event.parsed import Defect, Header
from tests.event.samples import corpus, wire


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"A: b\r\n\r\nbody", 6, id="usual"),
        pytest.param(b"A: b\r\n", 6, id="no body"),
        pytest.param(b"A: b", 4, id="no line end"),
        pytest.param(b"\r\nbody", 0, id="no headers"),
        pytest.param(b"\nbody", 0, id="no headers, bare LF"),
        pytest.param(b"A: b\n\nbody", 5, id="bare LF"),
        pytest.param(b"A: b\n\nbody\r\n\r\n", 5, id="bare LF first"),
        pytest.param(b"A: b\r\n\r\nbody\n\n", 6, id="bare LF later"),
        pytest.param(b"", 0, id="nothing"),
    ],
)
def test_the_block_ends_at_the_first_empty_line(octets: bytes, expected: int) -> None:
    """Whatever spells the line ends."""
    assert expected == block_end(octets)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param(b"A: b\r\nA:  c \r\n", [Header("A", "b"), Header("A", "c")], id="order and duplicates"),
        pytest.param(b"A: b\r\n c\r\n\td\r\n", [Header("A", "b c\td")], id="folds"),
        pytest.param(b"A : b\r\n", [Header("A", "b")], id="blank before the colon"),
        pytest.param(b"A:\r\n", [Header("A", "")], id="empty value"),
        pytest.param(b"A: b\nC: d\n e\n", [Header("A", "b"), Header("C", "d e")], id="bare LF"),
        pytest.param("A: é\r\n".encode(), [Header("A", "é", False, "é".encode())], id="UTF-8"),
        pytest.param(b"A: \xe9\r\n", [Header("A", "\ufffd", True, b"\xe9")], id="8 bits"),
        pytest.param("A: \ufffd\r\n".encode(), [Header("A", "\ufffd", False, "\ufffd".encode())], id="a real U+FFFD is no loss"),
        pytest.param(b"A: a\x00b\x1b\r\n", [Header("A", "a\ufffdb\ufffd", True, b"a\x00b\x1b")], id="controls"),
        pytest.param(b"A: a\rb\r\n", [Header("A", "a b", True, b"a\rb")], id="bare CR"),
        pytest.param(b"A: =?utf-8?q?=C3=A9?=\r\n", [Header("A", "é")], id="encoded word"),
        pytest.param(
            b"A: =?utf-8?q?a=0D=0ABcc=3A_x=00?=\r\n",
            [Header("A", "a Bcc: x\ufffd", True, b"=?utf-8?q?a=0D=0ABcc=3A_x=00?=")],
            id="hidden line break",
        ),
        pytest.param(b"A: =?x?q?=E9?=\r\n", [Header("A", "é", True, b"=?x?q?=E9?=")], id="unknown charset"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_fields_come_in_order_decoded(block: bytes, expected: list[Header]) -> None:
    """Names as sent, values unfolded and decoded, octets kept where they say more."""
    assert expected == read(block).headers


@pytest.mark.parametrize("extra", [pytest.param(b"", id="plain"), pytest.param(b"X: \xff\r\n", id="with 8 bits")])
@pytest.mark.parametrize("line", [b"no colon", b": no name", b"na me: x", b"From bob Mon Jan  1 00:00:00 2024"])
def test_a_line_that_is_no_field_is_skipped(line: bytes, extra: bytes) -> None:
    """It costs a defect, not the fields round it; both readers agree."""
    found = read(b"A: b\r\n" + line + b"\r\nC: d\r\n" + extra)
    assert ["A", "C"] == [header.name for header in found.headers][:2]
    assert Defect("header.malformed", None, "line without a field name") in found.defects


def test_the_two_readers_agree() -> None:
    """The fast one is only an abbreviation."""
    plain = b"A: b\r\n c\r\nD : e\r\nno field\r\nF:\tg \r\n"
    fast, slow = read(plain), read(plain + b"X: \xff\r\n")
    assert (fast.headers, fast.loose) == (slow.headers[:-1], slow.loose[:-1])


def test_a_value_beyond_64_kib_is_cut() -> None:
    """And that is said."""
    found = read(b"A: " + b"x" * 70_000 + b"\r\nB: c\r\n")
    assert (True, 65_536, "c") == (found.truncated, len(found.headers[0].value), found.headers[1].value)
    assert [Defect("header.too_long", None, "value cut at 64 KiB")] == found.defects


def test_octets_outside_ascii_are_a_defect_that_names_the_field() -> None:
    """But no more of the name than a name needs."""
    assert [Defect("header.nonascii", None, "A" * 64)] == read(b"A" * 200 + b": \xe9\r\n").defects


_words = st.lists(
    st.tuples(
        st.text(st.characters(min_codepoint=33, exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12), st.booleans()
    ),
    min_size=1,
    max_size=4,
)


@given(_words)
def test_encoded_words_come_back(words: list[tuple[str, bool]]) -> None:
    """What any encoder writes, we read; blanks between words vanish (RFC 2047 s6.2)."""
    sent = " ".join(_word(text, as_base64=as_base64) for text, as_base64 in words)
    assert ("".join(text for text, _ in words), False) == decode_words(sent, [])


def _word(text: str, *, as_base64: bool) -> str:
    octets = text.encode()
    if as_base64:
        return f"=?utf-8?B?{base64.b64encode(octets).decode()}?="
    return f"=?UTF-8?q?{''.join(f'={octet:02X}' for octet in octets)}?="


@given(st.text(max_size=40))
def test_any_text_goes_through_the_word_decoder(text: str) -> None:
    """It never raises, and leaves alone what holds no word."""
    found, _ = decode_words(text, [])
    assert "=?" in text or found == text


@pytest.mark.parametrize(
    ("text", "expected", "lossy"),
    [
        pytest.param("=?utf-8?b?w6k=?= =?utf-8?b?w6k=?=", "éé", False, id="neighbours"),
        pytest.param("=?utf-8?b?ww==?= =?utf-8?b?qQ==?=", "é", False, id="a character across two words"),
        pytest.param("=?utf-8?q?a?= =?iso-8859-1?q?=E9?=", "aé", False, id="two charsets"),
        pytest.param("a =?utf-8?q?b?= c", "a b c", False, id="between words of text"),
        pytest.param("a=?utf-8?q?b?=c", "abc", False, id="glued"),
        pytest.param("=?utf-8?q?a b?=", "a b", False, id="blank inside"),
        pytest.param("=?utf-8*en?q?a?=", "a", False, id="language (RFC 2231)"),
        pytest.param("=?utf-8?b?w6k?=", "é", True, id="padding missing"),
        pytest.param("=?utf-8?q?=E9?=", "é", True, id="not in the declared charset"),
        pytest.param("=?utf-8?x?a?=", "=?utf-8?x?a?=", False, id="unknown encoding"),
        pytest.param("=?utf-8?q?a", "=?utf-8?q?a", False, id="unfinished"),
        pytest.param("=?utf-8?q??=", "", False, id="empty"),
    ],
)
def test_words_in_the_wild(text: str, expected: str, lossy: bool) -> None:
    """What mail programs really write."""
    assert (expected, lossy) == decode_words(text, [])


@given(st.binary(max_size=80))
def test_any_octets_become_one_line_of_text(octets: bytes) -> None:
    """No line break, no surrogate, and a loss is said."""
    text, _ = text_of(octets, [])
    assert not set(text) & set("\r\n\x00")
    assert text == text.encode().decode()


@given(st.binary(max_size=200), st.integers(1, 76))
def test_base64_comes_back_whole(octets: bytes, width: int) -> None:
    """With any line length."""
    encoded = base64.b64encode(octets)
    lines = b"\r\n".join(encoded[start : start + width] for start in range(0, len(encoded), width))
    assert (octets, True) == base64_of(lines)


@pytest.mark.parametrize(
    ("octets", "expected", "whole"),
    [
        pytest.param(b"aGVsbG8=\r\n", b"hello", True, id="usual"),
        pytest.param(b"aGVsbG8", b"hello", False, id="padding missing"),
        pytest.param(b"aGVsbG8=\r\n____\r\nlist footer\r\n", b"hello", False, id="footer after padding"),
        pytest.param(b"aGVs\r\n____\r\nlist\r\n", b"hel", False, id="footer without padding"),
        pytest.param(b"aG!Vs", b"hel", False, id="stray character"),
        pytest.param(b"aGVsb", b"hel", False, id="one digit too many"),
        pytest.param(b"====", b"", False, id="padding alone"),
        pytest.param(b"", b"", True, id="nothing"),
    ],
)
def test_broken_base64_gives_what_makes_sense(octets: bytes, expected: bytes, whole: bool) -> None:
    """And says that it was broken."""
    assert (expected, whole) == base64_of(octets)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        pytest.param("text/plain; charset=utf-8", "text/plain", {"charset": "utf-8"}, id="usual"),
        pytest.param("Text/Plain", "text/plain", {}, id="none"),
        pytest.param('a; x="b;c\\"d"; Y = z ;', "a", {"x": 'b;c"d', "y": "z"}, id="quotes"),
        pytest.param("a; x=1; x=2", "a", {"x": "1"}, id="first counts"),
        pytest.param("a; filename*=utf-8''na%C3%AFve", "a", {"filename": "naïve"}, id="RFC 2231"),
        pytest.param("a; filename*=iso-8859-1'en'%E9", "a", {"filename": "é"}, id="charset and language"),
        pytest.param("a; f*1=\"b\"; f*0*=utf-8''%C3%A9; f*2*=%20c", "a", {"f": "éb c"}, id="continuations out of order"),
        pytest.param('a; f*0="x"; f*0="y"', "a", {"f": "x"}, id="same piece twice"),
        pytest.param("a; f*=plain", "a", {"f": "plain"}, id="no charset"),
        pytest.param('a; x="open', "a", {"x": "open"}, id="unclosed quote"),
        pytest.param("a; junk; x=1; =2; ;", "a", {"x": "1"}, id="junk between"),
        pytest.param("a; junk", "a", {}, id="junk alone"),
        pytest.param("", "", {}, id="nothing"),
    ],
)
def test_parameters(text: str, value: str, expected: dict[str, str]) -> None:
    """The token and its parameters."""
    found = parameters_of(text)
    assert (value, expected) == (found.value, found.parameters)


def test_a_parameter_that_does_not_fit_its_charset_is_lossy() -> None:
    """The caller can say so."""
    assert parameters_of("a; f*=utf-8''%E9").lossy
    assert not parameters_of("a; f*=utf-8''%C3%A9").lossy


@given(st.text(st.sampled_from("; =\"*'%\\\tax0é"), max_size=40))
def test_any_parameters_are_read(text: str) -> None:
    """Nothing raises."""
    assert parameters_of(text).value == text.partition(";")[0].strip(" \t").lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Mon, 1 Jan 2024 01:02:03 +0100", "2024-01-01T00:02:03Z", id="usual"),
        pytest.param("1 Jan 2024 01:02 GMT", "2024-01-01T01:02:00Z", id="no weekday, no seconds"),
        pytest.param("Mon, 01 Jan 24 00:00:00 EST", "2024-01-01T05:00:00Z", id="two digits, American zone"),
        pytest.param("Fri, 31 Dec 99 23:00:00 -0200", "2000-01-01T01:00:00Z", id="last century, next year"),
        pytest.param("1 Jan 124 00:00:00 Z", "2024-01-01T00:00:00Z", id="three digits"),
        pytest.param("1 January 2024 00:00:00 (comment)", "2024-01-01T00:00:00Z", id="full month, comment, no zone"),
        pytest.param("1 Jan 2024 23:59:60 +0000", "2024-01-01T23:59:59Z", id="leap second"),
        pytest.param("1 Jan 2024 24:00:00 +0000", None, id="no such hour"),
        pytest.param("31 Feb 2024 00:00:00 +0000", None, id="no such day"),
        pytest.param("1 Foo 2024 00:00:00 +0000", None, id="no such month"),
        pytest.param("1 Jan 2024 00:00:00 +9900", None, id="no such zone"),
        pytest.param("1 Jan 0001 00:00:00 +0100", None, id="before the calendar"),
        pytest.param("yesterday", None, id="no date"),
        pytest.param(" " * 100_000 + "x", None, id="long"),
    ],
)
def test_dates(text: str, expected: str | None) -> None:
    """RFC 5322 with its obsolete forms, in UTC."""
    assert expected == date_utc(text)


_EARLIEST = datetime.fromisoformat("1900-01-02T00:00:00")
_LATEST = datetime.fromisoformat("9998-01-01T00:00:00")


@given(st.datetimes(min_value=_EARLIEST, max_value=_LATEST), st.integers(-23 * 60, 23 * 60))
def test_dates_the_standard_library_writes(naive: datetime, offset_min: int) -> None:
    """Any moment in any zone."""
    moment = naive.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset_min)))
    assert moment.astimezone(UTC).strftime("%4Y-%m-%dT%H:%M:%SZ") == date_utc(email.utils.format_datetime(moment))


def test_message_ids() -> None:
    """With their brackets, in order, bounded."""
    assert ("<a@b>", "<c@d>") == message_ids("junk <a@b>\t<c@d> <no blank> <>")
    assert ("<a@b>",) == message_ids("<a@b>")
    assert () == message_ids("a@b")
    assert headers.FIELDS_MAX == len(message_ids("<a@b>" * 5000))


def test_the_standard_library_reads_the_same_fields() -> None:
    """On the interpreter's corpus: names, order and values, where it decodes at all."""
    for path in corpus():
        octets = wire(path.read_bytes())
        block = octets[: block_end(octets)]
        oracle = BytesHeaderParser().parsebytes(block)
        if oracle.defects or not block.isascii() or "header.malformed" in {code for code, *_ in read(block).defects}:
            continue
        ours = [(header.name, "".join(header.value.split())) for header in read(block).headers]
        assert [(name, "".join(_decoded(value).split())) for name, value in _fields(oracle)] == ours, path.name


def _fields(oracle: Message) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in oracle.items()]


def _decoded(value: str) -> str:
    return str(email.header.make_header(email.header.decode_header(value)))


_HOSTILE = [
    ";",
    '"',
    "(",
    "<",
    ":",
    ",",
    "\\",
    "=",
    "=?",
    "?=",
    "=?a?q?",
    "=?a?b?",
    "[]",
    " ",
    "\t",
    "'",
    "*0=",
    ";a*0=",
    "a ",
    "--",
    "%",
    "<a@b>",
    "'';",
]


@pytest.mark.parametrize("piece", _HOSTILE)
def test_64_kib_of_anything_takes_no_time(piece: str) -> None:
    """Every reader is linear: a quadratic one would take seconds."""
    text = piece * (65_536 // len(piece))
    started = process_time()
    decode_words(text, [])
    parameters_of(text)
    parameters_of("a;" + text)
    parameters_of("a;b=" + text)
    date_utc(text)
    message_ids(text)
    text_of(text.encode(), [])
    base64_of(text.encode())
    read(b"A: " + text.encode() + b"\xff\r\n")
    assert process_time() - started < 3


def test_a_quoted_printable_word_agrees_with_the_standard_library() -> None:
    """Underscore is a blank in a word, and only there."""
    assert (quopri.decodestring(b"a_=C3=A9", header=True).decode(), False) == decode_words("=?utf-8?q?a_=C3=A9?=", [])
