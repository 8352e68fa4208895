"""The verb table: every command there is, its properties as columns, its argument's parser.

A parser is a function of the argument and of where the session stands; it returns the event, or the reply that refuses the
argument. Whether the command may come now is not its question (``states``), nor is policy (the shell's).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from postbus.smtp import exchange, grammar, parameters, replies, xclient
from postbus.smtp.events import (
    NO_DEFECTS,
    NO_PARAMETERS,
    Bdat,
    DataStart,
    Expn,
    Helo,
    Help,
    Mail,
    Noop,
    Owed,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Vrfy,
    Xclient,
    Xforward,
)
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits, Offer


class Standing(Protocol):
    """What a parser may know of the session. ``smtputf8``, ``binarymime``: the open transaction's MAIL had SMTPUTF8, BODY=BINARYMIME."""

    offer: Offer
    esmtp: bool
    tls: bool
    authenticated: bool
    smtputf8: bool
    binarymime: bool


NOTHING_SAID: Final = parameters.Found(NO_PARAMETERS, NO_DEFECTS)

Parser = Callable[[str | None, Standing], Owed | Reply]


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the verb table.

    Attributes:
        syntax: what HELP and a 501 show.
        parse: argument to event or refusal.
        extended: what EHLO or LHLO adds to the syntax, for HELP.
        smtp, lmtp: exists in that protocol (RFC 2033 s4.1: LHLO instead of HELO and EHLO).
        ends_group: must be last in a pipelined group (RFC 2920 s3.1).
        before_tls: passes when TLS is required and not active (RFC 3207 s4).
        before_auth: passes when authentication is required and has not happened (RFC 4954 s6).
        junk: counts against ``Limits.junk``: moves no mail.
        allowance_octets: what its extensions add to the command line's limit.
        too_long: the answer to a line over it.
        listed: HELP names it.
        malformed: the answer to control characters, or octets that are not UTF-8, in its line.
    """

    syntax: str
    parse: Parser
    extended: str = ""
    smtp: bool = True
    lmtp: bool = True
    ends_group: bool = False
    before_tls: bool = False
    before_auth: bool = False
    junk: bool = False
    allowance_octets: int = 0
    listed: bool = True
    malformed: Reply = replies.BAD_CHARACTERS
    too_long: Reply = replies.LINE_TOO_LONG


def _split_path(arg: str | None, keyword: str, session: Standing, bad: Reply) -> grammar.Path | Reply:
    """Read ``FROM:<path>`` or ``TO:<path>``; *keyword* includes the colon, *bad* answers a malformed address.

    Spaces behind the colon are taken: they are no part of the grammar, but old appliances and people at a terminal send them.
    """
    if arg is None or arg[: len(keyword)].upper() != keyword:
        return SYNTAX["MAIL" if keyword == "FROM:" else "RCPT"]
    text = arg[len(keyword) :].lstrip(" ")
    if not session.offer.lenient_paths and (text[:1] != "<" or ">" not in text):
        return SYNTAX["MAIL" if keyword == "FROM:" else "RCPT"]
    path = grammar.parse_path(text, lenient=session.offer.lenient_paths)
    if path is None or path.rest[:1] not in {"", " "}:
        return bad
    return path


def _mail(arg: str | None, session: Standing) -> Owed | Reply:
    if arg is not None and len(arg) < grammar.DOMAIN_MAX_OCTETS and (plain := grammar.PLAIN_SENDER.fullmatch(arg)) is not None:
        return Mail(plain[1], NO_PARAMETERS, NO_DEFECTS, arg)
    path = _split_path(arg, "FROM:", session, replies.BAD_SENDER)
    if isinstance(path, Reply):
        return path
    address, defects, rest = path
    found = parameters.judge(rest, parameters.MAIL, session) if rest else NOTHING_SAID
    if isinstance(found, Reply):
        return found
    refusal = _refuse_sender(arg or "", path, found.parameters, session.offer)
    return refusal or Mail(address, found.parameters, {**defects, **found.defects} if found.defects else defects, arg or "")


def _refuse_sender(arg: str, path: grammar.Path, found: Mapping[str, str | None], offer: Offer) -> Reply | None:
    """Return why a well-formed sender with well-formed parameters is refused, if it is."""
    if "@" not in path.address and path.address and "no-domain" not in path.defects:
        return replies.BAD_SENDER  # <Postmaster> is a forward-path only
    if "SMTPUTF8" not in found and not arg.isascii():  # a source route that is ignored included
        return replies.NEEDS_SMTPUTF8
    if offer.size_octets is not None and int(found.get("SIZE") or 0) > offer.size_octets:
        return replies.TOO_BIG
    return None


def _rcpt(arg: str | None, session: Standing) -> Owed | Reply:
    if arg is not None and len(arg) < grammar.DOMAIN_MAX_OCTETS and (plain := grammar.PLAIN_RECIPIENT.fullmatch(arg)) is not None:
        return Rcpt(plain[1], NO_PARAMETERS, NO_DEFECTS, arg)
    path = _split_path(arg, "TO:", session, replies.BAD_RECIPIENT)
    if isinstance(path, Reply):
        return path
    address, defects, rest = path
    if not address:
        return replies.BAD_RECIPIENT
    found = parameters.judge(rest, parameters.RCPT, session) if rest else NOTHING_SAID
    if isinstance(found, Reply):
        return found
    if not session.smtputf8 and arg is not None and not arg.isascii():
        return replies.NEEDS_SMTPUTF8
    return Rcpt(address, found.parameters, {**defects, **found.defects} if found.defects else defects, arg or "")


def _greeting(verb: str) -> Parser:
    def parse(arg: str | None, _: Standing) -> Owed | Reply:
        if not arg:
            return SYNTAX[verb]
        if not arg.isascii() or len(arg) > grammar.DOMAIN_MAX_OCTETS or " " in arg:
            return replies.BAD_HOSTNAME
        return Helo(verb, arg)

    return parse


def _data(arg: str | None, session: Standing) -> Owed | Reply:
    if arg is not None:
        return SYNTAX["DATA"]
    return replies.BINARY_NEEDS_BDAT if session.binarymime else DataStart()


_CHUNK = re.compile(r"(\d{1,19})(?: +(LAST))?", re.IGNORECASE | re.ASCII)  # 64 bits are enough for anybody


def chunk(arg: str | None) -> Bdat | None:
    """Return the chunk that BDAT's argument announces, ``None`` if it announces none (RFC 3030 s2)."""
    found = _CHUNK.fullmatch(arg or "")
    return None if found is None else Bdat(int(found[1]), found[2] is not None)


