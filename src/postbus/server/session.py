"""Who is connected: one ``Session`` per connection, as handlers see it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from postbus.server.proxy_protocol import ProxyData

PeerName = tuple[Any, ...] | str


@dataclass(frozen=True, slots=True)
class Tls:
    """What a TLS session agreed on.

    Attributes:
        version: as the ssl module names it, ``TLSv1.3``.
        cipher: the suite, ``TLS_AES_256_GCM_SHA384``.
        client_cert_subject: ``CN=...,O=...`` of a verified client certificate, or None.
    """

    version: str
    cipher: str
    client_cert_subject: str | None


class Session:
    """One connection, from its first octet to its last; a new one replaces it after STARTTLS (RFC 3207 s4.2), with the same id.

    Handlers may hang attributes of their own on it.

    Attributes:
        id: short text, unique in this process and very likely anywhere; every log line of the session carries it.
        find_local: asks the transport for ``sockname``; see ``local``.
        peer: (host, port, ...) of the client; ``""`` or a path on a Unix socket. Behind a proxy that the listener trusts, the client is the
            one the proxy speaks for (PROXY header, XCLIENT).
        proxy_peer: then: the proxy itself, named the same way; else None.
        proxy_data: the PROXY header of the connection, or None.
        peer_host: name of the client's host, where a proxy gave it; unverified by us.
        xclient: what XCLIENT has said, attributes in upper case, None for what is not available; None: nothing.
        listener: name of the listener.
        ssl: what the transport knows of TLS (``cipher``, ``peercert``, ``sslcontext``, ``ssl_object`` ...), or None in plain text.
        tls: the same as a small record, or None.
        host_name: what the client called itself in HELO, EHLO or LHLO; None before.
        extended_smtp: greeted by EHLO or LHLO.
        authenticated: None before AUTH was tried, then whether it succeeded.
        auth_data: what the authenticator returned.
        login_data: aiosmtpd's old name for the identity.
        auth_mechanism: the SASL mechanism by which it succeeded, or None.
        auth_identity: who the peer proved to be, as text, where the authenticator said it (``auth_data.login``).
        traceparent: W3C trace context of this session's work, or None.
    """

    id: str = ""
    peer: PeerName | None = None
    listener: str = ""
    lmtp: bool = False
    ssl: dict[str, Any] | None = None
    tls: Tls | None = None
    host_name: str | None = None
    extended_smtp: bool = False
    authenticated: bool | None = None
    auth_data: Any = None
    login_data: Any = None
    auth_mechanism: str | None = None
    auth_identity: str | None = None
    proxy_data: ProxyData | None = None
    proxy_peer: PeerName | None = None
    peer_host: str | None = None
    xclient: Mapping[str, str | None] | None = None
    traceparent: str | None = None
    _local: PeerName | None = None
    find_local: Callable[[str], Any] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    @property
    def local(self) -> PeerName | None:
        """Our own end of the connection; asked of the socket on first use (a system call)."""
        if self._local is None and self.find_local is not None:
            self._local = self.find_local("sockname")
            self.find_local = None
        return self._local

    @local.setter
    def local(self, name: PeerName | None) -> None:
        self._local = name
        self.find_local = None

    @property
    def protocol(self) -> str:
        """``smtp``, ``esmtp``, ``esmtps``, ``esmtpa``, ``esmtpsa``, ``lmtp``, ``lmtps``, ... (RFC 3848, lower case)."""
        name = "lmtp" if self.lmtp else "esmtp" if self.extended_smtp else "smtp"
        if name == "smtp":
            return name
        return name + ("s" if self.tls is not None else "") + ("a" if self.authenticated else "")


def tls_of(transport: asyncio.BaseTransport) -> tuple[dict[str, Any], Tls]:
    """Return what *transport*, a TLS one, knows of its session: aiosmtpd's ``session.ssl`` and our record."""
    known = {name: transport.get_extra_info(name) for name in ("sslcontext", "peercert", "cipher", "compression", "ssl_object")}
    ssl_object: ssl.SSLObject | None = known["ssl_object"]
    version = (ssl_object.version() if ssl_object is not None else None) or ""
    cipher = known["cipher"]
    return known, Tls(version, cipher[0] if cipher else "", _subject(known["peercert"]))


def speak_for(session: Session, said: Mapping[str, str | None]) -> None:
    """Make *session* that of the client which XCLIENT's attributes *said* describe; those said before and not again stay."""
    peer = session.peer if isinstance(session.peer, tuple) else ("", 0)
    if session.proxy_peer is None and not said.keys().isdisjoint({"ADDR", "PORT"}):
        session.proxy_peer = session.peer
    session.xclient = said = {**(session.xclient or {}), **said}
    if "ADDR" in said or "PORT" in said:
        session.peer = (said.get("ADDR", peer[0]) or "", int(said.get("PORT", "0") or 0))
    if "DESTADDR" in said:
        session.local = (said["DESTADDR"] or "", int(said.get("DESTPORT", "0") or 0))
    session.peer_host = said.get("NAME", session.peer_host)
    if said.get("LOGIN") is not None:
        session.authenticated = True
        session.auth_data = session.login_data = session.auth_identity = said["LOGIN"]
        session.auth_mechanism = "XCLIENT"  # as Postfix says


SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}


def _subject(certificate: Any) -> str | None:
    """Return the subject of *certificate* (as ``SSLSocket.getpeercert`` gives it), most specific name first."""
    if not certificate or not certificate.get("subject"):
        return None
    pairs = [pair for part in certificate["subject"] for pair in part]
    return ",".join(f"{SHORT_NAMES.get(name, name)}={value}" for name, value in reversed(pairs))
