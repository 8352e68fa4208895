"""The address grammar, against RFC 5321 s4.1.2 as a generator: what it makes is taken, what is made of that by mutation never does harm."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from hypothesis import assume, given
from hypothesis import strategies as st

from postbus.event import ids
from postbus.smtp import Mail, Offer, Rcpt, Reply
from postbus.smtp.commands import VERBS
from postbus.smtp.grammar import DOMAIN_MAX_OCTETS, parse_path
from tests.fuzz import bounded
from tests.smtp.test_commands import Session

ATEXT = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-/=?^_`{|}~"
LETTERS_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# RFC 5321 s4.1.2 and s4.1.3, production by production; RFC 6531 s3.3 adds UTF8-non-ascii.
_utf8 = st.characters(min_codepoint=0xA0, exclude_categories=("Cs", "Cc"))


def _atext(utf8: bool) -> st.SearchStrategy[str]:
    return st.sampled_from(ATEXT) | _utf8 if utf8 else st.sampled_from(ATEXT)


def _local(utf8: bool) -> st.SearchStrategy[str]:
    dot_string = st.lists(st.text(_atext(utf8), min_size=1, max_size=8), min_size=1, max_size=4).map(".".join)
    qtext = st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\')
    quoted_pair = st.characters(min_codepoint=0x20, max_codepoint=0x7E).map(lambda one: "\\" + one)
    content = st.lists(qtext | quoted_pair | (_utf8 if utf8 else st.nothing()), max_size=12).map("".join)
    return dot_string | content.map(lambda text: f'"{text}"')


def _domain(utf8: bool) -> st.SearchStrategy[str]:
    end = st.sampled_from(LETTERS_DIGITS) | (_utf8 if utf8 else st.nothing())
    middle = st.text(st.sampled_from(LETTERS_DIGITS + "-"), max_size=8)
    label = st.builds(lambda first, rest, last: first + (rest + last if last else ""), end, middle, st.just("") | end)
    names = st.lists(label, min_size=1, max_size=5).map(".".join)
    literals = st.ip_addresses().map(lambda ip: f"[{ip}]" if isinstance(ip, IPv4Address) else f"[IPv6:{ip}]")
    return names | literals


@st.composite
def paths(draw: st.DrawFn, *, utf8: bool = False) -> tuple[str, str]:
    """Draw a Path and the mailbox in it."""
    mailbox = f"{draw(_local(utf8))}@{draw(_domain(utf8))}"
    route = draw(st.just([]) | st.lists(_domain(utf8), min_size=1, max_size=3))
    head = ",".join(f"@{hop}" for hop in route) + ":" if route else ""
    return f"<{head}{mailbox}>", mailbox


@bounded(150)
@given(st.booleans().flatmap(lambda utf8: paths(utf8=utf8)), st.sampled_from(["", " SIZE=1", " BODY=8BITMIME SMTPUTF8"]))
def test_every_path_of_the_grammar_is_taken_and_survives(path: tuple[str, str], rest: str) -> None:
    """The mailbox comes out as it went in, without route and brackets, in both modes; nothing about it is a defect."""
    text, mailbox = path
    assume(len(mailbox.rpartition("@")[2].encode()) <= DOMAIN_MAX_OCTETS)
    for lenient in (False, True):
        found = parse_path(text + rest, lenient=lenient)
        assert found is not None
        assert (mailbox, {}, rest) == found
    ids.normalize(mailbox)


@bounded(150)
@given(paths(utf8=True))
def test_every_path_of_the_grammar_is_a_sender_and_a_recipient(path: tuple[str, str]) -> None:
    """By the short way or the long one; where it is not ASCII, with SMTPUTF8 and not without."""
    text, mailbox = path
    assume(len(mailbox.rpartition("@")[2].encode()) <= DOMAIN_MAX_OCTETS)
    session, plain = Session(smtputf8=True), Session()
    sender, recipient = VERBS["MAIL"].parse(f"FROM:{text} SMTPUTF8", session), VERBS["RCPT"].parse(f"TO:{text}", session)
    assert isinstance(sender, Mail)
    assert isinstance(recipient, Rcpt)
    assert (mailbox, mailbox) == (sender.address, recipient.address)
    assert isinstance(VERBS["MAIL"].parse(f"FROM:{text}", plain), Mail if text.isascii() else Reply)
    assert isinstance(VERBS["RCPT"].parse(f"TO:{text}", plain), Rcpt if text.isascii() else Reply)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Draw a path with some characters changed, taken out, doubled or put in."""
    text = list(draw(paths(utf8=draw(st.booleans())))[0])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(text) - 1)))
        new = draw(st.sampled_from(list('<>@.,:;"\\[]() \t\r\n\0\x7f\x85\u2028-_é')) | st.characters())
        match draw(st.sampled_from(["change", "take", "double", "put"])):
            case "change":
                text[at : at + 1] = [new]
            case "take":
                text[at : at + 1] = []
            case "double":
                text[at:at] = text[at : at + draw(st.integers(1, 9))]
            case _:
                text[at:at] = [new]
    return "".join(text)


@bounded(400)
@given(mutated())
def test_every_mutant_is_taken_or_refused(text: str) -> None:
    """Without exception; what is taken has no control characters; and strict mode takes nothing that lenient mode reads otherwise."""
    strict, lenient = (parse_path(text, lenient=lenient) for lenient in (False, True))
    if strict is not None:
        assert strict == lenient
        assert text.startswith("<")
        assert strict.rest == "" or text.endswith(strict.rest)
    for found in (strict, lenient):
        if found is not None:
            assert CONTROLS.search(found.address) is None
            assert found.address in text
            assert "no-brackets" not in found.defects or not text.startswith("<")
            ids.normalize(found.address)


@bounded(200)
@given(mutated(), st.sampled_from(["", " ", " SIZE=1", " SMTPUTF8", " X"]), st.booleans())
def test_commands_with_mutants_never_raise(text: str, rest: str, lenient: bool) -> None:
    """The event's address is free of control characters and taken from the line; else there is a reply."""
    session = Session(Offer("mx.test", lenient_paths=lenient), smtputf8=True)
    for verb, keyword in (("MAIL", "FROM:"), ("RCPT", "TO:")):
        event = VERBS[verb].parse(f"{keyword}{text}{rest}", session)
        if isinstance(event, Mail | Rcpt):
            assert CONTROLS.search(event.address) is None
            assert event.address in text + rest
        else:
            assert isinstance(event, Reply)
            assert event.code // 100 == 5


@bounded(300)
@given(st.text(max_size=60))
def test_any_literal_is_judged_as_the_standard_library_does(text: str) -> None:
    """A path with an address literal is taken if and only if that is an address."""
    found = parse_path(f"<a@[{text}]>", lenient=False)
    if found is None:
        return
    assert found.address == f"a@[{text}]"
    address = IPv6Address(text[5:]) if text[:5].lower() == "ipv6:" else IPv4Address(text)  # or raises
    assert address.version in {4, 6}
