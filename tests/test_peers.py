"""A real peer that is missing: a laptop is told why a test skips, CI fails."""

from __future__ import annotations

import pytest

from tests import peers


def test_a_laptop_skips_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the peer and how to get it."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not here: install it"):
        peers.need("no-such-program", "install it")


def test_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no proof is lost in silence."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not here: install it"):
        peers.need("no-such-program", "install it")


def test_a_program_is_found() -> None:
    """In the sbin folders too, where Postfix is."""
    assert peers.need("sh", "impossible").endswith("/sh")
