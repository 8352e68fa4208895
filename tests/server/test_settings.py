"""What an operator may set, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from postbus.server.settings import LimitSettings, ListenerSettings, TimeoutSettings, TlsSettings, address_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("127.0.0.1:25", ("127.0.0.1", 25), id="IPv4"),
        pytest.param("[::1]:2525", ("::1", 2525), id="IPv6"),
        pytest.param("mx.example:25", ("mx.example", 25), id="a name"),
        pytest.param(":25", ("", 25), id="all interfaces"),
        pytest.param("*:25", ("", 25), id="all interfaces, said so"),
        pytest.param("unix:/run/mx.sock", Path("/run/mx.sock"), id="a Unix socket"),
        pytest.param("/run/mx.sock", Path("/run/mx.sock"), id="a path"),
    ],
)
def test_addresses(text: str, expected: Any) -> None:
    """Every form there is."""
    assert expected == address_of(text)
    assert ListenerSettings(address=text).address == text


@pytest.mark.parametrize("text", ["", "25", "mx.example", "mx:smtp", "mx:65536", "::1:25", "unix:relative"])
def test_what_is_no_address(text: str) -> None:
    """It is refused with the forms that would be right, or how."""
    with pytest.raises(ValidationError, match=r"expected host:port|brackets|absolute"):
        ListenerSettings(address=text)


def test_tls_needs_a_certificate() -> None:
    """Any mode but none."""
    with pytest.raises(ValidationError, match="needs a certificate"):
        TlsSettings(mode="require")
    assert TlsSettings(mode="none").certificate is None


@pytest.mark.parametrize("model", [ListenerSettings, TlsSettings, LimitSettings, TimeoutSettings])
def test_every_setting_is_described_and_nothing_else_is_taken(model: type[Any]) -> None:
    """The manual is made from the descriptions."""
    for field in model.model_fields.values():
        assert field.description
    with pytest.raises(ValidationError, match="Extra inputs"):
        model(mode="none", unheard_of=1) if model is TlsSettings else model(unheard_of=1)
