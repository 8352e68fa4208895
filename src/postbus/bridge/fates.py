"""What became of the last few transactions: for whoever has just sent a mail and asks (``postbus send`` does).

A ring in memory, without addresses, not a record: the log is that, and the dead letters. It costs a dictionary's entry per message.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from postbus.event.mail import Mail

TRANSACTIONS_MAX = 256
"""Transactions remembered; the oldest goes first."""
RECIPIENTS_MAX = 100
"""A transaction with more recipients is not remembered, so that the ring's memory stays below a few MiB."""

Word = Literal["waiting", "trying again", "delivered", "dead letter", "given up", "damaged"]
UNDECIDED: frozenset[Word] = frozenset({"waiting", "trying again"})


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one event on its way to one sink.

    Attributes:
        event_id, route, sink: its names.
        required: a best-effort sink's event leaves no dead letter.
        word: how it stands; detail: what the sink said when it took it (``topic/partition/offset``, ``200``), else ``""``.
    """

    event_id: str
    route: str
    sink: str
    required: bool
    word: Word
    detail: str

    @property
    def decided(self) -> bool:
        """Nothing more will happen by itself."""
        return self.word not in UNDECIDED


class Fates:
    """The ring. One for the process: spool and hold write into it."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[list[Mail], dict[tuple[str, str], tuple[Word, str]]]] = OrderedDict()

    def begin(self, mail: Mail) -> None:
        """Remember that *mail*, or the part of its recipients that it holds, is on its way."""
        if len(mail.recipients) > RECIPIENTS_MAX:
            return
        known = self._known
        entry = known.get(mail.id)
        if entry is not None:
            entry[0].append(mail)
            return
        known[mail.id] = ([mail], {})
        if len(known) > TRANSACTIONS_MAX:
            known.popitem(last=False)

    def settle(self, mail: Mail, event_id: str, sink: str, word: Word, detail: str = "") -> None:
        """Note how the event stands at *sink* now."""
        entry = self._known.get(mail.id)
        if entry is not None:
            entry[1][event_id, sink] = (word, detail)

    def of(self, transaction_id: str) -> list[Fate] | None:
        """Return how every event of the transaction stands, in the order of its recipients; ``None`` when it is not remembered."""
        entry = self._known.get(transaction_id)
        if entry is None:
            return None
        mails, said = entry
        recipients = sorted((recipient for mail in mails for recipient in mail.recipients), key=lambda recipient: recipient.index)
        return [
            Fate(recipient.event_id, recipient.route, sink, required, *said.get((recipient.event_id, sink), ("waiting", "")))
            for recipient in recipients
            for sinks, required in ((recipient.sinks, True), (recipient.best_effort, False))
            for sink in sinks
        ]