def _bdat(arg: str | None, session: Standing) -> Owed | Reply:
    if not session.offer.chunking:
        return replies.NO_BDAT
    return chunk(arg) or replies.BAD_CHUNK


def _bare(verb: str, event: type[Rset | Quit]) -> Parser:
    def parse(arg: str | None, _: Standing) -> Owed | Reply:
        return event() if arg is None else SYNTAX[verb]

    return parse


def _starttls(arg: str | None, session: Standing) -> Owed | Reply:
    if arg is not None:
        return SYNTAX["STARTTLS"]
    if session.tls:
        return replies.TLS_ACTIVE
    if not session.offer.starttls:
        return replies.NO_TLS
    return StartTls() if session.esmtp else replies.HELO_IS_NOT_EHLO


def _noop(arg: str | None, _: Standing) -> Owed | Reply:
    return Noop(arg)


def _help(arg: str | None, _: Standing) -> Owed | Reply:
    return Help(arg)


def _lookup(verb: str, event: type[Vrfy | Expn]) -> Parser:
    def parse(arg: str | None, session: Standing) -> Owed | Reply:
        if not arg:
            return SYNTAX[verb]
        bare = arg[:-9].rstrip() if session.offer.smtputf8 and arg.upper().endswith(" SMTPUTF8") else None
        if bare is None and not arg.isascii():
            return replies.NEEDS_SMTPUTF8
        return event(bare or arg)

    return parse


def _xclient(arg: str | None, session: Standing) -> Owed | Reply:
    if not session.offer.xclient:
        return replies.NOT_TRUSTED
    found = xclient.attributes(arg, xclient.XCLIENT)
    return SYNTAX["XCLIENT"] if found is None else Xclient(found)


def _xforward(arg: str | None, session: Standing) -> Owed | Reply:
    if not session.offer.xforward:
        return replies.NOT_TRUSTED
    found = xclient.attributes(arg, xclient.XFORWARD)
    return SYNTAX["XFORWARD"] if found is None else Xforward(found)


_NAME = replies.BAD_HOSTNAME

