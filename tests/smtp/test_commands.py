"""The verb table: columns, argument parsers, parameters, HELP and EHLO's lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from postbus.smtp import Bdat, DataStart, Expn, Helo, Help, Mail, Noop, Offer, Quit, Rcpt, Reply, Rset, StartTls, Vrfy, replies
from postbus.smtp.commands import FORBIDDEN, SYNTAX, VERBS, greeting_lines, help_reply, limits_line
from postbus.smtp.events import Owed, Xclient, Xforward
from postbus.smtp.parameters import MAIL as MAIL_PARAMETERS
from postbus.smtp.parameters import RCPT as RCPT_PARAMETERS
from postbus.smtp.terms import Limits

OFFER = Offer("mx.test", size_octets=1000)


@dataclass
class Session:
    """Where a session stands, as parsers see it."""

    offer: Offer = OFFER
    esmtp: bool = True
    tls: bool = False
    authenticated: bool = False
    smtputf8: bool = False
    binarymime: bool = False


PLAIN = Session()
UTF8 = Session(smtputf8=True)
TLS_OFFERED = Session(Offer("mx.test", starttls=True))
ENCRYPTED = Session(Offer("mx.test", starttls=True), tls=True)
AFTER_HELO = Session(Offer("mx.test", starttls=True), esmtp=False)
LENIENT = Session(Offer("mx.test", lenient_paths=True))
NO_UTF8 = Session(Offer("mx.test", smtputf8=False))
BINARY = Session(binarymime=True)
UNCHUNKED = Session(Offer("mx.test", chunking=False))
NO_BINARY = Session(Offer("mx.test", binarymime=False))
UNLIMITED = Session(Offer("mx.test", size_octets=None))
MORE = Session(Offer("mx.test", keywords=("FUTURERELEASE 100 x", "XFOO bar")))
TRUSTED = Session(Offer("mx.test", xclient=True, xforward=True))
RECORDING = Session(Offer("mx.test", unregistered="record"))


@pytest.mark.parametrize(
    ("verb", "arg", "session", "expected"),
    [
        ("HELO", "x", PLAIN, Helo("HELO", "x")),
        ("EHLO", "x", PLAIN, Helo("EHLO", "x")),
        ("LHLO", "[192.0.2.1]", PLAIN, Helo("LHLO", "[192.0.2.1]")),
        ("EHLO", None, PLAIN, SYNTAX["EHLO"]),
        ("EHLO", "a b", PLAIN, replies.BAD_HOSTNAME),
        ("EHLO", "ü", PLAIN, replies.BAD_HOSTNAME),
        ("EHLO", "x" * 256, PLAIN, replies.BAD_HOSTNAME),
        ("XCLIENT", "ADDR=192.0.2.1", TRUSTED, Xclient({"ADDR": "192.0.2.1"})),
        ("XCLIENT", "ADDR=mx", TRUSTED, SYNTAX["XCLIENT"]),
        ("XCLIENT", "ADDR=192.0.2.1", PLAIN, replies.NOT_TRUSTED),
        ("XFORWARD", "NAME=mx.test", TRUSTED, Xforward({"NAME": "mx.test"})),
        ("XFORWARD", None, TRUSTED, SYNTAX["XFORWARD"]),
        ("XFORWARD", "NAME=mx.test", PLAIN, replies.NOT_TRUSTED),
        ("MAIL", "FROM:<a@b>", PLAIN, Mail("a@b", {}, {})),
        ("MAIL", "from: <>", PLAIN, Mail("", {}, {})),
        ("MAIL", "FROM:<a@b> size=1000 BODY=8bitmime", PLAIN, Mail("a@b", {"SIZE": "1000", "BODY": "8bitmime"}, {})),
        ("MAIL", "FROM:<a@b> SIZE=1001", PLAIN, replies.TOO_BIG),
        ("MAIL", "FROM:<a@b> SIZE=99999999999999999999", UNLIMITED, Mail("a@b", {"SIZE": "9" * 20}, {})),
        ("MAIL", "FROM:<a@b> SIZE=999999999999999999999", UNLIMITED, replies.BAD_PARAMETER),
        ("MAIL", "FROM:<a@b> SMTPUTF8", NO_UTF8, replies.UNKNOWN_PARAMETER),
        ("MAIL", "FROM:<a@b> REQUIRETLS", PLAIN, replies.UNKNOWN_PARAMETER),
        ("MAIL", "FROM:<a@b> HOLDFOR=9 XFOO=1", MORE, Mail("a@b", {"HOLDFOR": "9", "XFOO": "1"}, {})),
        ("MAIL", "FROM:<a@b> HOLDFOR=9", PLAIN, replies.UNKNOWN_PARAMETER),
        ("MAIL", "FROM:<a@b> XFOO", PLAIN, replies.UNKNOWN_PARAMETER),
        ("MAIL", "FROM:<a@b> XFOO XBAR=1", RECORDING, Mail("a@b", {"XFOO": None, "XBAR": "1"}, {"unregistered-parameter": 2})),
        ("RCPT", "TO:<a..b@c> XFOO=1", RECORDING, Rcpt("a..b@c", {"XFOO": "1"}, {"dots": 1, "unregistered-parameter": 1})),
        ("MAIL", "FROM:<a@b> NOTIFY=NEVER", PLAIN, replies.UNKNOWN_PARAMETER),
        ("MAIL", "FROM:<a@b> BY=120;R MT-PRIORITY=-3", PLAIN, Mail("a@b", {"BY": "120;R", "MT-PRIORITY": "-3"}, {})),
        ("MAIL", "FROM:<ü@b>", PLAIN, replies.NEEDS_SMTPUTF8),
        ("MAIL", "FROM:<@ü:a@b>", PLAIN, replies.NEEDS_SMTPUTF8),
        ("RCPT", "TO:<@ü:a@b>", PLAIN, replies.NEEDS_SMTPUTF8),
        ("MAIL", "FROM:<a@b> SUBMITTER=ü@b", PLAIN, replies.NEEDS_SMTPUTF8),
        ("MAIL", "FROM:<a@b> SUBMITTER=ü@b SMTPUTF8", PLAIN, Mail("a@b", {"SUBMITTER": "ü@b", "SMTPUTF8": None}, {})),
        ("MAIL", "FROM:<ü@b> SMTPUTF8", PLAIN, Mail("ü@b", {"SMTPUTF8": None}, {})),
        ("MAIL", "TO:<a@b>", PLAIN, SYNTAX["MAIL"]),
        ("MAIL", None, PLAIN, SYNTAX["MAIL"]),
        ("MAIL", "FROM:a@b", PLAIN, SYNTAX["MAIL"]),
        ("MAIL", "FROM:a@b", LENIENT, Mail("a@b", {}, {"no-brackets": 1})),
        ("MAIL", "FROM:<a>", LENIENT, Mail("a", {}, {"no-domain": 1})),
        ("MAIL", "FROM:<a", LENIENT, replies.BAD_SENDER),
        ("MAIL", "FROM:<postmaster>", PLAIN, replies.BAD_SENDER),
        ("MAIL", "FROM:<a@b>x", PLAIN, replies.BAD_SENDER),
        ("MAIL", "FROM:<a@b> A=", PLAIN, replies.BAD_PARAMETER),
        ("RCPT", "TO:<a@b>", PLAIN, Rcpt("a@b", {}, {})),
        ("RCPT", "to:<POSTMASTER>", PLAIN, Rcpt("POSTMASTER", {}, {})),
        ("RCPT", "TO:<a@b> NOTIFY=never ORCPT=rfc822;x", PLAIN, Rcpt("a@b", {"NOTIFY": "never", "ORCPT": "rfc822;x"}, {})),
        ("RCPT", "TO:<a@b> SIZE=1", PLAIN, replies.UNKNOWN_PARAMETER),
        ("RCPT", "TO:<a@b> ORCPT=x", PLAIN, replies.BAD_PARAMETER),
        ("RCPT", "TO:<a@b> ORCPT=utf-8;ü", PLAIN, replies.NEEDS_SMTPUTF8),
        ("RCPT", "TO:<ü@b> ORCPT=utf-8;ü", UTF8, Rcpt("ü@b", {"ORCPT": "utf-8;ü"}, {})),
        ("RCPT", "TO:<ü@b>", PLAIN, replies.NEEDS_SMTPUTF8),
        ("RCPT", "TO:<>", PLAIN, replies.BAD_RECIPIENT),
        ("RCPT", "TO:<a>", PLAIN, replies.BAD_RECIPIENT),
        ("RCPT", "FROM:<a@b>", PLAIN, SYNTAX["RCPT"]),
        ("DATA", None, PLAIN, DataStart()),
        ("DATA", "x", PLAIN, SYNTAX["DATA"]),
        ("DATA", None, BINARY, replies.BINARY_NEEDS_BDAT),
        ("BDAT", "0", PLAIN, Bdat(0, last=False)),
        ("BDAT", "0 LAST", PLAIN, Bdat(0, last=True)),
        ("BDAT", "086  last", PLAIN, Bdat(86, last=True)),
        ("BDAT", "9" * 19, PLAIN, Bdat(10**19 - 1, last=False)),
        *[("BDAT", arg, PLAIN, replies.BAD_CHUNK) for arg in
          (None, "x", "-1", "+1", "1 FIRST", "1 LAST x", "1LAST", "LAST", "0x10", "1.0", "9" * 20, "\u0661")],
        ("BDAT", "1", UNCHUNKED, replies.NO_BDAT),
        ("BDAT", "x", UNCHUNKED, replies.NO_BDAT),
        ("MAIL", "FROM:<a@b> BODY=binarymime", PLAIN, Mail("a@b", {"BODY": "binarymime"}, {})),
        ("MAIL", "FROM:<a@b> BODY=BINARYMIME", UNCHUNKED, replies.BAD_PARAMETER),
        ("MAIL", "FROM:<a@b> BODY=BINARYMIME", NO_BINARY, replies.BAD_PARAMETER),
        ("RSET", None, PLAIN, Rset()),
        ("QUIT", None, PLAIN, Quit()),
        ("NOOP", None, PLAIN, Noop(None)),
        ("NOOP", "x", PLAIN, Noop("x")),
        ("HELP", "MAIL", PLAIN, Help("MAIL")),
        ("VRFY", "bob", PLAIN, Vrfy("bob")),
        ("VRFY", None, PLAIN, SYNTAX["VRFY"]),
        ("VRFY", "bøb smtputf8", PLAIN, Vrfy("bøb")),
        ("VRFY", "bøb", PLAIN, replies.NEEDS_SMTPUTF8),
        ("VRFY", "bøb SMTPUTF8", NO_UTF8, replies.NEEDS_SMTPUTF8),
        ("EXPN", "list", PLAIN, Expn("list")),
        ("STARTTLS", None, TLS_OFFERED, StartTls()),
        ("STARTTLS", "x", TLS_OFFERED, SYNTAX["STARTTLS"]),
        ("STARTTLS", None, PLAIN, replies.NO_TLS),
        ("STARTTLS", None, ENCRYPTED, replies.TLS_ACTIVE),
        ("STARTTLS", None, AFTER_HELO, replies.HELO_IS_NOT_EHLO),
    ],
)  # fmt: skip
def test_parse(verb: str, arg: str | None, session: Session, expected: Owed | Reply) -> None:
    """Each argument becomes its event, or the reply that says what is wrong with it; MAIL and RCPT keep it as sent."""
    if isinstance(expected, Mail | Rcpt):
        expected = replace(expected, arg=arg or "")
    assert expected == VERBS[verb].parse(arg, session)


@pytest.mark.parametrize(
    "path", ["<>", "<a@b>", "<a.b+c=d@e-f.example>", "<a..b@c>", "<a@b_c>", "<a@b.>", "<a@-b>", "<a>", "<a@b>x", "<@>", "<a@>"]
)
@pytest.mark.parametrize(("verb", "keyword"), [("MAIL", "FROM:"), ("RCPT", "TO:")])
def test_the_short_way_leads_to_the_same_place(verb: str, keyword: str, path: str) -> None:
    """A plain address is taken by one pattern; with a space before it, by the grammar: the outcome is the same."""
    short, long = (VERBS[verb].parse(keyword + space + path, PLAIN) for space in ("", " "))
    if isinstance(short, Mail | Rcpt):
        short = replace(short, arg=f"{keyword} {path}")
    assert long == short


def test_pipelining_column_is_rfc_2920() -> None:
    """The verbs that end a group are RFC 2920 s3.1's, those of its extensions, and no other."""
    assert {"HELO", "EHLO", "LHLO", "DATA", "NOOP", "QUIT", "VRFY", "EXPN", "STARTTLS", "AUTH", "XCLIENT"} == {
        name for name, row in VERBS.items() if row.ends_group
    }


