"""Which addresses a webhook may lead to, decided where the socket is made.

A URL comes from the configuration, but the name in it is resolved by somebody else's DNS: it may lead to the cloud's metadata
service, to another service's admin port, to ourselves. A check of the name, or in the resolver, misses literal addresses and names
that answer differently the second time; so each address is judged as the socket for it is made, after everything was resolved.

    never              link-local (the metadata services of the clouds), multicast, unspecified, broadcast, reserved, and the
                       metadata addresses that clouds keep elsewhere
    ``allow``          networks the operator named
    ``private``        loopback, RFC 1918, carrier-grade NAT and unique local addresses, where the operator or the URL says so
    otherwise          global addresses only

An IPv6 address that is only another way to write an IPv4 address (mapped, NAT64, 6to4) is judged as that.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

NEVER: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network" (RFC 1122 s3.2.1.3); Linux connects 0.0.0.0 to itself
        "169.254.0.0/16",  # link-local: metadata of AWS, Azure, GCP, OpenStack
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, with broadcast
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "192.0.0.192/32",  # metadata of Oracle Cloud
        "168.63.129.16/32",  # Azure's wire server
        "::/128",  # unspecified
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, deprecated (RFC 3879)
        "ff00::/8",  # multicast
        "fd00:ec2::254/128",  # metadata of AWS on IPv6
        "fd20:ce::254/128",  # metadata of GCP on IPv6
        "2001::/32",  # Teredo: tunnels to whoever the sender names
    )
)

PRIVATE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    )
)

# Prefix -> where in the 128 bits the IPv4 address stands, counted from the right.
EMBEDDING: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped (RFC 4291 s2.5.5.2)
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated (RFC 2765)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 for local use (RFC 8215), with the usual /96 below it
    (IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
    (IPv6Network("::/96"), 0),  # IPv4-compatible, deprecated (RFC 4291 s2.5.5.1); also ::1 and ::, which are judged before
)

INSIDE_SUFFIXES = (".svc", ".cluster.local", ".internal", ".local", ".localhost")


class ForbiddenAddressError(OSError):
    """A socket to an address that this sink may not connect to was asked for."""

    MARK = "is not allowed for webhooks"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"{address} {self.MARK}: {reason}")


@dataclass(frozen=True, slots=True)
class Egress:
    """The policy of one sink: *private* and *allow* as in ``WebhookSettings``."""

    private: bool = False
    allow: tuple[Network, ...] = ()

    def objection(self, text: str) -> str | None:
        """Return why the address *text* must not be connected to, or ``None`` when it may."""
        address = ip_address(text.partition("%")[0])
        forms = forms_of(address)
        if any(within(form, NEVER) for form in forms):
            return "link-local, metadata, multicast or reserved"
        if any(within(form, self.allow) for form in forms):
            return None
        if any(within(form, PRIVATE) for form in forms):
            return None if self.private else "private; set `private: true`, or name its network under `allow`"
        return None if all(form.is_global for form in forms) else "not global; name its network under `allow`"

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Return a socket for an entry of getaddrinfo (``aiohttp``'s ``socket_factory``).

        Raises:
            ForbiddenAddressError: this address must not be connected to.
        """
        family, kind, protocol, _, place = info
        reason = self.objection(place[0])
        if reason is not None:
            raise ForbiddenAddressError(place[0], reason)
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Return whether *address* is in one of *networks*; one of the other family never is."""
    return any(address in network for network in networks)


def forms_of(address: Address) -> tuple[Address, ...]:
    """Return the IPv4 address inside *address*, if there is one, and *address* itself where it is an address of its own.

    A mapped or translated address is only another way to write the IPv4 address: that alone is judged.
    """
    if isinstance(address, IPv4Address) or address in (IPv6Address("::1"), IPv6Address("::")):
        return (address,)
    for network, shift in EMBEDDING:
        if address in network:
            return (IPv4Address((int(address) >> shift) & 0xFFFFFFFF),)
    return (address,)


def names_inside(url: str) -> bool:
    """Return whether *url* itself names a place inside: then the operator has said that private addresses are meant."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        return any(within(form, PRIVATE) for form in forms_of(ip_address(host)))
    except ValueError:
        # Forms like 2852039166 or 0x7f.1 are addresses to the resolver; here they are names without meaning, and so not inside.
        numeric = host.replace(".", "").replace("x", "").isalnum() and host[:1].isdigit() and host.split(".")[-1][:1].isdigit()
        return not numeric and ("." not in host or host.endswith(INSIDE_SUFFIXES))
