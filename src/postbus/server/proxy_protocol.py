"""The PROXY protocol, versions 1 and 2: who is behind the load balancer (HAProxy's doc/proxy-protocol.txt).

``HeaderReader`` is sans-IO: octets in, at most ``HEADER_MAX_OCTETS`` of them kept, ``ProxyData`` out. It says how many octets were
the header's and leaves the rest alone; whatever they are and however they are cut, it never raises, and comes to the same result.
The names, ``ProxyData`` and ``ProxyTLV`` among them, are aiosmtpd's. Differences, each on purpose: what the specification tells a
receiver to refuse is refused (TLVs that do not add up, a CRC32C that is wrong, a length over the cap), the block of a LOCAL command
is not taken for addresses, and nothing is logged here.

    v1   "PROXY" SP ("TCP4" | "TCP6") SP source SP destination SP port SP port CRLF       at most 107 octets
         "PROXY" SP "UNKNOWN" [SP anything] CRLF
    v2   signature(12)  version|command(1)  family|protocol(1)  length(2)  [addresses] [TLV ...]

States of a reader: *reading* (``data`` is None), then *done* with a header that is ``valid``, or not: ``data.error`` says why.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Protocol

from postbus.server.crc32c import crc32c
from postbus.server.proxy_tlv import MalformedTLV, ProxySSL, ProxyTLV, UnknownTypeTLV, same

__all__ = [
    "AF",
    "HEADER_MAX_OCTETS",
    "PROTO",
    "V1_MAX_OCTETS",
    "V2_CMD",
    "V2_SIGNATURE",
    "AsyncReader",
    "EndpointAddress",
    "HeaderReader",
    "MalformedTLV",
    "ProxyData",
    "ProxySSL",
    "ProxyTLV",
    "UnknownTypeTLV",
    "get_proxy",
]

V1_PREFIX = b"PROXY "
V1_MAX_OCTETS = 107  # spec 2.1: the longest line there can be, CRLF included
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2_FIXED_OCTETS = 16
HEADER_MAX_OCTETS = 4096  # a header with every TLV senders have is some hundred octets; the length field would allow 64 KiB

EndpointAddress = IPv4Address | IPv6Address | str | bytes


class V2_CMD(IntEnum):  # noqa: N801 - aiosmtpd's name
    """Why there is a connection: the proxy's own business (a health check), or somebody else's."""

    LOCAL = 0
    PROXY = 1


class AF(IntEnum):
    """Address family; ``UNSPEC`` is also version 1's UNKNOWN."""

    UNSPEC = 0
    INET = 1
    INET6 = 2
    UNIX = 3


class PROTO(IntEnum):
    """Transport; ``UNSPEC`` is also version 1's UNKNOWN."""

    UNSPEC = 0
    STREAM = 1
    DGRAM = 2


ADDRESSES: Mapping[AF, struct.Struct] = {
    AF.INET: struct.Struct("!4s4sHH"),
    AF.INET6: struct.Struct("!16s16sHH"),
    AF.UNIX: struct.Struct("108s108s"),
}
"""How the address block of each family is laid out (spec 2.2)."""


class AsyncReader(Protocol):
    """What ``get_proxy`` reads from: an ``asyncio.StreamReader`` is one."""

    async def read(self, n: int = ...) -> bytes:
        """Return up to *n* octets."""

    async def readexactly(self, n: int) -> bytes:
        """Return *n* octets."""

    async def readuntil(self, separator: bytes = ...) -> bytes:
        """Return octets up to and including *separator*."""


