"""Ids, normalised addresses, keys."""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event.ids import RANDOM_OCTETS, dedupe_key, normalize, partition_key, uuid7


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=RANDOM_OCTETS, max_size=16))
def test_an_id_is_a_version_7_uuid_that_tells_its_time(now_ms: int, random: bytes) -> None:
    """The standard library reads version, variant and the time back."""
    found = uuid.UUID(uuid7(now_ms, random))
    assert (7, uuid.RFC_4122, now_ms) == (found.version, found.variant, found.int >> 80)


def test_ids_sort_by_time_and_keep_their_randomness() -> None:
    """Later ids are greater; of 80 random bits 74 stay."""
    assert uuid7(1, b"\xff" * 10) < uuid7(2, b"\x00" * 10)
    assert "00000000-0001-7fff-bfff-ffffffffffff" == uuid7(1, b"\xff" * 10)
    assert "00000000-0001-7000-8000-000000000000" == uuid7(1, b"\x00" * 10)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("Bob@Example.ORG", "bob@example.org", id="case"),
        pytest.param("Bob+Tag@example.org", "bob+tag@example.org", id="tag stays"),
        pytest.param('"bob"@example.org', "bob@example.org", id="needless quotes"),
        pytest.param('"b\\ob"@example.org', "bob@example.org", id="needless escape"),
        pytest.param('"b ob"@example.org', '"b ob"@example.org', id="needed quotes"),
        pytest.param('"a@b"@example.org', '"a@b"@example.org', id="at sign inside quotes"),
        pytest.param('"a..b"@example.org', '"a..b"@example.org', id="no dot-string"),
        pytest.param("bob@example.org.", "bob@example.org", id="final dot"),
        pytest.param("bob@b\u00fccher.example", "bob@xn--bcher-kva.example", id="A-labels"),
        pytest.param("J\u00d6rg@example.org", "j\u00d6rg@example.org", id="only ASCII is lower-cased"),
        pytest.param("Postmaster", "postmaster", id="no domain"),
        pytest.param("bob@[192.0.2.1]", "bob@[192.0.2.1]", id="address literal"),
        pytest.param("bob@" + "\u00fc" * 80, "bob@" + "\u00fc" * 80, id="label too long for IDNA"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_one_mailbox_has_one_spelling(address: str, expected: str) -> None:
    """What spells the same mailbox becomes the same text."""
    assert expected == normalize(address)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(address: str) -> None:
    """The result is a fixed point, whatever comes in."""
    once = normalize(address)
    assert once == normalize(once)


def test_keys_are_hashes_of_what_they_stand_for() -> None:
    """As published: base64url of SHA-256, without padding."""
    digest = sha256(b"octets").hexdigest()
    seed = b"a@x\x00b@y\x00" + bytes.fromhex(digest)
    assert _plain(seed) == dedupe_key("a@x", "b@y", digest)
    assert _plain(b"b@y") == partition_key("b@y")
    assert 43 == len(partition_key("\ud800"))


def _plain(seed: bytes) -> str:
    return urlsafe_b64encode(sha256(seed).digest()).decode().rstrip("=")


def test_the_dedupe_key_differs_when_anything_differs() -> None:
    """Sender, recipient and octets all count, and cannot run into each other."""
    digest, other = sha256(b"1").hexdigest(), sha256(b"2").hexdigest()
    keys = {dedupe_key("a", "b", digest), dedupe_key("ab", "", digest), dedupe_key("", "ab", digest), dedupe_key("a", "b", other)}
    assert 4 == len(keys)
