"""Client networks: how many connections each has open, how fast it comes, mails, names recipients, fails AUTH. Pure; time is an argument.

An IPv4 address is a client of its own, an IPv6 one stands for its /64 (both by settings): whoever has one address there has them all.

Rates are leaky buckets, each kept as one number: the time at which it will have run empty (the generic cell rate algorithm, ITU-T
I.371). A client may take a whole interval's worth at once; what it took comes back evenly. Whoever is refused loses nothing by asking.

Every step is O(1) and no timer runs. A client is an object in ``_open`` while it has connections, so these are as bounded as
connections are; then, while a bucket of it is not empty, in ``_gone``, which forgets those gone longest when it is full.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Any, NamedTuple

from postbus.server.client_settings import ClientSettings
from postbus.server.networks import networks_of
from postbus.smtp.replies import Reply

Key = tuple[int, int]
"""Octets of the address family's addresses, and the network's bits as a number."""

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, how a dual-stack socket shows IPv4
HOSTS_KNOWN = 1024  # of so many the network is kept
_ROUNDING = 1.000001  # sums of floats may come out a little above their interval


class Refusal(NamedTuple):
    """Why a connection is turned away: the reply its peer gets, and a word for logs and metrics, one of a few."""

    reply: Reply
    reason: str


TOO_MANY = Refusal(Reply(421, "Too many connections from your network, try again later", "4.7.0"), "client_connections")
TOO_OFTEN = Refusal(Reply(421, "Too many connections in a short time, try again later", "4.7.1"), "client_rate")
TOO_MUCH_MAIL = Reply(450, "Too many messages in a short time, try again later", "4.7.1")
TOO_MANY_GUESSES = Reply(454, "Too many failed authentications from your network, try again later", "4.7.0")
"""454 is temporary (RFC 4954 s6): a mail program tries again and does not ask its user for another password. It comes before anybody has
looked at what was given, so it does not tell whether that is right."""
TOO_MANY_NAMES = Reply(450, "Too many recipients in a short time, try again later", "4.7.1")


class Client:
    """One client network.

    Attributes:
        key: its place in the table.
        open: its connections.
        connections_until, failures_until, messages_until, recipients_until: when each bucket will have run empty.
    """

    __slots__ = ("connections_until", "failures_until", "key", "messages_until", "open", "recipients_until")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.open = 0
        self.connections_until = self.failures_until = self.messages_until = self.recipients_until = 0.0

    def forgettable(self, now: float) -> bool:
        """Return whether nothing is lost by forgetting it."""
        return max(self.connections_until, self.failures_until, self.messages_until, self.recipients_until) <= now


class Rate:
    """How fast buckets of one kind run empty: *events_max* fit in, and run out within *interval_s* seconds. 0: as many as you like."""

    __slots__ = ("_room_s", "_step_s")

    def __init__(self, events_max: int, interval_s: float) -> None:
        self._step_s = interval_s / events_max if events_max else 0.0
        self._room_s = interval_s * _ROUNDING

    def spend(self, until: float, now: float) -> float | None:
        """Return when a bucket will have run empty with one more event in it, or None: it does not fit.

        Args:
            until: when it will have without.
            now: on the same clock.
        """
        later = max(now, until) + self._step_s
        return None if later - now > self._room_s else later

    def owe(self, until: float, now: float) -> float:
        """Return as ``spend``, for an event that has happened: where it does not fit, it is waited for all the longer."""
        return max(now, until) + self._step_s


def key_of(host: str, ipv4_prefix_bits: int, ipv6_prefix_bits: int) -> Key | None:
    """Return the client network of *host*, the text of an address; None if it is none. A scope (``%eth0``) does not count."""
    try:
        if ":" not in host:
            octets, bits = socket.inet_pton(socket.AF_INET, host), ipv4_prefix_bits
        else:
            octets, bits = socket.inet_pton(socket.AF_INET6, host.partition("%")[0]), ipv6_prefix_bits
            if octets.startswith(_MAPPED):
                octets, bits = octets[12:], ipv4_prefix_bits
    except (OSError, ValueError):  # ValueError: a NUL in it
        return None
    return len(octets), int.from_bytes(octets) >> (8 * len(octets) - bits)


class Clients:
    """The clients of one listener.

    Attributes:
        settings: see ``follow``.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._keys: dict[str, Key | None] = {}
        self.follow(settings)
        self._open: dict[Key, Client] = {}
        self._gone: OrderedDict[Key, Client] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._open) + len(self._gone)

    @property
    def connections(self) -> int:
        """How many connections are counted."""
        return sum(client.open for client in self._open.values())

    def follow(self, settings: ClientSettings) -> None:
        """Go by other *settings* from now on; who is connected stays counted as it was."""
        self.settings = settings
        self._connections = Rate(settings.connection_rate_max, settings.rate_interval_s)
        self._messages = Rate(settings.message_rate_max, settings.rate_interval_s)
        self._failures = Rate(settings.auth_failure_rate_max, settings.rate_interval_s)
        self._recipients = Rate(settings.recipient_rate_max, settings.rate_interval_s)
        self._keys.clear()

    def enter(self, peer: Any, now: float) -> Client | Refusal | None:
        """Count a new connection of *peer*: return its client, for ``leave``; or why it is refused; None: it is spared.

        Args:
            peer: (host, port, ...) as sockets name it, or what a Unix socket's peer is called, which is no network's.
            now: seconds, on the clock of every call.
        """
        if type(peer) is not tuple or not peer:
            return None
        host = peer[0]
        try:
            key = self._keys[host]
        except KeyError:
            key = self._learn(host)
        if key is None:
            return None
        client = self._open.get(key)
        if client is None:
            client = self._gone.pop(key, None) or Client(key)
        elif 0 < self.settings.connections_max <= client.open:
            return TOO_MANY
        until = self._connections.spend(client.connections_until, now)
        if until is None:
            if not client.open:
                self._remember(client, now)
            return TOO_OFTEN
        client.connections_until = until
        client.open += 1
        self._open[key] = client
        return client

    def leave(self, client: Client, now: float) -> None:
        """One connection of *client* has ended; called once for each that ``enter`` counted."""
        client.open -= 1
        if not client.open:
            del self._open[client.key]
            self._remember(client, now)

    def take_message(self, client: Client, now: float) -> Reply | None:
        """Count a message of *client*, or return the reply that refuses it."""
        until = self._messages.spend(client.messages_until, now)
        if until is None:
            return TOO_MUCH_MAIL
        client.messages_until = until
        return None

    def take_recipient(self, client: Client, now: float) -> Reply | None:
        """Count a recipient of a message of *client*, or return the reply that refuses it."""
        until = self._recipients.spend(client.recipients_until, now)
        if until is None:
            return TOO_MANY_NAMES
        client.recipients_until = until
        return None

    def may_guess(self, client: Client, now: float) -> Reply | None:
        """Return None if *client* may try to authenticate, or the reply that refuses it."""
        return TOO_MANY_GUESSES if self._failures.spend(client.failures_until, now) is None else None

    def failed(self, client: Client, now: float) -> None:
        """Count a failure of *client* to authenticate: one of those under way when there was no more room counts too."""
        client.failures_until = self._failures.owe(client.failures_until, now)

    def _learn(self, host: Any) -> Key | None:
        """Return the network of *host*; None: it is spared, or no address but a name that PROXY or XCLIENT brought.

        Kept for the next time, since this takes longer than all the rest.
        """
        settings = self.settings
        key = None if host in networks_of(settings.exempt) else key_of(str(host), settings.ipv4_prefix_bits, settings.ipv6_prefix_bits)
        if len(self._keys) >= HOSTS_KNOWN:
            self._keys.clear()
        self._keys[host] = key
        return key

    def _remember(self, client: Client, now: float) -> None:
        """Keep *client* in mind while its rates say something, and forget up to two that are of no more use."""
        gone = self._gone
        if not client.forgettable(now):
            gone[client.key] = client
        for _ in range(2):
            oldest = next(iter(gone.values()), client)
            if oldest is client or (len(gone) <= self.settings.remembered_max and not oldest.forgettable(now)):
                return
            del gone[oldest.key]