@dataclass(slots=True)
class ProxyData:
    """A PROXY header, read; true if it is ``valid``.

    Attributes:
        version: 1 or 2; None where neither was recognised.
        command: of version 2.
        family, protocol: of the client's connection to the proxy.
        src_addr, src_port: the client; dst_addr, dst_port: what it connected to; None where the header does not say. Addresses
            of Unix sockets are the 108 octets of the header.
        rest: what follows UNKNOWN (v1), or the addresses (v2): TLVs, see ``tlv``.
        whole_raw: the header as received; of a bad one, up to where it went bad.
        tlv_start: where in ``whole_raw`` the first TLV begins; None without addresses or without TLVs.
        error: why it is not valid, or ``""``.
    """

    version: int | None = field(kw_only=True)
    command: V2_CMD | None = field(init=False, default=None)
    family: AF | None = field(init=False, default=None)
    protocol: PROTO | None = field(init=False, default=None)
    src_addr: EndpointAddress | None = field(init=False, default=None)
    dst_addr: EndpointAddress | None = field(init=False, default=None)
    src_port: int | None = field(init=False, default=None)
    dst_port: int | None = field(init=False, default=None)
    rest: bytes = field(init=False, default=b"")
    whole_raw: bytearray = field(init=False, default_factory=bytearray)
    tlv_start: int | None = field(init=False, default=None)
    error: str = field(init=False, default="")
    _tlv: ProxyTLV | None = field(init=False, default=None)

    @property
    def valid(self) -> bool:
        """Whether it is a header, whole and without a fault."""
        return not self.error and self.version is not None and self.protocol is not None

    @property
    def tlv(self) -> ProxyTLV | None:
        """The TLVs; None where there are none, or where they do not add up."""
        if self._tlv is None and self.version == 2:
            with suppress(MalformedTLV):
                self._tlv = ProxyTLV.from_raw(self.rest)
        return self._tlv

    @property
    def client(self) -> tuple[str, int] | None:
        """(address, port) of the client behind the proxy, IPv4-mapped IPv6 as IPv4; None where the connection's own peer is meant.

        That is: LOCAL, UNKNOWN and UNSPEC, and connections that were not TCP.
        """
        if self.valid and self.command is not V2_CMD.LOCAL and self.protocol is PROTO.STREAM and self.family in {AF.INET, AF.INET6}:
            address = self.src_addr
            mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
            return str(mapped or address), self.src_port or 0
        return None

    def with_error(self, error_msg: str, log_prefix: bool = True) -> ProxyData:
        """Return itself with *error_msg*; *log_prefix* is for compatibility, nothing is logged here."""
        del log_prefix
        self.error = error_msg
        return self

    def same_attribs(self, _raises: bool = False, **kwargs: Any) -> bool:
        """Return whether every attribute named is there with that value.

        Raises:
            KeyError: *_raises*, and one is not there.
            ValueError: *_raises*, and one has another value.
        """
        return same({name: getattr(self, name) for name in kwargs if hasattr(self, name)}, kwargs, _raises)

    def __bool__(self) -> bool:
        """Return whether it is valid."""
        return self.valid


class HeaderReader:
    """Reads one header from octets in any pieces.

    Attributes:
        data: the header, once ``feed`` has seen its end or its first fault; None before.
    """

    __slots__ = ("_octets", "data")

    def __init__(self) -> None:
        self._octets = bytearray()
        self.data: ProxyData | None = None

    def feed(self, octets: bytes) -> int:
        """Take *octets*; return how many of them were the header's: all, until it is done.

        Behind a header that is not valid nothing means anything, and the count only says where it went bad.
        """
        if self.data is not None:
            return 0
        known = len(self._octets)
        self._octets += octets[: HEADER_MAX_OCTETS - known]
        verdict = _extent(self._octets)
        if verdict is None:
            return len(octets)
        version, length, error = verdict
        header = bytes(self._octets[:length])
        self._octets.clear()
        self.data = data = ProxyData(version=version)
        data.whole_raw = bytearray(header)
        if error:
            data.with_error(error)
        elif version == 1:
            _read_v1(header, data)
        else:
            _read_v2(header, data)
        return length - known

    @property
    def least(self) -> int:
        """How many more octets there are to come at least, if the header is good; 0 when it is done."""
        if self.data is not None:
            return 0
        known = len(self._octets)
        if known < len(V1_PREFIX):
            return len(V1_PREFIX) - known
        if self._octets[:1] == V1_PREFIX[:1]:
            return 1
        length = V2_FIXED_OCTETS if known < V2_FIXED_OCTETS else V2_FIXED_OCTETS + _length(self._octets)
        return length - known


Verdict = tuple[int | None, int, str]
"""Version, how many octets from the start it took to know, and why the header is bad or ``""``."""


