"""What a reload changes, by path."""

from __future__ import annotations

import pytest

from postbus.config import changes, load


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, (), id="nothing"),
        pytest.param({"POSTBUS__HOSTNAME": "mx"}, ("hostname",), id="a leaf"),
        pytest.param({"POSTBUS__LISTENERS__SMTP__LIMITS__ERRORS_MAX": "3"}, ("listeners.smtp.limits.errors_max",), id="a leaf below"),
        pytest.param({"POSTBUS__LISTENERS__LMTP__ADDRESS": ":24"}, ("listeners.lmtp",), id="a new name"),
        pytest.param({"POSTBUS__ROUTES__0__MODE": "raw"}, ("routes[0].mode",), id="in a list"),
        pytest.param({"POSTBUS__ROUTES__0__MATCH": '["a@x", "b@x"]'}, ("routes[0].match",), id="a list grown"),
        pytest.param({"POSTBUS__SINKS__STDOUT": '{"kind": "file", "path": "x"}'}, ("sinks.stdout.path",), id="a tree given whole"),
    ],
)
def test_changes(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    """Paths only, so that no value reaches the log."""
    assert expected == changes(load(None, {}).settings, load(None, environ).settings)
