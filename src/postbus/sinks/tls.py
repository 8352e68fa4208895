"""TLS towards a sink."""

from __future__ import annotations

import ssl

from postbus.sinks.settings import ClientTls


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """Return a client context: TLS 1.2 or newer, certificate and name checked. Reads files: call it in a thread.

    Raises:
        OSError: a file cannot be read, or holds no such thing.
    """
    context = ssl.create_default_context(cafile=tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context
