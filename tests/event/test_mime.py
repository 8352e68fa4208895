"""A message taken apart within bounds."""

from __future__ import annotations

import email
import email.policy
from hashlib import sha256
from typing import Literal

import fast_mail_parser
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postbus.event import charsets, mime
from postbus.event.mime import DEFECTS, Verdict, guard, parse
from postbus.event.parsed import Attachment, Defect, Text, unreadable
from tests.event.samples import PLAIN, corpus, multipart, nested, wire


def codes(octets: bytes) -> list[str]:
    """Return the codes of a message's defects."""
    return [defect.code for defect in parse(octets).defects]


@pytest.mark.parametrize(
    ("octets", "way"),
    [
        pytest.param(PLAIN, "simple", id="plain"),
        pytest.param(b"", "simple", id="nothing"),
        pytest.param(multipart(b"\r\na", b"Content-Type: text/html\r\n\r\nb"), "simple", id="small multipart"),
        pytest.param(PLAIN + b"x" * mime.SIMPLE_MAX_OCTETS, "worker", id="large"),
        pytest.param(multipart(b"\r\n" + b"x" * mime.SIMPLE_MAX_OCTETS), "worker", id="large, in parts"),
        pytest.param(b"Subject: x\r\n\r\n" + b"\n--" * mime.SIMPLE_MAX_OCTETS, "worker", id="large, without parts whatever it looks like"),
        pytest.param(multipart(*[b"\r\n" + b"x" * 1000] * 65), "suspect", id="large, of many delimiters"),
        pytest.param(b"To: " + b":" * mime.SIMPLE_BLOCK_MAX_OCTETS + b"\r\n\r\n", "worker", id="large header block"),
        pytest.param(multipart(*[b"Content-Type: a/b\r\n\r\n"] * 16), "suspect", id="many parts"),
        pytest.param(multipart(*[b"\r\n"] * 65), "suspect", id="many delimiters"),
        pytest.param(b"Subject: " + b"=?" * 201 + b"\r\n\r\n", "suspect", id="many encoded words"),
        pytest.param(b"Content-Type: MESSAGE/rfc822\r\n\r\n", "suspect", id="nested message"),
        pytest.param(multipart(b"\r\n", subtype=b"Digest"), "suspect", id="digest"),
    ],
)
def test_where_a_message_may_be_parsed(octets: bytes, way: str) -> None:
    """Small and plain here, the rest in a process that may die."""
    assert Verdict(way) == guard(octets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        pytest.param(nested(1001), "mime.parts", id="content types"),
        pytest.param(b"A: " + b"b" * 300_000, "header.block_too_large", id="header block"),
        pytest.param(b"\r\n" + b"=?" * 40_000 + b" " * 1_000_000, "mime.encoded_words", id="encoded words"),
    ],
)
def test_what_is_parsed_nowhere(octets: bytes, code: str) -> None:
    """Refused from the octets alone."""
    verdict = guard(octets)
    assert ("raw", [code]) == (verdict.way, [defect.code for defect in verdict.defects])


def test_a_plain_message() -> None:
    """One part, no attachment, no defect."""
    found = parse(PLAIN)
    assert Text("one line of text\r\n" * 30, "utf-8", "utf-8", lossy=False, truncated=False) == found.text
    assert (None, (), (), 1, (), True) == (found.html, found.attachments, found.defects, found.parts_seen, found.truncated, found.readable)
    assert ("hello", "2024-01-01T00:00:00Z") == (found.facts.subject, found.facts.date)


def test_bodies_and_attachments() -> None:
    """The first text and the first HTML are bodies; the rest are attachments, numbered as IMAP does."""
    alternative = multipart(b"\r\ntext", b"Content-Type: text/html; charset=iso-8859-1\r\n\r\n\xe9", subtype=b"alternative", boundary=b"i")
    octets = multipart(
        alternative,
        b"\r\nfooter",
        b"Content-Type: image/PNG; name=x.png\r\nContent-Disposition: inline\r\nContent-ID: <cid@x>\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nAAEC",
        b"Content-Type: text/plain\r\nContent-Disposition: attachment\r\n\r\nattached",
        b"Content-Type: text/html; name=page\r\n\r\nnamed",
    )
    found = parse(octets)
    assert Text("text", None, "utf-8", lossy=False, truncated=False) == found.text
    assert Text("é", "iso-8859-1", "windows-1252", lossy=False, truncated=False) == found.html
    rows = [
        ("2", None, "text/plain", None, None, b"footer"),
        ("3", "x.png", "image/png", "inline", "cid@x", b"\0\1\2"),
        ("4", None, "text/plain", "attachment", None, b"attached"),
        ("5", "page", "text/html", None, None, b"named"),
    ]
    assert [Attachment._make([*row, len(octets), sha256(octets).hexdigest(), octets, None]) for *row, octets in rows] == list(
        found.attachments
    )
    assert 8 == found.parts_seen


