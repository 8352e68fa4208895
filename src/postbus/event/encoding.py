"""An accepted mail as the JSON of an event: written by hand, since it runs once per recipient of every message.

Everything here is a pure function of the spool's row and the octets, so a retry gives the same bytes. What does not fit
the size its sinks carry is left out in a fixed order, and said so: contents of attachments, then HTML, then text, then
the list of attachments, the list of headers, the facts of the message, and last the free-text fields of the envelope.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from postbus.event import parameters
from postbus.event.charsets import scrub_line
from postbus.event.mail import Mail, Recipient
from postbus.event.parsed import Address, Attachment, Header, Parsed, Text
from postbus.event.received import received

Tree = dict[str, Any]


class UnfitError(Exception):
    """No event within the size its sinks carry can hold what must not be left out; the text says why. True of the mail for good."""


ENVELOPE_MAX_OCTETS = 8 * 1024
"""Of what stands round the message: the header ``postbus-envelope``, and the rest of a raw event's JSON beside its base64."""

_MAILERS = frozenset(("mailer-daemon", "postmaster"))
_NO_VERDICTS: Tree = {"spf": None, "dkim": None, "dmarc": None, "arc": None}
_NO_FACTS: Tree = {
    "contentType": None,
    "messageId": None,
    "date": None,
    "dateRaw": None,
    "subject": None,
    "from": [],
    "sender": [],
    "replyTo": [],
    "to": [],
    "cc": [],
    "inReplyTo": [],
    "references": [],
    "listId": None,
    "autoSubmitted": None,
    "isBounce": False,
    "isAutoReply": False,
}


def head(mail: Mail, recipient: Recipient, mode: str) -> Tree:
    """Return what is known without reading the message: transaction, listener, client, envelope, route."""
    return {
        "mode": mode,
        "transactionId": mail.id,
        "listener": _listener(mail),
        "client": _client(mail),
        "envelope": _envelope(mail, recipient),
        "route": {
            "name": recipient.route,
            "pattern": recipient.pattern,
            "tag": _clean(recipient.tag),
            "captures": {name: scrub_line(value) for name, value in recipient.captures.items()},
        },
    }


def _clean(text: str | None) -> str | None:
    return None if text is None else scrub_line(text)


def _listener(mail: Mail) -> Tree:
    tls, auth = mail.tls, mail.auth
    return {
        "name": mail.listener,
        "protocol": mail.protocol,
        "tls": tls and {"version": tls.version, "cipher": tls.cipher, "clientCertSubject": _clean(tls.client_cert_subject)},
        "auth": auth and {"mechanism": auth.mechanism, "identity": scrub_line(auth.identity)},
    }


def _client(mail: Mail) -> Tree:
    client = mail.client
    return {
        "ip": client.ip,
        "port": client.port,
        "ptr": _clean(client.ptr),
        "helo": _clean(client.helo),
        "viaProxy": client.via_proxy,
        "forwarded": None if client.forwarded is None else _forwarded(client.forwarded),
    }


def _forwarded(said: Mapping[str, str | None]) -> Tree:
    port = said.get("PORT")
    return {
        "name": _clean(said.get("NAME")),
        "address": _clean(said.get("ADDR")),
        "port": int(port) if port else None,
        "protocol": _clean(said.get("PROTO")),
        "helo": _clean(said.get("HELO")),
        "ident": _clean(said.get("IDENT")),
        "source": _clean(said.get("SOURCE")),
    }


def _envelope(mail: Mail, recipient: Recipient) -> Tree:
    return {
        "mailFrom": scrub_line(mail.mail_from),
        "recipient": scrub_line(recipient.address),
        "recipientNormalized": scrub_line(recipient.normalized),
        "index": recipient.index,
        "count": mail.accepted or len(mail.recipients),
        "params": parameters.told(mail.params, recipient.params, smtputf8=mail.smtputf8),
    }