def test_before_tls_column_is_rfc_3207() -> None:
    """NOOP, EHLO (LHLO), STARTTLS and QUIT pass before TLS (RFC 3207 s4)."""
    assert {"NOOP", "EHLO", "LHLO", "STARTTLS", "QUIT"} == {name for name, row in VERBS.items() if row.before_tls}


def test_before_auth_column_is_rfc_4954() -> None:
    """AUTH, EHLO, HELO, NOOP, RSET and QUIT pass before authentication (RFC 4954 s6); so does what leads to it."""
    assert {"AUTH", "HELO", "EHLO", "LHLO", "NOOP", "RSET", "QUIT", "STARTTLS", "XCLIENT"} == {
        name for name, row in VERBS.items() if row.before_auth
    }


def test_junk_column_spares_what_moves_mail() -> None:
    """A client that sends nothing but mail never runs out of budget."""
    assert {"MAIL", "RCPT", "DATA", "BDAT", "QUIT"} == {name for name, row in VERBS.items() if not row.junk}


def test_the_tables_do_not_overlap() -> None:
    """No verb of ours is one of HTTP's, and no parameter is both MAIL's and RCPT's."""
    assert not FORBIDDEN & set(VERBS)
    assert not set(MAIL_PARAMETERS) & set(RCPT_PARAMETERS)
    assert all(parameter.source.startswith("RFC ") for parameter in [*MAIL_PARAMETERS.values(), *RCPT_PARAMETERS.values()])


