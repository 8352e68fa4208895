"""TLS contexts: made whole from their files, or not at all.

A reload makes a fresh context and puts it in the place of the old one: connections made before keep theirs, and a pair of files that
do not belong together leaves the old one at work.
"""

from __future__ import annotations

import ssl
from pathlib import Path

SHUTDOWN_TIMEOUT_S = 2.0  # a silent peer would hold the closed connection 30 s otherwise


class TlsUnusable(Exception):  # noqa: N818 - a state of the files, not a mistake of the caller
    """Certificate, key or authorities cannot be used; the text says which file and why, for the operator."""


def server_context(
    certificate: Path, key: Path | None = None, client_ca: Path | None = None, *, client_required: bool = False
) -> ssl.SSLContext:
    """Return a context for servers with *certificate* (and chain) and *key*; TLS 1.2 and later.

    With *client_ca* a client may present a certificate, which then must be signed by one of these authorities; if
    *client_required*, it has to.

    Raises:
        TlsUnusable: a file is missing or unreadable, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    for path in (certificate, key, client_ca):
        if path is not None and not path.is_file():
            raise TlsUnusable(f"{path}: no such file")
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise TlsUnusable(f"{certificate} with {key or 'its own key'}: {error}") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsUnusable(f"{client_ca}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def doubt(context: ssl.SSLContext) -> str | None:
    """Return why clients may not get through a handshake with *context*, a program's own; ``None``: nothing stands in their way."""
    if context.verify_mode is ssl.CERT_REQUIRED:  # so has every context whose check_hostname is set
        return "tls_context.verify_mode is CERT_REQUIRED: clients without a certificate cannot start TLS; is it a context for clients?"
    return None
