"""An accepted mail as the JSON of an event, and what gives way when it does not fit."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event import encoding
from postbus.event.encoding import (
    ENVELOPE_MAX_OCTETS,
    UnfitError,
    base64_octets,
    envelope_json,
    fitted,
    head,
    parsed_tree,
    raw_tree,
    shortened,
)
from postbus.event.mail import Auth, Client, Mail, Mode, Recipient, Tls
from postbus.event.mime import parse
from postbus.event.parsed import Defect, Parsed, unreadable
from postbus.event.schema import json_schema
from tests.event.samples import PLAIN, mail, multipart, recipient

_VALIDATOR = jsonschema.Draft202012Validator(json_schema())
ROOM = 1 << 20


def data_of(octets: bytes, room: int = ROOM, record: Mail | None = None, to: Recipient | None = None) -> dict[str, Any]:
    """Return the data of an event, checked against the schema and its room."""
    to = to or recipient()
    data = fitted(parsed_tree(record or mail(octets, to), to, octets, parse(octets), room), room)
    assert len(data) <= room
    tree: dict[str, Any] = json.loads(data)
    _VALIDATOR.validate(tree)
    return tree


def test_what_is_known_of_the_transaction() -> None:
    """Listener, client, envelope, route: as recorded, this recipient alone."""
    to = recipient(index=1)
    tree = data_of(PLAIN, record=mail(PLAIN, recipient(address="other@b.example"), to), to=to)
    assert {
        "mode": "parsed",
        "transactionId": "018cc251-f400-7000-8000-000000000000",
        "listener": {
            "name": "smtp",
            "protocol": "esmtps",
            "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "clientCertSubject": "CN=a.example"},
            "auth": {"mechanism": "PLAIN", "identity": "alice"},
        },
        "client": {"ip": "192.0.2.1", "port": 40_000, "ptr": None, "helo": "a.example", "viaProxy": False, "forwarded": None},
        "envelope": {
            "mailFrom": "alice@a.example",
            "recipient": "Bob+tag@b.example",
            "recipientNormalized": "bob+tag@b.example",
            "index": 1,
            "count": 2,
            "params": {
                "size": len(PLAIN),
                "body": "8BITMIME",
                "smtputf8": False,
                "envid": "QQ314159",
                "ret": "HDRS",
                "notify": ["SUCCESS", "FAILURE"],
                "orcpt": "rfc822;Bob@b.example",
                "requireTls": False,
                "priority": None,
                "by": None,
                "auth": None,
                "other": {"mail": {}, "rcpt": {}},
            },
        },
        "route": {"name": "inbox", "pattern": "*@b.example", "tag": "tag", "captures": {"list": "x"}},
    }.items() <= tree.items()
    assert "other@b.example" not in json.dumps(tree)


def test_where_a_mail_was_before() -> None:
    """XFORWARD's attributes by their names here; what was not said, or is not known, is null."""
    said = {"NAME": "a\u2028b", "ADDR": "203.0.113.1", "PORT": "25", "PROTO": None, "IDENT": "4XyZ", "SOURCE": "REMOTE"}
    record = replace(mail(PLAIN), client=Client("192.0.2.1", 1, ptr="mx.example", via_proxy=True, forwarded=said))
    client = data_of(PLAIN, record=record)["client"]
    assert ("mx.example", True) == (client["ptr"], client["viaProxy"])
    assert {
        "name": "a\ufffdb",
        "address": "203.0.113.1",
        "port": 25,
        "protocol": None,
        "helo": None,
        "ident": "4XyZ",
        "source": "REMOTE",
    } == client["forwarded"]


def test_what_is_known_of_the_message() -> None:
    """Facts, headers, body, defects, limits; verdicts are null until there are some."""
    tree = data_of(PLAIN)
    assert {"contentType": "text/plain", "messageId": "<1@a.example>", "date": "2024-01-01T00:00:00Z", "subject": "hello"}.items() <= tree[
        "message"
    ].items()
    assert [{"name": "Alice Doe", "address": "alice@a.example", "group": None, "valid": True}] == tree["message"]["from"]
    assert ["Received", "From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"] == [
        header["name"] for header in tree["headers"]
    ]
    assert ("one line of text\r\n" * 30, None) == (tree["body"]["text"], tree["body"]["html"])
    assert {"spf": None, "dkim": None, "dmarc": None, "arc": None} == tree["auth"]
    assert [{"code": "smtp.bare_lf", "partId": None, "detail": "tolerated"}] == tree["defects"]
    assert ({"partsSeen": 1, "truncatedFields": []}, None) == (tree["limits"], tree["raw"])