def raw_tree(mail: Mail, recipient: Recipient, octets: bytes, parsed: Parsed | None, room_octets: int) -> Tree:
    """Return the data of an event that holds the message as it is.

    Args:
        mail: the record.
        recipient: one of its recipients.
        octets: the message.
        parsed: the failed attempt at it, whose defects are told, or ``None`` when none was made.
        room_octets: the JSON must not be larger.

    Raises:
        UnfitError: it would have to be: without the octets nothing of the message is left.
    """
    if not _raw_fits(octets, room_octets):
        codes = ", ".join(dict.fromkeys(defect.code for defect in parsed.defects)) if parsed else "never tried"
        raise UnfitError(f"the message has {mail.size_octets} octets, too many to be sent as it is, and could not be parsed ({codes})")
    tree = head(mail, recipient, "raw")
    tree["message"] = {"sizeBytes": mail.size_octets, "sha256": mail.sha256, **_NO_FACTS}
    tree["headers"] = tree["body"] = tree["attachments"] = None
    _add_raw(tree, mail, octets, room_octets)
    _add_tail(tree, mail, parsed)
    _shrink_head(tree, ENVELOPE_MAX_OCTETS, _base64_octets(tree))
    return tree


def parsed_tree(mail: Mail, recipient: Recipient, octets: bytes, parsed: Parsed, room_octets: int) -> Tree:
    """Return the data of an event that tells what is in the message; mode ``both`` adds the octets. Arguments as for ``raw_tree``."""
    tree = head(mail, recipient, recipient.mode)
    tree["message"] = _message(mail, parsed)
    own = [{"name": "Received", "value": received(mail, recipient), "lossy": False}] if mail.received_by else []
    tree["headers"] = own + [_header(header) for header in parsed.headers]
    tree["body"] = _body(parsed)
    tree["attachments"] = [_attachment(index, attachment) for index, attachment in enumerate(parsed.attachments)]
    if recipient.mode == "both":
        _add_raw(tree, mail, octets, room_octets)
    else:
        tree["raw"] = None
    _add_tail(tree, mail, parsed)
    return tree


def envelope_json(mail: Mail, recipient: Recipient) -> bytes:
    """Return the header that goes beside raw octets: compact JSON, at most ENVELOPE_MAX_OCTETS."""
    tree = head(mail, recipient, "raw")
    tree["message"] = {"sizeBytes": mail.size_octets, "sha256": mail.sha256}
    _add_tail(tree, mail, None)
    del tree["auth"]
    _shrink_head(tree, ENVELOPE_MAX_OCTETS, 0)
    return orjson.dumps(tree)


def _add_tail(tree: Tree, mail: Mail, parsed: Parsed | None) -> None:
    tree["auth"] = _NO_VERDICTS
    defects = [{"code": code, "partId": None, "detail": scrub_line(detail)} for code, detail in mail.defects]
    defects += tree.pop("rawDefects", [])
    if parsed is not None:
        defects += [{"code": defect.code, "partId": defect.part_id, "detail": scrub_line(defect.detail)} for defect in parsed.defects]
    tree["defects"] = defects
    seen, truncated = (0, ()) if parsed is None else (parsed.parts_seen, parsed.truncated)
    tree["limits"] = {"partsSeen": seen, "truncatedFields": list(truncated)}


def _add_raw(tree: Tree, mail: Mail, octets: bytes, room_octets: int) -> None:
    fits = _raw_fits(octets, room_octets)
    tree["raw"] = {
        "kind": "inline" if fits else "omitted",
        "base64": _base64(octets) if fits else None,
        "ref": None,
        "reason": None if fits else "too_large",
        "sizeBytes": mail.size_octets,
        "sha256": mail.sha256,
    }
    if not fits:
        tree["rawDefects"] = [{"code": "event.truncated", "partId": None, "detail": "raw"}]


def _raw_fits(octets: bytes, room_octets: int) -> bool:
    return base64_octets(len(octets)) + ENVELOPE_MAX_OCTETS <= room_octets


def _base64_octets(tree: Tree) -> int:
    return len(tree["raw"]["base64"] or "")


def base64_octets(size_octets: int) -> int:
    """Return how long *size_octets* become in base64."""
    return (size_octets + 2) // 3 * 4


def _base64(octets: bytes) -> str:
    return b2a_base64(octets, newline=False).decode("ascii")


def _message(mail: Mail, parsed: Parsed) -> Tree:
    facts = parsed.facts
    return {
        "sizeBytes": mail.size_octets,
        "sha256": mail.sha256,
        "contentType": facts.content_type,
        "messageId": facts.message_id,
        "date": facts.date,
        "dateRaw": facts.date_raw,
        "subject": facts.subject,
        "from": _mailboxes(facts.from_),
        "sender": _mailboxes(facts.sender),
        "replyTo": _mailboxes(facts.reply_to),
        "to": _mailboxes(facts.to),
        "cc": _mailboxes(facts.cc),
        "inReplyTo": facts.in_reply_to,
        "references": facts.references,
        "listId": facts.list_id,
        "autoSubmitted": facts.auto_submitted,
        "isBounce": facts.is_report or (not mail.mail_from and _is_mailer(facts.from_)),
        "isAutoReply": facts.is_auto_reply,
    }


