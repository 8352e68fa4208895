"""Parameters: whatever is said is refused with a reply or recorded as sent, and fits the event."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.parameters import told
from postbus.event.schema import EnvelopeParams
from postbus.smtp import Offer, Reply
from postbus.smtp.parameters import MAIL, RCPT, judge
from tests.fuzz import bounded
from tests.smtp.test_commands import Session

_keys = st.sampled_from([*MAIL, *RCPT, "XOWN", "X-Y"]) | st.text(max_size=6)
_values = (
    st.from_regex(r"[+-]?[0-9]{0,10};?[NRTnrt]{0,3}", fullmatch=True)
    | st.from_regex(r"(?:utf-8|rfc822|x);[a-z+0-9A-F\\{}@ü]{0,20}", fullmatch=True)
    | st.lists(st.sampled_from(["SUCCESS", "FAILURE", "DELAY", "NEVER", ""])).map(",".join)
    | st.sampled_from(["<>", "FULL", "7BIT", "8BITMIME", "2030-01-01T00:00:00Z"])
    | st.text(max_size=12)
)
_words = st.builds(lambda key, value: key if value is None else f"{key}={value}", _keys, st.none() | _values)
_texts = st.lists(_words, max_size=5).map(lambda words: "".join(f" {word}" for word in words)) | st.text(max_size=40)
_offers = st.builds(
    Offer,
    hostname=st.just("mx.test"),
    smtputf8=st.booleans(),
    requiretls=st.booleans(),
    deliverby_min_s=st.sampled_from([0, 60]),
    unregistered=st.sampled_from(["refuse", "record"]),
    keywords=st.sampled_from([(), ("FUTURERELEASE 9 9", "XOWN")]),
)


@bounded(400)
@given(_texts, _offers, st.booleans(), st.sampled_from(["MAIL", "RCPT"]))
def test_parameters_are_refused_or_recorded_as_sent(text: str, offer: Offer, tls: bool, verb: str) -> None:
    """Every word that was said is there, and no other; what binds the receiver only where it was offered."""
    found = judge(text, MAIL if verb == "MAIL" else RCPT, Session(offer, tls=tls))
    if isinstance(found, Reply):
        assert found.code in {501, 530, 555}
        return
    said = [word.partition("=") for word in text.split(" ") if word]
    assert {key.upper(): value if equals else None for key, equals, value in said} == found.parameters
    assert offer.unregistered == "record" or not found.defects
    if verb == "MAIL":
        assert "REQUIRETLS" not in found.parameters or (offer.requiretls and tls)
        assert "SMTPUTF8" not in found.parameters or offer.smtputf8
        assert not {"HOLDFOR", "HOLDUNTIL"} & found.parameters.keys() or offer.keywords
    mail, rcpt = (found.parameters, {}) if verb == "MAIL" else ({}, found.parameters)
    tree = told(mail, rcpt, smtputf8="SMTPUTF8" in mail)
    EnvelopeParams.model_validate_json(orjson.dumps(tree))
    by = mail.get("BY")
    assert (by is None) == (tree["by"] is None)
    assert (mail.get("MT-PRIORITY") is None) == (tree["priority"] is None)
