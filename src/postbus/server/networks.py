"""Who is meant by a list of networks: ``peer in Networks(("10.0.0.0/8", "unix"))``.

One idea, one form, wherever a listener trusts or spares some peers: the senders of PROXY headers, XCLIENT, exclusions from limits.
An entry is a network in CIDR form, a single address, or the word ``unix``, which is whoever connects over a Unix socket. No entry
means nobody. IPv4-mapped IPv6 (``::ffff:192.0.2.1``, what a dual-stack socket shows) is IPv4, in entries and in peers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator

UNIX = "unix"
"""The entry that stands for peers on a Unix socket: they have no address."""

_MAPPED = IPv6Network("::ffff:0:0/96")


def network_of(text: str) -> IPv4Network | IPv6Network:
    """Return the network *text* names.

    Raises:
        ValueError: it names none; the text says what would be right.
    """
    address, slash, length = text.partition("/")
    try:
        host = ip_address(address)
        found = ip_network(f"{host}{slash}{length}", strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write one in CIDR form, as in 192.0.2.0/24 or 2001:db8::/32, or {UNIX}") from None
    if found.network_address != host:
        raise ValueError(f"{text!r} has address bits behind its length; write {found}, or {host} for that one address")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return IPv4Network((int(found.network_address) & 0xFFFF_FFFF, found.prefixlen - 96))
    return found


def _checked(text: str) -> str:
    return text if text == UNIX else str(network_of(text))


NETWORK_FORMS = f"networks in CIDR form, single addresses, or `{UNIX}` for whoever connects over a Unix socket"
"""What an entry may be, for descriptions of settings."""

Entries = tuple[Annotated[str, AfterValidator(_checked)], ...]
"""Annotation of a setting that lists networks: checked and in canonical form; make ``Networks`` of it where it is used."""


@dataclass(frozen=True, slots=True)
class Networks:
    """A set of networks, parsed once; ``peer in networks`` takes about two microseconds and asks nobody.

    Attributes:
        entries: as given: networks, addresses, ``unix``.

    Raises:
        ValueError: an entry is none of these.
    """

    entries: tuple[str, ...] = ()
    _unix: bool = field(init=False, repr=False, compare=False)
    _masked: dict[int, tuple[tuple[int, int], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        networks = [network_of(entry) for entry in self.entries if entry != UNIX]
        object.__setattr__(self, "entries", tuple(self.entries))
        object.__setattr__(self, "_unix", UNIX in self.entries)
        object.__setattr__(self, "_masked", {version: _masked_of(networks, version) for version in (4, 6)})

    def __bool__(self) -> bool:
        """Return whether anybody can be in it."""
        return bool(self.entries)

    def __contains__(self, peer: object) -> bool:
        """Return whether *peer* is in one of them.

        Args:
            peer: (host, port, ...) as sockets name it, the text of an address, or the path of a Unix socket (``""``: a nameless one).
                Anything else, a host's name or None, is in no network.
        """
        if not self.entries:
            return False
        host: Any = peer[0] if isinstance(peer, tuple) and peer else peer
        if host is peer and _is_path(host):
            return self._unix
        known = _number_of(host) if isinstance(host, str) else None
        if known is None:
            return False
        version, number = known
        return any(number & mask == first for mask, first in self._masked[version])


def _is_path(name: object) -> bool:
    """Return whether *name* is what a Unix socket's peer is called: nothing, a path, or octets of the abstract namespace."""
    return isinstance(name, bytes) or (isinstance(name, str) and (not name or name[0] in "/\0"))


def _number_of(host: str) -> tuple[int, int] | None:
    """Return (IP version, address as a number) of *host*, or None where it is no address."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return 4, int(address.ipv4_mapped)
    return address.version, int(address)


def _masked_of(networks: Iterable[IPv4Network | IPv6Network], version: int) -> tuple[tuple[int, int], ...]:
    """Return (mask, masked first address) of each network of that *version*."""
    return tuple((int(network.netmask), int(network.network_address)) for network in networks if network.version == version)


@cache
def networks_of(entries: tuple[str, ...]) -> Networks:
    """Return the ``Networks`` of *entries*, the same object each time: for settings, whose tuples are few."""
    return Networks(entries)
