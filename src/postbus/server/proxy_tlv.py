"""TLVs of PROXY protocol version 2: what a load balancer says beside the addresses (HAProxy's doc/proxy-protocol.txt, 2.2).

Part of ``proxy_protocol``, where its names are imported from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


class MalformedTLV(RuntimeError):  # noqa: N818 - aiosmtpd's name
    """TLVs that do not add up."""


class UnknownTypeTLV(KeyError):  # noqa: N818 - aiosmtpd's name
    """A type nobody has registered, where only registered ones were asked for."""


@dataclass(frozen=True, slots=True)
class ProxySSL:
    """What the client agreed on with a proxy that ended its TLS (spec 2.2.6).

    Attributes:
        client: bits: 1 came over TLS, 2 showed a certificate on this connection, 4 in this TLS session.
        verified: a certificate was shown, and it was verified.
        version, cn, cipher, sig_alg, key_alg: TLS version, the client certificate's common name, suite, algorithms; None where not said.
    """

    client: int
    verified: bool
    version: str | None = None
    cn: str | None = None
    cipher: str | None = None
    sig_alg: str | None = None
    key_alg: str | None = None


class ProxyTLV(dict[str, Any]):
    """The TLVs of a version 2 header by name, values as octets; a type that is not registered is ``x`` and its number, ``xEA``.

    ``tlv.UNIQUE_ID`` is ``tlv.get("UNIQUE_ID")``. An SSL TLV comes flat: ``SSL`` (True), ``SSL_CLIENT`` and ``SSL_VERIFY`` as numbers,
    ``SSL_VERSION`` and the other sub-TLVs. The properties in lower case are the same, typed.

    Attributes:
        tlv_loc: where each begins, in octets from the beginning of the first.
    """

    PP2_TYPENAME: ClassVar[dict[int, str]] = {
        0x01: "ALPN",
        0x02: "AUTHORITY",
        0x03: "CRC32C",
        0x04: "NOOP",
        0x05: "UNIQUE_ID",
        0x20: "SSL",
        0x21: "SSL_VERSION",
        0x22: "SSL_CN",
        0x23: "SSL_CIPHER",
        0x24: "SSL_SIG_ALG",
        0x25: "SSL_KEY_ALG",
        0x30: "NETNS",
    }

    def __init__(self, *args: Any, _tlv_loc: dict[str, int], **kwargs: Any) -> None:
        """Take names and values as ``dict`` does."""
        super().__init__(*args, **kwargs)
        self.tlv_loc = _tlv_loc

    def __getattr__(self, item: str) -> Any:
        """Return the TLV of that name, or None."""
        return self.get(item)

    @property
    def alpn(self) -> bytes | None:
        """The upper protocol in use (RFC 7301)."""
        return self.get("ALPN")

    @property
    def authority(self) -> str | None:
        """The host name the client asked for: SNI, where it spoke TLS with the proxy."""
        return self._text("AUTHORITY")

    @property
    def crc32c(self) -> int | None:
        """The checksum in the header; a header whose checksum is wrong is not ``valid``."""
        value = self.get("CRC32C")
        return None if value is None else int.from_bytes(value, "big")

    @property
    def unique_id(self) -> bytes | None:
        """What the proxy calls this connection."""
        return self.get("UNIQUE_ID")

    @property
    def netns(self) -> str | None:
        """The name of the network namespace."""
        return self._text("NETNS")

    @property
    def ssl(self) -> ProxySSL | None:
        """What is said of the client's TLS."""
        if not self.get("SSL"):
            return None
        parts = {name: self._text(f"SSL_{name.upper()}") for name in ("version", "cn", "cipher", "sig_alg", "key_alg")}
        client = int(self["SSL_CLIENT"])
        return ProxySSL(client, bool(client & 6) and self["SSL_VERIFY"] == 0, **parts)

    def _text(self, name: str) -> str | None:
        value = self.get(name)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else None

    def same_attribs(self, _raises: bool = False, **kwargs: Any) -> bool:
        """Return whether every TLV named is there with that value.

        Raises:
            KeyError: *_raises*, and one is not there.
            ValueError: *_raises*, and one has another value.
        """
        return same(self, kwargs, _raises)

    @classmethod
    def parse(
        cls,
        data: bytes | bytearray,
        partial_ok: bool = True,
        strict: bool = False,
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the TLVs in *data* by name, and where each begins.

        Args:
            data: TLVs and nothing else.
            partial_ok: return what came before the first that does not add up, instead of raising.
            strict: refuse types that are not registered.

        Raises:
            MalformedTLV: not *partial_ok*, and they do not add up.
            UnknownTypeTLV: *strict*, and a type is not registered.
        """
        found: dict[str, Any] = {}
        places: dict[str, int] = {}
        try:
            cls._collect(bytes(data), 0, found, places, strict=strict)
        except MalformedTLV:
            if not partial_ok:
                raise
        return found, places

    @classmethod
    def _collect(cls, data: bytes, base: int, found: dict[str, Any], places: dict[str, int], *, strict: bool) -> None:
        """Add the TLVs in *data*, which begins at *base*; those inside SSL are not looked into again, so depth is bounded."""
        at = 0
        while at < len(data):
            kind, value = data[at], data[at + 3 : at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")]
            if len(data) < at + 3 or len(value) < int.from_bytes(data[at + 1 : at + 3], "big"):
                raise MalformedTLV(f"TLV 0x{kind:02X} is longer than what is there")
            name = cls.PP2_TYPENAME.get(kind, f"x{kind:02X}")
            if strict and kind not in cls.PP2_TYPENAME:
                raise UnknownTypeTLV(name)
            if name == "CRC32C" and name in found:
                raise MalformedTLV("a second CRC32C")  # which of them would sum up which?
            places[name] = base + at
            if name != "SSL":
                found[name] = value
            elif base or len(value) < 5:
                raise MalformedTLV("an SSL TLV is too short, or inside another")
            else:
                found.update(SSL=False, SSL_CLIENT=value[0], SSL_VERIFY=int.from_bytes(value[1:5], "big"))
                cls._collect(value[5:], base + at + 8, found, places, strict=strict)
                found["SSL"] = True
            at += 3 + len(value)

    @classmethod
    def from_raw(cls, raw: bytes | bytearray, strict: bool = False) -> ProxyTLV | None:
        """Return the TLVs in *raw*, or None if it is empty.

        Raises:
            MalformedTLV: they do not add up.
            UnknownTypeTLV: *strict*, and a type is not registered.
        """
        if not raw:
            return None
        found, places = cls.parse(raw, partial_ok=False, strict=strict)
        return cls(found, _tlv_loc=places)

    @classmethod
    def name_to_num(cls, name: str) -> int | None:
        """Return the number of a registered type, or None."""
        return next((number for number, known in cls.PP2_TYPENAME.items() if known == name), None)


def same(known: Mapping[str, Any], expected: Mapping[str, Any], raises: bool) -> bool:
    """Return whether *known* has all that is *expected*; else, where it *raises*, KeyError or ValueError."""
    for name, value in expected.items():
        if name not in known:
            if raises:
                raise KeyError(f"notfound:{name}")
            return False
        if known[name] != value:
            if raises:
                raise ValueError(f"mismatch:{name} actual={known[name]!r} expect={value!r}")
            return False
    return True
