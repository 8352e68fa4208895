"""Values of parameters against the grammars of their RFCs, and which parameters are taken where."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from postbus.smtp import Offer, Reply, replies
from postbus.smtp.parameters import MAIL, RCPT, Found, Parameter, judge, keywords_of

OFFER = Offer("mx.test")


@dataclass
class Place:
    """Where a parameter is said."""

    offer: Offer = OFFER
    tls: bool = False


PLAIN = Place()
BAD, UNKNOWN = replies.BAD_PARAMETER, replies.UNKNOWN_PARAMETER
OFFERED = Place(Offer("mx.test", keywords=("FUTURERELEASE 100 2030-01-01T00:00:00Z", "RRVS", "CHECKPOINT")))

# Table, what stands behind the path, taken or not.
VALUES: list[tuple[dict[str, Parameter], str, bool]] = [
    *((dict(MAIL), text, True) for text in (
        "SIZE=0", "SIZE=12345678901234567890", "BODY=7BIT", "BODY=8bitmime", "RET=full", "RET=HDRS", "ENVID=a", "ENVID=" + "x" * 100,
        "ENVID=+2B+3D", "ENVID=<>", "AUTH=<>", "AUTH=a+2Bb@c", "BY=1;R", "BY=120;rt", "BY=-5;N", "BY=0;N", "BY=+5;NT", "BY=999999999;R",
        "MT-PRIORITY=0", "MT-PRIORITY=9", "mt-priority=-9", "SUBMITTER=a@b", "SOLICIT=org.example:ADV", "MTRK=abc+/:120",
        "SMTPUTF8",
    )),
    *((dict(MAIL), text, False) for text in (
        "SIZE=", "SIZE", "SIZE=-1", "SIZE=1k", "SIZE=123456789012345678901", "BODY", "BODY=9BIT", "RET", "RET=ALL", "RET=FULL,HDRS",
        "ENVID", "ENVID=a+2", "ENVID=a+GG", "ENVID=" + "x" * 101, "ENVID=ü", "AUTH", "AUTH=+zz", "BY", "BY=R", "BY=;R", "BY=5", "BY=5;",
        "BY=5;X", "BY=5;RN", "BY=5;TR", "BY=5;RTT", "BY=0;R", "BY=-5;R", "BY=+0;R", "BY=1234567890;R", "BY=--5;N", "BY=5;R;T", "BY=1.5;R",
        "MT-PRIORITY", "MT-PRIORITY=10", "MT-PRIORITY=-0", "MT-PRIORITY=+1", "MT-PRIORITY=", "SMTPUTF8=1",
        "REQUIRETLS=1", "BY=٣;N", "SIZE=٣",
    )),
    *((dict(RCPT), text, True) for text in (
        "NOTIFY=NEVER", "NOTIFY=success", "NOTIFY=DELAY,FAILURE", "NOTIFY=SUCCESS,FAILURE,DELAY", "ORCPT=rfc822;a@b", "ORCPT=x-y;z",
        "ORCPT=rfc822;a+2Bb@c", "ORCPT=rfc822;a\\b", "ORCPT=utf-8;a@b", "ORCPT=UTF-8;\\x{1F600}@b", "ORCPT=utf-8;ü@b",
        "ORCPT=utf-8;a\\x{2B}b@c", "CONPERM", "CONNEG", "ORCPT=rfc822;" + "x" * 493,
    )),
    *((dict(RCPT), text, False) for text in (
        "NOTIFY", "NOTIFY=", "NOTIFY=ALWAYS", "NOTIFY=NEVER,SUCCESS", "NOTIFY=SUCCESS,NEVER", "NOTIFY=SUCCESS,", "NOTIFY=,SUCCESS",
        "NOTIFY=SUCCESS,,DELAY", "NOTIFY=SUCCESS;DELAY", "NOTIFY=SUCCESS,FAILURE,DELAY,SUCCESS", "ORCPT", "ORCPT=a@b", "ORCPT=;a@b",
        "ORCPT=rfc822;", "ORCPT=rfc822;a+b@c", "ORCPT=rfc822;a+2", "ORCPT=rfc822;ü@b", "ORCPT=rfc.822;a@b", "ORCPT=utf-8;a\\b",
        "ORCPT=utf-8;a+2Bb", "ORCPT=utf-8;\\x{D800}", "ORCPT=utf-8;\\x{110000}", "ORCPT=utf-8;\\x{1234567}", "ORCPT=utf-8;\\x{G0}",
        "ORCPT=utf-8;\\x{1}", "ORCPT=utf-8;", "ORCPT=rfc822;" + "x" * 494, "CONPERM=1", "CONNEG=1",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("table", "text", "taken"), VALUES, ids=[text[:40] for _, text, _ in VALUES])
def test_values(table: dict[str, Parameter], text: str, taken: bool) -> None:
    """A value of its RFC's grammar is recorded as sent; any other is answered 501 5.5.4."""
    key, _, value = text.partition("=")
    found = judge(" " + text, table, PLAIN)
    assert (Found({key.upper(): value or None}, {}) if taken else BAD) == found


