"""Say whether a certificate can be used, with nothing but the standard library.

It cannot parse a certificate by itself; but a handshake in memory, with a client that trusts exactly this certificate, says
everything: whether the key is its key, whether it is in time, and until when. No network, about a millisecond.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

PEM_END = "-----END CERTIFICATE-----"
ROUNDS_MAX = 10
"""A TLS 1.3 handshake takes three turns."""

_VERIFY_EXPIRED, _VERIFY_NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of looking at a certificate.

    Attributes:
        trouble: what is wrong; ``""`` if nothing is.
        remedy: what would be right.
        at: which file it is about: ``certificate`` or ``key``.
        expires_s: when it ends, in seconds since the Unix epoch; ``None`` where nobody could say.
    """

    trouble: str = ""
    remedy: str = ""
    at: str = "certificate"
    expires_s: int | None = None


def look(certificate: Path, key: Path | None) -> Verdict:
    """Return whether a server can show *certificate*, whose private key is in *key*, or beside it."""
    trouble = trouble_showing(certificate, key)
    if trouble is not None:
        return trouble
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    pem = certificate.read_text("ascii")
    return _handshake(server, pem[: pem.index(PEM_END)] + PEM_END)


def trouble_showing(certificate: Path, key: Path | None) -> Verdict | None:
    """Return what keeps *certificate*, whose private key is in *key* or beside it, from being shown; ``None`` if nothing does.

    Its dates are not looked at: a client's certificate that has expired is no reason not to start and keep mail in the spool.
    """
    for at, path in (("certificate", certificate), ("key", key)):
        unreadable = trouble_reading(path) if path else None
        if unreadable:
            return Verdict(*unreadable, at)
    try:
        pem = certificate.read_text("ascii")
    except UnicodeDecodeError:
        return Verdict("the file is not PEM", "convert it: openssl x509 -inform der -in FILE -out FILE.pem")
    if PEM_END not in pem:
        return Verdict("there is no certificate in the file", "put the certificate first, then its chain")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError, _EncryptedKeyError) as error:
        return _pair_trouble(error, certificate, key)
    return None


def trouble_trusting(ca: Path) -> tuple[str, str] | None:
    """Return what keeps *ca* from being a list of authorities, and what would be right; ``None`` if nothing does."""
    unreadable = trouble_reading(ca)
    if unreadable:
        return unreadable
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError:
        return f"there is no certificate of an authority in {ca}", "put PEM certificates there: -----BEGIN CERTIFICATE-----"
    return None


def trouble_reading(path: Path) -> tuple[str, str] | None:
    """Return what keeps *path* from being read, and what would be right; ``None`` if nothing does."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        return f"{path} does not exist", "check the path, or mount the file"
    except IsADirectoryError:
        return f"{path} is a folder", "name the file in it"
    except OSError as error:
        return f"{path} cannot be read: {(error.strerror or 'unknown').lower()}", "let the user postbus runs as read it"
    return None


class _EncryptedKeyError(Exception):
    """The private key asks for a password."""


def _no_password() -> str:
    raise _EncryptedKeyError


def _pair_trouble(error: Exception, certificate: Path, key: Path | None) -> Verdict:
    if isinstance(error, _EncryptedKeyError):
        return Verdict("the private key is encrypted", "store it without a password: openssl pkey -in FILE -out FILE", "key")
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return Verdict(f"the key is not the one of {certificate}", "use the pair that was issued together", "key")
    if key is None and "PRIVATE KEY-----" not in certificate.read_text("ascii", "replace"):
        return Verdict("the file has no private key, and `key` is not set", "set key to the file with the private key")
    why = reason.lower().replace("_", " ") or "not PEM"
    return Verdict(f"certificate and key cannot be used: {why}", "check both with openssl x509 and openssl pkey")


def _handshake(server: ssl.SSLContext, leaf: str) -> Verdict:
    """Return what a client that trusts *leaf* alone says to *server*."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=leaf)
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(theirs, ours), server.wrap_bio(ours, theirs, server_side=True))
    try:
        for _ in range(ROUNDS_MAX):
            waiting = [end for end in ends if _waits(end)]
            if not waiting:
                break
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _VERIFY_EXPIRED:
            return Verdict("the certificate has expired", "renew it")
        if error.verify_code == _VERIFY_NOT_YET:
            return Verdict("the certificate is not valid yet", "check the clock, or wait")
        return Verdict()  # what else a verifier may dislike (purpose, policy) is between the peers
    except ssl.SSLError:
        return Verdict()
    peer = ends[0].getpeercert() or {}
    ends_at = peer.get("notAfter")
    return Verdict(expires_s=ssl.cert_time_to_seconds(ends_at) if isinstance(ends_at, str) else None)


def _waits(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return True
    return False
