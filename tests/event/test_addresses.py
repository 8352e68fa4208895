"""Address headers."""

from __future__ import annotations

from email.utils import getaddresses
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.addresses import ADDRESSES_MAX, addresses
from postbus.event.headers import block_end, read
from postbus.event.parsed import Address
from tests.event.samples import corpus, wire


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a@b.example", [Address(None, "a@b.example")], id="bare"),
        pytest.param("Al <a@b.example>", [Address("Al", "a@b.example")], id="name"),
        pytest.param('"Doe, Al" <a@b.example>', [Address("Doe, Al", "a@b.example")], id="comma in quotes"),
        pytest.param('"Al \\"X\\" D" <a@b>', [Address('Al "X" D', "a@b")], id="escaped quotes"),
        pytest.param('"a b"@c.example', [Address(None, '"a b"@c.example')], id="quoted local part"),
        pytest.param("a@[192.0.2.1]", [Address(None, "a@[192.0.2.1]")], id="address literal"),
        pytest.param("a@b (Al (the) D)", [Address("Al (the) D", "a@b")], id="name in a comment"),
        pytest.param("Al (x) <a@b>", [Address("Al", "a@b")], id="comment beside a name"),
        pytest.param("() a@b", [Address(None, "a@b")], id="empty comment"),
        pytest.param("a@b, c@d", [Address(None, "a@b"), Address(None, "c@d")], id="two"),
        pytest.param(",, a@b ,", [Address(None, "a@b")], id="empty ones (RFC 5322 s4.4)"),
        pytest.param(
            "team: a@b, Al <c@d>;, e@f", [Address(None, "a@b", "team"), Address("Al", "c@d", "team"), Address(None, "e@f")], id="group"
        ),
        pytest.param("undisclosed-recipients:;", [], id="empty group"),
        pytest.param("a: b: c@d;", [Address(None, "b", "a", False), Address(None, "c@d", "a")], id="group in a group"),
        pytest.param("<@r1,@r2:a@b>", [Address(None, "a@b")], id="source route"),
        pytest.param("a . b @ c . d", [Address(None, "a.b@c.d")], id="blanks round dots"),
        pytest.param("a@x <b@y>", [Address("a@x", "b@y")], id="an address as name"),
        pytest.param("=?utf-8?q?Doe=2C_A?= <a@b>", [Address("Doe, A", "a@b")], id="encoded comma"),
        pytest.param('"=?utf-8?q?Al?=" <a@b>', [Address("Al", "a@b")], id="encoded word in quotes"),
        pytest.param("=?utf-8?q?x=0D=0Ay?= <a@b>", [Address("x y", "a@b")], id="hidden line break"),
        pytest.param("Jö <jö@b.example>", [Address("Jö", "jö@b.example")], id="UTF-8"),
        pytest.param("Jo\u202e <a\u202e@b>", [Address("Jo\ufffd", "a\ufffd@b", None, False)], id="override"),
        pytest.param("nobody", [Address(None, "nobody", None, False)], id="no address"),
        pytest.param("a b@c", [Address(None, "a b@c", None, False)], id="blank inside"),
        pytest.param("a..b@c", [Address(None, "a..b@c", None, False)], id="two dots"),
        pytest.param("Al <>", [Address("Al", "", None, False)], id="name alone"),
        pytest.param("<>", [], id="null"),
        pytest.param("Al <a@b", [Address("Al", "a@b")], id="unclosed angle"),
        pytest.param('"Al <a@b>', [Address(None, '"Al <a@b>', None, False)], id="unclosed quote"),
        pytest.param("Al <a b@c>", [Address("Al", "ab@c")], id="blank in the angle"),
        pytest.param("a\\@b <c@d>", [Address("a\\@b", "c@d")], id="stray backslash"),
        pytest.param("a@b)", [Address(None, "a@b)", None, False)], id="stray parenthesis"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_mailboxes(text: str, expected: list[Address]) -> None:
    """Structure first, decoding after; nothing raises."""
    found, cut = addresses(text, [])
    assert (expected, False) == (list(found), cut)


def test_what_is_no_address_is_a_defect() -> None:
    """Told once per mailbox."""
    defects: list[object] = []
    addresses("nobody, a@b, noone", defects)  # type: ignore[arg-type]
    assert [("address.invalid", None, "no addr-spec")] * 2 == defects


def test_a_thousand_are_read() -> None:
    """The rest is said to be missing."""
    found, cut = addresses("a@b," * (ADDRESSES_MAX + 1), [])
    assert (ADDRESSES_MAX, True) == (len(found), cut)


_atom = st.text(st.sampled_from("abcXYZ019!#$-_"), min_size=1, max_size=6)
_spec = st.tuples(_atom, _atom).map("@".join)
_name = st.text(st.sampled_from('ab Z,;:<>()[].\\"é'), max_size=8)


@given(st.lists(st.tuples(_name, _spec), min_size=1, max_size=5))
def test_what_is_written_by_the_rules_is_read_by_them(boxes: list[tuple[str, str]]) -> None:
    """Any name in quotes, any address in angle brackets."""
    sent = ", ".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + f'" <{spec}>' for name, spec in boxes)
    expected = [(name.strip() or None, spec, True) for name, spec in boxes]
    assert expected == [(box.name, box.address, box.valid) for box in addresses(sent, [])[0]]


@given(st.text(st.sampled_from('a@.,;:<>()[]"\\ é=?qx\u202e'), max_size=40))
def test_any_text_is_read(text: str) -> None:
    """And nothing found turns the reading direction."""
    found, _ = addresses(text, [])
    assert not any("\u202e" in box.address or "\u202e" in (box.name or "") for box in found)


def test_the_standard_library_finds_the_same_addresses() -> None:
    """On the interpreter's corpus, in From, To and Cc, where its strict reader accepts them."""
    for path in corpus():
        octets = wire(path.read_bytes())
        for header in read(octets[: block_end(octets)]).headers:
            if header.name.lower() not in ("from", "to", "cc", "sender", "reply-to"):
                continue
            oracle = [address for _, address in getaddresses([header.value]) if "@" in address]
            ours = [box.address for box in addresses(header.value, [])[0] if box.valid]
            if oracle:
                assert oracle == ours, (path.name, header)


@pytest.mark.parametrize(
    "piece", [";", '"', "(", "<", ":", ",", "\\", "@", "[", "a.", "a ", ". ", "(a", "a<", '"a" ', " \t", "=?a?b?", "a@b:", "é"]
)
def test_64_kib_of_anything_takes_no_time(piece: str) -> None:
    """Linear: a quadratic reader would take seconds."""
    text = piece * (65_536 // len(piece))
    started = process_time()
    addresses(text, [])
    addresses("a" + text + "<", [])
    assert process_time() - started < 3
