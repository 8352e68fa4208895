"""Attributes of XCLIENT and XFORWARD: what is taken, in which form, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.smtp import Xclient, Xforward
from postbus.smtp.xclient import XCLIENT, XFORWARD, attributes
from tests.smtp.driver import OFFER, Driver


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        pytest.param("ADDR=192.0.2.1", {"ADDR": "192.0.2.1"}, id="IPv4"),
        pytest.param("addr=ipv6:2001:DB8::1", {"ADDR": "2001:db8::1"}, id="IPv6 as Postfix writes it, in any case"),
        pytest.param("ADDR=2001:db8::1", {"ADDR": "2001:db8::1"}, id="IPv6 as people write it"),
        pytest.param("NAME=[UNAVAILABLE] ADDR=[tempunavail]", {"NAME": None, "ADDR": None}, id="not available"),
        pytest.param("PORT=025 PROTO=esmtp", {"PORT": "25", "PROTO": "ESMTP"}, id="canonical forms"),
        pytest.param("HELO=a+20b LOGIN=j+C3+BCrgen+2B1", {"HELO": "a b", "LOGIN": "jürgen+1"}, id="xtext"),
        pytest.param("DESTADDR=198.51.100.2  DESTPORT=25", {"DESTADDR": "198.51.100.2", "DESTPORT": "25"}, id="destination"),
        pytest.param("NAME=spike.porcupine.org.", {"NAME": "spike.porcupine.org."}, id="a name"),
    ],
)
def test_xclient(arg: str, expected: dict[str, str | None]) -> None:
    """Each attribute, decoded and in one form."""
    assert expected == attributes(arg, XCLIENT)


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        pytest.param(
            "ADDR=decnet:13.37 NAME=+C3+BC PROTO=UUCP", {"ADDR": "decnet:13.37", "NAME": "ü", "PROTO": "UUCP"}, id="other networks"
        ),
        pytest.param("IDENT=4XyZ SOURCE=local", {"IDENT": "4XyZ", "SOURCE": "LOCAL"}, id="ident and source"),
        pytest.param("SOURCE=[UNAVAILABLE]", {"SOURCE": None}, id="not available"),
    ],
)
def test_xforward(arg: str, expected: dict[str, str | None]) -> None:
    """Names and addresses may be of any kind."""
    assert expected == attributes(arg, XFORWARD)


@pytest.mark.parametrize(
    "arg",
    [
        None, "", "  ", "ADDR", "ADDR=", "=192.0.2.1", "REVERSE_NAME=x", "ADDR=192.0.2.1 ADDR=192.0.2.2", "ADDR=mx.example",
        "ADDR=IPV6:192.0.2.1",
        "ADDR=fe80::1%1", "ADDR=[192.0.2.1]", "PORT=65536", "PORT=-1", "PORT=smtp", "PROTO=LMTP", "HELO=a+0Db", "HELO=a+00",
        "HELO=+G0",
        "HELO=a=b", "HELO=+C3", "HELO=ü", "NAME=a+20b", f"HELO={'x' * 256}", "LOGIN=a\u2028b",
    ],
)  # fmt: skip
def test_what_is_refused(arg: str | None) -> None:
    """Nothing of it is taken."""
    assert attributes(arg, XCLIENT) is None


@given(st.text(max_size=80))
def test_anything_is_refused_or_printable(arg: str) -> None:
    """No text raises, and no control character gets through."""
    for known in (XCLIENT, XFORWARD):
        found = attributes(arg, known) or {}
        assert all(value is None or value.isprintable() for value in found.values())


def test_the_longest_line_there_is_fits() -> None:
    """All attributes with long values, in one command."""
    driver = Driver(replace(OFFER, xclient=True, xforward=True))
    driver.feed(b"EHLO proxy.example\r\n")
    name = b"x" * 255
    said = b"XFORWARD NAME=%b HELO=%b IDENT=%b ADDR=%b PORT=65535 PROTO=ESMTP SOURCE=REMOTE\r\n" % (name, name, name, name)
    assert driver.feed(said).startswith(b"250")
    assert driver.feed(b"XCLIENT NAME=%b HELO=%b LOGIN=%b ADDR=192.0.2.1\r\n" % (name, name, name)).startswith(b"220")
    assert [Xforward, Xclient] == [type(event) for event in driver.events[1:]]


def test_xclient_forgets_who_greeted_and_nothing_else() -> None:
    """TLS stays; greeting and its kind do not."""
    driver = Driver(replace(OFFER, xclient=True))
    driver.feed(b"EHLO proxy.example\r\n")
    driver.engine.tls = True
    driver.feed(b"XCLIENT ADDR=192.0.2.1\r\n")
    assert (None, False, True) == (driver.engine.helo, driver.engine.esmtp, driver.engine.tls)
