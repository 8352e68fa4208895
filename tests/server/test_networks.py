"""Who is in a network, and what names one."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from postbus.server.networks import Entries, Networks, network_of, networks_of


class Listed(BaseModel):
    """A setting that lists networks."""

    networks: Entries = ()


@pytest.mark.parametrize(
    ("entries", "peer", "expected"),
    [
        pytest.param(("10.0.0.0/8",), ("10.1.2.3", 4711), True, id="IPv4 inside"),
        pytest.param(("10.0.0.0/8",), ("11.1.2.3", 4711), False, id="IPv4 outside"),
        pytest.param(("10.0.0.0/8",), ("::ffff:10.1.2.3", 4711, 0, 0), True, id="IPv4 as a dual-stack socket shows it"),
        pytest.param(("::ffff:10.0.0.0/104",), ("10.1.2.3", 4711), True, id="an entry mapped into IPv6"),
        pytest.param(("::/0",), ("10.1.2.3", 4711), False, id="all of IPv6 has no IPv4"),
        pytest.param(("0.0.0.0/0",), ("2001:db8::1", 4711, 0, 0), False, id="all of IPv4 has no IPv6"),
        pytest.param(("2001:db8::/32",), ("2001:db8::1", 4711, 0, 0), True, id="IPv6 inside"),
        pytest.param(("fe80::/10",), ("fe80::1%eth0", 4711, 0, 2), True, id="IPv6 with a zone"),
        pytest.param(("192.0.2.1",), ("192.0.2.1", 1), True, id="one address"),
        pytest.param(("192.0.2.1",), ("192.0.2.2", 1), False, id="its neighbour"),
        pytest.param(("192.0.2.0/24", "unix"), ("192.0.2.9", 1), True, id="one of several"),
        pytest.param(("192.0.2.0/24",), "192.0.2.9", True, id="the text of an address"),
        pytest.param(("unix",), "", True, id="a nameless Unix socket"),
        pytest.param(("unix",), "/run/peer.sock", True, id="a Unix socket with a path"),
        pytest.param(("unix",), b"\0abstract", True, id="a Unix socket of the abstract namespace"),
        pytest.param(("unix",), "192.0.2.9", False, id="an address is no path"),
        pytest.param(("unix",), ("", 0), False, id="no host is no path"),
        pytest.param(("0.0.0.0/0", "::/0"), "", False, id="all addresses, but no Unix socket"),
        pytest.param(("0.0.0.0/0", "::/0", "unix"), ("mx.example", 25), False, id="a name is nobody"),
        pytest.param(("0.0.0.0/0", "::/0", "unix"), None, False, id="unknown is nobody"),
        pytest.param(("0.0.0.0/0", "::/0", "unix"), (), False, id="an empty name is nobody"),
        pytest.param((), ("127.0.0.1", 1), False, id="nobody is trusted by default"),
        pytest.param((), "", False, id="nor on a Unix socket"),
    ],
)
def test_peers(entries: tuple[str, ...], peer: Any, expected: bool) -> None:
    """Each form a peer's name has."""
    assert expected is (peer in Networks(entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("10.0.0.0/33", "no network; write one in CIDR form", id="length"),
        pytest.param("10.0.0/8", "no network; write one in CIDR form", id="three octets"),
        pytest.param("lb.example", "no network; write one in CIDR form", id="a name"),
        pytest.param("", "no network; write one in CIDR form", id="nothing"),
        pytest.param("10.0.0.1/8", r"behind its length; write 10\.0\.0\.0/8, or 10\.0\.0\.1 for that one address", id="host bits"),
    ],
)
def test_what_is_no_network(text: str, message: str) -> None:
    """It is refused with what would be right, in a setting and in code."""
    with pytest.raises(ValidationError, match=message):
        Listed(networks=(text,))
    with pytest.raises(ValueError, match=message):
        Networks((text,))


def test_settings_have_one_form() -> None:
    """Entries are kept as text in canonical form, so that they can be shown and compared."""
    assert Listed(networks=("192.0.2.1", "2001:DB8::/32", "::ffff:10.0.0.0/104", "unix")).networks == (
        "192.0.2.1/32", "2001:db8::/32", "10.0.0.0/8", "unix",
    )  # fmt: skip


def test_empty_is_false_and_equal_entries_are_equal() -> None:
    """So that `if networks:` says whether anybody can be meant."""
    assert not Networks()
    assert Networks(("unix",))
    assert Networks(("unix",)) == Networks(("unix",)) != Networks()
    assert networks_of(("10.0.0.0/8",)) is networks_of(("10.0.0.0/8",))
    assert network_of("::ffff:192.0.2.1") == IPv4Network("192.0.2.1/32")


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128))
def test_agrees_with_ipaddress(address: Any, other: Any, length: int) -> None:
    """Networks of any size say what the standard library says."""
    network = ip_network(f"{other}/{min(length, other.max_prefixlen)}", strict=False)
    mapped = getattr(address, "ipv4_mapped", None)
    within = getattr(network, "version", 4) == 6 and network.network_address in ip_network("::ffff:0:0/96") and network.prefixlen >= 96
    if not within:
        assert (ip_address(str(mapped or address)) in network) is ((str(address), 1) in Networks((str(network),)))
