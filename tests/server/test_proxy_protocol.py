"""PROXY headers: what is one, where it ends, what it says, and that nothing else gets through or costs anything."""

from __future__ import annotations

import asyncio
import struct
import time
import tracemalloc
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import aiosmtpd.proxy_protocol as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.server.crc32c import crc32c
from postbus.server.proxy_protocol import (
    AF,
    HEADER_MAX_OCTETS,
    PROTO,
    V2_CMD,
    V2_SIGNATURE,
    HeaderReader,
    MalformedTLV,
    ProxyData,
    ProxySSL,
    ProxyTLV,
    UnknownTypeTLV,
    get_proxy,
)
from tests.fuzz import bounded

LONGEST_V6 = "ffff:" * 7 + "ffff"
TCP4 = struct.pack("!4s4sHH", IPv4Address("192.0.2.1").packed, IPv4Address("198.51.100.2").packed, 40_000, 25)
TCP6 = struct.pack("!16s16sHH", IPv6Address("2001:db8::1").packed, IPv6Address("2001:db8::2").packed, 40_000, 25)


def v2(block: bytes = TCP4, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    """Return a version 2 header."""
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(block) if length is None else length) + block


def tlv(kind: int, value: bytes) -> bytes:
    """Return one TLV."""
    return struct.pack("!BH", kind, len(value)) + value


def summed(header_before: bytes = b"") -> bytes:
    """Return a header over IPv4 with the TLVs *header_before* and its right CRC32C."""
    header = v2(TCP4 + header_before + tlv(3, bytes(4)))
    return header[:-4] + crc32c(header).to_bytes(4, "big")


def read(octets: bytes, *segments: int) -> tuple[ProxyData | None, int]:
    """Return what is read of *octets*, cut at *segments*, and how many of them were taken."""
    reader, taken, start = HeaderReader(), 0, 0
    for end in (*segments, len(octets)):
        taken += reader.feed(octets[start:end])
        start = end
    return reader.data, taken