def _is_mailer(authors: tuple[Address, ...]) -> bool:
    return any(author.address.partition("@")[0].lower() in _MAILERS for author in authors)


def _mailboxes(found: tuple[Address, ...]) -> list[Tree]:
    return [{"name": name, "address": address, "group": group, "valid": valid} for name, address, group, valid in found]


def _header(header: Header) -> Tree:
    name, value, lossy, raw = header
    if raw is None:
        return {"name": name, "value": value, "lossy": lossy}
    return {"name": name, "value": value, "lossy": lossy, "raw": _base64(raw)}


def _body(parsed: Parsed) -> Tree:
    text, html = parsed.text, parsed.html
    return {
        "text": text and text.text,
        "html": html and html.text,
        "textCharset": _charset(text),
        "htmlCharset": _charset(html),
        "textTruncated": text is not None and text.truncated,
        "htmlTruncated": html is not None and html.truncated,
    }


def _charset(body: Text | None) -> Tree | None:
    return body and {"declared": body.declared, "used": body.used, "lossy": body.lossy}


def _attachment(index: int, attachment: Attachment) -> Tree:
    octets = attachment.content
    return {
        "index": index,
        "partId": attachment.part_id,
        "filename": attachment.filename,
        "contentType": attachment.content_type,
        "disposition": attachment.disposition,
        "contentId": attachment.content_id,
        "sizeBytes": attachment.size_octets,
        "sha256": attachment.sha256,
        "content": _omitted(attachment.reason)
        if octets is None
        else {"kind": "inline", "base64": _base64(octets), "ref": None, "reason": None},
    }


def _omitted(reason: str | None) -> Tree:
    return {"kind": "omitted", "base64": None, "ref": None, "reason": reason}


def fitted(tree: Tree, room_octets: int) -> bytes:
    """Return *tree* as JSON of at most *room_octets*, leaving out what must be; *tree* is changed.

    A room below ENVELOPE_MAX_OCTETS may not suffice; sinks carry more.
    """
    data = orjson.dumps(tree)
    if len(data) <= room_octets:
        return data
    for shrink in _LADDER:
        shrink(tree, room_octets)
        data = orjson.dumps(tree)
        if len(data) <= room_octets:
            break
    return data


def _note(tree: Tree, field: str) -> None:
    """Write down that *field* is not whole, once, and leave a defect the first time."""
    fields = tree["limits"]["truncatedFields"]
    if field not in fields:
        fields.append(field)
    if not any(defect["code"] == "event.truncated" for defect in tree["defects"]):
        tree["defects"].append({"code": "event.truncated", "partId": None, "detail": field})


def _shrink_contents(tree: Tree, room_octets: int) -> None:
    """Omit contents of attachments, then put back in order what fits."""
    kept: list[tuple[Tree, Tree]] = []
    for attachment in tree["attachments"] or ():
        if attachment["content"]["kind"] == "inline":
            kept.append((attachment, attachment["content"]))
            attachment["content"] = _omitted("too_large")
    if not kept:
        return
    _note(tree, "attachments.content")
    left = room_octets - len(orjson.dumps(tree))
    for attachment, content in kept:
        if len(content["base64"]) <= left:
            attachment["content"] = content
            left -= len(content["base64"])


def _shrink_html(tree: Tree, room_octets: int) -> None:
    _shrink_body(tree, room_octets, "html")


def _shrink_text(tree: Tree, room_octets: int) -> None:
    _shrink_body(tree, room_octets, "text")


def _shrink_body(tree: Tree, room_octets: int, name: str) -> None:
    body = tree["body"]
    if not body or not body[name]:
        return
    _note(tree, f"body.{name}")
    body[f"{name}Truncated"] = True
    excess = len(orjson.dumps(tree)) - room_octets
    body[name] = shortened(body[name], len(orjson.dumps(body[name])) - 2 - excess)


_TORN = re.compile(rb"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-f]{0,3})?)$")


