"""The record of an accepted mail and its form in the spool."""

from __future__ import annotations

from dataclasses import fields, replace
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.mail import Auth, Client, Mail, Recipient, Tls, mail_from_bytes, mail_to_bytes
from tests.event.samples import PLAIN, mail, recipient

_optional = st.none() | st.text(max_size=8)
_params = st.dictionaries(st.text(max_size=8), _optional, max_size=3)
_recipients = st.builds(
    Recipient,
    mode=st.sampled_from(["parsed", "raw", "both"]),
    event_max_octets=st.integers(0, 1 << 40),
    index=st.integers(0, 1 << 31),
    captures=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    params=_params,
    tag=_optional,
)
_mails = st.builds(
    Mail,
    recipients=st.lists(_recipients, min_size=1, max_size=3).map(tuple),
    received_ms=st.integers(0, 1 << 48),
    size_octets=st.integers(0, 1 << 40),
    client=st.builds(
        Client, port=st.integers(0, 65535), helo=_optional, ptr=_optional, via_proxy=st.booleans(), forwarded=st.none() | _params
    ),
    params=_params,
    tls=st.none() | st.builds(Tls, client_cert_subject=_optional),
    auth=st.none() | st.builds(Auth),
    defects=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3).map(tuple),
    smtputf8=st.booleans(),
    traceparent=_optional,
)


@given(_mails)
def test_what_goes_into_the_spool_comes_out(given_mail: Mail) -> None:
    """Any record survives the round trip."""
    assert given_mail == mail_from_bytes(mail_to_bytes(given_mail))


def test_a_read_only_mapping_is_stored_too() -> None:
    """Captures and parameters may be any mapping."""
    given_mail = mail(PLAIN, recipient(captures=MappingProxyType({"a": "b"})))
    assert {"a": "b"} == mail_from_bytes(mail_to_bytes(given_mail)).recipients[0].captures


def test_a_lone_surrogate_does_not_stop_a_mail() -> None:
    """What no UTF-8 can say is kept all the same."""
    given_mail = mail(PLAIN, mail_from="a\udce9@x", params=MappingProxyType({"X": "\ud800"}))
    found = mail_from_bytes(mail_to_bytes(given_mail))
    assert ("a\udce9@x", {"X": "\ud800"}) == (found.mail_from, found.params)


def test_a_field_added_later_is_skipped() -> None:
    """An older program reads a newer record, and a newer one an older record."""
    tree = orjson.loads(mail_to_bytes(mail(PLAIN)))
    for part in (tree, tree["mail"], tree["mail"]["client"], tree["mail"]["recipients"][0], tree["mail"]["tls"], tree["mail"]["auth"]):
        part["added"] = {"later": 1}
    for name in ("traceparent", "defects", "tls", "auth"):
        del tree["mail"][name]
    found = mail_from_bytes(orjson.dumps(tree))
    assert mail(PLAIN, traceparent=None, defects=(), tls=None, auth=None) == found


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"v":2,"mail":{}}', id="newer format"),
        pytest.param(b'{"v":1,"mail":{}}', id="fields missing"),
        pytest.param(b'{"v":1,"mail":[]}', id="no mail"),
    ],
)
def test_damage_is_a_value_error(octets: bytes) -> None:
    """Damage has one name, so that the spool can set the row aside."""
    with pytest.raises(ValueError, match=r"."):
        mail_from_bytes(octets)


def test_no_field_is_forgotten() -> None:
    """Of any of the records."""
    known = Client("192.0.2.1", 1)
    tree = orjson.loads(mail_to_bytes(replace(mail(PLAIN, recipient()), client=known, tls=Tls("TLSv1.3", "x"), auth=Auth("PLAIN", "a"))))[
        "mail"
    ]
    written = {Mail: tree, Client: tree["client"], Tls: tree["tls"], Auth: tree["auth"], Recipient: tree["recipients"][0]}
    assert {record: set(found) for record, found in written.items()} == {
        record: {each.name for each in fields(record)} for record in written
    }


def test_a_row_of_before_the_received_field_is_readable() -> None:
    """A record that does not know whether events carry a Received field of ours means that they do not."""
    written = mail(PLAIN, recipient())
    tree = orjson.loads(mail_to_bytes(replace(written, received_by="mx.example")))
    assert tree["mail"].pop("received_by") == "mx.example"
    assert written == mail_from_bytes(orjson.dumps(tree))