def _extent(octets: bytearray) -> Verdict | None:
    """Return where the header that *octets* begin with ends, or goes bad: the same however many follow. None: more is needed."""
    for prefix, extent in ((V1_PREFIX, _extent_v1), (V2_SIGNATURE, _extent_v2)):
        if octets[: len(prefix)] == prefix[: len(octets)]:
            return extent(octets) if len(octets) > len(prefix) else None
    right = max(_common(octets, prefix) for prefix in (V1_PREFIX, V2_SIGNATURE))
    version = 1 if octets[:5] == V1_PREFIX[:5] else 2 if octets[:5] == V2_SIGNATURE[:5] else None
    return version, right + 1, "PROXY signature not recognized"


def _common(octets: bytearray, prefix: bytes) -> int:
    """Return how many octets of *prefix* are there."""
    return next((at for at, (one, other) in enumerate(zip(octets, prefix, strict=False)) if one != other), min(len(octets), len(prefix)))


_LINE_END = re.compile(rb"[\r\n]")


def _extent_v1(octets: bytearray) -> Verdict | None:
    end = _LINE_END.search(octets, 0, V1_MAX_OCTETS)
    if end is None:
        return (1, V1_MAX_OCTETS, "PROXYv1 header too long") if len(octets) >= V1_MAX_OCTETS else None
    at = end.start()
    if octets[at : at + 1] == b"\n":
        return 1, at + 1, "PROXYv1 line ended by LF alone"
    if at + 1 >= V1_MAX_OCTETS:
        return 1, V1_MAX_OCTETS, "PROXYv1 header too long"
    if len(octets) < at + 2:
        return None
    return 1, at + 2, "" if octets[at + 1 : at + 2] == b"\n" else "PROXYv1 line ended by CR alone"


def _extent_v2(octets: bytearray) -> Verdict | None:
    """Judge the fixed part octet by octet, so that a wrong one is told as soon as it is there."""
    for at, bad, error in _FIXED_FAULTS:
        if len(octets) <= at:
            return None
        if bad(octets):
            return 2, at + 1, f"PROXYv2 {error}"
    length = V2_FIXED_OCTETS + _length(octets)
    return (2, length, "") if len(octets) >= length else None


def _length(octets: bytes | bytearray) -> int:
    """Return the length field: how many octets follow the fixed ones."""
    return int.from_bytes(octets[14:16], "big")


def _is_truncated(octets: bytearray) -> bool:
    layout = None if octets[12] == LOCAL else _layout(octets[13])
    return layout is not None and _length(octets) < layout.size


LOCAL = 0x20  # version 2, command LOCAL: its family means nothing (spec 2.2)
_FIXED_FAULTS: tuple[tuple[int, Callable[[bytearray], bool], str], ...] = (
    (12, lambda octets: octets[12] >> 4 != 2, "version not supported"),
    (12, lambda octets: octets[12] & 0xF > V2_CMD.PROXY, "command not supported"),
    (13, lambda octets: octets[12] != LOCAL and octets[13] >> 4 > AF.UNIX, "address family not supported"),
    (13, lambda octets: octets[12] != LOCAL and octets[13] & 0xF > PROTO.DGRAM, "protocol not supported"),
    (15, lambda octets: V2_FIXED_OCTETS + _length(octets) > HEADER_MAX_OCTETS, "header too long"),
    (15, _is_truncated, "address truncated"),
)
"""What can be wrong with the fixed octets: by which one it is known, the test, the words."""


def _layout(family_and_protocol: int) -> struct.Struct | None:
    """Return the layout of the address block, None where there is none: either half is UNSPEC."""
    return ADDRESSES.get(AF(family_and_protocol >> 4)) if family_and_protocol & 0xF else None


_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_V1_ADDRESS: Mapping[bytes, tuple[AF, type[IPv4Address | IPv6Address], re.Pattern[bytes]]] = {
    b"TCP4": (AF.INET, IPv4Address, re.compile(rb"[0-9.]{7,15}")),
    b"TCP6": (AF.INET6, IPv6Address, re.compile(rb"[0-9A-Fa-f:.]{2,45}")),
}


