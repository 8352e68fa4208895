"""How the table is fitted to a server: which rows can be asked, and with which names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from postbus.selftest.fitting import Known, Names, about_plain, fitted, unfit
from postbus.selftest.vectors import Row, Step, rows

ROWS = {row.id: row for row in rows()}
NAMES = Names("you@example.org", "not@example.net", "me@sender.example", "here.example")
PLAIN = Known(keywords={"CHUNKING": "", "SMTPUTF8": "", "SIZE": "1000", "LIMITS": "RCPTMAX=2 MAILMAX=7"})
AUTH = {"AUTH": "PLAIN LOGIN", "STARTTLS": ""}
LOGIN = Known(keywords=AUTH, plain_keywords=AUTH)
STARTTLS = replace(PLAIN, keywords={"STARTTLS": ""})


def a_row(**changes: Any) -> Row:
    """Return a row that says NOOP, with *changes*."""
    return replace(ROWS["unknown"], steps=(Step("send", b"NOOP\r\n", ("250",)),), **changes)


@pytest.mark.parametrize(
    ("row", "known", "why"),
    [
        ("unknown", PLAIN, ""),
        ("eod-lf-dot-lf-allowed", PLAIN, "stray allow"),
        ("starttls-twice", PLAIN, "announces no STARTTLS"),
        ("starttls-twice", STARTTLS, ""),
        ("starttls-twice", replace(STARTTLS, tls_trouble="not trusted"), "failed: not trusted"),
        ("starttls-twice", replace(PLAIN, encrypted=True), "TLS is on"),
        ("starttls-unavailable", PLAIN, ""),
        ("starttls-unavailable", STARTTLS, "announces STARTTLS"),
        ("client-hello", replace(PLAIN, encrypted=True), "TLS is on"),
        ("early-talk", replace(PLAIN, encrypted=True), "TLS is on"),
        ("tls-required-mail", STARTTLS, "wants TLS first"),
        ("tls-required-mail", replace(STARTTLS, tls_first=True), ""),
        ("unknown", replace(STARTTLS, tls_first=True), "say --starttls"),
        ("unknown", replace(STARTTLS, tls_first=True, starttls=True), ""),
        ("size-declared", PLAIN, ""),
        ("size-over", PLAIN, "SIZE is 100"),
        ("utf8-off", PLAIN, "announces SMTPUTF8"),
        ("utf8-off", Known(), ""),
        ("bdat-one-chunk", Known(), "no CHUNKING"),
        ("bdat-one-chunk", PLAIN, ""),
        ("bdat-off", PLAIN, "announces CHUNKING"),
        ("bdat-off", Known(), ""),
        ("binarymime-bdat", PLAIN, "no BINARYMIME"),
        ("recipients-over", PLAIN, ""),
        ("recipients-over", Known(), "recipients 2"),
        ("auth-plain", PLAIN, "announces no AUTH PLAIN LOGIN"),
        ("auth-plain", LOGIN, "say --test-user"),
        ("auth-plain", replace(LOGIN, test_user=True), ""),
        ("auth-not-offered", LOGIN, "announces AUTH"),
        ("auth-plaintext", replace(LOGIN, test_user=True), "in plain text"),
        ("auth-plaintext", replace(LOGIN, test_user=True, plain_keywords={}), ""),
        ("auth-not-offered", PLAIN, ""),
        ("lmtp-replies", PLAIN, "about LMTP"),
        ("lmtp-replies", Known("lmtp"), ""),
        ("eod-lf-dot-lf", Known("lmtp"), ""),
        ("bdat-all-refused", Known("lmtp", keywords={"CHUNKING": ""}), "another number"),
        ("end-helo", Known("lmtp"), "SMTP's own greetings"),
        ("starttls-argument", Known("lmtp", keywords={"STARTTLS": ""}), "asked in SMTP"),
    ],
)
def test_which_rows_can_be_asked(row: str, known: Known, why: str) -> None:
    """A row about what the server has not, or does not show, is skipped with the reason."""
    found = unfit(ROWS[row], known, NAMES)
    assert why in found
    assert bool(why) == bool(found)


@pytest.mark.parametrize(
    ("server", "known", "why"),
    [
        ({"keywords": ("DELIVERBY 60",)}, Known(keywords={"DELIVERBY": "60"}), ""),
        ({"keywords": ("DELIVERBY 60",)}, Known(keywords={"DELIVERBY": "30"}), "does not announce DELIVERBY 60"),
        ({"deliverby_min_s": 60}, Known(keywords={"DELIVERBY": "60"}), ""),
        ({"deliverby_min_s": 60}, PLAIN, "announces DELIVERBY 60"),
        ({"requiretls": False}, PLAIN, ""),
        ({"no_such_setting": True}, PLAIN, "does not show: no_such_setting true"),
        ({"unregistered": ("a", "b")}, PLAIN, "does not show: unregistered a b"),
        ({"nested": {"a": 1}}, PLAIN, "does not show: nested a 1"),
    ],
)
def test_settings_that_show_or_not(server: dict[str, Any], known: Known, why: str) -> None:
    """What EHLO says is believed; what it does not say is not guessed."""
    found = unfit(a_row(server=server), known, NAMES)
    assert why in found
    assert bool(why) == bool(found)


def test_a_row_about_refusals_needs_somebody_refused() -> None:
    """Or it is skipped."""
    assert "say --refused" in unfit(ROWS["all-refused"], PLAIN, replace(NAMES, refused=None))
    assert "" == unfit(ROWS["all-refused"], PLAIN, NAMES)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (b"RCPT TO:<b@mx.test>\r\n", b"RCPT TO:<you@example.org>\r\n"),
        (b"RCPT TO:<c@mx.test>\r\n", b"RCPT TO:<you@example.org>\r\n"),
        (b"RCPT TO:<nobody@mx.test>\r\n", b"RCPT TO:<not@example.net>\r\n"),
        (b"MAIL FROM:<a@client.example>\r\n", b"MAIL FROM:<me@sender.example>\r\n"),
        (b"EHLO client.example\r\n", b"EHLO here.example\r\n"),
        (b"RCPT TO:<.b..c.@mx.test>\r\n", b"RCPT TO:<.b..c.@example.org>\r\n"),
        (b'RCPT TO:<"a\rb"@mx.test>\r\n', b'RCPT TO:<"a\rb"@example.org>\r\n'),
        (
            b"BDAT 20 LAST\r\nRCPT TO:<b@mx.test>\rMAIL FROM:<b@mx.test>\r\n",
            b"BDAT 20 LAST\r\nRCPT TO:<b@mx.test>\rMAIL FROM:<you@example.org>\r\n",
        ),
        (b"bdat 9000000000\r\nb@mx.test", b"bdat 9000000000\r\nb@mx.test"),
    ],
)
def test_names_are_put_in(said: bytes, asked: bytes) -> None:
    """Addresses between brackets are those the server knows, other ones move to its domain, and what is counted stays."""
    row = a_row(server={"refuses": ("nobody@mx.test",)})
    assert asked == fitted(replace(row, steps=(Step("send", said),)), PLAIN, NAMES).steps[0].octets


def test_the_tables_own_names_change_nothing() -> None:
    """A server that knows them is asked the table itself."""
    assert all(fitted(row, PLAIN, Names()) is row for row in rows() if set(row.server.get("refuses", ())) <= {"nobody@mx.test"})


def test_smtp_becomes_lmtp() -> None:
    """By its greeting."""
    row = fitted(ROWS["end-rset"], Known("lmtp"), NAMES)
    assert "lmtp" == row.protocol
    assert b"LHLO here.example\r\n" == row.prologue[0].octets


def test_a_greeting_behind_a_chunk_becomes_lmtps_too() -> None:
    """A chunk has no line end."""
    assert b"abcLHLO here.example\r\n" in fitted(ROWS["bdat-then-ehlo"], Known("lmtp"), NAMES).steps[0].octets


def test_rows_about_plain_text() -> None:
    """They begin in plain text, whatever --starttls says."""
    found = {row.id for row in rows() if about_plain(row)}
    assert {"starttls-injection", "client-hello", "early-talk", "tls-required-mail"} <= found
    assert "eod-lf-dot-lf" not in found
