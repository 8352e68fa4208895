"""Limits under pressure."""

from __future__ import annotations

import pytest

from postbus.server.pressure import RECIPIENTS_MIN, STEPS, lowered
from postbus.smtp import Limits


@pytest.mark.parametrize(
    ("load", "mails", "recipients", "domains"),
    [
        pytest.param(0.0, 0, 1000, 30, id="idle"),
        pytest.param(0.74, 0, 1000, 30, id="busy"),
        pytest.param(0.75, 20, 500, 15, id="three quarters"),
        pytest.param(0.9, 5, 100, 3, id="nearly full"),
        pytest.param(0.97, 1, 100, 1, id="full"),
        pytest.param(3.0, 1, 100, 1, id="beyond"),
    ],
)
def test_limits_follow_the_load(load: float, mails: int, recipients: int, domains: int) -> None:
    """Step by step; never below what RFC 5321 asks for."""
    found = lowered(Limits(recipient_domains=30), load)
    assert (mails, recipients, domains) == (found.mails, found.recipients, found.recipient_domains)


def test_nothing_is_ever_raised() -> None:
    """An operator's own limits are the upper bound, and what is not limited by domain stays so."""
    own = Limits(mails=3, recipients=RECIPIENTS_MIN)
    for load, _, _ in STEPS:
        found = lowered(own, load)
        assert found.mails <= 3
        assert found.recipients == RECIPIENTS_MIN
        assert found.recipient_domains == 0
    assert lowered(Limits(recipients=10), 1.0).recipients == 10
