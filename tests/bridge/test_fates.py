"""The ring of the last transactions: what is remembered, in which order, and for how long."""

from __future__ import annotations

from postbus.bridge.fates import RECIPIENTS_MAX, TRANSACTIONS_MAX, Fates
from postbus.event.mail import Mail
from tests.bridge.mails import mail, recipient


def at(serial: int, *recipients: int) -> Mail:
    """Return a mail of its own id, with recipients at these places of its transaction."""
    return mail(f"t{serial}", b"", *(recipient(f"e{serial}.{index}", index=index) for index in recipients))


def test_what_is_not_settled_waits() -> None:
    """Then each event has its own word, and the sink's detail."""
    fates, one = Fates(), at(1, 0, 1)
    fates.begin(one)
    sink = one.recipients[0].sinks[0]
    assert {"waiting"} == {fate.word for fate in fates.of("t1") or ()}
    fates.settle(one, "e1.1", sink, "delivered", "200")
    fates.settle(one, "e1.0", sink, "trying again")
    found = {(fate.event_id, fate.sink): (fate.word, fate.detail, fate.decided) for fate in fates.of("t1") or ()}
    assert ("trying again", "", False) == found["e1.0", sink]
    assert ("delivered", "200", True) == found["e1.1", sink]


def test_parts_of_a_transaction_are_one() -> None:
    """Some recipients held, some spooled: all are shown, in the order of the transaction."""
    fates = Fates()
    fates.begin(at(1, 1))
    fates.begin(at(1, 0, 2))
    assert ["e1.0", "e1.1", "e1.2"] == list(dict.fromkeys(fate.event_id for fate in fates.of("t1") or ()))


def test_the_oldest_is_forgotten() -> None:
    """The ring has so many places; what is not in it is not known, and settling it changes nothing."""
    fates = Fates()
    for serial in range(TRANSACTIONS_MAX + 1):
        fates.begin(at(serial, 0))
    fates.settle(at(0, 0), "e0.0", "x", "delivered")
    assert fates.of("t0") is None
    assert fates.of("t1") is not None
    assert fates.of(f"t{TRANSACTIONS_MAX}") is not None


def test_a_transaction_of_very_many_is_not_remembered() -> None:
    """Memory stays small."""
    fates = Fates()
    fates.begin(at(1, *range(RECIPIENTS_MAX + 1)))
    assert fates.of("t1") is None