def test_headers_that_are_not_ascii_bring_their_octets() -> None:
    """Others do not."""
    tree = data_of(b"Subject: \xe9\r\nTo: a@b\r\n\r\n")
    assert [{"name": "Subject", "value": "\ufffd", "lossy": True, "raw": "6Q=="}, {"name": "To", "value": "a@b", "lossy": False}] == tree[
        "headers"
    ]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        pytest.param({}, (None, "7BIT"), id="none"),
        pytest.param({"SIZE": "12", "BODY": "binarymime"}, (12, "BINARYMIME"), id="lower case"),
        pytest.param({"SIZE": None, "BODY": None}, (None, "7BIT"), id="no values"),
        pytest.param({"SIZE": "x", "BODY": "x"}, (None, "7BIT"), id="nonsense"),
        pytest.param({"SIZE": "9" * 19}, (None, "7BIT"), id="beyond 64 bits"),
    ],
)
def test_mail_parameters(params: dict[str, str | None], expected: tuple[int | None, str]) -> None:
    """Read as the RFCs have them, whatever was sent."""
    found = data_of(PLAIN, record=mail(PLAIN, params=params))["envelope"]["params"]
    assert expected == (found["size"], found["body"])


def test_nothing_the_peer_said_breaks_json() -> None:
    """Controls and lone surrogates are replaced wherever a peer can put them."""
    evil = "a\x00\r\nb\ud800\x9f"
    to = recipient(address=evil, normalized=evil, tag=evil, captures={"c": evil}, params={"NOTIFY": evil, "ORCPT": evil, evil: evil})
    record = mail(
        PLAIN,
        to,
        mail_from=evil,
        client=Client("", 0, helo=evil, ptr=evil),
        auth=Auth("PLAIN", evil),
        tls=Tls("a", "b", evil),
        params={"ENVID": evil, "RET": evil, "AUTH": evil, evil: evil},
        defects=(("smtp.x", evil),),
    )
    tree = data_of(PLAIN, record=record, to=to)
    assert "a\ufffd b\ufffd\ufffd" == tree["envelope"]["mailFrom"] == tree["client"]["helo"] == tree["route"]["captures"]["c"]
    assert envelope_json(record, to)


@pytest.mark.parametrize(
    ("octets", "mail_from", "expected"),
    [
        pytest.param(
            b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\r\n", "a@b", True, id="report"
        ),
        pytest.param(b"From: MAILER-DAEMON@x\r\n\r\n", "", True, id="mailer, null sender"),
        pytest.param(b"From: mailer-daemon@x\r\n\r\n", "a@b", False, id="mailer, sender"),
        pytest.param(b"From: al@x\r\n\r\n", "", False, id="null sender alone"),
    ],
)
def test_bounces(octets: bytes, mail_from: str, expected: bool) -> None:
    """A report, or a mailer without a return path."""
    assert expected == data_of(octets, record=mail(octets, mail_from=mail_from))["message"]["isBounce"]


def test_attachments() -> None:
    """In base64, or omitted for a reason."""
    octets = multipart(
        b"Content-Type: a/b; name=n\r\nContent-ID: <c@d>\r\nContent-Disposition: inline\r\n\r\nxyz",
        b"Content-Type: a/b\r\n\r\n" + b"x" * 100,
    )
    parsed = parse(octets, inline_max_octets=8)
    first, second = json.loads(fitted(parsed_tree(mail(octets), recipient(), octets, parsed, ROOM), ROOM))["attachments"]
    assert {"kind": "inline", "base64": "eHl6", "ref": None, "reason": None} == first["content"]
    assert (0, "1", "n", "a/b", "inline", "c@d", 3) == tuple(
        first[key] for key in ("index", "partId", "filename", "contentType", "disposition", "contentId", "sizeBytes")
    )
    assert ({"kind": "omitted", "base64": None, "ref": None, "reason": "too_large"}, 100) == (second["content"], second["sizeBytes"])


def test_both_means_both() -> None:
    """Parsed, and the octets."""
    tree = data_of(PLAIN, to=recipient(mode="both"))
    assert ("both", "hello", PLAIN) == (tree["mode"], tree["message"]["subject"], b64decode(tree["raw"]["base64"]))


