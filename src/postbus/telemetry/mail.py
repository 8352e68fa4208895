"""The facts of every message, apart from the others so that they are compiled in the image (pyproject.toml)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from postbus.telemetry.lines import LOG
from postbus.telemetry.numbers import NUMBERS

RECIPIENTS_IN_A_LINE: Final = 10
"""A line names so many recipients; the count says how many there were."""


def message_answered(
    *,
    listener: str,
    session: str,
    transaction: str,
    mail_from: str,
    recipients: Sequence[tuple[str, str, int]],
    mode: str,
    size_octets: int,
    seconds: float,
) -> None:
    """The summary of a message: *recipients* are (address, route, reply code); *seconds* from the last dot to the answer."""
    accepted = False
    for _, route, code in recipients:
        accepted = accepted or code < 300
        NUMBERS.count("postbus_recipients_total", route, "accepted" if code < 300 else "failed")
    NUMBERS.count("postbus_messages_total", listener, "accepted" if accepted else "refused")
    if accepted:
        NUMBERS.observe("postbus_message_octets", size_octets, listener)
    NUMBERS.observe("postbus_acceptance_seconds", seconds, mode)
    LOG.log(
        "info",
        "message.accepted" if accepted else "message.refused",
        listener=listener,
        session=session,
        transaction=transaction,
        mail_from=LOG.address(mail_from),
        recipients=[f"{LOG.address(recipient)} {route} {code}" for recipient, route, code in recipients[:RECIPIENTS_IN_A_LINE]],
        recipients_count=len(recipients),
        mode=mode,
        size_octets=size_octets,
        seconds=round(seconds, 3),
    )


def mail_parsed(*, place: str, outcome: str, seconds: float) -> None:
    """A message was parsed, or not: ``place`` process, worker or none; ``outcome`` parsed or the code of the defect."""
    NUMBERS.count("postbus_parses_total", place, outcome)
    NUMBERS.observe("postbus_parse_seconds", seconds, place)


def delivery_attempted(*, sink: str, outcome: str, seconds: float) -> None:
    """One attempt to deliver an event ended: ``sent``, ``retry`` or ``rejected``."""
    NUMBERS.count("postbus_deliveries_total", sink, outcome)
    NUMBERS.observe("postbus_delivery_seconds", seconds, sink)


def delivery_done(*, sink: str, lag_s: float) -> None:
    """A sink has an event; *lag_s* since its message was accepted."""
    NUMBERS.observe("postbus_delivery_lag_seconds", lag_s, sink)
