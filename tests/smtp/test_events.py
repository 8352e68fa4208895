"""Events are values."""

from __future__ import annotations

import pytest

from postbus.smtp import EndOfMessage, Mail, Rcpt, Rset, Signal
from postbus.smtp.events import NO_DEFECTS, NO_PARAMETERS


def test_events_compare_by_kind_and_content() -> None:
    """Equal facts are equal, others are not."""
    assert Mail("a@b") == Mail("a@b", {}, {})
    other: object = Rcpt("a@b")
    assert other != Mail("a@b")
    assert Rset() == Rset()
    assert EndOfMessage(1) != EndOfMessage(2)


def test_events_name_their_input() -> None:
    """Each event knows its name in the transition table."""
    assert (Mail("").verb, Rcpt("x").verb, EndOfMessage(0).verb) == ("MAIL", "RCPT", ".")


def test_the_empty_mappings_are_shared_and_read_only() -> None:
    """Nobody can put a parameter into every transaction."""
    assert Mail("").parameters is NO_PARAMETERS
    assert Mail("").defects is NO_DEFECTS
    with pytest.raises(TypeError):
        NO_PARAMETERS["X"] = "1"  # type: ignore[index]


def test_signals() -> None:
    """There are three reasons for no event."""
    assert {"NEED_DATA", "PAUSED", "CLOSED"} == set(Signal.__members__)