def shortened(text: str, room_octets: int) -> str:
    """Return the longest beginning of *text* that is at most *room_octets* long inside a JSON string (quotes not counted)."""
    if room_octets <= 0:
        return ""
    cut = orjson.dumps(text)[1:-1][:room_octets]
    torn = _TORN.search(cut)
    if torn:
        cut = cut[: torn.start(1)]
    whole: str = orjson.loads(b'"' + cut.decode("utf-8", "ignore").encode() + b'"')
    return whole


def _shrink_attachments(tree: Tree, room_octets: int) -> None:
    _shrink_list(tree, "attachments", room_octets)


def _shrink_headers(tree: Tree, room_octets: int) -> None:
    _shrink_list(tree, "headers", room_octets)


def _shrink_list(tree: Tree, name: str, room_octets: int) -> None:
    """Keep the beginning of a list, as much as fits."""
    items = tree[name]
    if not items:
        return
    _note(tree, name)
    tree[name] = []
    left = room_octets - len(orjson.dumps(tree))
    for item in items:
        left -= len(orjson.dumps(item)) + 1
        if left < 0:
            return
        tree[name].append(item)


_FACT_MAX_CHARACTERS = 128
_FACT_ITEMS_MAX = 1


def _shrink_facts(tree: Tree, room_octets: int) -> None:
    """Cut the facts of the message to what always fits: short texts, lists of one. *room_octets* does not matter."""
    del room_octets
    message = tree["message"]
    for name, value in message.items():
        short = _short(value)
        if short != value and name not in ("sha256", "sizeBytes"):
            message[name] = short
            _note(tree, f"message.{name}")


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_FACT_MAX_CHARACTERS]
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value[:_FACT_ITEMS_MAX]]
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return value


def _shrink_defects(tree: Tree, room_octets: int) -> None:
    """Keep few defects. *room_octets* does not matter."""
    del room_octets
    tree["defects"] = tree["defects"][-_DEFECTS_KEPT:]


_DEFECTS_KEPT = 8


def _shrink_rest(tree: Tree, room_octets: int) -> None:
    """Cut the envelope's free texts to make what is not base64 fit ENVELOPE_MAX_OCTETS. *room_octets* does not matter."""
    del room_octets
    _shrink_head(tree, ENVELOPE_MAX_OCTETS, _base64_octets(tree) if tree["raw"] else 0)


# Where text of any length can stand in the envelope, in the order in which it is given up.
_FREE_TEXTS: tuple[tuple[str, str, str], ...] = (
    ("envelope", "params", "orcpt"),
    ("envelope", "params", "envid"),
    ("envelope", "params", "ret"),
    ("envelope", "params", "auth"),
    *(("client", "forwarded", name) for name in ("name", "address", "protocol", "helo", "ident")),
    ("listener", "tls", "clientCertSubject"),
    ("listener", "auth", "identity"),
    ("client", "", "ptr"),
    ("client", "", "helo"),
    ("route", "", "tag"),
    ("route", "", "pattern"),
    ("envelope", "", "mailFrom"),
    ("envelope", "", "recipient"),
    ("envelope", "", "recipientNormalized"),
)


def _shrink_head(tree: Tree, room_octets: int, apart_octets: int) -> None:
    """Cut free texts of the envelope until *tree*, but for *apart_octets* of base64, fits *room_octets*."""

    def fits() -> bool:
        return len(orjson.dumps(tree)) - apart_octets <= room_octets

    if fits():
        return
    _note(tree, "route.captures")
    tree["route"]["captures"] = {}
    params = tree["envelope"]["params"]
    params["notify"] = params["notify"][:4]
    if params["other"]["mail"] or params["other"]["rcpt"]:
        _note(tree, "envelope.params.other")
        params["other"] = {"mail": {}, "rcpt": {}}
    _shrink_defects(tree, room_octets)
    for outer, inner, name in _FREE_TEXTS:
        if fits():
            return
        owner = tree[outer][inner] if inner else tree[outer]
        if owner and owner[name] and len(owner[name]) > _FACT_MAX_CHARACTERS:
            owner[name] = owner[name][:_FACT_MAX_CHARACTERS]
            _note(tree, ".".join(part for part in (outer, inner, name) if part))


_LADDER: tuple[Callable[[Tree, int], None], ...] = (
    _shrink_contents,
    _shrink_html,
    _shrink_text,
    _shrink_attachments,
    _shrink_headers,
    _shrink_defects,
    _shrink_facts,
    _shrink_rest,
)
