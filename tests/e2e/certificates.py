"""Certificates for the tests, by an authority of their own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

NAMES = ("mx.postbus.test", "localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate (with its chain) and its key."""

    certificate: Path
    key: Path

    def tls(self, mode: str) -> dict[str, str]:
        """Return the ``tls`` key of a listener."""
        return {"mode": mode, "certificate": str(self.certificate), "key": str(self.key)}


class Authority:
    """Issues certificates for ``NAMES`` into *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, stem: str = "mx") -> Pair:
        """Return a fresh certificate, in files called after *stem*, which are written over."""
        leaf = self._ca.issue_cert(*NAMES)
        pair = Pair(self._folder / f"{stem}.crt", self._folder / f"{stem}.key")
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        pair.key.write_bytes(leaf.private_key_pem.bytes())
        return pair

    def client(self) -> ssl.SSLContext:
        """Return a context that trusts this authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.file))

    def server(self, pair: Pair) -> ssl.SSLContext:
        """Return a context that shows *pair*."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        return context
