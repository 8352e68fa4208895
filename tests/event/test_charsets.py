"""Octets to text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event import charsets
from postbus.event.charsets import Decoded, canonical, decode, scrub_address, scrub_body, scrub_line


@pytest.mark.parametrize(
    ("octets", "declared", "expected"),
    [
        pytest.param(b"abc", None, Decoded("abc", "utf-8", lossy=False, unknown=False), id="nothing declared"),
        pytest.param("é".encode(), None, Decoded("é", "utf-8", lossy=False, unknown=False), id="UTF-8 undeclared"),
        pytest.param(b"\xe9", None, Decoded("é", "windows-1252", lossy=True, unknown=False), id="guess"),
        pytest.param(b"\x80", "iso-8859-1", Decoded("€", "windows-1252", lossy=False, unknown=False), id="latin-1 means windows-1252"),
        pytest.param(b"\xa4", '"ISO-8859-15"', Decoded("€", "iso-8859-15", lossy=False, unknown=False), id="quotes and case"),
        pytest.param("é".encode(), "us-ascii", Decoded("é", "utf-8", lossy=False, unknown=False), id="ASCII that is UTF-8"),
        pytest.param(b"\xe9", "us-ascii", Decoded("é", "windows-1252", lossy=True, unknown=False), id="ASCII that is not"),
        pytest.param(b"\xe9", "utf-8", Decoded("é", "windows-1252", lossy=True, unknown=False), id="UTF-8 that is not"),
        pytest.param(b"\x81", "windows-1252", Decoded("\ufffd", "windows-1252", lossy=True, unknown=False), id="a hole"),
        pytest.param("é".encode(), "x-nonsense", Decoded("é", "utf-8", lossy=False, unknown=True), id="unknown label"),
        pytest.param(b"\xe9", "x" * 65, Decoded("é", "windows-1252", lossy=True, unknown=True), id="label too long"),
        pytest.param("é".encode(), "koi8-r", Decoded("ц╘", "koi8-r", lossy=False, unknown=False), id="declared wins"),
        pytest.param("é".encode("utf-16-le"), "utf-16", Decoded("é", "utf-16le", lossy=False, unknown=False), id="UTF-16 little-endian"),
        pytest.param(b"\x00\xd8", "utf-16le", Decoded("\x00Ø", "windows-1252", lossy=True, unknown=False), id="lone surrogate"),
        pytest.param("漢字".encode("shift-jis"), "Shift_JIS", Decoded("漢字", "shift_jis", lossy=False, unknown=False), id="Japanese"),
        pytest.param("汉字".encode("gb2312"), "gb2312", Decoded("汉字", "gbk", lossy=False, unknown=False), id="Chinese"),
        pytest.param("é".encode(), "iso-8859-4x", Decoded("é", "utf-8", lossy=False, unknown=True), id="near miss"),
        pytest.param(b"\xff\xc3\xa9", "euc-jp", Decoded("ÿÃ©", "windows-1252", lossy=True, unknown=False), id="fits nothing"),
        pytest.param(b"+AOk-", "utf-7", Decoded("+AOk-", "utf-8", lossy=False, unknown=True), id="UTF-7 is not decoded"),
    ],
)
def test_declared_then_utf8_then_windows_1252(octets: bytes, declared: str | None, expected: Decoded) -> None:
    """The order in which charsets are tried, and what is said of it."""
    assert expected == decode(octets, declared)


def test_a_declared_charset_that_gives_way_to_utf8_is_lossy() -> None:
    """Only us-ascii may be UTF-8 without a word."""
    octets = "日本é".encode()
    assert Decoded("日本é", "utf-8", lossy=True, unknown=False) == decode(octets, "euc-kr")


def test_every_label_leads_to_a_codec_python_has() -> None:
    """No row of the table is a typing error."""
    for label, name in charsets._NAMES.items():
        assert name == canonical(label.upper())
        assert not decode(b"", label).unknown
        assert "" == b"".decode(charsets._CHARSETS[name][0])


@given(st.binary(max_size=60), st.sampled_from(sorted(charsets._NAMES)) | st.none() | st.text(max_size=10))
def test_any_octets_give_text_json_can_carry(octets: bytes, declared: str | None) -> None:
    """Decoding never raises, and scrubbed text encodes as UTF-8 without controls."""
    text = scrub_body(decode(octets, declared).text)
    assert not any(ord(char) < 32 and char not in "\t\r\n" for char in text)
    assert not any(0x7F <= ord(char) <= 0x9F for char in text)
    assert text == text.encode().decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("plain é", "plain é", id="printable"),
        pytest.param("a\r\nBcc: b", "a Bcc: b", id="line break"),
        pytest.param("a\tb", "a\tb", id="tab stays"),
        pytest.param("a\x00\x1b[1m\x85\u2028\ud800", "a\ufffd\ufffd[1m\ufffd\ufffd\ufffd", id="controls"),
        pytest.param("a\u202eb", "a\u202eb", id="bidi stays in text"),
    ],
)
def test_a_line_is_one_line(text: str, expected: str) -> None:
    """Nothing in a header's value starts a line, a control sequence or broken JSON."""
    assert expected == scrub_line(text)


def test_nothing_in_an_address_turns_the_reading_direction() -> None:
    """An override cannot dress one mailbox as another."""
    assert "moc.elgoog\ufffd@a" == scrub_address("moc.elgoog\u202e@a")
    assert "a b" == scrub_address("a\r\nb")