GOOD = [
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\n", ("192.0.2.1", 40_000), id="v1 IPv4"),
    pytest.param(b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 25\r\n", ("2001:db8::1", 40_000), id="v1 IPv6"),
    pytest.param(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n", ("192.0.2.1", 0), id="v1 a mapped address, ports at their ends"),
    pytest.param(f"PROXY TCP6 {LONGEST_V6} {LONGEST_V6} 65535 65535\r\n".encode(), (LONGEST_V6, 65_535), id="v1 the longest there is"),
    pytest.param(b"PROXY UNKNOWN\r\n", None, id="v1 unknown"),
    pytest.param(f"PROXY UNKNOWN {LONGEST_V6} {LONGEST_V6} 65535 65535\r\n".encode(), None, id="v1 unknown, 107 octets"),
    pytest.param(v2(), ("192.0.2.1", 40_000), id="v2 IPv4"),
    pytest.param(v2(TCP6, family=0x21), ("2001:db8::1", 40_000), id="v2 IPv6"),
    pytest.param(v2(family=0x12), None, id="v2 UDP is not how mail comes"),
    pytest.param(v2(b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"), family=0x31), None, id="v2 Unix"),
    pytest.param(v2(b"", family=0), None, id="v2 unspecified"),
    pytest.param(v2(b"any thing", family=0x01), None, id="v2 unspecified family, with octets that mean nothing"),
    pytest.param(v2(b"", command=0x20, family=0), None, id="v2 local"),
    pytest.param(v2(TCP4, command=0x20), None, id="v2 local with an address, which is not taken"),
    pytest.param(v2(b"\0\0", command=0x20), None, id="v2 local with a block that is no address"),
    pytest.param(v2(b"\0\0", command=0x20, family=0xFF), None, id="v2 local of no family"),
    pytest.param(v2(TCP4 + tlv(0xEA, b"\1vpce-1")), ("192.0.2.1", 40_000), id="v2 with a TLV"),
    pytest.param(summed(tlv(4, b"padding")), ("192.0.2.1", 40_000), id="v2 with a checksum"),
    pytest.param(v2(TCP4 + tlv(4, bytes(HEADER_MAX_OCTETS - 16 - 12 - 3))), ("192.0.2.1", 40_000), id="v2 as long as is taken"),
]

BAD = [
    pytest.param(b"EHLO client.example\r\n", "signature", id="SMTP"),
    pytest.param(b"\x16\x03\x01\x02\x00", "signature", id="TLS"),
    pytest.param(b"proxy TCP4 192.0.2.1 198.51.100.2 40000 25\r\n", "signature", id="v1 in lower case"),
    pytest.param(b"PROXYTCP4 192.0.2.1 198.51.100.2 40000 25\r\n", "signature", id="v1 without its space"),
    pytest.param(b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "too long", id="v1 of 108 octets"),
    pytest.param(b"PROXY UNKNOWN " + b"x" * 200, "too long", id="v1 without CRLF"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\n", "LF alone", id="v1 LF"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\r\n", "CR alone", id="v1 CR"),
    pytest.param(b"PROXY TCP4 2001:db8::1 2001:db8::2 40000 25\r\n", "address", id="v1 TCP4 with IPv6"),
    pytest.param(b"PROXY TCP6 192.0.2.1 198.51.100.2 40000 25\r\n", "address", id="v1 TCP6 with IPv4"),
    pytest.param(b"PROXY TCP4 192.0.2.01 198.51.100.2 40000 25\r\n", "address", id="v1 address with a leading zero"),
    pytest.param(b"PROXY TCP4 192.0.2.256 198.51.100.2 40000 25\r\n", "address", id="v1 octet 256"),
    pytest.param(b"PROXY TCP6 fe80::1%1 2001:db8::2 40000 25\r\n", "address", id="v1 a zone"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n", "port", id="v1 port 65536"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 040000 25\r\n", "port", id="v1 port with a leading zero"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 25\r\n", "port", id="v1 negative port"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 25\r\n", "port", id="v1 port with a sign"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2  40000 25\r\n", "fields", id="v1 doubled space"),
    pytest.param(b"PROXY  TCP4 192.0.2.1 198.51.100.2 40000 25\r\n", "protocol", id="v1 doubled space before the protocol"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25 \r\n", "fields", id="v1 space behind"),
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 40000\r\n", "fields", id="v1 a port short"),
    pytest.param(b"PROXY TCP4\t192.0.2.1 198.51.100.2 40000 25\r\n", "protocol", id="v1 tab"),
    pytest.param(b"PROXY UDP4 192.0.2.1 198.51.100.2 40000 25\r\n", "protocol", id="v1 UDP"),
    pytest.param(b"PROXY \r\n", "protocol", id="v1 empty"),
    pytest.param(V2_SIGNATURE[:-1] + b"\r" + v2()[12:], "signature", id="v2 signature"),
    pytest.param(v2(command=0x11), "version", id="v2 version 1"),
    pytest.param(v2(command=0x31), "version", id="v2 version 3"),
    pytest.param(v2(command=0x22), "command", id="v2 command 2"),
    pytest.param(v2(family=0x41), "family", id="v2 family 4"),
    pytest.param(v2(family=0x13), "protocol", id="v2 protocol 3"),
    pytest.param(v2(TCP4[:-1]), "truncated", id="v2 IPv4 an octet short"),
    pytest.param(v2(TCP4, family=0x21), "truncated", id="v2 IPv6 with an address of IPv4"),
    pytest.param(v2(bytes(215), family=0x31), "truncated", id="v2 Unix an octet short"),
    pytest.param(v2(b"", length=HEADER_MAX_OCTETS - 15), "too long", id="v2 over the cap"),
    pytest.param(v2(b"", length=65_535), "too long", id="v2 of 64 KiB"),
    pytest.param(v2(TCP4 + b"\x04\x00"), "TLVs", id="v2 half a TLV"),
    pytest.param(v2(TCP4 + b"\x04\x00\x05ab"), "TLVs", id="v2 a TLV longer than the header"),
    pytest.param(v2(TCP4 + tlv(0x20, b"\1\0")), "TLVs", id="v2 SSL too short"),
    pytest.param(v2(TCP4 + tlv(0x20, b"\1\0\0\0\0" + tlv(0x20, b"\1\0\0\0\0"))), "TLVs", id="v2 SSL in SSL"),
    pytest.param(v2(TCP4 + tlv(3, b"\0\0\0\1")), "checksum", id="v2 a wrong checksum"),
    pytest.param(v2(TCP4 + tlv(3, b"\0\0\0")), "checksum", id="v2 a checksum of three octets"),
    pytest.param(summed(tlv(3, bytes(4))), "TLVs", id="v2 two checksums"),
    pytest.param(v2(tlv(3, b"\0\0\0\1"), command=0x20, family=0), "checksum", id="v2 local with a wrong checksum"),
]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_a_header_is_read_to_its_end_and_no_further(header: bytes, client: tuple[str, int] | None) -> None:
    """Whole, with the client's first octets behind it, and split everywhere."""
    for tail in (b"", b"EHLO client.example\r\n", header):
        data, taken = read(header + tail)
        assert data is not None
        assert data.error == ""
        assert data
        assert (len(header), client, header) == (taken, data.client, bytes(data.whole_raw))
        for at in range(1, min(len(header + tail), 600)):
            assert read(header + tail, at) == (data, taken)
    assert read(header, *range(1, len(header))) == read(header)


@pytest.mark.parametrize(("octets", "error"), BAD)
def test_what_is_no_header_is_told_at_its_first_fault(octets: bytes, error: str) -> None:
    """The same whole, split everywhere and octet by octet; it gives no client."""
    data, taken = read(octets)
    assert data is not None
    assert error in data.error
    assert not data
    assert data.client is None
    assert octets[:taken] == data.whole_raw
    for at in range(1, min(len(octets), 300)):
        assert read(octets, at) == (data, taken)
    assert read(octets, *range(1, len(octets))) == (data, taken)


@pytest.mark.parametrize("header", [row.values[0] for row in GOOD], ids=[row.id for row in GOOD])
def test_an_unfinished_header_is_waited_for(header: bytes) -> None:
    """However much of it is there; and never more is asked for than it has."""
    for end in range(len(header) if len(header) < 300 else 0):
        reader = HeaderReader()
        assert end == reader.feed(header[:end])
        assert reader.data is None
        assert 0 < reader.least <= len(header) - end


def test_tlvs_have_names_and_types() -> None:
    """What is registered is typed, what is not is kept."""
    ssl = (
        b"\x07\0\0\0\0"
        + tlv(0x21, b"TLSv1.3")
        + tlv(0x22, "Jürgen".encode())
        + tlv(0x23, b"AES")
        + tlv(0x24, b"SHA256")
        + tlv(0x25, b"RSA2048")
    )
    block = tlv(1, b"smtp") + tlv(2, b"mx.example") + tlv(5, b"\x01\x02") + tlv(0x20, ssl) + tlv(0x30, b"blue") + tlv(0xEA, b"\x01vpce")
    data, _ = read(summed(block))
    assert data
    tlvs = data.tlv
    assert tlvs is not None
    assert (b"smtp", "mx.example", b"\x01\x02", "blue") == (tlvs.alpn, tlvs.authority, tlvs.unique_id, tlvs.netns)
    assert ProxySSL(7, True, "TLSv1.3", "Jürgen", "AES", "SHA256", "RSA2048") == tlvs.ssl
    assert isinstance(tlvs.crc32c, int)
    assert (b"\x01vpce", b"mx.example", None) == (tlvs["xEA"], tlvs.AUTHORITY, tlvs.NOTHING)
    assert data.tlv_start == 28
    assert data.whole_raw[28 + tlvs.tlv_loc["SSL_CN"]] == 0x22
    assert data.tlv is tlvs


def test_tlvs_not_said_are_none() -> None:
    """Also where SSL was said without a certificate."""
    tlvs = ProxyTLV.from_raw(tlv(0x20, b"\x01\0\0\0\1"))
    assert tlvs is not None
    assert ProxySSL(1, False) == tlvs.ssl
    assert (None, None, None, None, None) == (tlvs.alpn, tlvs.authority, tlvs.crc32c, tlvs.unique_id, tlvs.netns)
    assert ProxyTLV.from_raw(b"") is None
    empty = ProxyTLV.from_raw(tlv(4, b""))
    assert empty is not None
    assert empty.ssl is None


def test_tlvs_as_aiosmtpd_has_them() -> None:
    """Its helpers: partial results, strictness, numbers by name, comparisons."""
    broken = tlv(1, b"smtp") + b"\x02\x00"
    assert ProxyTLV.parse(broken) == ({"ALPN": b"smtp"}, {"ALPN": 0})
    with pytest.raises(MalformedTLV):
        ProxyTLV.parse(broken, partial_ok=False)
    with pytest.raises(UnknownTypeTLV):
        ProxyTLV.from_raw(tlv(0xEA, b""), strict=True)
    assert (0x03, None) == (ProxyTLV.name_to_num("CRC32C"), ProxyTLV.name_to_num("nothing"))
    tlvs = ProxyTLV.from_raw(tlv(1, b"smtp"))
    assert tlvs is not None
    data, _ = read(v2(TCP4 + tlv(1, b"smtp")))
    assert data is not None
    for record, right, wrong in ((tlvs, {"ALPN": b"smtp"}, {"ALPN": b"x"}), (data, {"version": 2, "family": AF.INET}, {"version": 1})):
        assert record.same_attribs(**right)
        assert not record.same_attribs(**wrong)
        assert not record.same_attribs(nothing=1)
        with pytest.raises(ValueError, match="mismatch"):
            record.same_attribs(_raises=True, **wrong)
        with pytest.raises(KeyError, match="notfound"):
            record.same_attribs(_raises=True, nothing=1)
    assert ProxyData(version=None).with_error("why").error == "why"
    unspecified, _ = read(v2(b"\x01\x00", family=0))
    assert unspecified
    assert unspecified.tlv is None  # they do not add up, and need not


def attributes(data: Any) -> dict[str, Any]:
    """Return what both libraries say of a header."""
    names = ("version", "command", "family", "protocol", "src_addr", "dst_addr", "src_port", "dst_port", "tlv_start", "error", "valid")
    return {name: getattr(data, name) for name in names} | {"rest": bytes(data.rest), "raw": bytes(data.whole_raw), "tlv": data.tlv}


V4, V6, PORT = st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 65_535)
TLVS = st.lists(st.builds(tlv, st.sampled_from([1, 2, 4, 5, 0x30, 0xE0, 0xEA, 0xF1]), st.binary(max_size=40)), max_size=5).map(b"".join)
HEADERS = st.one_of(
    st.builds("PROXY TCP4 {} {} {} {}\r\n".format, V4, V4, PORT, PORT).map(str.encode),
    st.builds("PROXY TCP6 {} {} {} {}\r\n".format, V6, V6, PORT, PORT).map(str.encode),
    st.just(b"PROXY UNKNOWN\r\n"),
    st.builds(lambda a, b, p, q, more: v2(a.packed + b.packed + struct.pack("!HH", p, q) + more), V4, V4, PORT, PORT, TLVS),
    st.builds(lambda a, b, p, q, more: v2(a.packed + b.packed + struct.pack("!HH", p, q) + more, family=0x21), V6, V6, PORT, PORT, TLVS),
    st.builds(lambda a, more: v2(a + more, family=0x31), st.binary(min_size=216, max_size=216), TLVS),
    st.builds(lambda more, command: v2(more, command=command, family=0), TLVS, st.sampled_from([0x20, 0x21])),
    TLVS.map(summed),
)


@given(HEADERS)
def test_valid_headers_mean_what_aiosmtpd_reads_in_them(header: bytes) -> None:
    """Every attribute, whichever of the two reads."""

    async def both() -> tuple[Any, ProxyData, bytes]:
        readers = [asyncio.StreamReader(), asyncio.StreamReader()]
        for reader in readers:
            reader.feed_data(header + b"EHLO")
            reader.feed_eof()
        return await oracle.get_proxy(readers[0]), await get_proxy(readers[1]), await readers[1].read()

    theirs, ours, rest = asyncio.run(both())
    assert attributes(theirs) == attributes(ours)
    assert rest == b"EHLO"


@pytest.mark.parametrize("octets", [b"", b"PROX", b"PROXY TCP4 192.0.2.1", v2()[:20]], ids=["nothing", "prefix", "v1", "v2"])
async def test_a_stream_that_ends_gives_no_header(octets: bytes) -> None:
    """As aiosmtpd has it: an invalid one, and no exception."""
    reader = asyncio.StreamReader()
    reader.feed_data(octets)
    reader.feed_eof()
    data = await get_proxy(reader)
    assert not data
    assert "not received" in data.error


ANYTHING = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=120).map(b"PROXY ".__add__),
    st.binary(max_size=300).map(V2_SIGNATURE.__add__),
    st.binary(max_size=300).map((V2_SIGNATURE + b"\x21\x11").__add__),
    st.builds(lambda block, more: v2(block)[:-1] + more, st.binary(max_size=80), st.binary(max_size=40)),
    st.builds(lambda header, at, octet: header[:at] + bytes([octet]) + header[at + 1 :], HEADERS, st.integers(0, 80), st.integers(0, 255)),
)


@bounded(600)
@given(ANYTHING, st.lists(st.integers(0, 400), max_size=6))
def test_any_octets_at_any_split_never_raise_and_mean_the_same(octets: bytes, cuts: list[int]) -> None:
    """The fuzz target: no exception, one result, nothing kept beyond the header."""
    segments = sorted(min(cut, len(octets)) for cut in cuts)
    data, taken = read(octets)
    assert read(octets, *segments) == (data, taken)
    assert taken <= len(octets)
    if data is not None:
        assert octets[:taken] == data.whole_raw
        assert bool(data) is not bool(data.error)
        assert data.tlv is None or isinstance(data.tlv, ProxyTLV)


def test_memory_and_time_are_bounded() -> None:
    """A peer that dribbles, one that floods, and one that promises a long header: each costs little, and soon is over."""
    longest = v2(b"\x04" * (HEADER_MAX_OCTETS - 16))
    tracemalloc.start()
    try:
        began_s = time.process_time()
        for octets in (b"PROXY " + b"x" * 200_000, longest, b"\r" * 200_000, V2_SIGNATURE + b"\x21\x11\xff\xff" + bytes(200_000)):
            reader = HeaderReader()
            for at in range(0, len(octets), 1 if len(octets) < 10_000 else 50_000):
                reader.feed(octets[at : at + (1 if len(octets) < 10_000 else 50_000)])
            assert reader.data is not None
            assert len(reader.data.whole_raw) <= HEADER_MAX_OCTETS
        took_s = time.process_time() - began_s
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took_s < 2
    assert peak < 1_000_000


def test_a_reader_that_is_done_takes_nothing() -> None:
    """What follows is not its business."""
    reader = HeaderReader()
    assert reader.feed(v2() + b"EHLO") == len(v2())
    assert (0, 0) == (reader.feed(b"EHLO"), reader.least)


def test_the_checksum_is_castagnoli() -> None:
    """The check value of RFC 3720 and every catalogue of checksums."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_enums_have_the_numbers_of_the_wire() -> None:
    """They are compared with numbers by handlers."""
    assert [(0, 1), (0, 1, 2, 3), (0, 1, 2)] == [tuple(enum) for enum in (V2_CMD, AF, PROTO)]
