"""The Received field of our own hop: its clauses, and that nothing a peer supplies can break out of them."""

from __future__ import annotations

import re
from email import message_from_string, policy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.mail import Client, Mail, Tls
from postbus.event.received import received
from tests.event.samples import PLAIN, mail, recipient

BY = "mx.example"
MODERN = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
OLD = Tls("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256")


def record(**changes: Any) -> Mail:
    """Return a mail that is to carry the field, changed as asked."""
    plain = {
        "received_by": BY,
        "protocol": "esmtp",
        "tls": None,
        "client": Client("192.0.2.1", 25, helo="client.example"),
        "smtputf8": False,
    }
    return mail(PLAIN, recipient(), **{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, "from client.example ([192.0.2.1]) by mx.example with ESMTP id ID for <Bob+tag@b.example>", id="plain"),
        pytest.param({"protocol": "esmtpsa", "tls": MODERN},
                     "from client.example ([192.0.2.1]) by mx.example with ESMTPSA id ID for <Bob+tag@b.example>"
                     " tls TLS_AES_256_GCM_SHA384",
                     id="TLS 1.3"),
        pytest.param({"protocol": "lmtps", "tls": OLD},
                     "from client.example ([192.0.2.1]) by mx.example with LMTPS (TLSv1.2 ECDHE-RSA-AES128-GCM-SHA256) id ID"
                     " for <Bob+tag@b.example>", id="TLS 1.2"),
        pytest.param({"tls": Tls("x)", "y")}, "from client.example ([192.0.2.1]) by mx.example with ESMTP id ID for <Bob+tag@b.example>",
                     id="TLS of a strange name"),
        pytest.param({"protocol": "esmtps", "smtputf8": True},
                     "from client.example ([192.0.2.1]) by mx.example with UTF8SMTPS id ID for <Bob+tag@b.example>", id="SMTPUTF8"),
        pytest.param({"protocol": "lmtp", "smtputf8": True},
                     "from client.example ([192.0.2.1]) by mx.example with UTF8LMTP id ID for <Bob+tag@b.example>", id="SMTPUTF8 by LMTP"),
        pytest.param({"client": Client("2001:db8::1%eth0", 25, helo="[IPv6:2001:db8::1]")},
                     "from [IPv6:2001:db8::1] ([IPv6:2001:db8::1]) by mx.example with ESMTP id ID for <Bob+tag@b.example>", id="IPv6"),
        pytest.param({"client": Client("192.0.2.1", 25, helo="x", ptr="a.example")},
                     "from x (a.example [192.0.2.1]) by mx.example with ESMTP id ID for <Bob+tag@b.example>", id="a name looked up"),
        pytest.param({"client": Client("192.0.2.1", 25, helo="x", ptr="a) by evil")},
                     "from x ([192.0.2.1]) by mx.example with ESMTP id ID for <Bob+tag@b.example>", id="a strange name looked up"),
        pytest.param({"client": Client("", 0, helo="client.example")},
                     "from client.example by mx.example with ESMTP id ID for <Bob+tag@b.example>", id="Unix socket"),
        pytest.param({"client": Client("", 0)}, "from unknown by mx.example with ESMTP id ID for <Bob+tag@b.example>", id="nothing known"),
        *[pytest.param({"client": Client("192.0.2.1", 25, helo=helo)},
                       "from [192.0.2.1] ([192.0.2.1]) by mx.example with ESMTP id ID for <Bob+tag@b.example>", id=f"helo {helo!r}")
          for helo in ("a(b", "a)b", "x;y", '"x"', "a\\b", "<a>", "a,b", "-", ".", "ü", "[a]b]", "a@b", None)],
        pytest.param({"received_by": "ü\r\n(x"}, "from client.example ([192.0.2.1]) by localhost with ESMTP id ID for <Bob+tag@b.example>",
                     id="our own name"),
        pytest.param({"received_by": "[192.0.2.9]"}, "from client.example ([192.0.2.1]) by [192.0.2.9] with ESMTP id ID"
                     " for <Bob+tag@b.example>", id="no name of our own"),
    ],
)  # fmt: skip
def test_clauses(changes: dict[str, Any], expected: str) -> None:
    """Each fact has its clause, and what is not plainly what it should be is left out."""
    written = record(**changes, received_ms=1_704_067_200_999)
    assert received(written, written.recipients[0]) == expected.replace("ID", written.id) + "; Mon, 01 Jan 2024 00:00:00 +0000"


@pytest.mark.parametrize(
    ("address", "clause"),
    [
        ("postmaster", "for <postmaster>"),
        ("büro@b.example", "for <büro@b.example>"),
        *[(address, "") for address in ('"a b"@c', '"a\\"b"@c', "a>b@c", "a(b)@c", "a\r\nb@c", "a;b@c", "x" * 400)],
    ],
)
def test_for_clause(address: str, clause: str) -> None:
    """The event's recipient is named, unless his address could be taken for something else."""
    written = record()
    value = received(written, recipient(address=address))
    assert (f" {clause};" in value) if clause else (" for " not in value)


ANYTHING = st.text(max_size=60)


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_nothing_breaks_out(helo: str, ptr: str, hostname: str, address: str, cipher: str) -> None:
    """Whatever a peer supplies, the field is one line with its clauses in order and one date behind its only semicolon."""
    written = record(client=Client("192.0.2.1", 1, helo=helo, ptr=ptr), received_by=hostname, tls=Tls("TLSv1.2", cipher))
    value = received(written, recipient(address=address))
    found = re.fullmatch(
        r"from ([^\s()]+) \((?:[\w.-]+ )?\[192\.0\.2\.1\]\) by [\w.\[\]:-]+ with ESMTP(?: \([\w.-]+ [\w.-]+\))? id \S+"
        r"(?: for <[^\s<>()\"]+>)?(?: tls TLS_\w+)?; \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000", value)  # fmt: skip
    assert found is not None
    assert len(value) <= 1500
    assert len(message_from_string(f"Received: {value}\n\n", policy=policy.compat32).items()) == 1
