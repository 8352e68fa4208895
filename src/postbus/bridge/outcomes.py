"""How a send can end, beyond what sinks say of it: in words, and folded into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postbus.sinks import Outcome, Rejected, Retry, Sent


@dataclass(frozen=True, slots=True)
class Unfit(Rejected):
    """There is no event to send: the mail cannot be parsed, and is too large for its sinks as it is. True of it for good."""


WORDS: dict[type, str] = {Sent: "sent", Retry: "retry", Rejected: "rejected", Unfit: "rejected"}
"""Outcomes as labels of metrics."""


def known(outcome: Outcome) -> Outcome:
    """Return *outcome* if it is one: sinks come from other packages too.

    Raises:
        TypeError: it is none.
    """
    if type(outcome) not in WORDS:
        raise TypeError(f"a sink answered {type(outcome).__name__}")
    return outcome


def fold(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome that speaks for all of *outcomes*: a Retry if there is one, else a Rejected, else Sent."""
    for kind in (Retry, Rejected):
        for outcome in outcomes:
            if isinstance(outcome, kind):
                return outcome
    return Sent("; ".join(outcome.detail for outcome in outcomes if isinstance(outcome, Sent)))