# Allowances: SIZE 26 (RFC 1870), BODY 17 (RFC 6152), SMTPUTF8 10 (RFC 6531), AUTH= 500 (RFC 4954), ENVID of 100 and RET 128,
# REQUIRETLS 11 (RFC 8689), MT-PRIORITY 15 (RFC 6710), BY 17 (RFC 2852); ORCPT of 500 and NOTIFY 540 (RFC 3461 s4 bounds the values).
VERBS: Mapping[str, Verb] = {
    "HELO": Verb("HELO hostname", _greeting("HELO"), lmtp=False, malformed=_NAME, ends_group=True, before_auth=True, junk=True),
    "EHLO": Verb(
        "EHLO hostname", _greeting("EHLO"), lmtp=False, malformed=_NAME, ends_group=True, before_tls=True, before_auth=True, junk=True
    ),
    "LHLO": Verb(
        "LHLO hostname", _greeting("LHLO"), smtp=False, malformed=_NAME, ends_group=True, before_tls=True, before_auth=True, junk=True
    ),
    "MAIL": Verb("MAIL FROM:<address>", _mail, " [SP parameters]", allowance_octets=724, malformed=replies.BAD_SENDER),
    "RCPT": Verb("RCPT TO:<address>", _rcpt, " [SP parameters]", allowance_octets=540, malformed=replies.BAD_RECIPIENT),
    "DATA": Verb("DATA", _data, ends_group=True),
    "BDAT": Verb("BDAT size [LAST]", _bdat, malformed=replies.BAD_CHUNK, too_long=replies.BAD_CHUNK),
    "RSET": Verb("RSET", _bare("RSET", Rset), before_auth=True, junk=True),
    "NOOP": Verb("NOOP [text]", _noop, ends_group=True, before_tls=True, before_auth=True, junk=True),
    "QUIT": Verb("QUIT", _bare("QUIT", Quit), ends_group=True, before_tls=True, before_auth=True),
    "VRFY": Verb("VRFY address", _lookup("VRFY", Vrfy), " [SP SMTPUTF8]", ends_group=True, junk=True),
    "EXPN": Verb("EXPN list", _lookup("EXPN", Expn), " [SP SMTPUTF8]", ends_group=True, junk=True),
    "HELP": Verb("HELP [verb]", _help, junk=True),
    "STARTTLS": Verb("STARTTLS", _starttls, ends_group=True, before_tls=True, before_auth=True, junk=True),
    "AUTH": Verb(
        "AUTH mechanism [initial-response]",
        exchange.parse,
        ends_group=True,
        before_auth=True,
        junk=True,
        allowance_octets=exchange.LINE_OCTETS - 512,
        too_long=replies.RESPONSE_TOO_LONG,
    ),
    "XCLIENT": Verb(
        "XCLIENT attribute=value ...", _xclient, ends_group=True, before_auth=True, junk=True, allowance_octets=1536, listed=False
    ),
    "XFORWARD": Verb("XFORWARD attribute=value ...", _xforward, junk=True, allowance_octets=1536, listed=False),
}

SYNTAX: Mapping[str, Reply] = {
    name: Reply(501, f"Syntax: {row.syntax}", "5.5.2" if name in {"MAIL", "RCPT"} else "5.5.4") for name, row in VERBS.items()
}

# Someone speaks HTTP to us, perhaps a browser made to by a hostile page (ALPACA): one line is enough. PRI begins HTTP/2.
FORBIDDEN = frozenset({"GET", "POST", "CONNECT", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "PROPFIND", "PRI"})


def help_reply(arg: str | None, *, lmtp: bool, esmtp: bool) -> Reply:
    """Return the answer to HELP: the verbs, or one verb's syntax (RFC 5321 s4.1.1.8)."""
    here = [name for name, row in VERBS.items() if row.listed and (row.lmtp if lmtp else row.smtp)]
    if arg is None:
        return Reply(214, ("Commands:", " ".join(here)), "2.0.0")
    name = arg.strip().upper()
    if name not in here:
        return replies.NO_TOPIC
    row = VERBS[name]
    return Reply(214, f"Syntax: {row.syntax}{row.extended if esmtp else ''}", "2.0.0")


def greeting_lines(offer: Offer, limits: Limits, *, tls: bool) -> tuple[str, ...]:
    """Return the lines of the answer to EHLO or LHLO: our name, then a keyword each (RFC 5321 s4.1.1.1)."""
    heeded = limits_line(limits) if offer.limits else ""
    keywords = (
        ("PIPELINING", offer.pipelining),
        (f"SIZE {offer.size_octets}", offer.size_octets is not None),
        ("8BITMIME", offer.eightbitmime),
        ("SMTPUTF8", offer.smtputf8),
        ("CHUNKING", offer.chunking),
        ("BINARYMIME", offer.chunking and offer.binarymime),
        ("ENHANCEDSTATUSCODES", offer.enhanced),
        ("STARTTLS", offer.starttls and not tls),
        (f"AUTH {' '.join(offer.auth)}", bool(offer.auth) and (tls or not offer.auth_tls)),
        (f"XCLIENT {' '.join(xclient.XCLIENT)}", offer.xclient),
        (f"XFORWARD {' '.join(xclient.XFORWARD)}", offer.xforward),
        ("REQUIRETLS", offer.requiretls and tls),
        (heeded, heeded),
        ("HELP", offer.help),
    )
    return (offer.hostname, *(word for word, on in keywords if on), *offer.keywords)


LIMITS_VALUE_MAX = 999_999  # RFC 9422 s4: six digits; more than that is as good as no limit


def limits_line(limits: Limits) -> str:
    """Return the LIMITS keyword with its values (RFC 9422), ``""`` if there is no limit to tell."""
    values = (("MAILMAX", limits.mails), ("RCPTMAX", limits.recipients), ("RCPTDOMAINMAX", limits.recipient_domains))
    told = [f"{name}={value}" for name, value in values if 0 < value <= LIMITS_VALUE_MAX]
    return " ".join(("LIMITS", *told)) if told else ""
