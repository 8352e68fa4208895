"""The parameters of MAIL and RCPT: which there are, what their values look like, which are taken and which promise too much.

A registered parameter is one row of ``MAIL`` or ``RCPT``: taken and recorded as sent, once its value fits the grammar of its RFC. That
holds for parameters we do not advertise too: senders (Office 365 among them) send AUTH=, RET and ENVID unasked, and a 555 would lose the
mail. They are envelope data for whoever gets the message; postbus sends no mail, so it owes none of the notices they ask for.

The exceptions are parameters that bind the receiver to something (hold the mail back, pass it on by TLS alone, take addresses that are not
ASCII): taking one without doing it would break a promise, so they are refused unless offered, whatever ``Offer.unregistered`` says.

A parameter that is in no row is unregistered: 555 (RFC 5321 s4.1.1.11), or ignored and recorded where ``Offer.unregistered`` is ``record``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from postbus.smtp import grammar, replies
from postbus.smtp.events import NO_DEFECTS
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Offer


class Circumstances(Protocol):
    """What the judgement of a parameter may depend on: the offer, and whether TLS is active."""

    @property
    def offer(self) -> Offer:
        """What is offered."""

    @property
    def tls(self) -> bool:
        """TLS is active."""


class Found(NamedTuple):
    """Parameters by upper-case keyword, values as sent (``None``: a bare keyword), and what was tolerated in them."""

    parameters: Mapping[str, str | None]
    defects: Mapping[str, int]


Judge = Callable[[str, Circumstances], Reply | None]
"""Takes the value (``""`` for a bare keyword) and returns why the parameter is refused here, if it is."""


def _welcome(_value: str, _session: Circumstances) -> Reply | None:
    return None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A registered parameter.

    Attributes:
        value: what the whole value must match; ``None`` where no value is allowed.
        source: the RFC.
        judge: refuses what is well-formed and yet not to be had here.
    """

    value: re.Pattern[str] | None
    source: str
    judge: Judge = _welcome


