"""Client networks: who is one, how much each may ask for, what is forgotten when. Time is a number."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.server.client_settings import ClientSettings
from postbus.server.clients import (
    TOO_MANY,
    TOO_MANY_GUESSES,
    TOO_MANY_NAMES,
    TOO_MUCH_MAIL,
    TOO_OFTEN,
    Client,
    Clients,
    Rate,
    Refusal,
    key_of,
)

PUBLIC = ("192.0.2.1", 4711)


def clients(**settings: Any) -> Clients:
    """Return a table under *settings*."""
    return Clients(ClientSettings(**settings))


def enter(table: Clients, peer: Any, now: float) -> Client:
    """Enter *peer*, who is limited and admitted."""
    found = table.enter(peer, now)
    assert isinstance(found, Client)
    return found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", True, id="one address"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="its neighbour"),
        pytest.param("2001:db8::1", "2001:db8::ffff:1", True, id="one /64"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="the next /64"),
        pytest.param("::ffff:192.0.2.1", "192.0.2.1", True, id="mapped IPv4"),
        pytest.param("fe80::1%eth0", "fe80::2%eth1", True, id="a scope does not count"),
    ],
)
def test_which_addresses_are_one_client(one: str, other: str, same: bool) -> None:
    """An IPv4 address, an IPv6 /64."""
    assert same == (key_of(one, 32, 64) == key_of(other, 32, 64))


def test_networks_as_wide_as_said() -> None:
    """Prefixes need not end at an octet."""
    assert key_of("10.1.2.3", 20, 64) == key_of("10.1.15.9", 20, 64) != key_of("10.1.16.1", 20, 64)
    assert key_of("2001:db8:ff::", 32, 41) == key_of("2001:db8:80::", 32, 41) != key_of("2001:db8:7f::", 32, 41)


@pytest.mark.parametrize("host", ["", "mx.example", "[UNAVAILABLE]", "1.2.3", "1.2.3.4\0", "::g", "1.2.3.4:25"])
def test_what_is_no_address_is_no_client(host: str) -> None:
    """Nobody is limited for what cannot be read; whoever may send such a name is trusted."""
    assert key_of(host, 32, 64) is None
    assert clients(exempt=()).enter((host, 1), 0) is None


@pytest.mark.parametrize(
    "peer", ["", "/run/mx.sock", None, (), ("127.0.0.1", 1), ("10.0.0.1", 1), ("::1", 1, 0, 0), ("::ffff:10.0.0.1", 1)]
)
def test_who_is_spared_by_default(peer: Any) -> None:
    """Unix sockets, this machine, and networks that nobody on the internet comes from."""
    table = clients(connections_max=1, connection_rate_max=1)
    assert [table.enter(peer, 0) for _ in range(3)] == [None] * 3
    assert len(table) == 0


def test_other_settings_spare_others() -> None:
    """A reload is heeded at once; who is connected stays counted."""
    table = clients(connections_max=1)
    client = enter(table, PUBLIC, 0)
    assert table.enter(PUBLIC, 0) is TOO_MANY
    table.follow(ClientSettings(exempt=("192.0.2.0/24",)))
    assert table.enter(PUBLIC, 0) is None
    table.follow(ClientSettings(exempt=(), ipv4_prefix_bits=24))
    table.leave(client, 0)
    assert table.connections == 0


def test_connections_are_counted_for_each_network() -> None:
    """One too many is refused; a place comes back when somebody leaves."""
    table = clients(connections_max=2, connection_rate_max=0)
    here = [enter(table, PUBLIC, 0), enter(table, PUBLIC, 0)]
    assert here[0] is here[1]
    assert table.enter(PUBLIC, 0) is TOO_MANY
    enter(table, ("192.0.2.2", 1), 0)
    table.leave(here.pop(), 0)
    enter(table, PUBLIC, 0)
    assert table.connections == 3


@pytest.mark.parametrize(
    ("at", "admitted"),
    [
        pytest.param([0, 0, 0, 0], [1, 1, 1, 0], id="a whole interval's worth at once"),
        pytest.param([0, 0, 0, 19, 20, 20], [1, 1, 1, 0, 1, 0], id="it comes back evenly"),
        pytest.param([0, 0, 0, 1, 2, 3, 20], [1, 1, 1, 0, 0, 0, 1], id="asking in vain costs nothing"),
        pytest.param([0, 1000, 1000, 1000, 1000], [1, 1, 1, 1, 0], id="what was not used is not saved up"),
        pytest.param([0, 20, 40, 60, 80, 100, 120], [1] * 7, id="for ever at the rate itself"),
    ],
)
def test_rates(at: list[float], admitted: list[int]) -> None:
    """Three a minute, for connections, messages and recipients alike."""
    table = clients(connection_rate_max=3, message_rate_max=3, recipient_rate_max=3)
    found = []
    for now in at:
        met = table.enter(PUBLIC, now)
        found.append(int(isinstance(met, Client)))
        if isinstance(met, Client):
            table.leave(met, now)
        else:
            assert met is TOO_OFTEN
    assert admitted == found
    client = Client((4, 1))
    assert [None if one else TOO_MUCH_MAIL for one in admitted] == [table.take_message(client, now) for now in at]
    assert [None if one else TOO_MANY_NAMES for one in admitted] == [table.take_recipient(client, now) for now in at]


def test_failures_beyond_the_budget_are_owed() -> None:
    """Attempts that were under way when it ran out count too, so the mean is never above the rate; asking in vain costs nothing."""
    table, client = clients(auth_failure_rate_max=3), Client((4, 1))
    assert table.may_guess(client, 0) is None
    for _ in range(5):
        table.failed(client, 0)
    assert [table.may_guess(client, now) for now in (0, 20, 40, 59)] == [TOO_MANY_GUESSES] * 4
    assert table.may_guess(client, 60) is None
    assert not client.forgettable(99)
    assert client.forgettable(100)


def test_no_limit_where_none_is_set() -> None:
    """0 everywhere."""
    table = clients(connections_max=0, connection_rate_max=0, message_rate_max=0, recipient_rate_max=0, auth_failure_rate_max=0)
    here = [enter(table, PUBLIC, 0) for _ in range(500)]
    assert {table.take_message(here[0], 0) for _ in range(500)} == {table.take_recipient(here[0], 0) for _ in range(500)} == {None}
    for client in here:
        table.failed(client, 0)
        assert table.may_guess(client, 0) is None
        table.leave(client, 0)
    assert len(table) == 0


@given(
    events_max=st.integers(1, 50),
    interval_s=st.floats(0.5, 1000),
    steps=st.lists(st.floats(0, 100), max_size=200),
)
def test_no_window_holds_more_than_twice_the_rate(events_max: int, interval_s: float, steps: list[float]) -> None:
    """The burst and what comes back meanwhile: never more within any interval, and no refusal below the rate."""
    now, until, passed, rate = 0.0, 0.0, list[float](), Rate(events_max, interval_s)
    for step in steps:
        now += step
        later = rate.spend(until, now)
        if later is not None:
            until = later
            passed.append(now)
        else:
            assert len([at for at in passed if at > now - interval_s]) >= 1
    for begin in passed:
        assert len([at for at in passed if begin <= at < begin + interval_s]) <= 2 * events_max


def test_a_rate_survives_the_connection_but_not_its_reason() -> None:
    """A client that hangs up is remembered until its buckets have run empty, and then forgotten at the next occasion."""
    table = clients(connection_rate_max=1)
    table.leave(enter(table, PUBLIC, 0), 0)
    assert len(table) == 1
    assert table.enter(PUBLIC, 59) is TOO_OFTEN
    assert len(table) == 1
    table.leave(enter(table, ("192.0.2.2", 1), 60), 60)
    assert len(table) == 1


def test_ten_thousand_clients_leave_a_bounded_table() -> None:
    """Those gone longest are forgotten, whoever is connected is not, and each step stays cheap."""
    table = clients(remembered_max=1000, connections_max=1)
    stayed = enter(table, PUBLIC, 0)
    began = time.perf_counter()
    for number in range(10_000):
        table.leave(enter(table, (f"198.18.{number >> 8}.{number & 255}", 1), 0), 0)
        assert len(table) <= 1001
    assert time.perf_counter() - began < 2
    assert len(table) == 1001
    assert table.enter(PUBLIC, 0) is TOO_MANY
    assert enter(table, ("198.18.39.15", 1), 0).connections_until > 0.15  # 9999th: remembered, so its second connection adds up
    assert enter(table, ("198.18.0.0", 1), 0).connections_until < 0.15
    table.leave(stayed, 0)


def test_ten_thousand_guessers_leave_a_bounded_table() -> None:
    """Who has failed is remembered without a connection, and no more of them than any others."""
    table = clients(remembered_max=1000, connection_rate_max=0, auth_failure_rate_max=1)
    for number in range(10_000):
        client = enter(table, (f"198.18.{number >> 8}.{number & 255}", 1), 0)
        table.failed(client, 0)
        table.leave(client, 0)
    assert len(table) == 1000
    assert table.may_guess(enter(table, ("198.18.39.15", 1), 59), 59) is TOO_MANY_GUESSES
    assert table.may_guess(enter(table, ("198.18.39.15", 2), 60), 60) is None


def test_what_is_known_of_hosts_is_bounded() -> None:
    """Whether a host is exempt is remembered for some, and asked again for others."""
    table = clients()
    for number in range(5000):
        table.enter((f"10.0.{number >> 8}.{number & 255}", 1), 0)
    assert len(table._keys) <= 1024


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 30)), max_size=200))
def test_counts_come_back_to_nothing(steps: list[tuple[int, bool, float]]) -> None:
    """Whoever comes and goes in whatever order: no count is ever below zero, and none is left."""
    table = clients(connections_max=3, connection_rate_max=10, remembered_max=3)
    here: list[Client] = []
    now = 0.0
    for number, comes, step in steps:
        now += step
        if comes:
            met = table.enter((f"192.0.2.{number}", 1), now)
            assert isinstance(met, Client | Refusal)
            here += [met] if isinstance(met, Client) else []
        elif here:
            table.leave(here.pop(number % len(here)), now)
        assert table.connections == len(here)
        assert all(0 < client.open <= 3 for client in here)
        assert len(table) <= len(here) + 3
    for client in here:
        table.leave(client, now)
    assert table.connections == 0
