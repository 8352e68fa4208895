"""How sends end, in words and folded."""

from __future__ import annotations

from typing import Any

import pytest

from postbus.bridge.outcomes import WORDS, Unfit, fold, known
from postbus.sinks import Outcome, Rejected, Retry, Sent


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([Sent("a")], Sent("a"), id="one"),
        pytest.param([Sent("a"), Sent("b")], Sent("a; b"), id="all"),
        pytest.param([Sent(), Rejected("no"), Retry("later")], Retry("later"), id="retry wins"),
        pytest.param([Sent(), Rejected("no"), Rejected("never")], Rejected("no"), id="rejected before sent"),
        pytest.param([Sent(), Unfit("no event")], Unfit("no event"), id="no event is a refusal"),
        pytest.param([], Sent(), id="nothing required"),
    ],
)
def test_fold(outcomes: list[Outcome], expected: Outcome) -> None:
    """The least good outcome speaks for all."""
    assert expected == fold(outcomes)


@pytest.mark.parametrize("outcome", [Sent(), Retry("x"), Rejected("x"), Unfit("x")])
def test_outcomes_are_known_and_have_words(outcome: Outcome) -> None:
    """Whatever a sink may say."""
    assert outcome is known(outcome)
    assert WORDS[type(outcome)]


@pytest.mark.parametrize("said", [None, True, "sent", Sent])
def test_what_is_no_outcome_is_a_mistake(said: Any) -> None:
    """It would fail later, where the delivery might be lost."""
    with pytest.raises(TypeError, match="a sink answered"):
        known(said)