def test_a_nested_message_is_one_attachment() -> None:
    """It is not entered."""
    inner = b"Subject: inner\r\n\r\nbody"
    found = parse(multipart(b"Content-Type: message/rfc822\r\n\r\n" + inner))
    assert (None, [inner], 2) == (found.text, [attachment.content for attachment in found.attachments], found.parts_seen)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        pytest.param(b"Content-Disposition: attachment; filename=a.txt", "a.txt", id="token"),
        pytest.param(b"Content-Disposition: attachment; filename*=utf-8''%C3%A9", "é", id="RFC 2231"),
        pytest.param(b'Content-Disposition: attachment; filename="=?utf-8?q?=C3=A9?="', "é", id="encoded word"),
        pytest.param(b'Content-Disposition: attachment; filename="=?utf-8*en?q?=C3=A9?="', "é", id="with language"),
        pytest.param(b'Content-Disposition: attachment; filename="=?x?q?=C3=A9=3F?="', "é?", id="unknown charset"),
        pytest.param(b"Content-Disposition: attachment; filename*=utf-8''a%0D%0Ab%00", "a b\ufffd", id="controls"),
        pytest.param(b"Content-Disposition: attachment; filename=../../etc/passwd", "../../etc/passwd", id="a path stays what it is"),
        pytest.param(b"Content-Disposition: attachment; filename=" + b"x" * 300, "x" * 255, id="cut"),
        pytest.param(b"Content-Type: a/b; name=c\r\nContent-Disposition: attachment", "c", id="old name"),
        pytest.param(b"Content-Disposition: attachment; filename=", None, id="empty"),
    ],
)
def test_file_names(field: bytes, expected: str | None) -> None:
    """Decoded, scrubbed, otherwise the sender's word."""
    assert expected == parse(multipart(b"\r\n", field + b"\r\n\r\nx")).attachments[0].filename


def test_contents_are_kept_while_they_fit() -> None:
    """In order, as base64; size and hash are told of all."""
    octets = multipart(*[b"Content-Type: a/b\r\n\r\n" + size * b"x" for size in (3, 300, 6)])
    kept = [(attachment.content, attachment.reason) for attachment in parse(octets, inline_max_octets=12).attachments]
    assert [(b"xxx", None), (None, "too_large"), (b"x" * 6, None)] == kept
    assert [3, 300, 6] == [attachment.size_octets for attachment in parse(octets, inline_max_octets=0).attachments]


