"""Every parameter a sender gave is in the event, typed where there is a type for it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.mail import mail_from_bytes, mail_to_bytes
from postbus.event.model import render
from postbus.event.parameters import Said, told
from postbus.event.schema import EnvelopeParams
from tests.event.samples import PLAIN, mail, recipient

SILENT: dict[str, Any] = {
    "size": None, "body": "7BIT", "smtputf8": False, "envid": None, "ret": None, "notify": [], "orcpt": None, "requireTls": False,
    "priority": None, "by": None, "auth": None, "other": {"mail": {}, "rcpt": {}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"SIZE": "12", "BODY": "binarymime"}, {"size": 12, "body": "BINARYMIME"}, id="lower case"),
        pytest.param({"SIZE": None, "BODY": None}, {}, id="no values"),
        pytest.param({"SIZE": "9" * 19, "BODY": "x"}, {}, id="beyond 64 bits, and nonsense"),
        pytest.param({"SIZE": "٣"}, {}, id="digits that are not ASCII"),
        pytest.param({"ENVID": "a+2Bb", "RET": "hdrs"}, {"envid": "a+2Bb", "ret": "hdrs"}, id="as sent"),
        pytest.param({"REQUIRETLS": None}, {"requireTls": True}, id="REQUIRETLS"),
        pytest.param({"MT-PRIORITY": "-9"}, {"priority": -9}, id="priority"),
        pytest.param({"MT-PRIORITY": "10"}, {}, id="no priority"),
        pytest.param({"BY": "120;r"}, {"by": {"seconds": 120, "mode": "return", "trace": False}}, id="by, return"),
        pytest.param({"BY": "-5;NT"}, {"by": {"seconds": -5, "mode": "notify", "trace": True}}, id="by, notify, trace"),
        pytest.param({"BY": "soon"}, {}, id="no by"),
        pytest.param({"AUTH": "<>"}, {"auth": "<>"}, id="auth"),
        pytest.param({"X-FOO": "1", "XBAR": None}, {"other": {"mail": {"X-FOO": "1", "XBAR": None}, "rcpt": {}}}, id="others"),
        pytest.param({"HOLDFOR": "60"}, {"other": {"mail": {"HOLDFOR": "60"}, "rcpt": {}}}, id="registered without a field"),
    ],
)
def test_parameters_of_mail(said: Said, expected: dict[str, Any]) -> None:
    """Read as the RFCs have them, whatever was sent."""
    assert {**SILENT, **expected} == told(said, {}, smtputf8=False)


def test_parameters_of_the_recipient() -> None:
    """A keyword given to MAIL and to RCPT is told of both."""
    rcpt = {"NOTIFY": "SUCCESS,DELAY", "ORCPT": "utf-8;ü@b", "XFOO": "2", "RRVS": "2014-04-03T23:01:00Z;C"}
    found = told({"XFOO": "1", "SMTPUTF8": None}, rcpt, smtputf8=True)
    other = {"mail": {"XFOO": "1"}, "rcpt": {"XFOO": "2", "RRVS": "2014-04-03T23:01:00Z;C"}}
    assert {**SILENT, "smtputf8": True, "notify": ["SUCCESS", "DELAY"], "orcpt": "utf-8;ü@b", "other": other} == found


_words = st.text(max_size=12)
_said = st.dictionaries(
    st.sampled_from(["SIZE", "BODY", "BY", "MT-PRIORITY", "NOTIFY", "AUTH", "X"]) | _words, st.none() | _words, max_size=6
)


@given(_said, _said, st.booleans())
def test_whatever_was_said_fits_the_schema(one: Said, other: Said, smtputf8: bool) -> None:
    """And is JSON; nothing of it is lost but what its type cannot hold."""
    found = told(one, other, smtputf8=smtputf8)
    EnvelopeParams.model_validate_json(orjson.dumps(found))


def test_an_event_has_its_own_recipients_parameters_and_nobody_elses() -> None:
    """Not a word of them is in another's event (RFC 3461 s5.2.1: they are each recipient's own)."""
    first = recipient(mode="raw", params={"NOTIFY": "SUCCESS", "ORCPT": "rfc822;first@x", "XSECRET": "one"})
    second = recipient(mode="raw", index=1, params={"NOTIFY": "NEVER", "XSECRET": "two"})
    record = mail(PLAIN, first, second)
    data = [orjson.loads(render(record, each, PLAIN, None, as_octets=False).data) for each in record.recipients]
    assert [["SUCCESS"], ["NEVER"]] == [each["envelope"]["params"]["notify"] for each in data]
    assert b"first@x" not in orjson.dumps(data[1])
    assert [{"XSECRET": "one"}, {"XSECRET": "two"}] == [each["envelope"]["params"]["other"]["rcpt"] for each in data]


def test_rows_of_before_tell_them_too() -> None:
    """The record has kept every parameter from the beginning, so an old row has nothing to be migrated."""
    row = mail_to_bytes(mail(PLAIN, params=MappingProxyType({"BY": "60;R", "X-OLD": "1"})))
    found = mail_from_bytes(row)
    params = told(found.params, found.recipients[0].params, smtputf8=found.smtputf8)
    assert ({"seconds": 60, "mode": "return", "trace": False}, {"X-OLD": "1"}) == (params["by"], params["other"]["mail"])
