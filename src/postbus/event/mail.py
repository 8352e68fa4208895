"""The record of an accepted mail: what intake fills, the spool stores and the dispatcher renders.

Everything an event says beside the body itself is decided at acceptance and kept here, so that a retry, a restart or a
replay renders the same bytes again. So nobody changes a record; those made for each mail are not frozen all the same, and their
constructors are written out: a frozen dataclass takes 3 us more to make for each mail, a plain one's own constructor, which is
interpreted where the rest is compiled, 2 us.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import orjson

Mode = Literal["parsed", "raw", "both"]


@dataclass(frozen=True, slots=True)
class Tls:
    """What the peer negotiated."""

    version: str
    cipher: str
    client_cert_subject: str | None = None


@dataclass(frozen=True, slots=True)
class Auth:
    """Who the peer proved to be (RFC 4954)."""

    mechanism: str
    identity: str


@dataclass(init=False, slots=True)
class Client:
    """Whom the mail came from, by the listener's knowledge. ``ip`` is ``""`` on a Unix socket, or where a proxy does not know it.

    Attributes:
        ptr: name of the host, where a proxy gave it (XCLIENT).
        via_proxy: address and port are those a trusted proxy gave (PROXY header, XCLIENT).
        forwarded: where the peer says the mail came from before (XFORWARD); keys upper-case, None for what it does not know.
    """

    ip: str
    port: int
    helo: str | None
    ptr: str | None
    via_proxy: bool
    forwarded: Mapping[str, str | None] | None

    def __init__(
        self,
        ip: str,
        port: int,
        helo: str | None = None,
        ptr: str | None = None,
        via_proxy: bool = False,
        forwarded: Mapping[str, str | None] | None = None,
    ) -> None:
        self.ip = ip
        self.port = port
        self.helo = helo
        self.ptr = ptr
        self.via_proxy = via_proxy
        self.forwarded = forwarded


@dataclass(init=False, slots=True)
class Recipient:
    """One accepted RCPT: one event, one fate.

    Attributes:
        event_id: UUIDv7 text; never changes across retries, restarts and replays.
        address: as the client sent it; normalized: needless quotes off, local part in ASCII lower case, domain in lower-case
            A-labels.
        index: position among the transaction's accepted recipients, from 0.
        params: RCPT parameters, keys upper-case, values as sent (``None`` for a bare keyword).
        route, pattern, tag, captures: the route that took it.
        sinks: required sinks; best_effort: the others. Names from the configuration.
        event_max_octets: the rendered event must not be larger (least of what its sinks carry).
        partition_key, dedupe_key: computed at acceptance.
    """

    event_id: str
    address: str
    normalized: str
    index: int
    route: str
    pattern: str
    mode: Mode
    sinks: tuple[str, ...]
    best_effort: tuple[str, ...]
    event_max_octets: int
    partition_key: str
    dedupe_key: str
    tag: str | None
    captures: Mapping[str, str]
    params: Mapping[str, str | None]

    def __init__(
        self,
        event_id: str,
        address: str,
        normalized: str,
        index: int,
        route: str,
        pattern: str,
        mode: Mode,
        sinks: tuple[str, ...],
        best_effort: tuple[str, ...],
        event_max_octets: int,
        partition_key: str,
        dedupe_key: str,
        tag: str | None = None,
        captures: Mapping[str, str] | None = None,
        params: Mapping[str, str | None] | None = None,
    ) -> None:
        self.event_id = event_id
        self.address = address
        self.normalized = normalized
        self.index = index
        self.route = route
        self.pattern = pattern
        self.mode = mode
        self.sinks = sinks
        self.best_effort = best_effort
        self.event_max_octets = event_max_octets
        self.partition_key = partition_key
        self.dedupe_key = dedupe_key
        self.tag = tag
        self.captures = {} if captures is None else captures
        self.params = {} if params is None else params


@dataclass(init=False, slots=True)
class Mail:
    """One accepted message.

    Attributes:
        id: transaction id, told to the sender in the 250 text.
        source: CloudEvents source, from the configuration.
        received_ms, times: end of DATA, ms since the Unix epoch.
        listener: name; protocol: RFC 3848 keyword in lower case (``smtp``, ``esmtp``, ``esmtps``, ``lmtp`` ...).
        mail_from: reverse-path, ``""`` for the null sender.
        params: MAIL parameters, keys upper-case, values as sent.
        size_octets, sha256: of the octets as received after un-dotting, before any header of ours. sha256 is hex.
        defects: violations tolerated while receiving: (code, detail).
        recipients: every accepted RCPT in order, or those of them that share one fate; accepted: how many the transaction had, ``None`` in
            records of a time when that was not written down, where it is as many as there are.
        traceparent: W3C trace context of the session span when sampled, else ``None``.
        received_by: our host name, where events are to carry a Received field of ours; ``""``: they are not.
    """

    id: str
    source: str
    received_ms: int
    listener: str
    protocol: str
    client: Client
    mail_from: str
    size_octets: int
    sha256: str
    recipients: tuple[Recipient, ...]
    params: Mapping[str, str | None]
    smtputf8: bool
    tls: Tls | None
    auth: Auth | None
    defects: tuple[tuple[str, str], ...]
    traceparent: str | None
    accepted: int | None
    received_by: str

    def __init__(
        self,
        id: str,  # noqa: A002 - the record's word
        source: str,
        received_ms: int,
        listener: str,
        protocol: str,
        client: Client,
        mail_from: str,
        size_octets: int,
        sha256: str,
        recipients: tuple[Recipient, ...],
        params: Mapping[str, str | None] | None = None,
        smtputf8: bool = False,
        tls: Tls | None = None,
        auth: Auth | None = None,
        defects: tuple[tuple[str, str], ...] = (),
        traceparent: str | None = None,
        accepted: int | None = None,
        received_by: str = "",
    ) -> None:
        self.id = id
        self.source = source
        self.received_ms = received_ms
        self.listener = listener
        self.protocol = protocol
        self.client = client
        self.mail_from = mail_from
        self.size_octets = size_octets
        self.sha256 = sha256
        self.recipients = recipients
        self.params = {} if params is None else params
        self.smtputf8 = smtputf8
        self.tls = tls
        self.auth = auth
        self.defects = defects
        self.traceparent = traceparent
        self.accepted = accepted
        self.received_by = received_by


FORMAT = 1
"""Version of the octets below. Added fields do not change it: readers skip what they do not know and fill in defaults."""


def mail_to_bytes(mail: Mail) -> bytes:
    """Return *mail* as compact JSON for the spool.

    Not by orjson's own reading of dataclasses: it takes each attribute to be kept alive by its object, but a compiled one makes numbers
    anew each time.
    """
    tree = {"v": FORMAT, "mail": _tree(mail)}
    try:
        return orjson.dumps(tree, default=dict)
    except TypeError:
        # A lone surrogate: what the peer sent is kept as it came, in the escapes that orjson refuses.
        return json.dumps(tree, separators=(",", ":"), default=dict).encode("ascii")


def _tree(mail: Mail) -> dict[str, Any]:
    """Return *mail* by its fields' names. Written out, as this runs for every mail; a test knows whether a field is missing."""
    client, tls, auth = mail.client, mail.tls, mail.auth
    return {
        "id": mail.id,
        "source": mail.source,
        "received_ms": mail.received_ms,
        "listener": mail.listener,
        "protocol": mail.protocol,
        "client": {
            "ip": client.ip,
            "port": client.port,
            "helo": client.helo,
            "ptr": client.ptr,
            "via_proxy": client.via_proxy,
            "forwarded": client.forwarded,
        },
        "mail_from": mail.mail_from,
        "size_octets": mail.size_octets,
        "sha256": mail.sha256,
        "recipients": [_recipient_tree(recipient) for recipient in mail.recipients],
        "params": mail.params,
        "smtputf8": mail.smtputf8,
        "tls": tls and {"version": tls.version, "cipher": tls.cipher, "client_cert_subject": tls.client_cert_subject},
        "auth": auth and {"mechanism": auth.mechanism, "identity": auth.identity},
        "defects": mail.defects,
        "traceparent": mail.traceparent,
        "accepted": mail.accepted,
        "received_by": mail.received_by,
    }