@pytest.mark.parametrize(
    ("text", "table", "bare", "offered"),
    [
        ("HOLDFOR=10", MAIL, UNKNOWN, True),
        ("HOLDFOR=0", MAIL, BAD, False),
        ("HOLDFOR=1234567890", MAIL, BAD, False),
        ("HOLDUNTIL=2030-01-01T00:00:00Z", MAIL, UNKNOWN, True),
        ("HOLDUNTIL=2030-01-01T00:00:00+01:00", MAIL, UNKNOWN, True),
        ("HOLDUNTIL=tomorrow", MAIL, BAD, False),
        ("HOLDFOR=10 HOLDUNTIL=2030-01-01T00:00:00Z", MAIL, UNKNOWN, False),
        ("TRANSID=<1@b>", MAIL, UNKNOWN, True),
        ("RRVS=2014-04-03T23:01:00Z", RCPT, UNKNOWN, True),
        ("RRVS=2014-04-03T23:01:00Z;C", RCPT, UNKNOWN, True),
        ("RRVS=2014", RCPT, BAD, False),
    ],
)
def test_what_binds_the_receiver_is_taken_only_where_it_is_offered(
    text: str, table: dict[str, Parameter], bare: Reply, offered: bool
) -> None:
    """Holding mail back, checking whose mailbox it was, picking up a transfer: only with the keyword; and malformed is 501 in any case."""
    assert bare == judge(" " + text, table, PLAIN)
    assert isinstance(judge(" " + text, table, OFFERED), Found) == offered


@pytest.mark.parametrize(
    ("offered", "tls", "expected"),
    [
        (False, False, UNKNOWN),
        (False, True, UNKNOWN),
        (True, False, replies.TLS_FIRST),
        (True, True, Found({"REQUIRETLS": None}, {})),
    ],
)
def test_requiretls(offered: bool, tls: bool, expected: Found | Reply) -> None:
    """REQUIRETLS needs the offer (555) and an encrypted session (530)."""
    assert expected == judge(" REQUIRETLS", MAIL, Place(Offer("mx.test", requiretls=offered), tls=tls))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("BY=59;R", UNKNOWN), ("BY=60;R", None), ("BY=1;N", None), ("BY=-1;NT", None), ("BY=0;R", BAD)],
)
def test_the_least_time_to_deliver_by_is_heeded(text: str, expected: Reply | None) -> None:
    """Who wants his mail back sooner than we said is refused; who wants a notice is not (RFC 2852 s4.1)."""
    found = judge(" " + text, MAIL, Place(Offer("mx.test", deliverby_min_s=60)))
    assert expected == (found if isinstance(found, Reply) else None)


def test_unregistered_parameters_are_refused_or_recorded() -> None:
    """Recorded, they count as defects; what binds the receiver stays refused, and what is malformed too."""
    recording = Place(Offer("mx.test", unregistered="record", smtputf8=False, keywords=("XOWN",)))
    assert UNKNOWN == judge(" XFOO=1", MAIL, PLAIN)
    assert Found({"XFOO": "1", "NOTIFY": "NEVER", "XOWN": None}, {"unregistered-parameter": 2}) == judge(
        " xfoo=1 NOTIFY=NEVER XOWN", MAIL, recording
    )
    for refused in ("SMTPUTF8", "REQUIRETLS", "HOLDFOR=5"):
        assert UNKNOWN == judge(f" {refused}", MAIL, recording)
    for bad in ("XFOO=", "XFOO=a=b", "XFOO XFOO", "X_FOO"):
        assert BAD == judge(f" {bad}", MAIL, recording)


def test_keywords_allow_the_parameter_of_their_name() -> None:
    """What a program announces, it gets."""
    own = Place(Offer("mx.test", keywords=("xfoo bar",)))
    assert {"XFOO"} == keywords_of(own.offer)
    assert Found({"XFOO": "1"}, {}) == judge(" XFOO=1", RCPT, own)