def test_raw_tells_nothing_of_what_is_inside() -> None:
    """But the octets, their hash and the envelope."""
    to = recipient(mode="raw")
    tree = json.loads(fitted(raw_tree(mail(PLAIN, to), to, PLAIN, None, ROOM), ROOM))
    _VALIDATOR.validate(tree)
    assert (None, None, None, None) == (tree["headers"], tree["body"], tree["attachments"], tree["message"]["subject"])
    assert (PLAIN, mail(PLAIN).sha256) == (b64decode(tree["raw"]["base64"]), tree["raw"]["sha256"])


def test_an_unreadable_message_says_why() -> None:
    """After what was noticed while receiving."""
    failed = unreadable(Defect("mime.depth", None, "over 32 levels"))
    tree = json.loads(fitted(raw_tree(mail(PLAIN), recipient(), PLAIN, failed, ROOM), ROOM))
    assert ("raw", ["smtp.bare_lf", "mime.depth"]) == (tree["mode"], [defect["code"] for defect in tree["defects"]])


def test_octets_that_do_not_fit_are_omitted_beside_what_was_parsed() -> None:
    """The event still tells what is in the message."""
    octets = PLAIN + b"x" * 10_000
    to = recipient(mode="both")
    data = fitted(parsed_tree(mail(octets, to), to, octets, parse(octets), 12_000), 12_000)
    tree = json.loads(data)
    _VALIDATOR.validate(tree)
    assert len(data) <= 12_000
    assert ("omitted", "too_large", None, len(octets)) == tuple(tree["raw"][key] for key in ("kind", "reason", "base64", "sizeBytes"))
    assert "event.truncated" in [defect["code"] for defect in tree["defects"]]


@pytest.mark.parametrize(
    ("parsed", "why"),
    [pytest.param(None, "never tried", id="raw"), pytest.param(unreadable(Defect("mime.depth", None, "x")), "mime.depth", id="unreadable")],
)
def test_nothing_is_made_of_octets_that_do_not_fit_and_were_not_parsed(parsed: Parsed | None, why: str) -> None:
    """An event without them would hold nothing of the message, and count as delivered."""
    octets = PLAIN + b"x" * 10_000
    with pytest.raises(UnfitError, match=why):
        raw_tree(mail(octets), recipient(), octets, parsed, 12_000)


def test_the_count_is_of_the_transaction() -> None:
    """A part of its recipients that share a fate say the same of it as the others; old records say what they hold."""
    to = recipient()
    assert [7, 1] == [head(mail, to, "raw")["envelope"]["count"] for mail in (replace(mail(PLAIN, to), accepted=7), mail(PLAIN, to))]


def _large() -> bytes:
    head = b"Subject: s\r\n" + b"".join(b"X-%d: %b\r\n" % (number, b"h" * 100) for number in range(200))
    return multipart(
        b"\r\n" + b"text " * 6000,
        b'Content-Type: text/html\r\n\r\n<p title="x">' + b"html " * 6000,
        b"Content-Type: a/b\r\n\r\n" + b"1" * 3000,
        b"Content-Type: a/b\r\n\r\n" + b"2" * 60_000,
        b"Content-Type: a/b\r\n\r\n" + b"3" * 3000,
        head=head,
    )


@pytest.mark.parametrize(
    ("room", "given_up"),
    [
        pytest.param(200_000, [], id="all fits"),
        pytest.param(120_000, ["attachments.content"], id="contents"),
        pytest.param(80_000, ["attachments.content", "body.html"], id="html"),
        pytest.param(45_000, ["attachments.content", "body.html", "body.text"], id="text"),
        pytest.param(20_000, ["attachments.content", "body.html", "body.text", "attachments", "headers"], id="headers"),
    ],
)
def test_what_gives_way_first(room: int, given_up: list[str]) -> None:
    """Contents, HTML, text, lists; said in limits and as a defect."""
    tree = data_of(_large(), room)
    assert given_up == tree["limits"]["truncatedFields"]
    assert bool(given_up) == ("event.truncated" in [defect["code"] for defect in tree["defects"]])
    assert ("body.html" in given_up, "body.text" in given_up) == (tree["body"]["htmlTruncated"], tree["body"]["textTruncated"])


def test_contents_that_fit_are_kept() -> None:
    """The large one goes, the small ones round it stay."""
    assert ["inline", "omitted", "inline"] == [attachment["content"]["kind"] for attachment in data_of(_large(), 120_000)["attachments"]]


