"""Settings of log and traces."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from postbus.telemetry.settings import TelemetrySettings


def test_defaults_hide_addresses_and_cost_nothing() -> None:
    """Only domains are logged, and without a collector nothing is traced."""
    settings = TelemetrySettings()
    assert ("domain", "auto", None) == (settings.log_addresses, settings.log_format, settings.otlp_endpoint)


@pytest.mark.parametrize("wrong", [{"log_level": "loud"}, {"trace_ratio": 1.5}, {"log_adresses": "full"}], ids=str)
def test_what_is_wrong_is_named(wrong: dict[str, object]) -> None:
    """Unknown words, numbers out of range and unknown keys are errors."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TelemetrySettings.model_validate(wrong)