def _recipient_tree(recipient: Recipient) -> dict[str, Any]:
    return {
        "event_id": recipient.event_id,
        "address": recipient.address,
        "normalized": recipient.normalized,
        "index": recipient.index,
        "route": recipient.route,
        "pattern": recipient.pattern,
        "mode": recipient.mode,
        "sinks": recipient.sinks,
        "best_effort": recipient.best_effort,
        "event_max_octets": recipient.event_max_octets,
        "partition_key": recipient.partition_key,
        "dedupe_key": recipient.dedupe_key,
        "tag": recipient.tag,
        "captures": recipient.captures,
        "params": recipient.params,
    }


def mail_from_bytes(octets: bytes) -> Mail:
    """Return the mail ``mail_to_bytes`` wrote.

    Raises:
        ValueError: *octets* are damaged, or of a format newer than this program knows.
    """
    tree = _loads(octets)
    if not isinstance(tree, dict) or tree.get("v") != FORMAT:
        raise ValueError("not a mail record of a known format")
    try:
        return _mail(tree["mail"])
    except (TypeError, KeyError, AttributeError) as exc:
        raise ValueError("mail record is damaged") from exc


def _loads(octets: bytes) -> Any:
    try:
        return orjson.loads(octets)
    except orjson.JSONDecodeError:
        return json.loads(octets)


def _mail(tree: dict[str, Any]) -> Mail:
    known = _known(tree, _MAIL_FIELDS)
    known["client"] = Client(**_known(tree["client"], _CLIENT_FIELDS))
    known["recipients"] = tuple(_recipient(recipient) for recipient in tree["recipients"])
    known["tls"] = Tls(**_known(tree["tls"], _TLS_FIELDS)) if tree.get("tls") else None
    known["auth"] = Auth(**_known(tree["auth"], _AUTH_FIELDS)) if tree.get("auth") else None
    known["defects"] = tuple((code, detail) for code, detail in tree.get("defects", ()))
    return Mail(**known)


def _recipient(tree: dict[str, Any]) -> Recipient:
    known = _known(tree, _RECIPIENT_FIELDS)
    known["sinks"] = tuple(tree["sinks"])
    known["best_effort"] = tuple(tree["best_effort"])
    return Recipient(**known)


def _known(tree: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return tree.copy() if tree.keys() <= names else {name: value for name, value in tree.items() if name in names}


_MAIL_FIELDS, _CLIENT_FIELDS, _RECIPIENT_FIELDS, _TLS_FIELDS, _AUTH_FIELDS = (
    frozenset(each.name for each in fields(record)) for record in (Mail, Client, Recipient, Tls, Auth)
)