def _read_v1(header: bytes, data: ProxyData) -> None:
    """Read a whole line into *data*; fields are parted by one space each, and nothing else is taken (spec 2.1)."""
    words = header[:-2].split(b" ")
    if words[1] == b"UNKNOWN":
        data.family, data.protocol = AF.UNSPEC, PROTO.UNSPEC
        data.rest = header[len(V1_PREFIX) + len(b"UNKNOWN") : -2]
        return
    known = _V1_ADDRESS.get(words[1])
    if known is None:
        data.with_error("PROXYv1 protocol not recognized")
        return
    if len(words) != 6:
        data.with_error("PROXYv1 has not four fields behind its protocol")
        return
    family, kind, form = known
    if not all(form.fullmatch(word) for word in words[2:4]):
        data.with_error("PROXYv1 address malformed")
        return
    try:
        source, destination = (kind(word.decode("ascii")) for word in words[2:4])
    except AddressValueError:
        data.with_error("PROXYv1 address malformed")
        return
    if not all(_PORT.fullmatch(word) and int(word) <= 0xFFFF for word in words[4:]):
        data.with_error("PROXYv1 port malformed")
        return
    data.family, data.protocol = family, PROTO.STREAM
    data.src_addr, data.dst_addr = source, destination
    data.src_port, data.dst_port = int(words[4]), int(words[5])


def _read_v2(header: bytes, data: ProxyData) -> None:
    """Read a header whose extent is known into *data*."""
    data.command = V2_CMD(header[12] & 0xF)
    family, protocol = header[13] >> 4, header[13] & 0xF
    if data.command is V2_CMD.LOCAL:
        data.family = AF(family) if family <= AF.UNIX else AF.UNSPEC
        data.protocol = PROTO(protocol) if protocol <= PROTO.DGRAM else PROTO.UNSPEC
        layout = _layout(data.family << 4 | data.protocol)
        start = V2_FIXED_OCTETS + (layout.size if layout is not None and len(header) >= V2_FIXED_OCTETS + layout.size else 0)
    else:
        data.family, data.protocol = AF(family), PROTO(protocol)
        layout = _layout(header[13])
        start = V2_FIXED_OCTETS + (layout.size if layout is not None else 0)
        if layout is not None:
            _read_addresses(layout.unpack_from(header, V2_FIXED_OCTETS), data)
    data.rest = header[start:]
    if start > V2_FIXED_OCTETS and data.rest:
        data.tlv_start = start
    _judge_tlvs(header, start, data, required=data.command is V2_CMD.PROXY and layout is not None)


def _read_addresses(fields: tuple[Any, ...], data: ProxyData) -> None:
    kind: Any = {AF.INET: IPv4Address, AF.INET6: IPv6Address}.get(data.family or AF.UNSPEC, bytes)
    data.src_addr, data.dst_addr = kind(fields[0]), kind(fields[1])
    if data.family is not AF.UNIX:
        data.src_port, data.dst_port = fields[2:]


def _judge_tlvs(header: bytes, start: int, data: ProxyData, *, required: bool) -> None:
    """Refuse TLVs that do not add up where there can be nothing else (*required*), and a checksum that is wrong (spec 2.2.3)."""
    try:
        found, places = ProxyTLV.parse(data.rest, partial_ok=False)
    except MalformedTLV:
        if required:
            data.with_error("PROXYv2 TLVs malformed")
        return
    if "CRC32C" not in found:
        return
    value = start + places["CRC32C"] + 3
    zeroed = header[:value] + bytes(4) + header[value + 4 :]
    if len(found["CRC32C"]) != 4 or crc32c(zeroed) != int.from_bytes(found["CRC32C"], "big"):
        data.with_error("PROXYv2 checksum wrong")


async def get_proxy(reader_func: AsyncReader) -> ProxyData:
    """Read one header from *reader_func*, and not an octet more; a stream that ends first gives an invalid one."""
    reader = HeaderReader()
    while reader.data is None:
        try:
            reader.feed(await reader_func.readexactly(reader.least))
        except (EOFError, OSError) as error:
            return ProxyData(version=None).with_error(f"PROXY header not received: {type(error).__name__}")
    return reader.data
