"""Paths, address literals and parameters."""

from __future__ import annotations

import time

import pytest

from postbus.smtp.grammar import Path, is_literal, parse_parameters, parse_path

LONG = "a" * 63 + "."


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param("<a@b>", Path("a@b", {}, ""), id="plain"),
        pytest.param("<a@b> SIZE=1", Path("a@b", {}, " SIZE=1"), id="with what follows"),
        pytest.param("<>", Path("", {}, ""), id="null"),
        pytest.param("<Postmaster>", Path("Postmaster", {}, ""), id="postmaster"),
        pytest.param('<"a b\\" >"@d>', Path('"a b\\" >"@d', {}, ""), id="quoted"),
        pytest.param('<""@d>', Path('""@d', {}, ""), id="quoted nothing"),
        pytest.param("<@r1,@r2.x:u@d>", Path("u@d", {}, ""), id="source route"),
        pytest.param("<@[1.2.3.4]:u@d>", Path("u@d", {}, ""), id="source route by literal"),
        pytest.param("<a@[1.2.3.4]>", Path("a@[1.2.3.4]", {}, ""), id="literal"),
        pytest.param("<!#$%&'*+/=?^_`{|}~-@d>", Path("!#$%&'*+/=?^_`{|}~-@d", {}, ""), id="all of atext"),
        pytest.param("<ü@ü.de>", Path("ü@ü.de", {}, ""), id="UTF-8"),
        pytest.param("<a@b.>", Path("a@b.", {}, ""), id="root dot"),
        pytest.param("<a..b@d>", Path("a..b@d", {"dots": 1}, ""), id="doubled dot"),
        pytest.param("<.a@d>", Path(".a@d", {"dots": 1}, ""), id="leading dot"),
        pytest.param("<a.@d>", Path("a.@d", {"dots": 1}, ""), id="trailing dot"),
        pytest.param("<a@my_pc.local>", Path("a@my_pc.local", {"underscore": 1}, ""), id="underscore"),
        pytest.param(f"<{'v' * 200}@d>", Path(f"{'v' * 200}@d", {}, ""), id="VERP longer than 64"),
        pytest.param(f"<a@{LONG * 3}{'b' * 60}>", Path(f"a@{LONG * 3}{'b' * 60}", {}, ""), id="long domain"),
        pytest.param("<a@b>x", Path("a@b", {}, "x"), id="the tail is the caller's"),
    ],
)
def test_paths(text: str, path: Path) -> None:
    """What RFC 5321 s4.1.2 allows is read, and what we tolerate is said."""
    assert path == parse_path(text, lenient=False)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a@b", "<", "<a@b", "<a b@d>", "<a>", "<@b>"),
        *("<a@>", "<a@b@c>", "<a@-b>", "<a@b->", "<a@b..c>", "<a@.b>", "< a@b>", "<a@b >"),
        *("<@r:>", "<@r:@d>", "<a@[1.2.3]>", "<a@[IPv6:1::2::3]>", "<a@[]>", "<a@[x]>", '<"a@d>', '<a"b@d>', '<"a"b@d>', '<"a\\">@d'),
        *("<a@b\x85>", f"<a@{LONG * 4}b>", "<a@é\x85>"),
    ],
)  # fmt: skip
def test_no_paths(text: str) -> None:
    """What RFC 5321 does not allow is not read."""
    assert parse_path(text, lenient=False) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a@b SIZE=1", Path("a@b", {"no-brackets": 1}, " SIZE=1")),
        ("postmaster", Path("postmaster", {"no-brackets": 1}, "")),
        ("<root>", Path("root", {"no-domain": 1}, "")),
        ("root", Path("root", {"no-brackets": 1, "no-domain": 1}, "")),
    ],
)
def test_lenient_paths(text: str, path: Path) -> None:
    """Brackets and domains may be missing only where that is asked for."""
    assert path == parse_path(text, lenient=True)
    assert parse_path(text, lenient=False) is None


@pytest.mark.parametrize("text", ["", " ", "<a", "<a@b", "@b"])
def test_even_lenient_has_bounds(text: str) -> None:
    """Leniency takes no unclosed bracket and no empty mailbox."""
    assert parse_path(text, lenient=True) is None


@pytest.mark.parametrize(
    ("literal", "valid"),
    [
        ("[192.0.2.1]", True), ("[192.0.2.256]", False), ("[192.0.2]", False), ("[192.0.2.1.1]", False), ("[192.0.02.1]", False),
        ("[IPv6:2001:db8::1]", True), ("[ipv6:::1]", True), ("[IPv6:::ffff:192.0.2.1]", True), ("[IPv6:]", False), ("[IPv6:g::1]", False),
        ("[IPv6:fe80::1%eth0]", False), ("[2001:db8::1]", False), ("[x400:c=de;a=x]", False), ("[]", False),
    ],
)  # fmt: skip
def test_literals(literal: str, valid: bool) -> None:
    """Address literals are IPv4 or IPv6, no other tag being registered (RFC 5321 s4.1.3)."""
    assert valid == is_literal(literal)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}), (" SIZE=1", {"SIZE": "1"}), (" size=1  smtputf8 ", {"SIZE": "1", "SMTPUTF8": None}), (" ENVID=aB+2B", {"ENVID": "aB+2B"}),
        (" X-Y=<>", {"X-Y": "<>"}),
        (" SIZE=1 size=2", None), (" SIZE=", None), (" =1", None), (" -X", None), (" A=b=c", None), (" ü=1", None),
        (" ORCPT=utf-8;ü@d", {"ORCPT": "utf-8;ü@d"}),
    ],
)  # fmt: skip
def test_parameters(text: str, found: dict[str, str | None] | None) -> None:
    """Keywords come upper-case, values as sent; malformed and repeated ones come to nothing."""
    assert found == parse_parameters(text)


@pytest.mark.parametrize(
    "text",
    [
        "<@" + "a," * 600,
        "<@" + "a-" * 600,
        "<" + "a." * 600,
        '<"' + "\\a" * 600,
        "<a@" + "a." * 600 + ">",
        "<@" + "a:" * 600,
        "<a@" + "a" * 1200 + "!",
    ],
)
def test_no_path_takes_long(text: str) -> None:
    """Patterns do not backtrack without bound: the longest line is judged in milliseconds."""
    begin = time.process_time()
    parse_path(text, lenient=True)
    assert time.process_time() - begin < 0.05