@pytest.mark.parametrize(
    ("part", "text", "expected"),
    [
        pytest.param(b"Content-Type: text/plain; charset=x-none\r\n\r\n\xe9", "é", ["charset.unknown"], id="unknown charset"),
        pytest.param(b"Content-Type: text/plain; charset=utf-8\r\n\r\n\xe9", "é", ["charset.mismatch"], id="wrong charset"),
        pytest.param(b"\r\na\x00b\x0c", "a\ufffdb\ufffd", ["text.control"], id="controls"),
        pytest.param(b"\r\n\xef\xbb\xbfa", "a", [], id="byte order mark"),
        pytest.param(b"Content-Transfer-Encoding: x-uuencode\r\n\r\na", "a", ["encoding.unknown"], id="unknown encoding"),
        pytest.param(b"Content-Transfer-Encoding: Quoted-Printable\r\n\r\n=C3=A9=\r\n!", "é!", [], id="quoted-printable"),
        pytest.param(b"Content-Transfer-Encoding: base64\r\n\r\naGVsbG8", "hello", ["base64.invalid"], id="broken base64"),
        pytest.param(b"Content-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n--\r\nfooter", "hello", ["base64.invalid"], id="footer"),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["message", "part"])
def test_what_is_wrong_with_a_body(part: bytes, text: str, expected: list[str], whole: bool) -> None:
    """It is read as far as it makes sense; the part is named."""
    found = parse(part if whole else multipart(part))
    assert (text, [(code, "1") for code in expected]) == (found.text and found.text.text, [defect[:2] for defect in found.defects])


def test_one_broken_part_does_not_take_the_others_along() -> None:
    """Their octets and hashes stay exact, even where they speak of transfer encodings themselves."""
    broken = b"Content-Transfer-Encoding: base64\r\n\r\naGVsbG8"
    nested_message = b"content-Transfer-encoding: 8bit\r\nTRANSFER\r\n\r\nContent-Transfer-Encoding"
    octets = multipart(
        broken,
        b"Content-Type: message/rfc822\r\n\r\n" + nested_message,
        b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC",
        b"Content-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=00",
        b"Content-Type: a/b\r\nContent-Transfer-Encoding: x-no\r\n\r\n=00",
    )
    found = parse(octets)
    assert "hello" == (found.text and found.text.text)
    assert [nested_message, b"\0\1\2", b"\0", b"=00"] == [attachment.content for attachment in found.attachments]
    assert [("base64.invalid", "1"), ("encoding.unknown", "5")] == [defect[:2] for defect in found.defects]


def test_a_broken_nested_message_does_not_take_the_others_along() -> None:
    """The parser gives up even its lazy tree for this one."""
    octets = multipart(b"\r\ntext", b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nzzzzz")
    found = parse(octets)
    assert ("text", ["base64.invalid"]) == (found.text and found.text.text, [defect.code for defect in found.defects])


def test_a_message_that_foils_the_repair_is_published_raw() -> None:
    """Nobody writes the disguise by accident."""
    octets = multipart(b"Content-Transfer-Encoding: base64\r\n\r\naGVsbG8", b"Content-Xransfer-Encoding: x\r\n\r\n")
    assert unreadable(Defect("part.undecodable", None, "transfer encoding")) == parse(octets)


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        pytest.param(multipart(*[b"\r\n"] * 1000), "mime.parts", id="parts"),
        pytest.param(nested(40) + b"\r\nx", "mime.depth", id="depth"),
        pytest.param(nested(300) + b"\r\nx", "mime.malformed", id="depth the parser refuses"),
        pytest.param(nested(40) + b"Content-Transfer-Encoding: base64\r\n\r\na", "mime.depth", id="depth with broken base64"),
        pytest.param(b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnothing", "boundary.missing", id="boundary never occurs"),
        pytest.param(b"Content-Type: multipart/mixed\r\n\r\nnothing", "boundary.missing", id="no boundary"),
        pytest.param(b"A: b\r\n" * 1001 + b"\r\n", "header.block_too_large", id="fields"),
    ],
)
def test_past_its_bounds_a_message_is_published_raw(octets: bytes, code: str) -> None:
    """Nothing of it is told but why."""
    found = parse(octets)
    assert (False, [code], ()) == (found.readable, [defect.code for defect in found.defects], found.headers)


def test_the_bounds_themselves_are_fine() -> None:
    """31 levels of multiparts and 999 parts are read."""
    assert parse(nested(31) + b"\r\nx").readable
    assert parse(multipart(*[b"\r\n"] * 999)).readable


def test_an_inner_multipart_without_parts_is_a_defect() -> None:
    """The rest is read."""
    found = parse(multipart(b"Content-Type: multipart/mixed; boundary=x\r\n\r\nnothing", b"\r\ntext"))
    assert ("text", (Defect("boundary.missing", "1", "no part found"),)) == (found.text and found.text.text, found.defects)


@pytest.mark.parametrize("unit", [b"x", "é".encode(), "€".encode(), "😀".encode()])
def test_a_long_body_is_cut_between_characters(unit: bytes) -> None:
    """At 256 KiB in UTF-8."""
    found = parse(b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + unit * 300_000)
    assert found.text is not None
    octets = found.text.text.encode()
    assert (True, ("body.text",)) == (found.text.truncated, found.truncated)
    assert mime.TEXT_MAX_OCTETS - len(unit) < len(octets) <= mime.TEXT_MAX_OCTETS
    assert octets == unit * (len(octets) // len(unit))


def test_what_is_not_whole_is_named() -> None:
    """A value past 64 KiB, more than a thousand addresses, a long HTML body."""
    octets = b"X: " + b"x" * 70_000 + b"\r\nTo: " + b"a@b," * 1001 + b"\r\nContent-Type: text/html\r\n\r\n" + b"x" * 300_000
    assert ("headers", "message.to", "body.html") == parse(octets).truncated


def test_defects_are_told_up_to_a_hundred() -> None:
    """Hostile mail can have one per line."""
    assert 100 == len(parse(b"no field\r\n" * 500 + b"\r\n").defects)


def test_a_panic_of_the_native_parser_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its panics are no Exception; let through, one would end the loop."""

    class PanicException(BaseException):
        """As the native module raises it."""

    def panic(octets: bytes, *, mode: str) -> None:
        raise PanicException(mode)

    monkeypatch.setattr(mime, "parse_email_tree", panic)
    assert unreadable(Defect("parser.died", None, "panic")) == parse(PLAIN)


def test_an_interrupt_is_not_taken_for_a_panic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only panics are caught."""

    def interrupt(octets: bytes, *, mode: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mime, "parse_email_tree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parse(PLAIN)


def test_the_repair_survives_a_parser_that_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt may fail in its own way."""
    calls: list[str] = []

    def refuse(octets: bytes, *, mode: str) -> None:
        calls.append(mode)
        raise fast_mail_parser.DecodeError if len(calls) == 1 else fast_mail_parser.ParseError

    monkeypatch.setattr(mime, "parse_email_tree", refuse)
    assert unreadable(Defect("mime.malformed", None, "no structure found")) == parse(PLAIN)


_line = st.sampled_from(
    [
        b"Content-Type: multipart/mixed; boundary=b",
        b"Content-Type: message/rfc822",
        b"--b",
        b"--b--",
        b"",
        b"Content-Transfer-Encoding: base64",
        b"Content-Transfer-Encoding: quoted-printable",
        b"aGVsbG8",
        b"=E9=",
        b"Subject: =?utf-8?b?w6k?=",
        b" fold",
        b"\xff\x00",
        b"Content-Type: text/html; charset=utf-16",
    ]
)


@settings(max_examples=300)
@given(st.lists(_line, max_size=25))
def test_any_lines_are_taken_apart(lines: list[bytes]) -> None:
    """Nothing raises, every code is documented, every hash is right."""
    found = parse(b"\r\n".join(lines))
    assert {defect.code for defect in found.defects} <= set(DEFECTS)
    for attachment in found.attachments:
        assert attachment.content is not None
        assert sha256(attachment.content).hexdigest() == attachment.sha256


_any_text = st.sampled_from(
    [
        b"Subject: a",
        b"X-Y : b",
        b"Content-ID: <c>",
        b" fold",
        b"\tContent-Type: x/y",
        b"MIME-Version: 1.0",
        b"",
        b"--b",
        b"=E9=",
        b"aGVsbG8",
        b"no field",
        b"\xff\x00",
        b"X: =?utf-8?q?=E9?=",
        b"X: \x01",
    ]
)


@settings(max_examples=1000)
@example([b"Subject: a", b""], b"\r\n", b"\nbody")
@given(
    st.lists(_any_text, max_size=10),
    st.sampled_from([b"\r\n", b"\n"]),
    st.sampled_from([b"", b"\n", b"\r"]).flatmap(lambda head: st.binary(max_size=8).map(head.__add__)),
)
def test_what_says_nothing_of_its_structure_is_what_the_native_parser_reads(lines: list[bytes], end_of_line: bytes, rest: bytes) -> None:
    """It is one text, and is taken apart without that parser."""
    octets = end_of_line.join(lines) + rest
    found = parse(octets)
    try:
        root = fast_mail_parser.parse_email_tree(octets, mode="lazy")
    except fast_mail_parser.ParseError:
        assert not found.readable
        return
    assert root.encoded_size is not None
    whole = charsets.scrub_body(charsets.decode(root.content or b"", None).text.removeprefix("\ufeff"))
    assert found.text is not None
    assert whole == found.text.text
    assert not found.attachments


def test_most_mail_of_programs_needs_no_native_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says that it has parts; one word of it, and the parser is asked."""
    asked = []

    def parser(octets: bytes, *, mode: Literal["lazy"]) -> fast_mail_parser.PyLazyMimePart:
        asked.append(octets)
        return fast_mail_parser.parse_email_tree(octets, mode=mode)

    monkeypatch.setattr(mime, "parse_email_tree", parser)
    parse(b"Subject: x\r\n\r\ntext\r\n")
    assert [] == asked
    for line in (b"Content-Type: text/plain", b"Content-Transfer-Encoding: 8bit", b"content-disposition:", b"no field", b"X: \x01"):
        parse(line + b"\r\n\r\ntext\r\n")
    assert 5 == len(asked)


def test_the_standard_library_finds_the_same_leaves() -> None:
    """On the interpreter's corpus: the decoded content of every leaf, where both read the same tree."""
    agreed = 0
    for path in corpus():
        octets = wire(path.read_bytes())
        found = parse(octets, inline_max_octets=1 << 30)
        oracle = email.message_from_bytes(octets, policy=email.policy.default)
        if not found.readable or found.defects or any(part.defects for part in oracle.walk()):
            continue
        theirs = {sha256(leaf).hexdigest() for leaf in _leaves(oracle)}
        # A delimiter without a part behind it is an empty part to us; what is inside nested messages is not our leaf.
        ours = {each.sha256 for each in found.attachments if each.size_octets and not each.content_type.startswith("message/")}
        assert ours <= theirs, path.name
        agreed += 1
    assert agreed >= 25


def _leaves(message: email.message.Message) -> list[bytes]:
    found = []
    for part in message.walk():
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            found.append(payload)
    return found
