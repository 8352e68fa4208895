"""What an operator says of parameters becomes EHLO lines."""

from __future__ import annotations

import pytest

from postbus.server.parameter_settings import Announced, ParameterSettings, keywords


@pytest.mark.parametrize(
    ("announce", "settings", "expected"),
    [
        pytest.param((), ParameterSettings(deliverby_min_s=5, priority_profile="MIXER"), (), id="nothing"),
        pytest.param(("DSN", "DELIVERBY", "MT-PRIORITY"), ParameterSettings(), ("DSN", "DELIVERBY", "MT-PRIORITY"), id="bare"),
        pytest.param(("DELIVERBY",), ParameterSettings(deliverby_min_s=1800), ("DELIVERBY 1800",), id="least time"),
        pytest.param(("MT-PRIORITY",), ParameterSettings(priority_profile="NSEP"), ("MT-PRIORITY NSEP",), id="profile"),
        pytest.param(("DSN", "DSN"), ParameterSettings(), ("DSN",), id="twice"),
    ],
)
def test_keywords(announce: tuple[Announced, ...], settings: ParameterSettings, expected: tuple[str, ...]) -> None:
    """With their values, once each."""
    assert expected == keywords(announce, settings)
