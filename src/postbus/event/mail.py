"""The record of an accepted mail: what intake fills, the spool stores and the dispatcher renders.

Everything an event says beside the body itself is decided at acceptance and kept here, so that a retry, a restart or a
replay renders the same bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Client:
    """The peer as the listener saw it. ``ip`` is ``""`` on a Unix socket."""

    ip: str
    port: int
    helo: str | None = None
    ptr: str | None = None
    via_proxy: bool = False


@dataclass(frozen=True, slots=True)
class Recipient:
    """One accepted RCPT: one event, one fate.

    Attributes:
        event_id: UUIDv7 text; never changes across retries, restarts and replays.
        address: as the client sent it; normalized: see design 4.4.
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
    tag: str | None = None
    captures: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
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
        recipients: every accepted RCPT in order.
        traceparent: W3C trace context of the session span when sampled, else ``None``.
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
    params: Mapping[str, str | None] = field(default_factory=dict)
    smtputf8: bool = False
    tls: Tls | None = None
    auth: Auth | None = None
    defects: tuple[tuple[str, str], ...] = ()
    traceparent: str | None = None
