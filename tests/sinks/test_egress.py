"""Which addresses a webhook may lead to."""

from __future__ import annotations

import socket
from ipaddress import ip_network

import pytest

from postbus.sinks import Retry, Sent
from postbus.sinks.webhook.egress import Egress, ForbiddenAddressError, names_inside
from tests.sinks.receivers import receiving, status
from tests.sinks.samples import sample
from tests.sinks.test_webhook import posting

NEVER = "link-local, metadata, multicast or reserved"
PRIVATE = "private; set `private: true`, or name its network under `allow`"
ODD = "not global; name its network under `allow`"
FORBIDDEN = Retry("the URL leads to an address that is not allowed")
NO_URL = Retry("the URL is not one that can be connected to")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("8.8.8.8", None, id="global"),
        pytest.param("2606:4700::1111", None, id="global v6"),
        pytest.param("169.254.169.254", NEVER, id="metadata"),
        pytest.param("::ffff:169.254.169.254", NEVER, id="metadata, mapped"),
        pytest.param("::ffff:0:a9fe:a9fe", NEVER, id="metadata, translated"),
        pytest.param("64:ff9b::a9fe:a9fe", NEVER, id="metadata, NAT64"),
        pytest.param("64:ff9b:1::a9fe:a9fe", NEVER, id="metadata, local NAT64"),
        pytest.param("2002:a9fe:a9fe::1", NEVER, id="metadata, 6to4"),
        pytest.param("::a9fe:a9fe", NEVER, id="metadata, compatible"),
        pytest.param("2001:0:a9fe:a9fe::", NEVER, id="Teredo"),
        pytest.param("fe80::1%eth0", NEVER, id="link-local v6"),
        pytest.param("fd00:ec2::254", NEVER, id="metadata on v6"),
        pytest.param("100.100.100.200", NEVER, id="metadata in shared space"),
        pytest.param("168.63.129.16", NEVER, id="metadata in global space"),
        pytest.param("0.0.0.0", NEVER, id="unspecified"),
        pytest.param("::", NEVER, id="unspecified v6"),
        pytest.param("224.0.0.1", NEVER, id="multicast"),
        pytest.param("ff02::1", NEVER, id="multicast v6"),
        pytest.param("255.255.255.255", NEVER, id="broadcast"),
        pytest.param("127.0.0.1", PRIVATE, id="loopback"),
        pytest.param("::1", PRIVATE, id="loopback v6"),
        pytest.param("::ffff:127.0.0.1", PRIVATE, id="loopback, mapped"),
        pytest.param("64:ff9b::7f00:1", PRIVATE, id="loopback, NAT64"),
        pytest.param("2002:7f00:1::", PRIVATE, id="loopback, 6to4"),
        pytest.param("10.1.2.3", PRIVATE, id="ten"),
        pytest.param("172.31.0.1", PRIVATE, id="twelve"),
        pytest.param("192.168.0.1", PRIVATE, id="sixteen"),
        pytest.param("100.64.0.1", PRIVATE, id="carrier-grade NAT"),
        pytest.param("fd12::1", PRIVATE, id="unique local"),
        pytest.param("192.0.2.1", ODD, id="documentation"),
        pytest.param("198.18.0.1", ODD, id="benchmarks"),
        pytest.param("2001:db8::1", ODD, id="documentation v6"),
        pytest.param("64:ff9b::808:808", None, id="global, NAT64"),
    ],
)
def test_addresses_outside(address: str, expected: str | None) -> None:
    """A public URL leads to global addresses only, however they are written."""
    assert Egress().objection(address) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("127.0.0.1", None, id="loopback"),
        pytest.param("10.0.0.1", None, id="private"),
        pytest.param("::ffff:10.0.0.1", None, id="private, mapped"),
        pytest.param("fd12::1", None, id="unique local"),
        pytest.param("169.254.169.254", NEVER, id="metadata"),
        pytest.param("fd00:ec2::254", NEVER, id="metadata among the private"),
        pytest.param("100.100.100.200", NEVER, id="metadata in shared space"),
    ],
)
def test_addresses_inside(address: str, expected: str | None) -> None:
    """``private`` opens what is private, and nothing else."""
    assert Egress(private=True).objection(address) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("10.1.2.3", None, id="named"),
        pytest.param("10.2.0.1", PRIVATE, id="its neighbour"),
        pytest.param("198.18.0.1", None, id="odd, but named"),
        pytest.param("169.254.169.254", NEVER, id="named in vain"),
    ],
)
def test_allowed_networks(address: str, expected: str | None) -> None:
    """``allow`` opens the networks it names; link-local stays shut."""
    allow = tuple(map(ip_network, ("10.1.0.0/16", "198.18.0.0/15", "169.254.0.0/16")))
    assert Egress(allow=allow).objection(address) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("http://events:8080/", True, id="a service"),
        pytest.param("http://events.shop.svc/", True, id="a service's name"),
        pytest.param("http://events.shop.svc.cluster.local./", True, id="with the root's dot"),
        pytest.param("http://localhost:1/", True, id="localhost"),
        pytest.param("http://10.0.0.1/", True, id="a private address"),
        pytest.param("http://[::1]/", True, id="loopback v6"),
        pytest.param("http://[::ffff:10.0.0.1]/", True, id="a private address, mapped"),
        pytest.param("https://hooks.example.org/", False, id="a public name"),
        pytest.param("https://8.8.8.8/", False, id="a public address"),
        pytest.param("http://169.254.169.254/", False, id="metadata"),
        pytest.param("http://2130706433/", False, id="decimal"),
        pytest.param("http://0x7f.1/", False, id="hexadecimal"),
        pytest.param("http://127.1/", False, id="short"),
        pytest.param("https://svc.example.org/", False, id="svc at the front"),
    ],
)
def test_urls_that_name_a_place_inside(url: str, expected: bool) -> None:
    """The operator's own URL says whether private addresses are meant; odd ways to write one say nothing."""
    assert names_inside(url) is expected


def test_a_socket_is_made_or_refused() -> None:
    """The check stands where aiohttp asks for a socket."""
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))
    Egress(private=True).socket(info).close()
    with pytest.raises(ForbiddenAddressError, match="private"):
        Egress().socket(info)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "2130706433", "127.1", "0x7f.1", "0177.0.0.1", "0.0.0.0"],
)
async def test_no_form_of_an_address_slips_through(host: str) -> None:
    """Literal, mapped, decimal, octal and short forms all end in an address, and that is judged: nothing arrives."""
    async with receiving(status(200)) as receiver, posting(f"http://{host}:{receiver.port}/", private=False) as sink:
        outcome = await sink.send(sample())
    assert isinstance(outcome, Retry)
    assert receiver.connections == 0
    assert outcome in (FORBIDDEN, NO_URL)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[::ffff:169.254.169.254]", "0xa9.0xfe.0xa9.0xfe", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]"]
)
async def test_the_metadata_service_is_out_of_reach(host: str) -> None:
    """Even where everything else is allowed."""
    async with posting(f"http://{host}/latest/meta-data/", private=True, allow=["0.0.0.0/0", "::/0"]) as sink:
        assert await sink.send(sample()) == FORBIDDEN


async def test_the_name_stays_on_the_request_when_its_address_was_checked() -> None:
    """A name that leads inside is fine where the URL says so, and is what the Host header says."""
    async with receiving(status(200)) as receiver, posting(receiver.url) as sink:
        assert await sink.send(sample()) == Sent("200")
    assert receiver.requests[0].headers["host"] == f"localhost:{receiver.port}"