def _is(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


def _only_with(keyword: str) -> Judge:
    """Return a judge that wants *keyword* among ``Offer.keywords``: the promise is the operator's, or the program's that embeds us."""

    def judge(_value: str, session: Circumstances) -> Reply | None:
        return None if keyword in keywords_of(session.offer) else replies.UNKNOWN_PARAMETER

    return judge


BINARYMIME = "BINARYMIME"


def is_binary(parameters: Mapping[str, str | None]) -> bool:
    """Return whether MAIL's *parameters* announce content that only BDAT can carry (RFC 3030 s3)."""
    return (parameters.get("BODY") or "").upper() == BINARYMIME


def _body(value: str, session: Circumstances) -> Reply | None:
    offer = session.offer
    return replies.BAD_PARAMETER if value.upper() == BINARYMIME and not (offer.binarymime and offer.chunking) else None


def _smtputf8(_value: str, session: Circumstances) -> Reply | None:
    return None if session.offer.smtputf8 else replies.UNKNOWN_PARAMETER


def _requiretls(_value: str, session: Circumstances) -> Reply | None:
    """RFC 8689 s2: only where it is advertised, which is inside TLS."""
    if not session.offer.requiretls:
        return replies.UNKNOWN_PARAMETER
    return None if session.tls else replies.TLS_FIRST


def _by(value: str, session: Circumstances) -> Reply | None:
    """RFC 2852 s4: who wants his mail back in time must leave some time, and not less than we said."""
    time_s, _, mode = value.partition(";")
    if mode[0] not in "Rr":
        return None
    if int(time_s) <= 0:
        return replies.BAD_PARAMETER
    return replies.UNKNOWN_PARAMETER if int(time_s) < session.offer.deliverby_min_s else None


_CODE_POINT = re.compile(r"\\x\{([0-9A-F]{2,6})\}", re.IGNORECASE)
_UNITEXT = rf"(?:[!-*,-<>-\[\]-~{grammar.UTF8}]|\\x\{{[0-9A-F]{{2,6}}\}})+"  # RFC 6533 s3: utf-8-addr-unitext holds utf-8-addr-xtext


def _orcpt(value: str, _session: Circumstances) -> Reply | None:
    """RFC 6533 s3: a code point may be written in hexadecimal, where there is such a character."""
    if value[:6].lower() != "utf-8;":
        return None
    points = [int(digits, 16) for digits in _CODE_POINT.findall(value)]
    return replies.BAD_PARAMETER if any(point > 0x10FFFF or 0xD800 <= point <= 0xDFFF for point in points) else None


_ANY = grammar.VALUE
_SOME_XTEXT = rf"(?=.){grammar.XTEXT}"
_DATE_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"  # RFC 3339 s5.6
_NOTICE = "(?:SUCCESS|FAILURE|DELAY)"

MAIL: Mapping[str, Parameter] = {
    "SIZE": Parameter(_is(r"\d{1,20}"), "RFC 1870"),
    "BODY": Parameter(_is(f"7BIT|8BITMIME|{BINARYMIME}"), "RFC 6152, RFC 3030", _body),
    "SMTPUTF8": Parameter(None, "RFC 6531", _smtputf8),
    "AUTH": Parameter(_is(rf"<>|{_SOME_XTEXT}"), "RFC 4954"),
    "RET": Parameter(_is("FULL|HDRS"), "RFC 3461"),
    "ENVID": Parameter(_is(rf"(?=.{{1,100}}$){grammar.XTEXT}"), "RFC 3461"),
    "BY": Parameter(_is(r"[+-]?\d{1,9};[NR]T?"), "RFC 2852", _by),
    "MT-PRIORITY": Parameter(_is(r"0|-?[1-9]"), "RFC 6710"),
    "HOLDFOR": Parameter(_is(r"[1-9]\d{0,8}"), "RFC 4865", _only_with("FUTURERELEASE")),
    "HOLDUNTIL": Parameter(_is(_DATE_TIME), "RFC 4865", _only_with("FUTURERELEASE")),
    "REQUIRETLS": Parameter(None, "RFC 8689", _requiretls),
    "SUBMITTER": Parameter(_ANY, "RFC 4405"),
    "SOLICIT": Parameter(_ANY, "RFC 3865"),
    "MTRK": Parameter(_ANY, "RFC 3885"),
    "TRANSID": Parameter(_ANY, "RFC 1845", _only_with("CHECKPOINT")),
}
RCPT: Mapping[str, Parameter] = {
    "NOTIFY": Parameter(_is(rf"NEVER|{_NOTICE}(?:,{_NOTICE}){{0,2}}"), "RFC 3461"),
    "ORCPT": Parameter(_is(rf"(?=.{{1,500}}$)(?:utf-8;{_UNITEXT}|(?!utf-8;)[A-Z0-9-]+;{_SOME_XTEXT})"), "RFC 3461, RFC 6533", _orcpt),
    "RRVS": Parameter(_is(rf"{_DATE_TIME}(?:;[CR])?"), "RFC 7293", _only_with("RRVS")),
    "CONPERM": Parameter(None, "RFC 4141"),
    "CONNEG": Parameter(None, "RFC 4141"),
}

UNREGISTERED = "unregistered-parameter"
"""The defect that each ignored parameter counts as."""


def keywords_of(offer: Offer) -> set[str]:
    """Return the names, upper-case, of the further EHLO keywords of *offer*."""
    return {line.partition(" ")[0].upper() for line in offer.keywords}


def judge(text: str, known: Mapping[str, Parameter], session: Circumstances) -> Found | Reply:
    """Return the parameters in *text*, or why they are refused. A keyword of ``Offer.keywords`` is allowed with any value.

    Args:
        text: ``SP keyword ["=" value] ...``.
        known: ``MAIL`` or ``RCPT``.
        session: where it was said.
    """
    found = grammar.parse_parameters(text)
    if found is None:
        return replies.BAD_PARAMETER
    ignored = 0
    for key, value in found.items():
        parameter = known.get(key)
        if parameter is not None:
            refusal = _refuse(parameter, value, session)
            if refusal is not None:
                return refusal
        elif key not in keywords_of(session.offer):
            if session.offer.unregistered == "refuse":
                return replies.UNKNOWN_PARAMETER
            ignored += 1
    if "HOLDFOR" in found and "HOLDUNTIL" in found:  # RFC 4865 s4: one or the other
        return replies.BAD_PARAMETER
    return Found(found, {UNREGISTERED: ignored} if ignored else NO_DEFECTS)


def _refuse(parameter: Parameter, value: str | None, session: Circumstances) -> Reply | None:
    """Return why a registered parameter is refused, if it is: its value is none of its grammar, or it is not to be had here."""
    if (value is None) != (parameter.value is None) or (parameter.value and value and not parameter.value.fullmatch(value)):
        return replies.BAD_PARAMETER
    return parameter.judge(value or "", session)
