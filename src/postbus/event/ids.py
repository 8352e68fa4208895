"""Names of things: event ids, normalised addresses and the keys consumers sort and dedupe by.

Everything random or timed is passed in, so each function is a plain calculation.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from hashlib import sha256
from typing import Final

RANDOM_OCTETS: Final = 10
"""How much randomness an id takes."""

_TIME_BITS_MS: Final = (1 << 48) - 1
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}  # the two highest bits are 10
_NEEDLESSLY_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_DOT_STRING: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+)*")
_URLSAFE: Final = bytes.maketrans(b"+/", b"-_")
_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def uuid7(now_ms: int, random: bytes) -> str:
    """Return a version 7 UUID (RFC 9562 s5.7) as text.

    Args:
        now_ms: milliseconds since the Unix epoch; only its low 48 bits are kept.
        random: at least RANDOM_OCTETS octets from a good source; six bits of them give way to version and variant.
    """
    time = (now_ms & _TIME_BITS_MS).to_bytes(6, "big").hex()
    tail = random[:RANDOM_OCTETS].hex()
    return f"{time[:8]}-{time[8:]}-7{tail[1:4]}-{_VARIANT[tail[4]]}{tail[5:8]}-{tail[8:]}"


def normalize(address: str) -> str:
    """Return *address* in the one spelling under which we count it as the same mailbox.

    Needless quotes go, the local part becomes ASCII-lower-case (receivers may tell cases apart, RFC 5321 s2.4; none
    worth the name does), its ``+tag`` stays, the domain becomes lower-case A-labels. ``Postmaster`` without a domain
    is legal (RFC 5321 s4.5.1) and is lower-cased only. An address literal keeps its brackets.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    return f"{_local(local)}{at}{_domain(domain)}"


def _local(local: str) -> str:
    quoted = _NEEDLESSLY_QUOTED.fullmatch(local)
    if quoted:
        bare = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)
        if _DOT_STRING.fullmatch(bare):
            local = bare
    return local.translate(_ASCII_LOWER)


def _domain(domain: str) -> str:
    domain = domain.removesuffix(".")
    if domain.isascii():
        return domain.lower()
    try:
        return domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return domain.lower()


def dedupe_key(mail_from: str, normalized: str, sha256_hex: str) -> str:
    """Return the key that is equal when the same octets come again from the same sender to the same recipient.

    Args:
        mail_from: reverse-path, ``""`` for the null sender.
        normalized: the recipient, normalised.
        sha256_hex: of the octets as received, in hex.

    Base64url of a SHA-256, 43 characters without padding.
    """
    seed = b"\x00".join((_octets(mail_from), _octets(normalized), bytes.fromhex(sha256_hex)))
    return _digest(seed)


def partition_key(normalized: str) -> str:
    """Return the key under which one recipient's events keep their order: a hash, since keys are logged in clear."""
    return _digest(_octets(normalized))


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(seed: bytes) -> str:
    return b2a_base64(sha256(seed).digest(), newline=False).translate(_URLSAFE, b"=").decode("ascii")