def test_html_is_cut_before_text() -> None:
    """To what room there is, not altogether."""
    tree = data_of(_large(), 80_000)
    assert 10_000 < len(tree["body"]["html"]) < 30_000
    assert len(tree["body"]["text"]) == 30_000


def test_no_part_list_is_long_enough_to_break_the_bound() -> None:
    """999 attachments, a thousand headers."""
    octets = multipart(*[b"Content-Type: a/b\r\n\r\n"] * 999, head=b"X: " + b"x" * 100 + b"\r\n")
    tree = data_of(octets, 16_384)
    assert 0 < len(tree["attachments"]) < 100
    assert "attachments" in tree["limits"]["truncatedFields"]


def test_no_fact_is_long_enough_to_break_the_bound() -> None:
    """Each header at its largest."""
    octets = b"".join(name + b": " + b"<a@b>, " * 8000 + b"\r\n" for name in (b"From", b"To", b"References", b"Subject", b"Message-ID"))
    tree = data_of(octets + b"\r\n", 16_384)
    assert (1, 1, 128) == (len(tree["message"]["from"]), len(tree["message"]["references"]), len(tree["message"]["subject"]))
    assert {"message.from", "message.subject"} <= set(tree["limits"]["truncatedFields"])


def _verbose() -> tuple[Mail, Recipient]:
    """Return a record with the longest texts the protocol lets through, and longer."""
    long = 'é"' * 2000
    to = recipient(
        address=long,
        normalized=long,
        tag=long,
        pattern=long,
        captures={str(number): long for number in range(5)},
        params={"NOTIFY": "SUCCESS," * 900, "ORCPT": long, "X": long},
    )
    record = mail(
        PLAIN,
        to,
        mail_from=long,
        client=Client("::1", 1, helo=long, ptr=long),
        auth=Auth("PLAIN", long),
        tls=Tls("TLSv1.3", "x", long),
        params={"ENVID": long, "RET": long, "AUTH": long, **{f"X{number}": long for number in range(200)}},
        defects=tuple(("smtp.x", "x" * 100) for _ in range(200)),
    )
    return record, to


def test_the_envelope_header_is_bounded() -> None:
    """To 8 KiB, whatever the peer wrote."""
    record, to = _verbose()
    data = envelope_json(record, to)
    assert len(data) <= ENVELOPE_MAX_OCTETS
    tree = json.loads(data)
    assert ({}, 128) == (tree["route"]["captures"], len(tree["envelope"]["mailFrom"]))
    assert {"mail": {}, "rcpt": {}} == tree["envelope"]["params"]["other"]
    assert {"route.captures", "envelope.params.orcpt", "envelope.params.auth", "envelope.params.other", "client.helo"} <= set(
        tree["limits"]["truncatedFields"]
    )


def test_what_xforward_said_is_cut_too() -> None:
    """Five texts of 255 octets, whose quotation marks are two octets each."""
    record, to = _verbose()
    mark = '"'
    said = {**dict.fromkeys(("NAME", "ADDR", "PROTO", "HELO", "IDENT"), mark * 255), "PORT": "25", "SOURCE": "LOCAL"}
    record = replace(
        record,
        mail_from=mark * 1000,
        client=Client("2001:db8:1111:2222:3333:4444:5555:6666", 65535, mark * 255, mark * 255, via_proxy=True, forwarded=said),
        auth=Auth("XOAUTH2", mark * 255),
        params=dict.fromkeys(("ENVID", "RET", "AUTH"), mark * 500),
    )
    to = replace(to, address=mark * 900, normalized=mark * 900, tag=mark * 255, params={"ORCPT": mark * 500})
    tree = json.loads(data := envelope_json(record, to))
    assert len(data) <= ENVELOPE_MAX_OCTETS
    assert {"client.forwarded.name", "client.forwarded.ident"} <= set(tree["limits"]["truncatedFields"])
    assert (25, "LOCAL") == (tree["client"]["forwarded"]["port"], tree["client"]["forwarded"]["source"])


def test_the_envelope_header_is_compact() -> None:
    """And tells what the octets do not."""
    tree = json.loads(envelope_json(mail(PLAIN), recipient()))
    assert ["mode", "transactionId", "listener", "client", "envelope", "route", "message", "defects", "limits"] == list(tree)
    assert {"sizeBytes": len(PLAIN), "sha256": mail(PLAIN).sha256} == tree["message"]


