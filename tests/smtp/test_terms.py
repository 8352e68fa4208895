"""The terms of a session keep what the RFCs ask."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from postbus.smtp import Limits, Offer


def test_limits_are_no_smaller_than_the_rfc_allows() -> None:
    """RFC 5321 s4.5.3.1: 512 octets of command, 1000 of text line, 100 recipients."""
    limits = Limits()
    assert limits.command_octets >= 512
    assert limits.text_line_octets >= limits.text_line_flag_octets >= 1000
    assert limits.recipients >= 100
    assert limits.overrun_factor >= 1


def test_the_defaults_are_the_safe_ones() -> None:
    """Nobody has to ask for strictness."""
    offer = Offer("mx.test")
    assert offer.strict_pipelining
    assert offer.stray == "reject"
    assert not offer.lenient_paths
    with pytest.raises(FrozenInstanceError):
        offer.stray = "allow"  # type: ignore[misc]