def test_no_allowance_reaches_the_discarding_length() -> None:
    """Every line that a verb allows is kept whole."""
    from postbus.smtp.framing import DISCARD_AFTER_OCTETS

    assert max(row.allowance_octets for row in VERBS.values()) + Limits().command_octets < DISCARD_AFTER_OCTETS


def test_greeting_lines() -> None:
    """EHLO lists what is on, and STARTTLS only where it can be used."""
    full = Offer("mx.test", size_octets=10, starttls=True, limits=True, requiretls=True, keywords=("XFOO bar",))
    assert (
        "mx.test",
        "PIPELINING",
        "SIZE 10",
        "8BITMIME",
        "SMTPUTF8",
        "CHUNKING",
        "BINARYMIME",
        "ENHANCEDSTATUSCODES",
        "STARTTLS",
        "LIMITS RCPTMAX=1000",
        "HELP",
        "XFOO bar",
    ) == greeting_lines(full, Limits(), tls=False)
    inside = greeting_lines(full, Limits(mails=5, recipients=100, recipient_domains=2), tls=True)
    assert "STARTTLS" not in inside
    assert {"REQUIRETLS", "LIMITS MAILMAX=5 RCPTMAX=100 RCPTDOMAINMAX=2"} <= set(inside)
    bare = replace(
        full,
        size_octets=None,
        smtputf8=False,
        chunking=False,
        eightbitmime=False,
        pipelining=False,
        enhanced=False,
        starttls=False,
        help=False,
        limits=False,
        keywords=(),
    )
    assert ("mx.test",) == greeting_lines(bare, Limits(), tls=False)
    assert "" == limits_line(Limits(recipients=1_000_000))


def test_help() -> None:
    """HELP lists the protocol's verbs, and a verb's syntax with what EHLO adds to it."""
    assert "LHLO" in help_reply(None, lmtp=True, esmtp=True).lines[1]
    assert "EHLO" not in help_reply(None, lmtp=True, esmtp=True).lines[1]
    assert Reply(214, "Syntax: MAIL FROM:<address> [SP parameters]", "2.0.0") == help_reply("mail", lmtp=False, esmtp=True)
    assert Reply(214, "Syntax: MAIL FROM:<address>", "2.0.0") == help_reply(" MAIL", lmtp=False, esmtp=False)
    assert replies.NO_TOPIC == help_reply("EHLO", lmtp=True, esmtp=True)
