"""What parsing found, on the pipe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.parsed import Address, Attachment, Defect, Facts, Header, Parsed, Text, from_bytes, to_bytes, unreadable

_text = st.text(max_size=8)
_optional = st.none() | _text
_addresses = st.lists(st.builds(Address, _optional, _text, _optional, st.booleans()), max_size=2).map(tuple)
_parsed = st.builds(
    Parsed,
    facts=st.builds(
        Facts,
        from_=_addresses,
        to=_addresses,
        references=st.lists(_text, max_size=2).map(tuple),
        subject=_optional,
        is_report=st.booleans(),
    ),
    headers=st.lists(st.builds(Header, _text, _text, st.booleans(), st.none() | st.binary(max_size=8)), max_size=3).map(tuple),
    text=st.none() | st.builds(Text),
    html=st.none() | st.builds(Text),
    attachments=st.lists(
        st.builds(Attachment, content=st.none() | st.binary(max_size=20), size_octets=st.none() | st.integers(0, 99)), max_size=3
    ).map(tuple),
    defects=st.lists(st.builds(Defect), max_size=2).map(tuple),
    parts_seen=st.integers(0, 1000),
    truncated=st.lists(_text, max_size=2).map(tuple),
    readable=st.booleans(),
)


@given(_parsed)
def test_what_a_parser_writes_its_owner_reads(given_parse: Parsed) -> None:
    """Any finding survives the pipe, contents octet by octet."""
    assert given_parse == from_bytes(to_bytes(given_parse))


@given(_parsed, st.data())
def test_a_torn_answer_is_a_value_error(given_parse: Parsed, data: st.DataObject) -> None:
    """A parser that dies while it writes is noticed."""
    octets = to_bytes(given_parse)
    torn = octets[: data.draw(st.integers(0, len(octets) - 1))]
    with pytest.raises(ValueError, match=r"."):
        from_bytes(torn)


@pytest.mark.parametrize("change", [b"", b"xxx", b"xxxxx"])
def test_contents_must_be_as_long_as_announced(change: bytes) -> None:
    """Neither cut short nor followed by more."""
    attachment = Attachment("1", None, "a/b", None, None, 4, "0" * 64, b"1234", None)
    octets = to_bytes(Parsed(attachments=(attachment,)))
    with pytest.raises(ValueError, match="contents"):
        from_bytes(octets[:-4] + change)


@given(st.binary(max_size=60))
def test_anything_else_is_a_value_error(octets: bytes) -> None:
    """Its reader believes nothing but data."""
    with pytest.raises(ValueError, match=r"."):
        from_bytes(octets)


@pytest.mark.parametrize("text", [b"{}", b"[]", b'{"facts":null}', b"1"])
def test_json_of_another_shape_is_a_value_error(text: bytes) -> None:
    """JSON alone is not enough."""
    with pytest.raises(ValueError, match=r"."):
        from_bytes(len(text).to_bytes(4, "big") + text)


def test_unreadable_mail_says_why() -> None:
    """Only defects speak."""
    defect = Defect("mime.depth", None, "over 32 levels")
    assert Parsed(defects=(defect,), readable=False) == unreadable(defect)
