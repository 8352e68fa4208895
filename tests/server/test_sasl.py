"""What clients say in each mechanism, and what is no such thing."""

from __future__ import annotations

from typing import Any

import pytest

from postbus.server import sasl
from postbus.server.auth import BearerToken, ClientCertificate, LoginPassword

CERTIFICATE = {
    "subject": ((("organizationName", "Example"),), (("commonName", "relay.example"),)),
    "subjectAltName": (("DNS", "relay.example.net"), ("email", "relay@example.net")),
}
SUBJECT = "CN=relay.example,O=Example"
NAMES = (SUBJECT, "relay.example", "relay.example.net", "relay@example.net")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("tim", "tim", id="ASCII"),
        pytest.param("", None, id="nothing"),
        pytest.param("a b", "a b", id="a space"),
        pytest.param("a\0b", None, id="NUL"),
        pytest.param("a\x7f", None, id="DEL"),
        pytest.param("I\u00adX", "IX", id="soft hyphen (RFC 4013 s3)"),
        pytest.param("\u00aa", "a", id="compatibility (RFC 4013 s3)"),
        pytest.param("\u2168", "IX", id="Roman numeral (RFC 4013 s3)"),
        pytest.param("a\u00a0b", "a b", id="another space"),
        pytest.param("\u00ad", None, id="mapped to nothing"),
        pytest.param("\u0627\u0031", None, id="mixed directions (RFC 4013 s3)"),
        pytest.param("\u0627\u0628", "\u0627\u0628", id="right to left"),
        pytest.param("\u0627a\u0628", None, id="Latin between"),
        pytest.param("\ue000", None, id="private use"),
        pytest.param("u\u0308", "\u00fc", id="composed"),
        pytest.param("\U0001f511", "\U0001f511", id="newer than Unicode 3.2"),
    ],
)
def test_saslprep(text: str, expected: str | None) -> None:
    """RFC 4013, as for a query."""
    assert expected == sasl.saslprep(text)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"\0tim\0secret", (b"", LoginPassword(b"tim", b"secret")), id="for oneself"),
        pytest.param(b"root\0tim\0secret", (b"root", LoginPassword(b"tim", b"secret")), id="for somebody else"),
        pytest.param(b"\0t\xc3\xbcm\0s", (b"", LoginPassword(b"t\xc3\xbcm", b"s")), id="UTF-8"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"tim\0secret", None, id="one NUL"),
        pytest.param(b"\0tim\0sec\0ret", None, id="three NULs"),
        pytest.param(b"\0\0secret", None, id="nobody"),
        pytest.param(b"\0tim\0", None, id="no password"),
        pytest.param(b"\0t\xfcm\0secret", None, id="a name in Latin-1"),
        pytest.param(b"\0tim\0\xfc", None, id="a password in Latin-1"),
        pytest.param(b"\xfc\0tim\0secret", None, id="somebody else in Latin-1"),
    ],
)
def test_plain(octets: bytes, expected: Any) -> None:
    """RFC 4616."""
    assert expected == sasl.read_plain(octets)


BEARER = BearerToken(b"tim@example.com", b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"n,a=tim@example.com,\1host=x\1port=143\1auth=Bearer " + BEARER.token + b"\1\1", BEARER, id="RFC 7628 s4.1"),
        pytest.param(b"n,,\1auth=bearer abc\1\1", BearerToken(b"", b"abc"), id="the token says who"),
        pytest.param(b"n,a=a=2Cb=3Dc,\1auth=Bearer abc\1\1", BearerToken(b"a,b=c", b"abc"), id="escapes"),
        pytest.param(b"p=tls-unique,,\1auth=Bearer abc\1\1", None, id="channel binding"),
        pytest.param(b"n,x=tim,\1auth=Bearer abc\1\1", None, id="no authzid"),
        pytest.param(b"n,,x\1auth=Bearer abc\1\1", None, id="more header"),
        pytest.param(b"n,,\1auth=Bearer abc\1", None, id="no end"),
        pytest.param(b"n,,\1auth=Bearer abc\1auth=Bearer x\1\1", None, id="twice"),
        pytest.param(b"n,,\1auth\1\1", None, id="no value"),
        pytest.param(b"n,,\1auth=Basic abc\1\1", None, id="another scheme"),
        pytest.param(b"n,,\1auth=Bearer a b\1\1", None, id="no token"),
        pytest.param(b"n,a=\xff,\1auth=Bearer abc\1\1", None, id="no UTF-8"),
        pytest.param(b"n,,\1host=x\1\1", None, id="no auth"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"\1", None, id="an answer to a failure"),
    ],
)
def test_oauthbearer(octets: bytes, expected: Any) -> None:
    """RFC 7628 s3.1."""
    assert expected == sasl.read_oauthbearer(octets)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"user=tim@example.com\1auth=Bearer " + BEARER.token + b"\1\1", BEARER, id="a token"),
        pytest.param(b"auth=Bearer abc\1\1", None, id="nobody"),
        pytest.param(b"user=\1auth=Bearer abc\1\1", None, id="an empty name"),
        pytest.param(b"user=tim\1\1", None, id="no token"),
        pytest.param(b"user=tim\1auth=Bearer abc", None, id="no end"),
    ],
)
def test_xoauth2(octets: bytes, expected: Any) -> None:
    """The form of Google and Microsoft."""
    assert expected == sasl.read_xoauth2(octets)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(b"", ClientCertificate(SUBJECT.encode(), SUBJECT, NAMES), id="whoever it is"),
        pytest.param(b"relay.example", ClientCertificate(b"relay.example", SUBJECT, NAMES), id="its common name"),
        pytest.param(b"relay@example.net", ClientCertificate(b"relay@example.net", SUBJECT, NAMES), id="its mail address"),
        pytest.param(b"root", None, id="somebody else"),
        pytest.param(b"\xff", None, id="no UTF-8"),
    ],
)
def test_external(octets: bytes, expected: Any) -> None:
    """RFC 4422 appendix A: the certificate speaks for its own names."""
    assert expected == sasl.read_external(octets, CERTIFICATE, SUBJECT)


def test_external_without_alternative_names() -> None:
    """A certificate need not have any."""
    shown = sasl.read_external(b"", {"subject": CERTIFICATE["subject"]}, SUBJECT)
    assert shown is not None
    assert (SUBJECT, "relay.example") == shown.names
