"""Standard Webhooks signatures, with the reference library as the oracle."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from postbus.sinks.settings import signing_key
from postbus.sinks.webhook.signing import signature

KEY = bytes(range(32))


def test_the_published_example() -> None:
    """Fixed key, id, time and body give the signature that the reference library gave."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    when = datetime.fromtimestamp(1_614_265_330, tz=UTC)
    expected = standardwebhooks.Webhook(secret).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", when, '{"test": 2432232314}')
    assert signature([signing_key(secret)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}') == expected
    assert expected == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=24, max_size=64), st.text(st.characters(codec="utf-8")), st.integers(0, 4_000_000_000))
def test_any_text_is_signed_as_the_oracle_signs_it(key: bytes, body: str, timestamp_s: int) -> None:
    """Key, time and body of any kind (the oracle knows text only)."""
    oracle = standardwebhooks.Webhook(key).sign("id", datetime.fromtimestamp(timestamp_s, tz=UTC), body)
    assert signature([key], "id", timestamp_s, body.encode()) == oracle


def test_octets_that_are_no_text_are_signed() -> None:
    """The signature is over octets, whatever they mean."""
    assert signature([KEY], "id", 1, b"\xff\x00") != signature([KEY], "id", 1, b"\xff\x01")


def test_several_keys_give_several_signatures() -> None:
    """Separated by one space, in the order of the keys."""
    both = signature([KEY, KEY[::-1]], "id", 1, b"{}")
    assert both == f"{signature([KEY], 'id', 1, b'{}')} {signature([KEY[::-1]], 'id', 1, b'{}')}"


def test_an_id_with_a_dot_is_refused() -> None:
    """A dot parts the signed string: an id with one could be moved into the time."""
    with pytest.raises(ValueError, match="cannot be signed"):
        signature([KEY], "a.b", 1, b"{}")


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param("whsec_" + base64.b64encode(KEY).decode(), id="padded"),
        pytest.param("whsec_" + base64.b64encode(KEY).decode().rstrip("="), id="bare"),
    ],
)
def test_a_secret_is_its_key(secret: str) -> None:
    """Padding is optional."""
    assert signing_key(secret) == KEY


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        pytest.param("hunter2", "begins with whsec_", id="no prefix"),
        pytest.param("whsec_hunter2!", "is base64", id="no base64"),
        pytest.param("whsec_aaaaa", "is base64", id="impossible length"),
        pytest.param("whsec_", "24 to 64", id="empty"),
        pytest.param("whsec_" + base64.b64encode(b"k" * 23).decode(), "24 to 64", id="short"),
        pytest.param("whsec_" + base64.b64encode(b"k" * 65).decode(), "24 to 64", id="long"),
        pytest.param("whsk_" + base64.b64encode(KEY).decode(), "begins with whsec_", id="ed25519"),
    ],
)
def test_what_is_no_secret_is_refused_without_repeating_it(secret: str, expected: str) -> None:
    """The message says what is wrong and shows nothing of the secret."""
    with pytest.raises(ValueError, match=expected) as caught:
        signing_key(secret)
    body = secret.removeprefix("whsec_").removeprefix("whsk_")
    assert not body or body not in str(caught.value)