@pytest.mark.parametrize("mode", ["parsed", "both", "raw"])
def test_no_envelope_breaks_the_bound_of_an_event(mode: str) -> None:
    """Beside the octets 8 KiB are always enough."""
    record, to = _verbose()
    to = replace(to, mode=mode)  # type: ignore[arg-type]
    make = raw_tree if mode == "raw" else parsed_tree
    room = ENVELOPE_MAX_OCTETS + base64_octets(len(PLAIN))
    data = fitted(make(record, to, PLAIN, parse(PLAIN), room), room)
    _VALIDATOR.validate(json.loads(data))
    assert len(data) <= room
    assert mode == "parsed" or "inline" == json.loads(data)["raw"]["kind"]


def test_a_record_without_tls_and_sender_login_is_cut_too() -> None:
    """What is not there cannot be cut."""
    record, to = _verbose()
    assert len(envelope_json(replace(record, tls=None, auth=None, client=Client("", 0)), to)) <= ENVELOPE_MAX_OCTETS


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(st.sampled_from('"\\\n\té😀u0'), max_size=30)


@given(_texts, st.integers(-2, 60))
def test_a_shortened_text_is_the_longest_that_fits(text: str, room: int) -> None:
    """A beginning of the text, at most as long as asked inside JSON, and one character more would be too long."""
    found = shortened(text, room)
    assert text.startswith(found)
    assert len(orjson.dumps(found)) - 2 <= max(room, 0)
    assert found == text or len(orjson.dumps(text[: len(found) + 1])) - 2 > room


def test_the_ladder_ends() -> None:
    """Each step is taken once; past the last nothing more can go."""
    assert 8 == len(encoding._LADDER)
    record, to = _verbose()
    assert 0 < len(fitted(parsed_tree(record, to, PLAIN, parse(PLAIN), 10), 10)) <= ENVELOPE_MAX_OCTETS


def test_what_is_omitted_already_is_left_alone() -> None:
    """Giving way to size touches only contents that are there; one of them that fits after all is put back."""
    omitted = {"kind": "omitted", "base64": None, "ref": None, "reason": "encoding"}
    inline = {"kind": "inline", "base64": "QUFB", "ref": None, "reason": None}
    tree: dict[str, Any] = {"attachments": [{"content": omitted}, {"content": inline}], "limits": {"truncatedFields": []}, "defects": []}
    encoding._shrink_contents(tree, 10_000)
    assert [omitted, inline] == [attachment["content"] for attachment in tree["attachments"]]


def test_a_list_that_fits_is_kept_whole() -> None:
    """Shortening stops at the room there is, and with enough of it nothing is lost."""
    items = [{"name": "a", "value": "b"}, {"name": "c", "value": "d"}]
    tree: dict[str, Any] = {"headers": list(items), "limits": {"truncatedFields": []}, "defects": []}
    encoding._shrink_list(tree, "headers", 10_000)
    assert items == tree["headers"]


@pytest.mark.parametrize("mode", ["parsed", "both"])
def test_our_received_field_stands_before_the_headers(mode: Mode) -> None:
    """Where the record asks for it the list of headers begins with a field of ours, for this recipient; the octets stay those received."""
    to = recipient(mode=mode)
    without = mail(PLAIN, to, recipient(address="other@b.example"))
    plain, marked = data_of(PLAIN, record=without, to=to), data_of(PLAIN, record=replace(without, received_by="mx.example"), to=to)
    first, *rest = marked.pop("headers")
    assert first["name"] == "Received"
    assert "by mx.example with ESMTPS id 018cc251-f400-7000-8000-000000000000 for <Bob+tag@b.example> tls" in first["value"]
    assert "other@" not in first["value"]
    assert plain.pop("headers") == rest
    assert plain == marked


@pytest.mark.parametrize("as_read", [None, unreadable(Defect("mime.depth", None, "x"))])
def test_raw_events_know_nothing_of_it(as_read: Parsed | None) -> None:
    """What holds the octets and no headers has no field of ours."""
    to = recipient(mode="raw")
    record = replace(mail(PLAIN, to), received_by="mx.example")
    tree = raw_tree(record, to, PLAIN, as_read, ROOM)
    assert tree["headers"] is None
    assert b64decode(tree["raw"]["base64"]) == PLAIN
    assert b"mx.example with" not in envelope_json(record, to)
